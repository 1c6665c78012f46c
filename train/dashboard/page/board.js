// Which charts there are, and what each of them shows.

import { Chart, along } from "./chart.js";
import { HeatMap } from "./heat.js";
import { short } from "./numbers.js";
import { word } from "./words.js";

const FIXED = [
  { id: "loss", title: "Loss", lines: [["loss", "training"], ["val_loss", "validation"]] },
  { id: "val_bits_per_byte", title: "Bits per byte, validation", lines: [["val_bits_per_byte", ""]] },
  { id: "lr", title: "Learning rate", lines: [["lr", ""]], exact: true },
  { id: "grad_norm", title: "Gradient norm", lines: [["grad_norm", ""]], logarithmic: true },
  { id: "grad_norms", title: "Gradient norm by layer", parts: true, logarithmic: true },
  { id: "tokens_per_second", title: "Tokens per second", lines: [["tokens_per_second", ""]] },
];
const HEAT_MAP = { id: "load", title: "Load of each expert", lines: [] };
const ELSEWHERE = new Set([HEAT_MAP.id, ...FIXED.flatMap((chart) => (chart.lines || []).map(([name]) => name)),
  "grad_norms", "tokens", "elapsed_seconds", "bits_per_byte"]);
const TITLES = {
  val_perplexity: "Perplexity, validation", val_losses: "Loss by source", val_bits: "Bits per byte by source",
  seq_len: "Length of a row", batch_tokens: "Tokens of a step", max_vio: "MaxVio of experts by layer",
  load_entropy: "Entropy of expert load by layer, nats", dead_experts: "Experts without a token",
  z_loss: "Router z-loss",
};
const ONLY_WHEN_CHANGING = new Set(["seq_len", "batch_tokens"]);
const CHECKPOINTS_SHOWN = 40;

/** Layers from the first to the last: embedding, layers.0, ..., head. */
function inOrder(names) {
  const place = (name) => name.startsWith("embedding") ? -1 : Number((name.match(/\d+/) || [1e9])[0]);
  return [...names].sort((a, b) => place(a) - place(b) || a.localeCompare(b));
}

const capital = (text) => text[0].toUpperCase() + text.slice(1);

export const color = (slot) => `var(--s${slot % 8})`;
const shade = (i, count) => `oklch(var(--layer) 0.15 ${275 - 250 * i / Math.max(1, count - 1)})`;

/** What happened, in a line. */
export function told(event) {
  const kind = word(event.event);
  if (event.event === "set") {
    const over = event.over ? ` (${word("Over steps")}: ${event.over})` : "";
    return `${kind} ${event.key} ${short(event.was)} → ${short(event.value)}${over}`;
  }
  if (event.event === "undo") return `${kind} ${event.of}: ${event.key}`;
  if (event.event === "spike") return `${kind}: ${word("Loss")} ${short(event.loss)} (${short(event.expected)})`;
  return [kind, event.path, event.reason, event.optimizer].filter((part) => part).join(": ");
}

export class Board {
  constructor(parent, onZoom) {
    this.parent = parent;
    this.onZoom = onZoom;
    this.charts = new Map();
  }

  /**
   * @param runs [{curves, slot}], the one in focus first
   * @param view {axis, smooth, range}
   */
  draw(runs, view) {
    const focus = runs[0];
    const heat = focus?.curves.load ? [{ ...HEAT_MAP, load: focus.curves.load }] : [];
    const wanted = [...FIXED, ...this.others(runs), ...heat];
    const ids = new Set(wanted.map((chart) => chart.id));
    for (const [id, chart] of this.charts) {
      if (!ids.has(id)) {
        chart.remove();
        this.charts.delete(id);
      }
    }
    const marks = focus ? this.marks(focus.curves, view.axis) : [];
    for (const definition of wanted) {
      const { id, logarithmic = false, load } = definition;
      const Kind = load ? HeatMap : Chart;
      if (!this.charts.has(id)) this.charts.set(id, new Kind(this.parent, id, "", logarithmic, this.onZoom));
      const lines = definition.parts ? (focus ? this.parts(focus.curves, id, view.axis) : [])
        : runs.flatMap((run) => this.lines(run, definition.lines, view.axis, runs.length > 1));
      const smooth = definition.exact ? 0 : view.smooth;
      const name = (definition.parts || load) && runs.length > 1 ? `: ${focus.curves.name}` : "";
      this.charts.get(id).update(word(definition.title) + name, { lines, marks, ...view, smooth, load });
    }
  }

  /** Charts of statistics that only some runs have. */
  others(runs) {
    const found = new Map();
    for (const { curves } of runs) {
      for (const [name, curve] of Object.entries(curves.series)) {
        const [stem, part] = name.split("/");
        const still = ONLY_WHEN_CHANGING.has(name) && curve.y.every((value) => value === curve.y[0]);
        if (ELSEWHERE.has(stem) || still) continue;
        const title = TITLES[stem] || capital(stem.replaceAll("_", " "));
        found.set(stem, { id: stem, title, ...(part ? { parts: true } : { lines: [[name, ""]] }) });
      }
    }
    return [...found.values()];
  }

  lines({ curves, slot }, names, axis, several) {
    return names.filter(([name]) => curves.series[name]).map(([name, label], i) => ({
      ...curves.series[name], x: along(axis, curves.series[name], curves.series), color: color(slot),
      label: [several && curves.name, label && word(label)].filter((part) => part).join(" "),
      quiet: several && i > 0, dashed: name.startsWith("val_") && names.length > 1, dots: name.startsWith("val_"),
    }));
  }

  parts(curves, stem, axis) {
    const parts = Object.keys(curves.series).filter((name) => name.startsWith(`${stem}/`))
      .map((name) => name.slice(stem.length + 1));
    return inOrder(parts).map((label, i) => {
      const curve = curves.series[`${stem}/${label}`];
      return { ...curve, x: along(axis, curve, curves.series), color: shade(i, parts.length), label };
    });
  }

  marks(curves, axis) {
    const saves = curves.events.filter((event) => event.event === "save").length;
    const { first, last } = curves.range;
    const shown = curves.events.filter((event) => (event.event !== "save" || saves <= CHECKPOINTS_SHOWN)
      && event.step >= (first ?? 0) && event.step <= (last ?? Infinity));
    const xs = along(axis, { x: shown.map((event) => event.step) }, curves.series);
    return shown.map((event, i) => ({ x: xs[i], kind: event.event, text: told(event) }));
  }
}
