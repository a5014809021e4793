// A run's losses as a picture.

import { draw, make } from "./dom.js";

const W = 640, H = 240, LEFT = 44, RIGHT = 10, TOP = 10, BOTTOM = 30;

/** A curve of `points` ([{step, loss, valid_loss}]) up to `steps`, with a table for those who cannot see it. */
export function chart(points, steps) {
  if (!points.length) return make("p", { class: "faint" }, "The curve begins with the first numbers.");
  const held = points.filter(({ valid_loss }) => typeof valid_loss === "number");
  const values = [...points.map(({ loss }) => loss), ...held.map(({ valid_loss }) => valid_loss)].filter(Number.isFinite);
  const ticks = ticksOf(Math.min(...values), Math.max(...values));
  const [low, high] = [ticks[0], ticks.at(-1)];
  const last = Math.max(steps ?? 0, points.at(-1).step, 1);
  const x = (step) => LEFT + ((W - LEFT - RIGHT) * step) / last;
  const y = (loss) => TOP + ((H - TOP - BOTTOM) * (high - loss)) / (high - low);
  const line = (rows, name) => rows.map((row) => `${x(row.step).toFixed(1)},${y(row[name]).toFixed(1)}`).join(" ");
  const grid = ticks.flatMap((tick) => [
    draw("line", { x1: LEFT, x2: W - RIGHT, y1: y(tick), y2: y(tick), class: "grid" }),
    draw("text", { x: LEFT - 6, y: y(tick) + 4, "text-anchor": "end" }, String(tick)),
  ]);
  const dots = (rows, name) => rows.map((row) => draw("circle", { cx: x(row.step), cy: y(row[name]), r: 3, class: name }));
  const now = points.at(-1);
  const title = `Loss after ${now.step} steps: ${now.loss.toFixed(3)}` +
    (held.length ? `, held out ${held.at(-1).valid_loss.toFixed(3)}` : "");
  const picture = draw("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": title },
    ...grid,
    draw("text", { x: LEFT, y: H - 8 }, "0"),
    draw("text", { x: W - RIGHT, y: H - 8, "text-anchor": "end" }, `${last} steps`),
    draw("polyline", { points: line(points, "loss"), class: "loss" }), ...dots(points, "loss"),
    draw("polyline", { points: line(held, "valid_loss"), class: "valid_loss" }), ...dots(held, "valid_loss"));
  const key = make("p", { class: "faint" }, make("span", { class: "key loss" }, "training text"), " ",
    held.length ? make("span", { class: "key valid_loss" }, "held-out text") : null);
  const rows = points.map((p) => make("tr", {}, ...[p.step, p.loss, p.valid_loss].map((v) => make("td", {}, shown(v)))));
  const head = make("tr", {}, ...["step", "loss", "held out"].map((name) => make("th", { scope: "col" }, name)));
  const table = make("details", {}, make("summary", {}, "Numbers"), make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)));
  const box = make("div", {}, picture, key, table);
  return box;
}

const shown = (value) => (typeof value === "number" ? String(Number(value.toFixed(4))) : "");

function ticksOf(low, high) {
  const span = Math.max(high - low, 0.1);
  const step = [0.05, 0.1, 0.2, 0.5, 1, 2, 5].find((size) => span / size <= 5) ?? 10;
  const ticks = [];
  for (let n = Math.floor(low / step); n <= Math.ceil(high / step); n++) ticks.push(Number((n * step).toFixed(2)));
  return ticks.length > 1 ? ticks : [...ticks, Number((ticks[0] + step).toFixed(2))];
}
