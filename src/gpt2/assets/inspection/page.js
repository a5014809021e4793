// Shows an inspection: tokens by loss, where heads look, the logit lens. All text goes in as text, never as markup.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const T = data.tokens.length, L = data.layers, H = data.heads;
const bytes = Uint8Array.from(atob(data.attention), (letter) => letter.charCodeAt(0));
const TRIANGLE = (T * (T + 1)) / 2;
const FULL_LOSS = 10;  // nats; from here on a token has the full colour
const THUMBNAIL = 48;  // pixels
const byId = (id) => document.getElementById(id);
const state = { token: T - 1, hovered: null, layer: 0, head: 0, from: true };

function element(name, text, parent) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (parent) parent.append(made);
  return made;
}

// The attention, 0 to 1, that position i pays to position j.
function attention(layer, head, i, j) {
  return j > i ? 0 : bytes[(layer * H + head) * TRIANGLE + (i * (i + 1)) / 2 + j] / 255;
}

function visible(text) {
  return text.replaceAll("\r", "␍").replaceAll("\t", "⇥").replaceAll("\n", "⏎");
}

function percent(share) {
  return share >= 0.995 ? "100 %" : share >= 0.0995 ? (100 * share).toFixed(0) + " %" : (100 * share).toFixed(1) + " %";
}

function code(text, parent) {
  return element("code", text === "" ? "∅" : visible(text).replaceAll(" ", "␣"), parent);
}

// The text

const tokens = data.tokens.map((text, t) => {
  const token = element("span", text === "" ? "∅" : visible(text), byId("tokens"));
  token.className = "token";
  token.setAttribute("role", "option");
  token.dir = "auto";
  const loss = data.losses[t];
  token.style.setProperty("--l", loss === null ? 0 : Math.min(1, loss / FULL_LOSS));
  token.title = loss === null ? "the first token; nothing foretells it" : `loss ${loss.toFixed(2)} nats, probability ${percent(Math.exp(-loss))}`;
  token.addEventListener("click", () => choose(t));
  token.addEventListener("pointerenter", (event) => { if (event.pointerType === "mouse") hover(t); });
  if (text.includes("\n")) element("br", undefined, byId("tokens"));
  return token;
});
byId("tokens").addEventListener("pointerleave", () => hover(null));
byId("tokens").addEventListener("keydown", (event) => {
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -1, ArrowDown: 1, Home: -T, End: T };
  if (!(event.key in steps)) return;
  event.preventDefault();
  choose(Math.max(0, Math.min(T - 1, state.token + steps[event.key])));
  tokens[state.token].focus();
});

function choose(t) {
  state.token = t;
  state.hovered = null;
  show();
}

function hover(t) {
  if (state.hovered === t) return;
  state.hovered = t;
  show();
}

// The heads

for (const [id, count] of [["layer", L], ["head", H]]) {
  for (let n = 0; n < count; n++) element("option", n, byId(id)).value = n;
  byId(id).addEventListener("change", (event) => { state[id] = Number(event.target.value); show(); });
}
for (const radio of document.getElementsByName("direction"))
  radio.addEventListener("change", () => { state.from = byId("from").checked; show(); });

const heads = [];
byId("heads").style.setProperty("--heads", H);
for (let layer = 0; layer < L; layer++) {
  for (let head = 0; head < H; head++) {
    const cell = element("div", undefined, byId("heads"));
    cell.setAttribute("role", "radio");
    cell.setAttribute("aria-label", `layer ${layer}, head ${head}`);
    cell.title = `layer ${layer}, head ${head}`;
    element("canvas", undefined, cell);
    cell.addEventListener("click", () => { Object.assign(state, { layer, head }); show(); });
    heads.push(cell);
  }
}
byId("heads").addEventListener("keydown", (event) => {
  const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  if (!(event.key in steps)) return;
  event.preventDefault();
  const [down, right] = steps[event.key];
  state.layer = Math.max(0, Math.min(L - 1, state.layer + down));
  state.head = Math.max(0, Math.min(H - 1, state.head + right));
  show();
  heads[state.layer * H + state.head].focus();
});

