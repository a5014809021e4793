// The text as one editor: a textarea, so that everything that people know of text fields works, over a copy of it whose
// tokens are coloured. What was typed since the tokens were known is `rest`, plain text behind the tokens that still hold.

import { make, tokenSpan, colour, bits } from "./dom.js";

const shown = (text) => text.replace(/\r/g, "␍").replace(/\0/g, "␀"); // a textarea would change them; as long as before
const meant = (text) => text.replace(/␍/g, "\r").replace(/␀/g, "\0");
const isSpace = (letter) => /\s/.test(letter ?? "");

export class Editor {
  /** `on.edit()` when the text was changed by hand, `on.select(n)` when the cursor is at the nth token (or behind all). */
  constructor(area, textarea, backdrop, list, on) {
    Object.assign(this, { area, textarea, backdrop, list, on, tokens: [], ends: [], rest: "", vocabulary: null });
    this.tail = make("span", { class: "tail" }, "\n");
    this.selected = -1;
    textarea.addEventListener("input", () => this.#edited());
    document.addEventListener("selectionchange", () => {
      if (document.activeElement === textarea) this.#select(this.#tokenAt(textarea.selectionStart));
    });
    list.addEventListener("keydown", (event) => this.#walk(event));
  }

  /** Show tokens; each is {id, by, logprob}. */
  show(tokens, vocabulary) {
    this.vocabulary = vocabulary;
    this.tokens = [...tokens];
    this.rest = "";
    this.selected = -1;
    this.#draw();
    this.textarea.value = shown(this.text);
    this.on.select(this.tokens.length);
  }

  /** Add a token that was just written. */
  push(token) {
    this.tokens.push(token);
    this.#dirty ??= requestAnimationFrame(() => {
      this.#dirty = null;
      const follows = this.area.scrollHeight - this.area.scrollTop - this.area.clientHeight < 60;
      this.#draw(this.drawn - 4); // a character may have waited for its last bytes
      this.textarea.value = shown(this.text);
      if (follows) this.area.scrollTop = this.area.scrollHeight;
    });
  }

  get text() {
    return this.texts.join("") + this.rest;
  }

  set locked(locked) {
    this.textarea.readOnly = locked;
  }

  /** Colour again, after somebody has learnt how surprising the tokens were. */
  recolour() {
    this.tokens.forEach((token, n) => colour(this.spans[n], token.logprob));
    this.#drawList();
  }

  /** As a list of tokens instead of a text. */
  set asTokens(yes) {
    this.area.hidden = yes;
    this.list.hidden = !yes;
    if (yes) this.#drawList();
  }

  #dirty = null;
  texts = [];
  spans = [];
  drawn = 0;

  #draw(from = 0) {
    from = Math.max(0, Math.min(from, this.tokens.length));
    this.texts = this.vocabulary ? this.vocabulary.texts(this.tokens.map(({ id }) => id)) : [];
    let end = from ? this.ends[from - 1] : 0;
    this.ends.length = from;
    for (const span of this.spans.splice(from)) span.remove();
    for (let n = from; n < this.tokens.length; n++) {
      this.ends.push((end += this.texts[n].length));
      this.spans.push(tokenSpan(this.tokens[n], shown(this.texts[n])));
    }
    this.drawn = this.tokens.length;
    this.tail.textContent = shown(this.rest) + "\n";
    if (from) this.backdrop.append(...this.spans.slice(from), this.tail);
    else this.backdrop.replaceChildren(...this.spans, this.tail);
    this.#drawList();
  }

  #drawList() {
    if (this.list.hidden) return;
    const items = this.tokens.map((token, n) => {
      const item = make("button", { type: "button", class: `chip ${token.by}`, tabindex: n ? -1 : 0, title: `token ${token.id}` },
        this.vocabulary.name(token.id), make("small", {}, String(token.id)));
      if (typeof token.logprob === "number") item.append(make("small", {}, `${bits(token.logprob).toFixed(1)} bits`));
      colour(item, token.logprob);
      item.addEventListener("click", () => this.#select(n));
      item.addEventListener("focus", () => this.#select(n));
      return item;
    });
    this.list.replaceChildren(...items);
    if (this.rest) this.list.append(make("span", { class: "faint" }, "and text that was not read yet: press Read"));
    if (!items.length && !this.rest) this.list.append(make("span", { class: "faint" }, "No text yet."));
  }

  #walk(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity }[event.key];
    const items = [...this.list.querySelectorAll("button")];
    const now = items.indexOf(document.activeElement);
    if (step === undefined || now < 0) return;
    event.preventDefault();
    const next = items[Math.max(0, Math.min(items.length - 1, now + step))];
    for (const item of items) item.tabIndex = item === next ? 0 : -1;
    next.focus();
  }

  #edited() {
    const before = this.text;
    const now = meant(this.textarea.value);
    let same = 0;
    while (same < before.length && before[same] === now[same]) same++;
    let kept = this.ends.filter((end) => end <= same).length;
    // Only where a word begins do old tokens and new text meet as they would in one piece.
    while (kept && !this.#isBorder(now, kept)) kept--;
    this.tokens.length = kept;
    this.rest = now.slice(kept ? this.ends[kept - 1] : 0);
    this.#draw(kept);
    this.on.edit();
  }

  #isBorder(text, kept) {
    const end = this.ends[kept - 1];
    if (!this.texts[kept - 1]) return false; // within a character
    return end === text.length ? kept <= this.tokens.length : isSpace(text[end]) && !isSpace(text[end - 1]);
  }

  #tokenAt(position) {
    const n = this.ends.findIndex((end) => position < end);
    return n < 0 ? (this.rest ? -1 : this.tokens.length) : n;
  }

  #select(n) {
    if (n === this.selected) return;
    this.spans[this.selected]?.classList.remove("selected");
    this.selected = n;
    this.spans[n]?.classList.add("selected");
    this.on.select(n);
  }
}
