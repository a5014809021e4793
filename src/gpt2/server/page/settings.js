// What can be set about the writing, with explanations.

import { make } from "./dom.js";

// name in the API, label, least, most, step, default, explanation, whether it is shown at once
const NUMBERS = [
  ["temperature", "Temperature", 0, 2, 0.05, 0.8, "Low: careful, repeats itself. High: bold, makes mistakes. 0 always takes the likeliest token.", true],
  ["max_tokens", "Length", 1, 500, 1, 80, "How many tokens are written at most. A token is about three quarters of a word.", true],
  ["num_samples", "Samples", 1, 8, 1, 1, "How many continuations are written side by side.", true],
  ["top_p", "Top-p", 0.01, 1, 0.01, 1, "Only the likeliest tokens that together have this share of the probability are drawn from. 1: all.", true],
  ["top_k", "Top-k", 0, 200, 1, 40, "Only so many of the likeliest tokens are drawn from. 0: all.", false],
  ["min_p", "Min-p", 0, 1, 0.01, 0, "Tokens less likely than this share of the likeliest one's probability are left out.", false],
  ["typical_p", "Typical-p", 0.01, 1, 0.01, 1, "Tokens that are neither too expected nor too surprising, up to this share. 1: all.", false],
  ["repetition_penalty", "Repetition penalty", 1, 2, 0.05, 1, "Above 1, words that stand in the text already become less likely.", false],
  ["frequency_penalty", "Frequency penalty", -2, 2, 0.1, 0, "Above 0, a token becomes less likely each time it is written.", false],
  ["presence_penalty", "Presence penalty", -2, 2, 0.1, 0, "Above 0, a token becomes less likely once it is written.", false],
];

export class Settings {
  constructor(form) {
    this.inputs = new Map();
    const more = make("details", { class: "more" }, make("summary", {}, "More"));
    for (const row of NUMBERS) (row[7] ? form : more).append(this.#number(...row));
    more.append(this.#text("stop", "Stop at", "The text ends where one of these would come. One a line; \\n means a line's end.", "textarea"));
    form.append(this.#text("seed", "Seed", "The same seed and settings write the same text again. Empty: a new one every time.", "input"), more);
    form.addEventListener("submit", (event) => event.preventDefault());
  }

  /** As the API takes them; always with a seed, so that a text can be written again. */
  get values() {
    const values = {};
    for (const [name, , least, most] of NUMBERS) {
      const value = Number(this.inputs.get(name).value);
      values[name] = Math.min(most, Math.max(least, Number.isFinite(value) ? value : least));
    }
    const stop = this.inputs.get("stop").value.split("\n").filter(Boolean);
    values.stop = stop.map((text) => text.replace(/\\n/g, "\n")).slice(0, 16);
    const seed = this.inputs.get("seed").value.trim();
    values.seed = /^-?\d{1,15}$/.test(seed) ? Number(seed) : Math.floor(Math.random() * 2 ** 31);
    return values;
  }

  /** As `values`, but without a seed where none was set. */
  get kept() {
    const { values } = this;
    return this.inputs.get("seed").value.trim() ? values : { ...values, seed: null };
  }

  /** Show values that were kept; whatever is not one is left out. */
  set values(given) {
    for (const [name, , least, most] of NUMBERS) {
      const value = given?.[name];
      if (typeof value === "number" && value >= least && value <= most) this.#show(name, value);
    }
    if (Array.isArray(given?.stop)) {
      const texts = given.stop.filter((text) => typeof text === "string").map((text) => text.replace(/\n/g, "\\n"));
      this.inputs.get("stop").value = texts.join("\n");
    }
    this.inputs.get("seed").value = Number.isInteger(given?.seed) ? given.seed : "";
  }

  #show(name, value) {
    this.inputs.get(name).value = value;
    this.inputs.get(name + " slider").value = value;
  }

  #number(name, label, least, most, step, value, help) {
    const limits = { min: least, max: most, step, value };
    const input = make("input", { type: "number", id: `s-${name}`, "aria-describedby": `h-${name}`, ...limits });
    const slider = make("input", { type: "range", "aria-label": label, ...limits });
    slider.addEventListener("input", () => (input.value = slider.value));
    input.addEventListener("input", () => (slider.value = input.value));
    this.inputs.set(name, input).set(name + " slider", slider);
    return this.#row(name, label, help, slider, input);
  }

  #text(name, label, help, tag) {
    const kind = tag === "textarea" ? { rows: 2 } : { inputmode: "numeric", maxlength: 16, autocomplete: "off" };
    const input = make(tag, { id: `s-${name}`, "aria-describedby": `h-${name}`, ...kind });
    this.inputs.set(name, input);
    return this.#row(name, label, help, input);
  }

  #row(name, label, help, ...inputs) {
    return make("div", { class: "setting" },
      make("label", { for: `s-${name}` }, label), make("div", { class: "inputs" }, ...inputs),
      make("p", { class: "faint", id: `h-${name}` }, help));
  }
}
