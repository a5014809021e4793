// The tab that writes: one editor, branches, alternatives, samples side by side.

import { call, writing } from "./api.js";
import { $, bits, complain, make, percent, shortened, tokenSpan, trying, watching } from "./dom.js";
import { Editor } from "./editor.js";
import * as keeping from "./keep.js";
import { Settings } from "./settings.js";
import { Node, Tree } from "./tree.js";
import { vocabularyOf } from "./vocabulary.js";

const ALTERNATIVES = 12;
const WAIT_MS = 120; // for the cursor to rest on a token

export class Playground {
  /** `models` is a Map of the server's models by name. */
  constructor(models) {
    this.models = models;
    this.settings = new Settings($("settings"));
    this.tree = new Tree();
    this.id = newId();
    this.busy = null; // what stops the writing that goes on
    this.running = null; // its promise
    this.editor = new Editor($("editor"), $("text"), $("backdrop"), $("tokens"), {
      edit: () => this.#edited(),
      select: (n) => this.#select(n),
    });
    $("go").addEventListener("click", trying(() => this.write()));
    $("again").addEventListener("click", trying(() => this.another()));
    $("read").addEventListener("click", trying(() => this.read()));
    $("stop").addEventListener("click", () => this.busy?.abort());
    $("previous").addEventListener("click", () => this.#step(-1));
    $("next").addEventListener("click", () => this.#step(1));
    $("new").addEventListener("click", trying(() => this.begin()));
    $("text").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
        event.preventDefault();
        if (!this.busy) $("go").click();
      }
    });
    $("view").addEventListener("change", (event) => (this.editor.asTokens = event.target.value === "tokens"));
    $("colour").addEventListener("change", (event) => document.body.classList.toggle("plain", !event.target.checked));
    $("model").addEventListener("change", trying(() => this.use($("model").value)));
    $("tree").addEventListener("keydown", (event) => this.#walkTree(event));
    $("name").addEventListener("input", () => this.#rename());
    $("naming").addEventListener("submit", (event) => event.preventDefault());
    this.#listenToKeeping();
  }

  /** Write with another model. What is no token of it, or was measured by the last one, is forgotten. */
  async use(model) {
    await this.#halt();
    const vocabulary = await vocabularyOf(model, call);
    const before = this.vocabulary;
    const { text } = this.editor;
    this.model = model;
    this.vocabulary = vocabulary;
    $("model").value = model;
    const same = (id) => before?.name(id) === vocabulary.name(id);
    if (before && !allTokens(this.tree.root).every(({ id }) => same(id))) {
      await this.begin(await this.#tokenize(text));
      return;
    }
    for (const token of allTokens(this.tree.root)) delete token.logprob;
    this.show();
  }

  /** A new text. */
  async begin(tokens = []) {
    await this.#halt();
    this.tree = new Tree();
    this.id = newId();
    if (tokens.length) this.tree.at(tokens);
    this.show();
    $("text").focus();
  }

  /** Show where the tree is. */
  show() {
    this.editor.show(this.tree.tokens, this.vocabulary);
    $("samples").hidden = true;
    this.#drawTree();
  }

  /** Write on, from the end of the text. */
  async write(extra = {}) {
    let cards = null;
    await this.#busy(async (signal) => {
      const tokens = await this.#collect();
      const settings = { ...this.settings.values, ...extra };
      const facts = { model: this.model, settings };
      const base = this.tree.at(tokens);
      this.show();
      const nodes = Array.from({ length: settings.num_samples }, () => new Node(base, [], facts));
      if (nodes.length > 1) cards = this.#cards(nodes);
      const started = performance.now();
      let written = 0;
      for await (const { sample, token, end } of this.#texts(tokens, settings, signal)) {
        const node = nodes[sample];
        if (end) {
          cards?.[sample].end(end);
          continue;
        }
        written++;
        if (!node.tokens.length) {
          base.children.push(node);
          if (!cards) this.tree.show(node);
        }
        node.tokens.push(token);
        if (cards) cards[sample].push(token);
        else this.editor.push(token);
        $("status").textContent = `writing: ${written} tokens`;
      }
      const seconds = (performance.now() - started) / 1000;
      const rate = written / Math.max(seconds, 1e-3);
      $("status").textContent = written
        ? `${written} tokens, ${rate.toFixed(0)} a second; seed ${settings.seed}`
        : "The model ended the text here. Try Another, or a higher temperature.";
    });
    if (cards) this.#drawTree();
    else this.show();
    this.#keep();
  }

