// The tab that looks inside: each token's loss, where a head looks from one, and what each layer expects after it.

import { call } from "./api.js";
import { $, colour, make, percent, watching } from "./dom.js";
import { vocabularyOf } from "./vocabulary.js";

const MOST = 256; // tokens that the server looks into

export class Inside {
  /** `text()` gives {ids, model} of what is being written. */
  constructor(text) {
    Object.assign(this, { text, found: null, chosen: 0, layers: 0 });
    $("layer").addEventListener("change", watching(() => this.#ask()));
    $("head").addEventListener("change", () => this.#draw());
    $("inside-tokens").addEventListener("keydown", (event) => this.#walk(event));
  }

  /** Look at the text as it stands. */
  async open() {
    const { ids, model } = await this.text();
    Object.assign(this, { ids: ids.slice(-MOST), model, chosen: Math.min(ids.length, MOST) - 1 });
    const cut = ids.length > MOST ? ` Only its last ${MOST} tokens are read.` : "";
    $("inside-what").textContent = ids.length
      ? `The text from the tab Write, as ${model} reads it.${cut}`
      : "There is no text yet: write one first, in the tab Write.";
    await this.#ask();
  }

  async #ask() {
    this.found = null;
    if (this.ids.length) {
      $("inside-status").textContent = "looking";
      this.asking?.abort();
      this.asking = new AbortController();
      const layer = this.layers ? Number($("layer").value) : 0;
      const body = { prompt: this.ids, model: this.model, layer, top: 4 };
      this.vocabulary = await vocabularyOf(this.model, call);
      try {
        this.found = await call("/v2/inspect", { body, signal: this.asking.signal });
      } finally {
        $("inside-status").textContent = "";
      }
      if (this.layers !== this.found.n_layer) {
        choices($("layer"), (this.layers = this.found.n_layer), layer);
        choices($("head"), this.found.n_head, 0);
      }
    }
    this.#draw();
  }

  #draw() {
    const { found, chosen } = this;
    const looks = found?.attention?.[Number($("head").value)]?.[chosen] ?? [];
    const items = (found?.tokens ?? []).map((token, n) => {
      const share = looks[n] ?? 0;
      const item = make("button", { type: "button", class: "chip looked", tabindex: n === chosen ? 0 : -1,
        "aria-pressed": String(n === chosen), title: saidLoss(token.loss) }, this.vocabulary.name(token.id));
      item.append(
        make("small", { class: "look" }, n <= chosen ? `${(share * 100).toFixed(0)} %` : "\u00a0"),
        make("small", { class: "loss" }, token.loss === null ? "\u00a0" : `loss ${token.loss.toFixed(2)}`),
      );
      if (token.loss !== null) colour(item, -token.loss);
      item.style.setProperty("--look", `${Math.round(Math.sqrt(share) * 100)}%`);
      item.addEventListener("click", () => this.#choose(n));
      return item;
    });
    $("inside-tokens").hidden = !items.length;
    $("inside-tokens").replaceChildren(...items);
    this.#drawLens();
  }

  #drawLens() {
    const { found, chosen } = this;
    $("lens").replaceChildren();
    $("lens-what").textContent = "";
    if (!found) return;
    const next = found.tokens[chosen + 1];
    const name = (id) => make("code", {}, this.vocabulary.name(id));
    $("lens-what").append("After ", name(found.tokens[chosen].id), ...(next ? [" came ", name(next.id), "."] : ["."]));
    const rows = found.stages.map(({ name: stage, top, ranks }) => {
      const guesses = top[chosen].map(({ id, probability }) =>
        make("td", { class: id === next?.id ? "this" : "" }, name(id), make("small", {}, ` ${(probability * 100).toFixed(0)} %`)));
      const rank = ranks[chosen];
      return make("tr", {}, make("th", { scope: "row" }, stage), ...guesses, make("td", {}, rank == null ? "" : String(rank + 1)));
    });
    const titles = ["", ...found.stages[0].top[0].map((_, n) => String(n + 1)), "place of what came"];
    const head = make("tr", {}, ...titles.map((title) => make(title ? "th" : "td", title ? { scope: "col" } : {}, title)));
    $("lens").append(make("thead", {}, head), make("tbody", {}, ...rows));
  }

  #choose(n) {
    this.chosen = n;
    this.#draw();
    $("inside-tokens").children[n].focus();
  }

  #walk(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity }[event.key];
    if (step === undefined || !this.found) return;
    event.preventDefault();
    this.#choose(Math.max(0, Math.min(this.found.tokens.length - 1, this.chosen + step)));
  }
}

function saidLoss(loss) {
  if (loss === null) return "The first token: nothing foretells it.";
  return `Loss ${loss.toFixed(2)} nats: after what is before it, the model gives it ${percent(-loss)}.`;
}

function choices(list, count, chosen) {
  list.replaceChildren(...Array.from({ length: count }, (_, n) => make("option", { value: n }, String(n))));
  list.value = chosen;
}
