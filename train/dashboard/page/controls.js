// The run in focus: its numbers, its buttons, its samples and events.

import { add } from "./chart.js";
import { command } from "./data.js";
import { brief, clock, short, whole } from "./numbers.js";
import { told } from "./board.js";
import { word } from "./words.js";

const SURE_SECONDS = 4, SETTLE_SECONDS = 0.3, EVENTS_SHOWN = 100;
const at = (id) => document.getElementById(id);

/** Ask the run in focus, and show what it answers. */
export class Controls {
  constructor(afterwards) {
    this.run = null;
    this.afterwards = afterwards;
    this.trained = false;
    for (const button of document.querySelectorAll("#controls [data-command]")) {
      button.addEventListener("click", () => this.pressed(button));
    }
    at("set").addEventListener("submit", (event) => {
      event.preventDefault();
      const key = at("key").value, given = { [key]: at("value").value.trim() };
      if (key === "lr" && at("over").value) given.over = Number(at("over").value);
      this.ask("set", given);
    });
    at("ask").addEventListener("submit", (event) => {
      event.preventDefault();
      this.ask("sample", { text: at("prompt").value });
    });
    at("key").addEventListener("change", () => { at("over").hidden = at("key").value !== "lr"; });
  }

  pressed(button) {
    const name = button.dataset.command;
    if (name === "stop" && !button.classList.contains("sure")) {
      button.classList.add("sure");
      button.textContent = word("Stop it? Press again");
      setTimeout(() => this.calm(button), 1000 * SURE_SECONDS);
      return;
    }
    this.calm(button);
    this.ask(name, {});
  }

  calm(button) {
    button.classList.remove("sure");
    button.textContent = word(button.dataset.word);
  }

  async ask(name, given) {
    const run = this.run;
    this.tell(word("Asking the run …"), false);
    const answer = await command(run, name, given);
    if (run !== this.run) return;
    this.tell(answer.error || answer.message || "", Boolean(answer.error));
    if (answer.text !== undefined) {
      at("continued").textContent = answer.text;
      at("continued").hidden = false;
    }
    setTimeout(this.afterwards, 1000 * SETTLE_SECONDS);
  }

  tell(text, bad) {
    at("answer").textContent = text;
    at("answer").classList.toggle("bad", bad);
  }

  /** Show a run's line of the list. */
  show(row) {
    at("one").hidden = !row;
    if (!row) return;
    if (this.run !== row.name) {
      this.run = row.name;
      this.tell("", false);
      at("continued").hidden = true;
    }
    this.trained = !["finished", "stopped"].includes(row.state);
    at("name").textContent = row.name;
    at("state").textContent = word(row.state);
    at("state").className = `state ${row.state}`;
    at("controls").hidden = !this.trained;
    const paused = row.state === "paused";
    document.querySelector("[data-command=pause]").hidden = paused;
    document.querySelector("[data-command=resume]").hidden = !paused;
    at("done").style.width = row.total ? `${Math.min(100, 100 * row.step / row.total)}%` : "0";
    const numbers = [
      ["Step", row.total ? `${whole(row.step)} / ${whole(row.total)}` : whole(row.step)], ["Loss", short(row.loss)],
      ["Bits per byte", short(row.val_bits_per_byte ?? row.bits_per_byte)], ["Learning rate", short(row.lr)],
      ["Tokens per second", row.tokens_per_second ? whole(row.tokens_per_second) : "–"],
      ["Tokens", row.tokens ? brief(row.tokens) : "–"],
    ];
    if (row.left_seconds) numbers.push(["Left", clock(row.left_seconds)]);
    at("numbers").replaceChildren();
    for (const [name, value] of numbers) {
      const box = add(at("numbers"), "div");
      add(box, "dt", {}, word(name));
      add(box, "dd", {}, value);
    }
  }

  /** Show texts that the run wrote, the newest first. */
  showSamples(samples) {
    at("no-samples").hidden = samples.length > 0;
    at("samples").replaceChildren();
    samples.forEach(({ step, text }, i) => {
      const box = add(at("samples"), "details", i < 2 ? { open: "" } : {});
      add(box, "summary", {}, `${word("Step")} ${whole(step)}`);
      add(box, "pre", { class: "text", dir: "auto" }, text);
    });
  }

  /** List what happened, the latest first, with a button for each change that can be undone. */
  showEvents(events) {
    at("no-events").hidden = events.length > 0;
    at("events").replaceChildren();
    const undone = new Set(events.filter((event) => event.event === "undo").map((event) => event.of));
    for (const event of [...events].reverse().slice(0, EVENTS_SHOWN)) {
      const row = add(at("events"), "li", { class: event.event });
      add(row, "span", { class: "soft" }, whole(event.step));
      add(row, "span", {}, told(event));
      if (event.event === "set" && event.change && !undone.has(event.change) && this.trained) {
        add(row, "button", { type: "button" }, word("Undo"))
          .addEventListener("click", () => this.ask("undo", { change: event.change }));
      }
    }
  }
}
