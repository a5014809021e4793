// Makes elements. Whatever comes from a model, a file or a link goes in as text, never as markup.

/** The element with an id. */
export const $ = (id) => document.getElementById(id);

/** `make("li", {class: "x", onclick: f}, "text", element)`. */
export function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** As `make`, for SVG. */
export function draw(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

/** A span for a token, coloured by how surprising it was. */
export function tokenSpan(token, text) {
  const span = make("span", { class: `token ${token.by}` }, text);
  colour(span, token.logprob);
  return span;
}

/** Colour by surprisal: none at 1 bit, all at 12 bits. */
export function colour(element, logprob) {
  if (typeof logprob !== "number") return;
  const heat = Math.min(1, Math.max(0, (bits(logprob) - 1) / 11));
  element.style.setProperty("--heat", `${Math.round(heat * 100)}%`);
}

/** Surprisal in bits. */
export const bits = (logprob) => -logprob / Math.LN2;

/** A probability for people. */
export function percent(logprob) {
  const p = Math.exp(logprob) * 100;
  return p >= 10 ? `${p.toFixed(0)} %` : p >= 0.1 ? `${p.toFixed(1)} %` : p >= 0.001 ? `${p.toFixed(3)} %` : "< 0.001 %";
}

/** The first words of a text. */
export function shortened(text, length = 48) {
  const line = text.replace(/\s+/g, " ").trim();
  return line.length > length ? line.slice(0, length - 1) + "…" : line || "(blank)";
}

/** Tell of an error at the top of the page; null takes it away. */
export function complain(error) {
  const place = $("problem");
  place.hidden = !error;
  place.firstElementChild.textContent = error ? error.message ?? String(error) : "";
}

/** Run what a person asked for; what goes wrong is shown, in the place of what went wrong before. */
export function trying(work) {
  const watched = watching(work);
  return (...given) => {
    complain(null);
    return watched(...given);
  };
}

/** Run what nobody asked for in so many words; what goes wrong is shown. */
export function watching(work) {
  return async (...given) => {
    try {
      return await work(...given);
    } catch (error) {
      if (error.name !== "AbortError") complain(error);
    }
  };
}
