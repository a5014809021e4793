"""Figures of our evaluation against loops over transformers on the same random weights, written without our code."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt2.codec import default_codec
from gpt2.evaluation import TASKS, Options, evaluate, find_data
from gpt2.evaluation.detokenisers import DETOKENISERS
from gpt2.evaluation.readers import Choice, Document, schemas
from gpt2.evaluation.scoring import Scorer, windows
from gpt2.evaluation.work import work_for
from gpt2.language_model import LanguageModel, open_model

pytestmark = pytest.mark.reference

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

STORY = "".join(
    f"Once upon a time there was a king, who had {n} sons; the youngest of them wasn't the most foolish one.\n\n"
    f"«Où est-il?» said the {n + 1}th — and nobody knew 中文.\n"
    for n in range(30)
)
SETS = Path(__file__).parent.parent.parent / "shared" / "data" / "eval"
N_CTX = 96


class Pair:
    """The same weights, ours and theirs."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(3)
        config = transformers.GPT2Config(vocab_size=50257, n_positions=N_CTX, n_embd=48, n_layer=3, n_head=4)
        self.theirs = transformers.GPT2LMHeadModel(config).eval()
        with torch.no_grad():
            for parameter in self.theirs.parameters():  # larger than at the start of training: errors show
                parameter.add_(torch.randn_like(parameter) * 0.15)
        self.theirs.save_pretrained(folder)
        for name, data in default_codec().files("huggingface").items():
            (folder / name).write_bytes(data)
        tokenizer = transformers.GPT2TokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"))
        self.encode: Any = lambda text: tokenizer(text)["input_ids"]
        self.ours: dict[str, LanguageModel] = {
            engine: open_model(folder, engine=engine) for engine in ("litert", "keras")
        }

    def logits(self, tokens: list[int]) -> np.ndarray:
        """(T, V) float64 log-probabilities behind each token."""
        with torch.no_grad():
            return torch.log_softmax(self.theirs(torch.tensor([tokens])).logits[0].double(), dim=-1).numpy()

    def behind(self, context: list[int], continuation: list[int]) -> list[float]:
        """The log-probability of each token of a continuation; of a context that is too long the end is read."""
        whole = [*context, *continuation]
        whole = whole[max(0, len(whole) - 1 - N_CTX) :]
        found = self.logits(whole[:-1])
        first = len(whole) - len(continuation)
        return [float(found[place - 1, whole[place]]) for place in range(first, len(whole))]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPT2_HOME", str(tmp_path_factory.mktemp("home")))
        yield Pair(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("engine", ["litert", "keras"])
@pytest.mark.parametrize(("window", "stride"), [(N_CTX, N_CTX), (64, 20)])
def test_perplexity(pair: Pair, tmp_path: Path, engine: str, window: int, stride: int) -> None:
    """Each token within 1e-4 nats, by a window for every token by itself."""
    path = tmp_path / "x.txt"
    path.write_text(STORY, "utf-8")
    tokens = [50256, *pair.encode(STORY)]
    wanted, end = [], 0
    for place in range(1, len(tokens)):
        if place > end:  # the next window: it ends a stride further, and reads `window` tokens
            begin_scored = place
            end = min(len(tokens) - 1, end + (window if end == 0 else stride))
            first = max(0, end - window)
            found = pair.logits(tokens[first:end])
            wanted += [found[p - 1 - first, tokens[p]] for p in range(begin_scored, end + 1)]
    options = Options(window=window, stride=stride, resamples=10)
    result = evaluate(pair.ours[engine], "perplexity", path, options=options)
    assert result.facts["counts"]["tokens"] == len(wanted) == len(tokens) - 1
    total = sum(wanted)
    assert abs(result.documents["log_likelihood"].sum() - total) < 1e-4 * len(wanted)
    assert result.metrics["token_perplexity"].value == pytest.approx(math.exp(-total / len(wanted)), rel=1e-4)
    assert result.metrics["bits_per_byte"].value == pytest.approx(-total / math.log(2) / len(STORY.encode()), rel=1e-4)

    cuts = windows([tokens[1:]], window, stride, 50256)
    scored = Scorer(pair.ours[engine].engine).score(cut.request for cut in cuts)
    ours = np.concatenate([scores.log_probabilities for (scores,) in scored])
    assert np.abs(ours - np.array(wanted)).max() < 1e-4


@pytest.mark.parametrize("engine", ["litert", "keras"])
def test_choices(pair: Pair, tmp_path: Path, engine: str) -> None:
    rng = np.random.default_rng(4)
    words = STORY.split()
    rows: list[dict[str, Any]] = [
        {
            "ctx": " ".join(rng.choice(words, rng.integers(3, 60))),
            "endings": [" ".join(rng.choice(words, rng.integers(1, 9))) for _ in range(4)],
            "label": int(rng.integers(4)),
        }
        for _ in range(12)
    ]
    path = tmp_path / "hellaswag_val.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    result = evaluate(pair.ours[engine], "hellaswag", path, options=Options(resamples=10))
    right = right_norm = 0
    for row, ours in zip(rows, result.documents["log_likelihoods"], strict=True):
        longest = max(len(pair.encode(" " + ending)) for ending in row["endings"])
        context = pair.encode(row["ctx"])
        context = context[max(0, len(context) + longest - 1 - N_CTX) :]
        sums = [sum(pair.behind(context, pair.encode(" " + ending))) for ending in row["endings"]]
        np.testing.assert_allclose(ours, sums, atol=1e-4 * longest)
        right += int(np.argmax(sums)) == row["label"]
        right_norm += int(np.argmax([s / len(e) for s, e in zip(sums, row["endings"], strict=True)])) == row["label"]
    assert result.metrics["accuracy"].value == pytest.approx(100 * right / 12)
    assert result.metrics["accuracy_norm"].value == pytest.approx(100 * right_norm / 12)


@pytest.mark.parametrize("engine", ["litert", "keras"])
def test_last_words(pair: Pair, tmp_path: Path, engine: str) -> None:
    texts = [" ".join(STORY.split()[n : n + 20]) for n in range(0, 200, 13)]
    greedy = []
    for number, text in enumerate(texts[:4]):  # random weights are never right: let some be
        context = pair.encode(text)
        best = int(pair.logits(context)[-1].argmax())
        word = pair.ours[engine].codec.decode([best])  # type: ignore[union-attr]
        if word.startswith(" ") and len(word.split()) == 1 and pair.encode(text + word) == [*context, best]:
            texts[number] = text + word
            greedy.append(number)
    path = tmp_path / "lambada_test.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    result = evaluate(pair.ours[engine], "lambada", path, options=Options(resamples=10))
    table = result.documents
    for number, text in enumerate(texts):
        context, word = text.rsplit(" ", 1)
        found = pair.behind(pair.encode(context), pair.encode(" " + word))
        assert table["log_likelihood"][number] == pytest.approx(sum(found), abs=1e-4 * len(found))
        assert table["token_log_likelihood"][number] == pytest.approx(found[-1], abs=1e-4)
        assert table["right_word"][number] == (number in greedy)


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The bundled model, ours and in transformers."""
    from gpt2.gpt import load_model, save_model

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPT2_HOME", str(tmp_path_factory.mktemp("home")))
        folder = save_model(load_model(), tmp_path_factory.mktemp("bundled") / "hf", format="huggingface")
        yield open_model(), transformers.GPT2LMHeadModel.from_pretrained(folder).eval()


@pytest.mark.skipif(not SETS.is_dir(), reason="the evaluation sets are not beside this repository")
@pytest.mark.parametrize(
    ("task", "limit"), [("wikitext2", 2), ("ptb", 60), ("hellaswag", 12), ("winograd", 20), ("lambada", 20)]
)
def test_the_bundled_model_on_the_real_sets(task: str, limit: int, bundled: Any) -> None:
    """The first documents of each set, token for token."""
    model, theirs = bundled
    options = Options(limit=limit).filled(TASKS[task], model.config.n_ctx)
    (path,) = find_data(TASKS[task], SETS)
    work = work_for(TASKS[task], model.codec, options)
    items = itertools.islice(TASKS[task].read(path, DETOKENISERS[TASKS[task].detokeniser]), limit)
    units = list(work.units(items))
    worst = 0.0
    for unit, answers in zip(units, Scorer(model.engine).score(unit.request for unit in units), strict=True):
        for continuation, answer in zip(unit.request.continuations, answers, strict=True):
            whole = [*unit.request.context, *continuation]
            with torch.no_grad():
                found = torch.log_softmax(theirs(torch.tensor([whole[:-1]])).logits[0].double(), -1).numpy()
            wanted = [found[place - 1, whole[place]] for place in range(len(unit.request.context), len(whole))]
            worst = max(worst, float(np.abs(answer.log_probabilities - wanted).max()))
    assert worst < 1e-4


# lm-eval needs other versions of packages than this project, so it runs in an environment of its own:
# python -m venv FOLDER; FOLDER/bin/pip install 'lm-eval[hf]'; GPT2_LM_EVAL=FOLDER/bin/python pytest -m reference ...
LM_EVAL = os.environ.get("GPT2_LM_EVAL", "")
SCRIPT = r"""
import json, sys
from pathlib import Path
import lm_eval
from lm_eval.tasks import TaskManager
folder = Path(sys.argv[1])
tasks = Path(lm_eval.__file__).parent / "tasks"
sources = {
    "hellaswag": ("hellaswag/hellaswag.yaml", "validation"),
    "lambada_openai": ("lambada/lambada_openai.yaml", "test"),
    "lambada_standard": ("lambada/lambada_standard.yaml", "test"),
    "wikitext": ("wikitext/wikitext.yaml", "test"),
    "winogrande": ("winogrande/default.yaml", "validation"),
    "wsc273": ("wsc273/default.yaml", "test"),
}
for name, (path, split) in sources.items():
    data = {split: str(folder / f"{name}.jsonl")}
    if name != "lambada_openai":
        data |= {other: data[split] for other in ("train", "validation")}
    (folder / "tasks").mkdir(exist_ok=True)
    (folder / "tasks" / f"{name}_here.yaml").write_text(
        f"include: {tasks / path}\ntask: {name}_here\ntag: null\ndataset_path: json\ndataset_name: null\n"
        f"dataset_kwargs: {json.dumps({'data_files': data})}\n"
    )
found = lm_eval.simple_evaluate(
    model="hf",
    model_args={"pretrained": str(folder / "model"), "dtype": "float32"},
    tasks=[f"{name}_here" for name in sources],
    task_manager=TaskManager(include_path=str(folder / "tasks")),
    device="cpu", batch_size=3, bootstrap_iters=0, log_samples=True,
)
samples = {
    name: [{key: sample[key] for key in ("doc", "target", "resps", "arguments")} for sample in rows]
    for name, rows in found["samples"].items()
}
(folder / "found.json").write_text(json.dumps({"results": found["results"], "samples": samples}, default=str))
"""


def winograd_xml(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows as Hugging Face has them in the form of `WSCollection.xml`."""
    found = []
    for row in rows:
        end = row["pronoun_loc"] + len(row["pronoun"])
        parts = {"txt1": row["text"][: row["pronoun_loc"]], "pron": row["pronoun"], "txt2": row["text"][end:]}
        text = "".join(f"<{name}>{part}</{name}>" for name, part in parts.items())
        answers = "".join(f"<answer>{option}</answer>" for option in row["options"])
        right = "AB"[row["label"]]
        found.append(
            f"<schema><text>{text}</text><answers>{answers}</answers><correctAnswer>{right}</correctAnswer></schema>"
        )
    path.write_text(f"<collection>{''.join(found)}</collection>", "utf-8")
    return path


@pytest.mark.skipif(not LM_EVAL, reason="GPT2_LM_EVAL does not name a Python with lm-eval")
def test_figures_are_those_of_lm_eval(pair: Pair, tmp_path: Path) -> None:
    """HellaSwag, both LAMBADAs, WinoGrande, WSC273 and WikiText by lm-eval's tasks and model: same weights and rows."""
    rng = np.random.default_rng(6)
    words = STORY.split()

    def some(least: int, most: int) -> str:
        return " ".join(rng.choice(words, rng.integers(least, most)))

    rows: dict[str, list[dict[str, Any]]] = {
        "hellaswag": [
            {
                **{"ind": n, "activity_label": some(1, 3), "ctx_a": some(3, 20) + ".", "ctx_b": some(1, 4)},
                **{"ctx": "unused", "endings": [some(1, 9) + " [step] more." for _ in range(4)], "label": str(n % 4)},
            }
            for n in range(12)
        ],
        "lambada_openai": [{"text": some(10, 40)} for _ in range(12)],
        "lambada_standard": [{"text": f"{some(10, 40).lower()} ."} for _ in range(12)],
        "winogrande": [
            {
                **{"sentence": f"{some(3, 20)} because _ {some(3, 9)} more.", "answer": str(1 + n % 2)},
                **{"option1": "the king", "option2": some(1, 3).lower()},
            }
            for n in range(12)
        ],
        "wsc273": [
            {"text": f"{start} because {pronoun} {some(3, 9)} more.", "pronoun": pronoun, "label": n % 2}
            | {"pronoun_loc": len(start) + len(" because "), "options": ["The king", some(1, 3).lower()]}
            for n, pronoun in enumerate(["he", "his"] * 6)
            for start in [some(3, 20)]
        ],
        "wikitext": [{"page": f" = {some(1, 3)} = \n \n {some(100, 300)} . \n {some(5, 50)} . \n"} for _ in range(4)],
    }
    for name, entries in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in entries), "utf-8")
    pair.theirs.save_pretrained(tmp_path / "model")
    for name, data in default_codec().files("huggingface").items():
        (tmp_path / "model" / name).write_bytes(data)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    environment.pop("PYTHONPATH", None)
    command = [LM_EVAL, "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    results = {name: {key.split(",")[0]: value for key, value in row.items()} for name, row in found["results"].items()}
    model, options = pair.ours["litert"], Options(resamples=10)

    ours = evaluate(model, "hellaswag", tmp_path / "hellaswag.jsonl", options=options)
    theirs = results["hellaswag_here"]
    assert ours.metrics["accuracy"].value == pytest.approx(100 * theirs["acc"])
    assert ours.metrics["accuracy_norm"].value == pytest.approx(100 * theirs["acc_norm"])
    for mine, sample in zip(ours.documents["log_likelihoods"], found["samples"]["hellaswag_here"], strict=True):
        np.testing.assert_allclose(mine, [float(response[0][0]) for response in sample["resps"]], atol=2e-3)

    for task, name in (("lambada", "lambada_openai"), ("lambada-standard", "lambada_standard")):
        ours = evaluate(model, task, tmp_path / f"{name}.jsonl", options=options)
        theirs = results[f"{name}_here"]
        assert ours.metrics["last_word_accuracy"].value == pytest.approx(100 * theirs["acc"])
        assert ours.metrics["last_word_perplexity"].value == pytest.approx(theirs["perplexity"], rel=1e-3)

    # lm-eval reads WSC273 with two spaces behind the name: its delimiter and the text's. Otherwise the texts are ours,
    # and so are the figures with its own texts.
    samples = found["samples"]["wsc273_here"]
    given = [Choice(tuple(map(tuple, sample["arguments"])), sample["doc"]["label"]) for sample in samples]
    read = list(schemas(winograd_xml(tmp_path / "wsc273.xml", rows["wsc273"]), DETOKENISERS["none"]))
    assert [Choice(tuple((context, f" {rest}") for context, rest in item.options), item.gold) for item in read] == given
    for task, name in (
        (TASKS["winogrande"], "winogrande"),
        (dataclasses.replace(TASKS["winograd"], read=lambda path, _: iter(given)), "wsc273"),
    ):
        ours = evaluate(model, task, tmp_path / f"{name}.jsonl", options=options)
        assert ours.metrics["accuracy"].value == pytest.approx(100 * results[f"{name}_here"]["acc"])
        for mine, sample in zip(ours.documents["log_likelihoods"], found["samples"][f"{name}_here"], strict=True):
            np.testing.assert_allclose(mine, [float(response[0][0]) for response in sample["resps"]], atol=2e-3)

    # lm-eval's own detokeniser, which cannot be undone, has made the texts: what is compared is windows and figures.
    texts = [sample["target"] for sample in found["samples"]["wikitext_here"]]
    task = dataclasses.replace(
        TASKS["perplexity"], read=lambda path, _: (Document(text) for text in texts), separate=True
    )
    ours = evaluate(model, task, tmp_path / "wikitext.jsonl", options=options)
    total = ours.documents["log_likelihood"].sum()
    pages = [row["page"] for row in rows["wikitext"]]
    count, size = sum(len(re.split(r"\s+", page)) for page in pages), sum(len(page.encode()) for page in pages)
    theirs = results["wikitext_here"]
    assert math.exp(-total / count) == pytest.approx(theirs["word_perplexity"], rel=1e-4)
    assert -total / math.log(2) / size == pytest.approx(theirs["bits_per_byte"], rel=1e-4)
