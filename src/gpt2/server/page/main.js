// Starts the page: the key, the models, the tabs, light and dark.

import { ask, call } from "./api.js";
import { $, complain, make, watching } from "./dom.js";
import { fromFragment } from "./keep.js";
import { Inside } from "./inside.js";
import { Tuning } from "./tune.js";
import { Playground } from "./write.js";

const models = new Map();
const playground = new Playground(models);
const tuning = new Tuning(readModels, async (model) => {
  if (!models.has(model)) await addCheckpoint(model);
  await playground.use(model);
  open("write");
  playground.begin();
});
const inside = new Inside(async () => ({ ids: await playground.ids(), model: playground.model }));

ask.forKey = () => {
  const dialog = $("dialog-key");
  if (dialog.open) return Promise.resolve(null);
  $("key").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((done) => {
    dialog.addEventListener("close", () => done(dialog.returnValue === "ok" ? $("key").value.trim() : null), { once: true });
  });
};

/** A checkpoint of a training, which no list of models has. */
async function addCheckpoint(name) {
  const { max_model_len } = await call("/tokenize", { body: { prompt: "", model: name } });
  models.set(name, { name, n_ctx: max_model_len });
  $("model").append(make("option", { value: name }, `${name} (a checkpoint)`));
}

/** The models that can be asked, into all lists. */
async function readModels() {
  const found = (await call("/v2/models")).models.filter(({ format }) => format !== "broken");
  models.clear();
  for (const model of found) models.set(model.name, model);
  for (const list of [$("model"), $("base"), $("before")]) {
    const chosen = list.value;
    const options = found.map(({ name, num_parameters, n_ctx }) =>
      make("option", { value: name }, `${name} (${(num_parameters / 1e6).toFixed(0)} M, sees ${n_ctx} tokens)`));
    list.replaceChildren(...options);
    if (models.has(chosen)) list.value = chosen;
    else if (chosen && list.id === "model") watching(() => playground.use(list.value))();
  }
}

/** Show a tab. */
function open(name) {
  for (const tab of document.querySelectorAll("[role=tab]")) {
    const isIt = tab.id === `tab-${name}`;
    tab.setAttribute("aria-selected", String(isIt));
    tab.tabIndex = isIt ? 0 : -1;
    $(tab.getAttribute("aria-controls")).hidden = !isIt;
  }
  if (name === "tune") watching(() => tuning.list())();
  if (name === "inside") watching(() => inside.open())();
}

function listenToTabs() {
  const tabs = [...document.querySelectorAll("[role=tab]")];
  for (const tab of tabs) {
    tab.addEventListener("click", () => open(tab.id.slice(4)));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const next = tabs[(tabs.indexOf(tab) + step + tabs.length) % tabs.length];
      next.focus();
      next.click();
    });
  }
}

function listenToTheme() {
  const show = (theme) => (document.documentElement.dataset.theme = theme);
  try {
    if (localStorage.getItem("gpt2-theme")) show(localStorage.getItem("gpt2-theme"));
  } catch {
    // A private window: the system's own choice holds.
  }
  $("theme").addEventListener("click", () => {
    const isDark = getComputedStyle(document.documentElement).colorScheme === "dark";
    show(isDark ? "light" : "dark");
    try {
      localStorage.setItem("gpt2-theme", document.documentElement.dataset.theme);
    } catch {
      // As above.
    }
  });
}

const readLink = watching(async () => {
  const linked = fromFragment(location.hash);
  if (!linked) return;
  history.replaceState(null, "", location.pathname);
  await playground.open(linked);
});

listenToTabs();
listenToTheme();
$("problem").lastElementChild.addEventListener("click", () => complain(null));
addEventListener("hashchange", readLink);
watching(async () => {
  await readModels();
  await playground.use($("model").value);
  await readLink();
  document.body.dataset.ready = "yes";
})();
