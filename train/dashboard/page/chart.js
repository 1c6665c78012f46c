// One chart: lines over a common axis, drawn as SVG, with a cross-hair, values under the pointer, and zoom by dragging.

import { between, brief, clock, nearest, short, smoothed, ticks, whole } from "./numbers.js";
import { word } from "./words.js";

const MARGIN = { left: 54, right: 12, top: 10, bottom: 24 };
const HEIGHT = 230, NEAR = 7; // pixels
const FEW_LINES = 8, MOST_DOTS = 60, FINEST = 1e-6;
const AXES = { step: whole, tokens: brief, elapsed_seconds: clock };
const charts = new Set();

/** An SVG or HTML element with attributes, at the end of another. */
export function add(parent, name, attributes = {}, text) {
  const space = name === "svg" ? "http://www.w3.org/2000/svg" : parent.namespaceURI;
  const element = document.createElementNS(space, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

export class Chart {
  /**
   * @param onZoom called with two values of the axis, or null for all of it
   */
  constructor(parent, id, title, logarithmic, onZoom) {
    this.id = id;
    this.onZoom = onZoom;
    this.figure = add(parent, "figure", { class: "chart", id: `chart-${id.replace(/\W/g, "-")}` });
    const head = add(this.figure, "figcaption");
    this.title = add(head, "b", {}, title);
    this.key = add(head, "span", { class: "key" });
    this.button = add(head, "button", { type: "button", class: "log" });
    const kept = localStorage.getItem(`log ${id}`);
    this.logarithmic = kept === null ? logarithmic : kept === "true";
    this.button.addEventListener("click", () => {
      this.logarithmic = !this.logarithmic;
      localStorage.setItem(`log ${id}`, this.logarithmic);
      this.draw();
    });
    this.svg = add(this.figure, "svg", { role: "img" });
    this.tip = add(this.figure, "div", { class: "tip", hidden: "" });
    this.content = { lines: [], marks: [], axis: "step", smooth: 0, range: null };
    this.pointer = null;
    this.svg.addEventListener("pointermove", (event) => this.pointed(event));
    this.svg.addEventListener("pointerdown", (event) => this.pointed(event));
    this.svg.addEventListener("pointerleave", (event) => event.pointerType !== "touch" && this.left());
    this.svg.addEventListener("pointerdown", (event) => this.pressed(event));
    this.svg.addEventListener("pointerup", (event) => this.released(event));
    this.svg.addEventListener("dblclick", () => this.onZoom(null));
    new ResizeObserver(() => this.draw()).observe(this.figure);
    charts.add(this);
  }

  /**
   * Show other content.
   * @param lines [{label, color, x, y, low, high, dashed, dots, quiet}]: low and high only where a point stands for
   *   several values; a quiet line has no place in the key
   * @param marks [{x, kind, text}] of events
   */
  update(title, content) {
    this.title.textContent = title;
    this.content = content;
    this.draw();
  }

  remove() {
    charts.delete(this);
    this.figure.remove();
  }

  draw() {
    this.button.textContent = word("log");
    this.button.setAttribute("aria-pressed", this.logarithmic);
    this.svg.replaceChildren();
    const width = this.figure.clientWidth;
    this.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.svg.setAttribute("height", HEIGHT);
    const { smooth, range, axis } = this.content;
    const usable = (value) => Number.isFinite(value) && (!this.logarithmic || value > 0);
    this.lines = this.content.lines
      .map((line) => ({ ...line, shown: smooth && !line.dots ? smoothed(line.y, smooth) : line.y }))
      .filter((line) => line.shown.some(usable));
    this.drawKey();
    const xs = this.lines.flatMap((line) => [line.x[0], line.x[line.x.length - 1]]);
    const ys = this.lines.flatMap((line) => line.shown.filter(usable));
    this.area = null;
    if (!ys.length || width < 100) {
      const middle = { x: width / 2, y: HEIGHT / 2, "text-anchor": "middle" };
      add(this.svg, "text", middle, word("Waiting for the first values."));
      return;
    }
    const [low, high] = this.limits(ys);
    const first = range ? range[0] : Math.min(0, ...xs), least = first + FINEST * Math.max(1, Math.abs(first));
    const last = Math.max(range ? range[1] : Math.max(...xs), least);
    const inner = { left: MARGIN.left, right: width - MARGIN.right, top: MARGIN.top, bottom: HEIGHT - MARGIN.bottom };
    const scale = (value) => this.logarithmic ? Math.log(value) : value;
    this.area = {
      ...inner, first, last,
      x: (value) => inner.left + (inner.right - inner.left) * (value - first) / (last - first),
      y: (value) => inner.bottom - (inner.bottom - inner.top)
        * (scale(value) - scale(low)) / (scale(high) - scale(low)),
      value: (x) => first + (last - first) * (x - inner.left) / (inner.right - inner.left),
    };
    this.drawAxes(low, high, AXES[axis]);
    this.drawLines(usable);
    this.cross = add(this.svg, "line", { class: "cross", y1: inner.top, y2: inner.bottom, visibility: "hidden" });
    this.dots = add(this.svg, "g");
    const tall = { y: inner.top, height: inner.bottom - inner.top };
    this.band = add(this.svg, "rect", { class: "band", ...tall, visibility: "hidden" });
    const told = this.lines.slice(0, FEW_LINES).map((line) => `${line.label} ${short(line.y[line.y.length - 1])}`);
    if (this.pointer) this.follow();
    this.svg.setAttribute("aria-label", `${this.title.textContent}: ${told.join(", ")}`);
  }

  limits(values) {
    let low = Infinity, high = -Infinity;
    for (const value of values) {
      if (value < low) low = value;
      if (value > high) high = value;
    }
    // Ends that differ by less than this are rounding of one value, and have no round numbers between them.
    if (high - low <= FINEST * Math.max(Math.abs(low), Math.abs(high))) {
      if (this.logarithmic) return [low / 2, high * 2];
      high = low;
    }
    if (this.logarithmic) return [low / (high / low) ** 0.05, high * (high / low) ** 0.05];
    const room = (high - low) * 0.05 || Math.abs(high) * 0.1 || 1;
    return [low >= 0 ? Math.max(0, low - room) : low - room, high + room];
  }

  drawKey() {
    this.key.replaceChildren();
    const named = this.lines.filter((line) => !line.quiet), many = named.length > FEW_LINES;
    for (const line of many ? [named[0], named[named.length - 1]] : named) {
      if (many && line !== named[0]) add(this.key, "span", {}, "…");
      const item = add(this.key, "span");
      add(item, "i", { class: line.dashed ? "swatch dashed" : "swatch" }).style.color = line.color;
      add(item, "span", {}, line.label);
      if (!many) add(item, "b", {}, short(line.y[line.y.length - 1]));
    }
  }

  drawAxes(low, high, format) {
    const { left, right, top, bottom, first, last, x, y } = this.area;
    for (const value of ticks(low, high, 5, this.logarithmic)) {
      if (value < low || value > high) continue;
      add(this.svg, "line", { class: "grid", x1: left, x2: right, y1: y(value), y2: y(value) });
      const text = Math.abs(value) >= 1000 ? brief(value) : short(value);
      add(this.svg, "text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, text);
    }
    const about = Math.max(2, Math.floor((right - left) / 80));
    for (const value of ticks(first, last, about, false, this.content.axis === "elapsed_seconds")) {
      if (value > last) continue;
      add(this.svg, "line", { class: "grid", x1: x(value), x2: x(value), y1: top, y2: bottom });
      const anchor = x(value) > right - 14 ? "end" : "middle";
      add(this.svg, "text", { x: x(value), y: bottom + 16, "text-anchor": anchor }, format(value));
    }
  }

  drawLines(usable) {
    const { left, right, top, bottom, x, y } = this.area;
    const clip = `clip-${this.figure.id}`;
    const inside = { x: left, y: top, width: right - left + 4, height: bottom - top + 4 };
    add(add(this.svg, "clipPath", { id: clip }), "rect", inside);
    const group = add(this.svg, "g", { "clip-path": `url(#${clip})` });
    const place = (xs, ys) => {
      let path = "", pen = "M";
      for (let i = 0; i < xs.length; i++) {
        if (!usable(ys[i])) { pen = "M"; continue; }
        path += `${pen}${x(xs[i]).toFixed(1)} ${y(ys[i]).toFixed(1)}`;
        pen = "L";
      }
      return path;
    };
    for (const mark of this.content.marks) {
      add(group, "line", { class: `mark ${mark.kind}`, x1: x(mark.x), x2: x(mark.x), y1: top, y2: bottom });
    }
    for (const line of [...this.lines].reverse()) {
      if (line.low && line.low.every(usable)) {
        const back = place([...line.x].reverse(), [...line.low].reverse()).replace("M", "L");
        add(group, "path", { class: "spread", d: `${place(line.x, line.high)}${back}Z` }).style.fill = line.color;
      }
      const draw = (kind, ys) => {
        add(group, "path", { class: kind, d: place(line.x, ys) }).style.stroke = line.color;
      };
      if (line.shown !== line.y) draw("curve faint", line.y);
      draw(line.dashed ? "curve dashed" : "curve", line.shown);
      for (let i = 0; line.dots && line.x.length <= MOST_DOTS && i < line.x.length; i++) {
        if (!usable(line.y[i])) continue;
        add(group, "circle", { cx: x(line.x[i]), cy: y(line.y[i]), r: 2.5 }).style.fill = line.color;
      }
    }
  }

  /** Show the cross-hair at a value of the axis; null: none. */
  showCross(value) {
    if (!this.area) return;
    const inside = value !== null && value >= this.area.first && value <= this.area.last;
    this.cross.setAttribute("visibility", inside ? "visible" : "hidden");
    if (inside) for (const end of ["x1", "x2"]) this.cross.setAttribute(end, this.area.x(value));
  }

  pointed(event) {
    const box = this.svg.getBoundingClientRect();
    this.pointer = { x: event.clientX - box.left, y: event.clientY - box.top };
    if (this.area) this.follow();
  }

  /** Show what is under the pointer. */
  follow() {
    const { x, y } = this.pointer;
    const value = Math.min(this.area.last, Math.max(this.area.first, this.area.value(x)));
    for (const chart of charts) chart.showCross(value);
    if (this.start !== undefined) {
      this.band.setAttribute("x", Math.min(x, this.start));
      this.band.setAttribute("width", Math.abs(x - this.start));
      this.band.setAttribute("visibility", "visible");
    }
    this.showTip(x, y, value);
  }

  showTip(x, y, value) {
    const found = this.lines.map((line) => ({ line, i: nearest(line.x, value) }))
      .filter(({ line, i }) => Number.isFinite(line.shown[i]))
      .map(({ line, i }) => ({ line, i, px: this.area.x(line.x[i]), py: this.area.y(line.shown[i]) }));
    const rows = found.length <= FEW_LINES ? found
      : found.sort((a, b) => Math.abs(a.py - y) - Math.abs(b.py - y)).slice(0, 5).sort((a, b) => a.py - b.py);
    this.dots.replaceChildren();
    this.tip.replaceChildren();
    const axis = AXES[this.content.axis];
    add(this.tip, "div", { class: "soft" }, `${axis(rows.length ? rows[0].line.x[rows[0].i] : value)}`);
    for (const { line, i, px, py } of rows) {
      add(this.dots, "circle", { cx: px, cy: py, r: 3.5 }).style.fill = line.color;
      const row = add(this.tip, "div");
      add(row, "i", { class: line.dashed ? "swatch dashed" : "swatch" }).style.color = line.color;
      add(row, "span", {}, line.label);
      add(row, "b", {}, short(line.y[i]));
    }
    for (const mark of this.content.marks.filter((one) => Math.abs(this.area.x(one.x) - x) < NEAR).slice(0, 4)) {
      add(this.tip, "div", { class: `event ${mark.kind}` }, mark.text);
    }
    this.placeTip(x);
  }

  placeTip(x, y = MARGIN.top) {
    this.tip.hidden = false;
    const above = this.svg.getBoundingClientRect().top - this.figure.getBoundingClientRect().top;
    this.tip.style.top = `${above + y}px`;
    const room = this.figure.clientWidth - this.tip.offsetWidth;
    this.tip.style.left = `${Math.max(0, Math.min(room, x + 14 + this.tip.offsetWidth > this.figure.clientWidth
      ? x - this.tip.offsetWidth - 14 : x + 14))}px`;
  }

  left() {
    this.pointer = null;
    for (const chart of charts) chart.showCross(null);
    this.tip.hidden = true;
    this.start = undefined;
    if (this.area) {
      this.dots.replaceChildren();
      this.band.setAttribute("visibility", "hidden");
    }
  }

  pressed(event) {
    if (!this.area || event.pointerType !== "mouse" || event.button !== 0) return;
    this.start = event.clientX - this.svg.getBoundingClientRect().left;
    event.preventDefault();
  }

  released(event) {
    if (!this.area || this.start === undefined) return;
    const ends = [this.start, event.clientX - this.svg.getBoundingClientRect().left].map((x) =>
      Math.min(this.area.last, Math.max(this.area.first, this.area.value(x)))).sort((a, b) => a - b);
    const wide = Math.abs(this.area.x(ends[1]) - this.area.x(ends[0])) > NEAR;
    this.left();
    if (wide) this.onZoom(ends);
  }
}

// What a finger has asked for stays until it touches something else.
document.addEventListener("pointerdown", (event) => {
  for (const chart of charts) if (chart.pointer && !chart.svg.contains(event.target)) chart.left();
});

/** The xs of a curve on an axis: steps as they are, else what another curve of the run has at those steps. */
export function along(axis, curve, series) {
  const base = series[axis];
  return axis === "step" || !base ? curve.x : curve.x.map((step) => between(base.x, base.y, step));
}