// A head's attention as a picture: rows look, columns are looked at. The strongest of what a pixel holds is shown.
function draw(canvas, layer, head, size) {
  canvas.width = canvas.height = size;
  const context = canvas.getContext("2d");
  const image = context.createImageData(size, size);
  const colour = parseInt(getComputedStyle(document.documentElement).getPropertyValue("--look").trim().slice(1), 16);
  const [red, green, blue] = [colour >> 16, (colour >> 8) & 255, colour & 255];
  for (let i = 0; i < T; i++) {
    for (let j = 0; j <= i; j++) {
      const at = 4 * (Math.floor((i * size) / T) * size + Math.floor((j * size) / T));
      const strength = 255 * Math.sqrt(attention(layer, head, i, j));
      image.data[at] = red; image.data[at + 1] = green; image.data[at + 2] = blue;
      image.data[at + 3] = Math.max(image.data[at + 3], strength);
    }
  }
  context.putImageData(image, 0, 0);
}

function drawHeads() {
  heads.forEach((cell, n) => draw(cell.firstChild, Math.floor(n / H), n % H, Math.min(T, THUMBNAIL)));
}

function place(event) {
  const box = byId("matrix").getBoundingClientRect();
  const index = (share) => Math.max(0, Math.min(T - 1, Math.floor(share * T)));
  return [index((event.clientY - box.top) / box.height), index((event.clientX - box.left) / box.width)];
}
byId("matrix").addEventListener("pointermove", (event) => {
  const [i, j] = place(event);
  byId("under").textContent = j > i ? "" : `${visible(data.tokens[i])} → ${visible(data.tokens[j])}: ${percent(attention(state.layer, state.head, i, j))}`;
});
byId("matrix").addEventListener("pointerleave", () => { byId("under").textContent = ""; });
byId("matrix").addEventListener("click", (event) => choose(place(event)[0]));

// What is shown of the chosen token

function show() {
  const t = state.hovered ?? state.token;
  const weights = tokens.map((_, j) => state.from ? attention(state.layer, state.head, t, j) : attention(state.layer, state.head, j, t));
  tokens.forEach((token, j) => {
    token.style.setProperty("--a", Math.sqrt(weights[j]).toFixed(3));  // so that little is seen too
    token.setAttribute("aria-selected", String(j === t));
    token.tabIndex = j === state.token ? 0 : -1;
  });
  heads.forEach((cell, n) => {
    const chosen = n === state.layer * H + state.head;
    cell.setAttribute("aria-checked", String(chosen));
    cell.tabIndex = chosen ? 0 : -1;
  });
  byId("layer").value = state.layer;
  byId("head").value = state.head;
  const shown = `${state.layer}.${state.head}.${byId("matrix").width}`;
  if (state.drawn !== shown) {
    draw(byId("matrix"), state.layer, state.head, T);
    state.drawn = `${state.layer}.${state.head}.${T}`;
    byId("matrix").setAttribute("aria-label", `Attention of layer ${state.layer}, head ${state.head}: rows look, columns are looked at`);
  }
  showLooks(t, weights);
  showLens(t);
}

function showLooks(t, weights) {
  const list = byId("looks");
  list.replaceChildren();
  const order = weights.map((weight, j) => [weight, j]).sort((a, b) => b[0] - a[0]).slice(0, 5);
  byId("looker").replaceChildren();
  code(data.tokens[t], byId("looker"));
  byId("looker").append(state.from ? " looks at" : " is looked at by");
  for (const [weight, j] of order) {
    if (weight === 0) break;
    const item = element("li", undefined, list);
    element("b", percent(weight), item);
    const which = element("span", undefined, item);
    code(data.tokens[j], which);
    const distance = Math.abs(t - j);
    element("span", distance === 0 ? " (itself)" : distance === 1 ? " (next to it)" : ` (${distance} away)`, which).className = "soft small";
  }
}

function showLens(t) {
  const after = byId("after");
  after.replaceChildren("After ");
  code(data.tokens[t], after);
  if (t + 1 < T) {
    after.append(" came ");
    code(data.tokens[t + 1], after).className = "came";
    after.append(`, loss ${data.losses[t + 1].toFixed(2)} nats`);
  }
  const body = byId("lens");
  body.replaceChildren();
  data.stages.forEach((stage, s) => {
    const row = element("tr", undefined, body);
    element("th", stage, row).scope = "row";
    element("td", t + 1 < T ? data.ranks[s][t] + 1 : "", row);
    for (const [word, share] of data.top[s][t]) {
      const cell = element("td", undefined, row);
      const came = t + 1 < T && word === data.next[t];
      code(data.words[word], cell).className = came ? "came" : "";
      cell.append(" ");
      element("small", percent(share), cell);
    }
  });
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { state.drawn = null; drawHeads(); show(); });
drawHeads();
show();
