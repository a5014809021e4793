// The tab that trains: a text becomes a job, the job a curve, samples and a model that can be compared with the one before.

import { call, events, writing } from "./api.js";
import { chart } from "./chart.js";
import { $, complain, make, tokenSpan, trying, watching } from "./dom.js";
import { vocabularyOf } from "./vocabulary.js";

const RETRY_MS = 1500;
const COMPARED = { max_tokens: 100, temperature: 0.7, top_k: 40, logprobs: 0 };
const ENDED = ["succeeded", "failed", "cancelled"];
const SAYS = {
  queued: "waits for its turn", validating_files: "reads the files", running: "learns", paused: "pauses",
  succeeded: "is done", failed: "has failed", cancelled: "was cancelled",
};

export class Tuning {
  /** `refresh()` reads the list of models again, `use(model)` writes with one. */
  constructor(refresh, use) {
    Object.assign(this, { refresh, use, files: [], job: null });
    $("files").addEventListener("change", () => this.#choose([...$("files").files]));
    for (const kind of ["dragover", "dragleave", "drop"]) {
      $("drop").addEventListener(kind, (event) => {
        event.preventDefault();
        $("drop").classList.toggle("over", kind === "dragover");
        if (kind === "drop") this.#choose([...event.dataTransfer.files]);
      });
    }
    $("order").addEventListener("submit", (event) => {
      event.preventDefault();
      trying(() => this.#start())();
    });
    for (const wish of ["pause", "resume", "cancel"]) {
      $(`job-${wish}`).addEventListener("click", trying(async () => this.#state(await call(this.#path(wish), { method: "POST" }))));
    }
    $("job-use").addEventListener("click", trying(() => this.use(this.#newest)));
    $("compare").addEventListener("submit", (event) => {
      event.preventDefault();
      trying(() => this.#compare())();
    });
  }

  /** Read the list of trainings; one that goes on is shown. */
  async list() {
    const { jobs } = await call("/v2/jobs");
    const rows = jobs.reverse().map((job) => {
      const button = make("button", { type: "button", class: "wide" }, job.name, make("small", { class: "faint" }, SAYS[job.status]));
      button.addEventListener("click", trying(() => this.#follow(job)));
      return make("li", {}, button);
    });
    $("jobs").replaceChildren(...rows);
    $("no-jobs").hidden = rows.length > 0;
    const open = jobs.find(({ status }) => !ENDED.includes(status));
    if (open && !this.job) watching(() => this.#follow(open))();
  }

  /** What can be asked of the job: its result, or its newest checkpoint. */
  get #newest() {
    return this.job.status === "succeeded" ? this.job.name : this.job.checkpoints?.at(-1);
  }

  #path(what) {
    return `/v2/jobs/${encodeURIComponent(this.job.id)}${what ? `/${what}` : ""}`;
  }

  #choose(files) {
    this.files = files;
    const size = files.reduce((sum, file) => sum + file.size, 0);
    $("chosen").textContent = files.length
      ? `${files.map(({ name }) => name).join(", ")} (${size < 1e6 ? `${Math.ceil(size / 1e3)} kB` : `${(size / 1e6).toFixed(1)} MB`})`
      : "No file chosen";
    if (files.length && !$("order-name").value) {
      const name = files[0].name.replace(/\.[^.]*$/, "").replace(/[^A-Za-z0-9]+/g, "-").replace(/^-+|-+$/g, "").toLowerCase();
      $("order-name").value = `my-${name || "model"}`.slice(0, 50);
    }
  }

  async #start() {
    if (!this.files.length) throw new Error("Choose a file to learn from first.");
    $("start").disabled = true;
    try {
      const ids = [];
      for (const file of this.files) {
        $("uploading").textContent = `sending ${file.name}`;
        const body = new FormData();
        body.append("purpose", "fine-tune");
        body.append("file", file);
        ids.push((await call("/v1/files", { body })).id);
      }
      const prompt = $("sample-prompt").value;
      const training = { learning_rate: Number($("rate").value), keep_last: 5, sample_prompts: prompt ? [prompt] : [] };
      const body = {
        ...{ training_files: ids, name: $("order-name").value, model: $("base").value, epochs: Number($("epochs").value) },
        ...{ automatic: ["batch_size", "sequence_length", "eval_every"], training },
      };
      const job = await call("/v2/train", { body });
      $("order-name").value = "";
      await this.list();
      $("before").value = body.model;
      this.#follow(job).catch(complain);
    } finally {
      $("start").disabled = false;
      $("uploading").textContent = "";
    }
  }

  /** Show a job, and what it says, until it ends or another one is shown. */
  async #follow(job) {
    this.following?.abort();
    const { signal } = (this.following = new AbortController());
    this.job = job;
    this.points = [];
    $("job").hidden = false;
    $("compare").hidden = true;
    $("job-title").textContent = job.name;
    $("chart").replaceChildren(chart([], null));
    $("job-samples").replaceChildren();
    $("job-log").replaceChildren();
    $("compared").replaceChildren();
    this.#state(job);
    $("job").scrollIntoView({ block: "nearest" });
    const poll = setInterval(() => call(this.#path("")).then((now) => !signal.aborted && this.#state(now), () => {}), RETRY_MS);
    try {
      for (let after = 0; !signal.aborted; ) {
        try {
          for await (const { data } of events(`${this.#path("events")}?after=${after}`, { signal })) {
            if (data === "[DONE]") break;
            const event = JSON.parse(data);
            after = event.number;
            this.#heard(event);
          }
        } catch (error) {
          if (error.name === "AbortError") return;
          if (error.status >= 400 && error.status < 500) throw error;
        }
        const now = await call(this.#path("")).catch(() => null);
        if (now) this.#state(now);
        if (now && ENDED.includes(now.status)) break;
        await new Promise((done) => setTimeout(done, RETRY_MS)); // the server may be starting again
      }
    } finally {
      clearInterval(poll);
    }
    if (signal.aborted) return;
    await this.refresh();
    await this.list();
  }

  #heard({ kind, message, level, data, created }) {
    $("job-log").append(make("li", { class: level }, `${new Date(created * 1000).toLocaleTimeString()}  ${message}`));
    if (kind === "metrics") {
      this.points = [...this.points.filter(({ step }) => step < data.step), data];
      const isOpen = $("chart").querySelector("details")?.open;
      $("chart").replaceChildren(chart(this.points, this.job.steps));
      $("chart").querySelector("details").open = Boolean(isOpen);
    } else if (kind === "sample") {
      const text = make("p", {}, make("b", {}, data.prompt ?? ""), data.text ?? "");
      $("job-samples").prepend(make("li", { value: data.step }, text));
    }
  }

  #state(job) {
    this.job = { ...this.job, ...job };
    const { status, step, steps, error } = this.job;
    const said = [SAYS[status], steps ? `step ${step} of ${steps}` : "", error ?? ""].filter(Boolean).join(": ");
    if ($("job-state").textContent !== said) $("job-state").textContent = said;
    $("job-progress").max = steps ?? 1;
    $("job-progress").value = step ?? 0;
    const ended = ENDED.includes(status);
    $("job-progress").hidden = ended;
    $("job-pause").hidden = ended || status === "paused";
    $("job-resume").hidden = status !== "paused";
    $("job-cancel").hidden = ended;
    const done = status === "succeeded";
    $("job-use").hidden = !this.#newest;
    $("job-use").textContent = done ? "Write with it" : `Write with it as it is (${this.#newest})`;
    if (done && $("compare").hidden) {
      $("compare").hidden = false;
      const prompt = $("sample-prompt").value;
      if (prompt) $("compare-prompt").value = prompt;
    }
  }

  /** The same beginning and seed, continued by the model before and by the one after. */
  async #compare() {
    const seed = Number($("s-seed").value) || Math.floor(Math.random() * 2 ** 31);
    const prompt = $("compare-prompt").value;
    const base = $("before").value;
    $("compare-go").disabled = true;
    try {
      const boxes = [[base, "before"], [this.job.name, "after"]].map(([model, label]) => {
        const text = make("div", { class: "text", tabindex: 0, "aria-label": `${label}: ${model}` }, make("span", { class: "token you" }, prompt));
        return { model, text, box: make("article", {}, make("h3", {}, `${label} `, make("span", { class: "faint" }, model)), text) };
      });
      $("compared").replaceChildren(...boxes.map(({ box }) => box));
      for (const { model, text } of boxes) {
        const vocabulary = await vocabularyOf(model, call);
        const tokens = [];
        for await (const event of writing({ prompt, model, seed, ...COMPARED })) {
          tokens.push(...event.tokens.map(({ id, logprob }) => ({ id, by: "model", logprob })));
          const texts = vocabulary.texts(tokens.map(({ id }) => id));
          text.replaceChildren(text.firstElementChild, ...tokens.map((token, n) => tokenSpan(token, texts[n])));
        }
      }
    } finally {
      $("compare-go").disabled = false;
    }
  }
}
