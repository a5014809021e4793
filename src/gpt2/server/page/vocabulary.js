// What tokens stand for: bytes, and text where they are text.

const BYTES = byteOfLetter();
const loaded = new Map(); // model -> promise of a Vocabulary

/** The vocabulary of a model, asked for once. */
export function vocabularyOf(model, call) {
  if (!loaded.has(model)) {
    const promise = call(`/vocabulary?model=${encodeURIComponent(model)}`).then((found) => new Vocabulary(found));
    promise.catch(() => loaded.delete(model));
    loaded.set(model, promise);
  }
  return loaded.get(model);
}

export class Vocabulary {
  /** From token -> id, as vocab.json has it: bytes written as printable letters. */
  constructor(ids) {
    this.bytes = [];
    for (const [token, id] of Object.entries(ids)) this.bytes[id] = token;
  }

  get size() {
    return this.bytes.length;
  }

  /** The bytes of a token; of one that is none, the replacement character. */
  bytesOf(id) {
    const known = this.bytes[id];
    if (typeof known === "string") {
      const codes = [...known].map((letter) => BYTES.get(letter));
      this.bytes[id] = codes.includes(undefined) ? new TextEncoder().encode(known) : Uint8Array.from(codes);
    }
    return this.bytes[id] ?? new Uint8Array([0xef, 0xbf, 0xbd]);
  }

  /** The text that each token adds. One that ends within a character adds none; the next one adds it. */
  texts(ids) {
    const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    const texts = ids.map((id) => decoder.decode(this.bytesOf(id), { stream: true }));
    if (texts.length) texts[texts.length - 1] += decoder.decode();
    return texts;
  }

  /** A token for people to read: spaces and line ends made visible, what is no text as bytes. */
  name(id) {
    const bytes = this.bytesOf(id);
    try {
      const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
      return text.replace(/ /g, "␣").replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/\r/g, "␍").replace(/\0/g, "␀");
    } catch {
      return [...bytes].map((byte) => "\\x" + byte.toString(16).padStart(2, "0")).join("");
    }
  }
}

/** OpenAI's letters for bytes: printable ones for themselves, the others from 256 on. */
function byteOfLetter() {
  const found = new Map();
  let next = 256;
  for (let byte = 0; byte < 256; byte++) {
    const printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    found.set(String.fromCodePoint(printable ? byte : next++), byte);
  }
  return found;
}
