// The page: asks for what is new every few seconds while it is seen, and draws it.

import { Board, color } from "./board.js";
import { add } from "./chart.js";
import { Controls } from "./controls.js";
import { Curves, listRuns, listSamples } from "./data.js";
import { between, brief, short, whole } from "./numbers.js";
import { changeLanguage, fillWords, word } from "./words.js";

const SECONDS = 3, SECONDS_AT_REST = 6, MOST_AT_FIRST = 4;
const at = (id) => document.getElementById(id);
const OVER = ["finished", "stopped"], ALL = { first: null, last: null };

const curves = new Map(); // of the chosen runs, by name
const slots = new Map(); // their colours
const lines = new Map(); // elements of the list
let rows = [], focus = null, zoom = null, samplesSeen = "", timer, busy = false, again = false;
const board = new Board(at("charts"), zoomTo);
const controls = new Controls(() => refresh());

function choose(name, chosen) {
  if (!chosen) {
    for (const map of [curves, slots]) map.delete(name);
    if (focus === name) focus = curves.keys().next().value || null;
    return;
  }
  let slot = 0;
  while ([...slots.values()].includes(slot)) slot++;
  slots.set(name, slots.get(name) ?? slot);
  curves.set(name, curves.get(name) || new Curves(name));
  focus = focus || name;
}

function line(name) {
  const item = add(at("runs"), "li");
  const box = add(item, "input", { type: "checkbox" });
  const button = add(item, "button", { type: "button" });
  const parts = { item, box, title: add(button, "b"), text: add(button, "span", { class: "soft" }),
    bar: add(add(button, "span", { class: "progress" }), "i") };
  box.setAttribute("aria-label", name);
  box.addEventListener("change", () => { choose(name, box.checked); refresh(); });
  button.addEventListener("click", () => { choose(name, true); focus = name; refresh(); });
  return parts;
}

const steps = (count) => (count < 1e5 ? whole(count) : brief(count));

function drawList() {
  at("no-runs").hidden = rows.length > 0;
  for (const [name, { item }] of lines) {
    if (!rows.some((row) => row.name === name)) { item.remove(); lines.delete(name); choose(name, false); }
  }
  rows.forEach((row, i) => {
    if (!lines.has(row.name)) lines.set(row.name, line(row.name));
    const { item, box, title, text, bar } = lines.get(row.name);
    if (at("runs").children[i] !== item) at("runs").insertBefore(item, at("runs").children[i] || null);
    title.textContent = row.name;
    const done = row.total ? `${steps(row.step)}/${steps(row.total)}` : steps(row.step);
    text.textContent = `${word(row.state)} · ${done} · ${short(row.val_bits_per_byte ?? row.bits_per_byte)}`;
    bar.style.width = row.total ? `${Math.min(100, 100 * row.step / row.total)}%` : "0";
    box.checked = curves.has(row.name);
    box.style.accentColor = bar.style.background = curves.has(row.name) ? color(slots.get(row.name)) : "";
    item.className = `${row.state}${row.name === focus ? " focus" : ""}`;
  });
}

/** The steps to ask for: the zoom's, or the last part, which moves on in jumps. */
function range(row, own) {
  if (at("span").value === "zoom" && zoom) {
    const base = own.series[at("axis").value];
    if (!own.zoom) {
      const direct = at("axis").value === "step" || !base;
      const [first, last] = zoom.map((value) => (direct ? value : between(base.y, base.x, value)));
      own.zoom = { first: Math.max(0, Math.floor(first)), last: Math.ceil(last) };
    }
    return own.zoom;
  }
  own.zoom = null;
  const part = Number(at("span").value), jump = 2 ** Math.floor(Math.log2(Math.max(1, row.step / 32)));
  return part ? { first: Math.floor(row.step * part / jump) * jump, last: null } : ALL;
}

function zoomTo(ends) {
  zoom = ends;
  for (const own of curves.values()) own.zoom = null;
  at("span").querySelector("[value=zoom]").hidden = !ends;
  at("span").value = ends ? "zoom" : "0";
  refresh();
}

function draw() {
  const order = [...curves.values()].sort((a, b) => (b.name === focus) - (a.name === focus));
  const zoomed = at("span").value === "zoom" ? zoom : null;
  const part = Number(at("span").value);
  const starts = order.filter((own) => part && own.series.loss)
    .map((own) => own.series[at("axis").value] || own.series.loss);
  const along = (curve) => (at("axis").value === "step" ? curve.x : curve.y);
  const first = Math.min(...starts.map((curve) => along(curve)[0]));
  const last = Math.max(...starts.map((curve) => along(curve).at(-1)));
  board.draw(order.map((own) => ({ curves: own, slot: slots.get(own.name) })), {
    axis: at("axis").value, smooth: Number(at("smooth").value), range: zoomed || (starts.length ? [first, last] : null),
  });
}

async function update() {
  const answer = await listRuns();
  const first = !rows.length;
  rows = answer.runs;
  at("folder").textContent = answer.folder;
  if (first && rows.length && !curves.size) {
    const live = rows.filter((row) => !OVER.includes(row.state)).slice(0, MOST_AT_FIRST);
    for (const row of live.length ? live : rows.slice(0, 1)) choose(row.name, true);
  }
  drawList();
  const row = rows.find((one) => one.name === focus);
  controls.show(row);
  await Promise.all(rows.filter((one) => curves.has(one.name)).map((one) => {
    const own = curves.get(one.name);
    return own.refresh(one.version, range(one, own));
  }));
  draw();
  controls.showEvents(row ? curves.get(row.name).events : []);
  const seen = row ? `${row.name} ${row.samples}` : "";
  if (seen !== samplesSeen) {
    controls.showSamples(row && row.samples ? await listSamples(row.name) : []);
    samplesSeen = seen;
  }
  return rows.some((one) => curves.has(one.name) && !OVER.includes(one.state));
}

async function refresh() {
  clearTimeout(timer);
  if (busy) { again = true; return; }
  busy = true;
  let seconds = SECONDS_AT_REST;
  try {
    seconds = await update() ? SECONDS : SECONDS_AT_REST;
    at("trouble").hidden = true;
  } catch (error) {
    at("trouble").textContent = word(error.status === 401
      ? "Open the address that the dashboard printed: it ends with the token."
      : "No connection to the dashboard. Trying again.");
    at("trouble").hidden = false;
    if (error.status && error.status !== 401) console.error(error);
  }
  busy = false;
  if (again) { again = false; refresh(); } else if (!document.hidden) timer = setTimeout(refresh, 1000 * seconds);
}

function theme(change) {
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  let now = localStorage.getItem("theme") || system;
  if (change) {
    now = now === "dark" ? "light" : "dark";
    localStorage.setItem("theme", now);
  }
  document.documentElement.dataset.theme = now;
  at("theme").textContent = word(now === "dark" ? "light" : "dark");
}

fillWords();
theme(false);
at("theme").addEventListener("click", () => theme(true));
at("language").addEventListener("click", () => { changeLanguage(); theme(false); samplesSeen = ""; refresh(); });
at("smooth").addEventListener("input", draw);
at("axis").addEventListener("change", () => { zoomTo(null); });
at("span").addEventListener("change", () => refresh());
document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
refresh();
