// The load of each expert: layers by experts, in the colours of the report's heat map (train/report/experts.py).

import { Chart, add } from "./chart.js";
import { whole } from "./numbers.js";
import { word } from "./words.js";

const LEFT = 54, RIGHT = 12, TOP = 20, BOTTOM = 24, GAP = 6; // pixels
const TALLEST = 24, LEAST_TALL = 12, ALL_TALL = 180, WIDE_FOR_TEXT = 28;
const STRONGEST = 2; // log2 of the share of the mean that has the full colour
const LEGEND = [[0, "none at all"], [0.25, "¼ or less"], [0.5, "½"], [1, "the mean"], [2, "twice"], [4, "4 or more"]];

/** A cell's rectangle in a parent: the colour tells few or many, its strength how far from the mean. */
function cell(parent, x, y, width, height, share) {
  const strength = share > 0 ? Math.min(1, Math.abs(Math.log2(share)) / STRONGEST) : 1;
  const kind = share < 1 ? "few" : "many", gap = Math.min(1, width / 8);
  add(parent, "rect", { class: share ? kind : `${kind} none`, x, y, width: width - gap, height: height - 1,
    "fill-opacity": 0.8 * strength });
}

export class HeatMap extends Chart {
  constructor(...given) {
    super(...given);
    this.button.remove();
  }

  /**
   * Show other content.
   * @param load {choices, layers, first, last}: rows of counts, the numbers of their layers, the steps they are from
   */
  update(title, { load }) {
    if (load === this.load && title === this.title.textContent) return;
    this.title.textContent = title;
    this.load = load;
    this.shares = load.choices.map((row) => {
      const mean = row.reduce((sum, count) => sum + count, 0) / row.length;
      return row.map((count) => (mean ? count / mean : 0));
    });
    this.draw();
  }

  draw() {
    const width = this.figure.clientWidth, rows = this.shares.length, count = this.shares[0].length;
    const wide = (width - LEFT - RIGHT) / count;
    const tall = Math.max(LEAST_TALL, Math.min(TALLEST, Math.floor(ALL_TALL / rows)));
    const height = TOP + rows * tall + BOTTOM;
    this.svg.replaceChildren();
    this.grid = null;
    this.drawKey();
    if (width < 100) return;
    this.grid = { wide, tall };
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.svg.setAttribute("height", height);
    const every = 2 ** Math.max(0, Math.ceil(Math.log2(WIDE_FOR_TEXT / wide)));
    for (let i = 0; i < count; i += every) this.text(LEFT + (i + 0.5) * wide, TOP - 6, i);
    this.text(LEFT + wide * count / 2, height - 8, word("expert"));
    this.shares.forEach((shares, row) => {
      const top = TOP + row * tall, middle = top + tall / 2 + 4;
      this.text(LEFT - 6, middle, `${word("layer")} ${this.load.layers[row]}`, { "text-anchor": "end" });
      shares.forEach((share, i) => {
        cell(this.svg, LEFT + i * wide, top, wide, tall, share);
        if (wide >= WIDE_FOR_TEXT) {
          this.text(LEFT + (i + 0.5) * wide, middle, share.toFixed(2), { class: "number" });
        }
      });
    });
    this.picked = add(this.svg, "rect", { class: "pick", width: wide, height: tall, visibility: "hidden" });
    const most = this.shares.map((shares) => Math.max(...shares).toFixed(2));
    const told = this.load.layers.map((layer, row) => `${word("layer")} ${layer} ≤ ${most[row]}`).join(", ");
    this.svg.setAttribute("aria-label", `${this.title.textContent}, ${word("times the mean")}: ${told}`);
    if (this.pointer) this.follow();
  }

  text(x, y, told, more = {}) {
    add(this.svg, "text", { x, y, "text-anchor": "middle", ...more }, told);
  }

  drawKey() {
    this.key.replaceChildren();
    const { first, last } = this.load, idle = this.shares.some((shares) => shares.includes(0));
    add(this.key, "span", {}, `${word("Step")} ${first < last ? `${whole(first)}–` : ""}${whole(last)}`);
    for (const [share, told] of LEGEND.slice(idle ? 0 : 1)) {
      const item = add(this.key, "span");
      cell(add(item, "svg", { viewBox: "0 0 14 12" }), 1, 1, 13, 11, share);
      add(item, "span", {}, word(told));
    }
  }

  pointed(event) {
    super.pointed(event);
    this.follow();
  }

  /** Show what is under the pointer. */
  follow() {
    if (!this.grid) return;
    const { wide, tall } = this.grid, { choices, layers } = this.load;
    const i = Math.floor((this.pointer.x - LEFT) / wide), row = Math.floor((this.pointer.y - TOP) / tall);
    const here = choices[row]?.[i] !== undefined;
    this.tip.hidden = !here;
    this.picked.setAttribute("visibility", here ? "visible" : "hidden");
    if (!here) return;
    this.picked.setAttribute("x", LEFT + i * wide);
    this.picked.setAttribute("y", TOP + row * tall);
    this.tip.replaceChildren();
    add(this.tip, "div", { class: "soft" }, `${word("layer")} ${layers[row]}, ${word("expert")} ${i}`);
    const values = { choices: whole(choices[row][i]), "times the mean": this.shares[row][i].toFixed(2) };
    for (const [name, value] of Object.entries(values)) {
      const line = add(this.tip, "div");
      add(line, "span", {}, word(name));
      add(line, "b", {}, value);
    }
    this.placeTip(this.pointer.x, TOP + (row + 1) * tall + GAP);
  }

  left() {
    super.left();
    this.picked?.setAttribute("visibility", "hidden");
  }
}
