// Keeping and passing on: a link, a file, and the history in this browser.

const HISTORY = "gpt2-history";
const MOST = 30;
const MOST_CHARACTERS = 2_000_000;
const LETTER = { you: "y", model: "m", pick: "p" };
const BY = { y: "you", m: "model", p: "pick" };

/** The part of a link behind the #: tokens, model and settings. */
export function toFragment(tokens, model, settings) {
  const value = { v: 1, model, settings, ids: tokens.map(({ id }) => id), by: tokens.map(({ by }) => LETTER[by]).join("") };
  const bytes = new TextEncoder().encode(JSON.stringify(value));
  const binary = Array.from(bytes, (byte) => String.fromCharCode(byte)).join("");
  return "#s=" + btoa(binary).replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");
}

/** What a link says: {model, settings, tokens}; null if it says nothing. Throws where it cannot be read. */
export function fromFragment(fragment) {
  if (!fragment.startsWith("#s=")) return null;
  try {
    const binary = atob(fragment.slice(3).replace(/-/g, "+").replace(/_/g, "/"));
    const value = JSON.parse(new TextDecoder().decode(Uint8Array.from(binary, (letter) => letter.charCodeAt(0))));
    if (value.v !== 1 || !Array.isArray(value.ids)) throw new Error();
    const tokens = value.ids.map((id, n) => ({ id, by: BY[value.by?.[n]] ?? "you" }));
    return { model: String(value.model), settings: value.settings, tokens };
  } catch {
    throw new Error("This link is damaged: it cannot be read.");
  }
}

/** What a file says: {model, settings, tree}. */
export function fromFile(text) {
  let value;
  try {
    value = JSON.parse(text);
  } catch {
    value = null;
  }
  if (value?.format !== "gpt2-playground" || typeof value.tree !== "object") {
    throw new Error("This file was not saved by this page: expected its JSON.");
  }
  return { model: String(value.model), settings: value.settings, tree: value.tree };
}

/** A text with all its branches as a file's content. */
export function toFile(tree, model, settings, text) {
  const note = "Tokens by `model` or `pick` are synthetic text, written by a GPT-2 model.";
  const head = { format: "gpt2-playground", version: 1, synthetic: true, note, model, settings, text };
  return JSON.stringify({ ...head, tree: tree.value }, null, 1);
}

/** Let the browser save a file. */
export function download(name, content) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type: "application/json" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** What was written before in this browser: [{id, when, title, model, tree}], the newest first. */
export function past() {
  try {
    const found = JSON.parse(localStorage.getItem(HISTORY) ?? "[]");
    return Array.isArray(found) ? found : [];
  } catch {
    return [];
  }
}

/** Keep a text; the oldest ones go where there is no room. */
export function keep(entry) {
  let all = [entry, ...past().filter(({ id }) => id !== entry.id)].slice(0, MOST);
  while (all.length > 1 && JSON.stringify(all).length > MOST_CHARACTERS) all.pop();
  store(all);
}

export const forget = (id) => store(id ? past().filter((entry) => entry.id !== id) : []);

function store(entries) {
  try {
    localStorage.setItem(HISTORY, JSON.stringify(entries));
  } catch {
    // A private window, or no room: the page works without a history.
  }
}