  /** Leave what was written last, and write another continuation from the same place. */
  async another() {
    const node = this.tree.current;
    if (!node.facts || this.editor.rest) return;
    const siblings = node.parent.children.length;
    const fixed = $("s-seed").value.trim() !== "";
    this.tree.show(node.parent);
    this.editor.show(this.tree.tokens, this.vocabulary);
    await this.write(fixed ? { seed: this.settings.values.seed + siblings } : {});
  }

  /** Learn how surprising the text is, without writing more. */
  async read() {
    await this.#busy(async (signal) => {
      const tokens = await this.#collect();
      if (!tokens.length) return;
      $("status").textContent = "reading";
      await this.#score(tokens, signal);
      const known = tokens.filter(({ logprob }) => typeof logprob === "number");
      const mean = known.reduce((sum, { logprob }) => sum + bits(logprob), 0) / Math.max(1, known.length);
      $("status").textContent = `${tokens.length} tokens, ${mean.toFixed(2)} bits of surprise a token on average`;
      this.tree.at(tokens);
    });
    this.show();
    this.#keep();
  }

  /** Put another token in the place of the nth, and write on from there. */
  async branch(n, id, logprob) {
    await this.#halt();
    const before = this.editor.tokens.slice(0, n);
    const node = this.tree.at([...before, { id, by: "pick", logprob }]);
    this.show();
    this.#keep();
    if (!node.children.length) await this.write({ num_samples: 1 });
  }

  /** Open what a link, a file or the history has. */
  async open({ model, settings, tree, tokens }, id = newId()) {
    if (model !== this.model && this.models.has(model)) await this.use(model);
    const opened = tree ? Tree.from(tree, this.vocabulary) : new Tree();
    if (tokens) {
      opened.at(Tree.from({ tokens: [], children: tokens.length ? [{ tokens }] : [] }, this.vocabulary).tokens);
    }
    await this.#halt();
    this.tree = opened;
    this.id = id;
    this.settings.values = settings;
    this.show();
    if (model !== this.model) complain(`The model ${shortened(model, 60)} is not on this server; this is ${this.model}.`);
  }

  /** The token ids of the text as it stands. */
  async ids() {
    return (await this.#collect()).map(({ id }) => id);
  }

  /** What the text consists of; what was typed becomes tokens. */
  async #collect() {
    const { tokens, rest } = this.editor;
    return rest ? [...tokens, ...(await this.#tokenize(rest))] : [...tokens];
  }

  async #tokenize(text) {
    if (!text) return [];
    const { tokens } = await call("/tokenize", { body: { prompt: text, model: this.model } });
    return tokens.map((id) => ({ id, by: "you" }));
  }

  /** The newest tokens, as many as the model sees at once. */
  #seen(tokens, room) {
    const { n_ctx } = this.models.get(this.model);
    return tokens.slice(-Math.max(1, n_ctx - room)).map(({ id }) => id);
  }

  /** Ask for log-probabilities of tokens, and write them into these. */
  async #score(tokens, signal) {
    const ids = this.#seen(tokens, 0);
    const body = { prompt: ids, model: this.model, max_tokens: 0, echo: true, logprobs: 0 };
    const { samples } = await call("/v2/query", { body, signal });
    const offset = tokens.length - ids.length;
    samples[0].tokens.forEach(({ logprob }, n) => {
      if (logprob !== null || n + offset === 0) tokens[n + offset].logprob = logprob;
    });
  }

  /** Write: `{sample, token}` for each token and `{sample, end}` for each end. Colours the prompt on the way. */
  async *#texts(tokens, settings, signal) {
    const { n_ctx } = this.models.get(this.model);
    if (tokens.slice(1).slice(1 - n_ctx).some(({ logprob }) => logprob === undefined)) {
      await this.#score(tokens, signal);
      this.editor.tokens.forEach((token, n) => (token.logprob ??= tokens[n]?.logprob));
      this.editor.recolour();
    }
    const prompt = tokens.length ? this.#seen(tokens, 1) : null;
    const texts = Array.from({ length: settings.num_samples }, () => ({ ids: [], held: [], length: 0 }));
    for await (const event of writing({ prompt, model: this.model, logprobs: 0, ...settings }, signal)) {
      const text = texts[event.sample];
      text.length += event.text.length;
      text.held.push(...event.tokens.map(({ id, logprob }) => ({ id, by: "model", logprob })));
      // A token of a stop string is no part of the text; so one waits until its text is there.
      while (text.held.length) {
        const [token] = text.held;
        const ids = [...text.ids, token.id];
        const needed = settings.stop.length ? this.vocabulary.texts(ids).join("").length : 0;
        if (needed > text.length) break;
        text.ids = ids;
        text.held.shift();
        yield { sample: event.sample, token };
      }
      if (event.finish_reason) yield { sample: event.sample, end: event.finish_reason };
    }
  }

  /** Stop what is being written, and wait until it has stopped. */
  async #halt() {
    this.busy?.abort();
    await this.running;
  }

  async #busy(work) {
    if (this.busy) return;
    this.busy = new AbortController();
    const { signal } = this.busy;
    this.editor.locked = true;
    for (const id of ["go", "again", "read"]) $(id).disabled = true;
    $("stop").hidden = false;
    const running = work(signal);
    this.running = running.then(() => {}, () => {});
    try {
      await running;
    } catch (error) {
      $("status").textContent = error.name === "AbortError" ? "stopped" : "";
      if (error.name !== "AbortError") throw error;
    } finally {
      this.busy = null;
      this.editor.locked = false;
      $("go").disabled = $("read").disabled = false;
      $("stop").hidden = true;
      this.#drawButtons();
    }
  }

  #edited() {
    $("status").textContent = "";
    this.#drawButtons();
  }

  // Samples side by side

  #cards(nodes) {
    const cards = nodes.map((node, n) => {
      const text = make("div", { class: "text", tabindex: 0, "aria-label": `Sample ${n + 1}` });
      const take = make("button", { type: "button", disabled: true }, "Take this");
      take.addEventListener("click", () => this.#go(node));
      const why = make("span", { class: "faint" }, "writing");
      const box = make("article", {}, text, make("div", { class: "bar" }, take, why));
      const held = [];
      return {
        box,
        push: (token) => {
          held.push(token);
          const texts = this.vocabulary.texts(held.map(({ id }) => id));
          const spans = held.slice(-4).map((each, k) => tokenSpan(each, texts[held.length - Math.min(4, held.length) + k]));
          while (text.childElementCount > held.length - spans.length) text.lastElementChild.remove();
          text.append(...spans);
        },
        end: (reason) => {
          take.disabled = !held.length;
          why.textContent = `${held.length} tokens` + (reason === "stop" ? ", ended by itself" : "");
        },
      };
    });
    $("samples").replaceChildren(...cards.map(({ box }) => box));
    $("samples").hidden = false;
    return cards;
  }

  // Alternatives

  #select(n) {
    clearTimeout(this.resting);
    if (!this.vocabulary || this.busy) return;
    this.resting = setTimeout(watching(() => this.#alternatives(n)), WAIT_MS);
  }

  async #alternatives(n) {
    const panel = $("token");
    if (n < 0) {
      panel.replaceChildren(make("p", { class: "faint" }, "Press Read, and the new text becomes tokens too."));
      return;
    }
    const { tokens } = this.editor;
    const token = tokens[n];
    const ids = this.#seen(tokens.slice(0, n), 1);
    this.looking?.abort();
    this.looking = new AbortController();
    const body = { prompt: n ? ids : null, model: this.model, max_tokens: 1, min_tokens: 1, temperature: 0, logprobs: ALTERNATIVES };
    const { samples } = await call("/v2/query", { body, signal: this.looking.signal });
    const top = samples[0].tokens[0]?.top ?? [];
    const rows = top.map(([id, logprob]) => this.#alternative(n, id, logprob, id === token?.id));
    const facts = [];
    if (token) {
      const asked = typeof token.logprob === "number" ? `, ${bits(token.logprob).toFixed(1)} bits of surprise (${percent(token.logprob)})` : "";
      const by = { you: "yours", model: "written by the model", pick: "picked by you" }[token.by];
      facts.push(make("p", {}, make("code", { class: "big" }, this.vocabulary.name(token.id)), ` token ${token.id}, ${by}${asked}`));
    }
    const begins = n ? "" : " (as after the end of a text)";
    facts.push(make("p", { class: "faint" }, (token ? "Could have come here: " : "Could come next: ") + `choose one to branch${begins}`));
    panel.replaceChildren(...facts, make("ol", { class: "alternatives" }, ...rows));
    if (token) {
      const again = make("button", { type: "button" }, "Write anew from here");
      again.addEventListener("click", trying(() => this.#anew(n)));
      panel.append(make("div", { class: "bar" }, again));
    }
  }

  #alternative(n, id, logprob, isThis) {
    const bar = make("span", { class: "share" });
    bar.style.width = `${Math.exp(logprob) * 100}%`;
    const button = make("button", { type: "button", class: isThis ? "this" : "", "aria-current": isThis ? "true" : null },
      make("code", {}, this.vocabulary.name(id)), make("span", { class: "percent" }, percent(logprob)), bar);
    button.addEventListener("click", trying(() => this.branch(n, id, logprob)));
    return make("li", {}, button);
  }

  async #anew(n) {
    this.tree.at(this.editor.tokens.slice(0, n));
    this.editor.show(this.tree.tokens, this.vocabulary);
    await this.write();
  }

  // Branches

  async #go(node) {
    await this.#halt();
    this.tree.show(node.leaf);
    this.show();
  }

  #step(by) {
    const { all, index } = this.tree.siblings;
    if (all.length) this.#go(all[(index + by + all.length) % all.length]);
  }

  #drawButtons() {
    const { all, index } = this.tree.siblings;
    $("branch").hidden = all.length < 2 || Boolean(this.editor.rest);
    $("which").textContent = `branch ${index + 1} of ${all.length}`;
    $("again").disabled = !this.tree.current.facts || Boolean(this.editor.rest) || Boolean(this.busy);
  }

  #drawTree() {
    const rows = [];
    const path = new Set(this.tree.current.path);
    const add = (node, level, before) => {
      const tokens = [...before, ...node.tokens];
      // A token that was picked stands in one row with what was written behind it.
      const isPick = node.children.length === 1 && !node.name && node.tokens.every(({ by }) => by === "pick");
      if (node.parent && !isPick) rows.push(this.#row(node, tokens, level, path.has(node)));
      const deeper = node.children.length > 1 && node.parent ? level + 1 : level;
      for (const child of node.children) add(child, deeper, isPick ? tokens : []);
    };
    add(this.tree.root, 1, []);
    $("tree").replaceChildren(...rows);
    $("tree").hidden = !rows.length;
    $("no-tree").hidden = rows.length > 0;
    $("naming").hidden = !rows.length;
    $("name").value = this.tree.current.name;
    this.#drawButtons();
  }

  #row(node, tokens, level, isOnPath) {
    const text = this.vocabulary.texts(tokens.map(({ id }) => id)).join("");
    const isCurrent = node === this.tree.current;
    const row = make("li", {
      role: "treeitem", "aria-level": level, "aria-selected": String(isCurrent), tabindex: isCurrent ? 0 : -1,
      class: `${isOnPath ? "path " : ""}${node.facts ? "model" : "you"}`,
      title: node.facts ? `by ${node.facts.model}, seed ${node.facts.settings?.seed}` : "yours",
    });
    row.style.setProperty("--level", level - 1);
    if (node.name) row.append(make("b", {}, node.name), " ");
    row.append(shortened(text));
    row.addEventListener("click", () => this.#go(node));
    return row;
  }

  #walkTree(event) {
    const items = [...$("tree").children];
    const now = items.indexOf(document.activeElement);
    const step = { ArrowDown: 1, ArrowUp: -1, Home: -Infinity, End: Infinity }[event.key];
    if (step !== undefined) {
      event.preventDefault();
      items[Math.max(0, Math.min(items.length - 1, now + step))]?.focus();
    } else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      document.activeElement.click();
      $("tree").querySelector("[aria-selected=true]")?.focus();
    }
  }

  #rename() {
    const node = this.tree.current;
    if (!node.parent) return;
    node.name = $("name").value;
    const name = $("name").value;
    this.#drawTree();
    $("name").value = name;
    this.#keep();
  }

  // Links, files, history

  #keep() {
    if (!this.tree.root.children.length) return;
    const text = this.vocabulary.texts(this.tree.tokens.map(({ id }) => id)).join("");
    const { model, settings } = this;
    keeping.keep({ id: this.id, when: Date.now(), title: shortened(text, 80), model, settings: settings.kept, tree: this.tree.value });
  }

  #listenToKeeping() {
    $("share").addEventListener("click", trying(async () => {
      const tokens = await this.#collect();
      const link = location.origin + location.pathname + keeping.toFragment(tokens, this.model, this.settings.kept);
      $("link").value = link.length < 30_000 ? link : "This text is too long for a link. Save it as a file.";
      $("copy").disabled = link.length >= 30_000;
      $("copy").textContent = "Copy the link";
      $("dialog-share").showModal();
    }));
    $("copy").addEventListener("click", async () => {
      $("link").select();
      try {
        await navigator.clipboard.writeText($("link").value);
        $("copy").textContent = "Copied";
      } catch {
        $("copy").textContent = "Press Ctrl+C";
      }
    });
    $("save").addEventListener("click", () => {
      keeping.download("gpt2-text.json", keeping.toFile(this.tree, this.model, this.settings.kept, this.editor.text));
    });
    $("open").addEventListener("change", trying(async (event) => {
      const [file] = event.target.files;
      event.target.value = "";
      $("dialog-share").close();
      if (file.size > 20e6) throw new Error("This file is too large for this page: expected at most 20 MB.");
      await this.open(keeping.fromFile(await file.text()));
    }));
    $("history").addEventListener("click", () => {
      this.#drawPast();
      $("dialog-history").showModal();
    });
    $("forget").addEventListener("click", () => {
      keeping.forget();
      this.#drawPast();
    });
  }

  #drawPast() {
    const rows = keeping.past().map((entry) => {
      const open = make("button", { type: "button", class: "wide" }, shortened(String(entry.title), 80),
        make("small", { class: "faint" }, `${new Date(entry.when).toLocaleString()}, ${entry.model}`));
      open.addEventListener("click", trying(async () => {
        $("dialog-history").close();
        await this.open(entry, entry.id);
      }));
      const forget = make("button", { type: "button", class: "quiet", "aria-label": `Forget ${entry.title}` }, "✕");
      forget.addEventListener("click", () => {
        keeping.forget(entry.id);
        this.#drawPast();
      });
      return make("li", { class: "bar" }, open, forget);
    });
    $("past").replaceChildren(...(rows.length ? rows : [make("li", { class: "faint" }, "Nothing yet.")]));
  }
}

const newId = () => Math.random().toString(36).slice(2);

const allTokens = (node) => [...node.tokens, ...node.children.flatMap(allTokens)];
