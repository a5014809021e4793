"""Are evaluations right? `python benchmarks/agreement.py [TASK ...] [--model random-124M]`: whole sets, two programs.

`gpt2 eval`'s figures beside those of loops over transformers in float32, which read the sets' files, encode, cut
windows, and count by themselves; only the restored spelling of WikiText and Penn Treebank is taken from this package.
The bundled model, or a 124M with random weights (its figures say nothing, that they agree says all). Ours are kept and
resumed in the store, as `gpt2 eval` does it. Exits with 1 if a document or a figure is apart by more than 1e-4 nats a
token, or an accuracy by more than 0.1 % of the items (two options can be as likely as each other but for rounding).
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rivals import THREADS, huggingface

from gpt2 import store
from gpt2.evaluation import Options, evaluate
from gpt2.evaluation.detokenisers import DETOKENISERS
from gpt2.evaluation.journal import read_documents
from gpt2.language_model import open_model

TOLERANCE = 1e-4  # nats a token
TASKS = ("wikitext2", "wikitext103", "ptb", "lambada", "winograd", "winogrande", "hellaswag")


class Found(NamedTuple):
    """What a loop says of a set."""

    figures: dict[str, float]
    """By the name of our metric."""
    sums: list[list[float]]
    """Log-likelihoods: of each option of each item; of a text one in all."""
    tokens: list[int]
    """As many of our figures' tokens as each of these has at least."""


class Loop:
    """transformers and torch, float32, one document at a time."""

    def __init__(self, folder: Path, threads: int = THREADS) -> None:
        import torch
        import transformers

        torch.set_num_threads(threads)
        self.torch = torch
        self.model = transformers.GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval()
        self.n_ctx = self.model.config.n_positions
        tokenizer = transformers.GPT2TokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"))
        self.text: Callable[[str, str], Found] = functools.cache(self._text)  # two tasks have WikiText's test set
        self.encode: Callable[[str], list[int]] = lambda text: tokenizer(text)["input_ids"]

    def logits(self, ids: Any, first: int, past: Any = None) -> Any:
        """(B, T - first, V) log-probabilities behind the tokens from `first` on of (B, T) ids."""
        with self.torch.inference_mode():
            hidden = self.model.transformer(ids, past_key_values=past).last_hidden_state[:, first:]
            return self.torch.log_softmax(self.model.lm_head(hidden), dim=-1)

    def _text(self, text: str, original: str) -> Found:
        """All tokens behind <|endoftext|> in windows of n_ctx; the last one is filled up with what is before it."""
        tokens = [50256, *self.encode(text)]
        total, count = 0.0, len(tokens) - 1
        for start in range(0, count, self.n_ctx):
            end = min(count, start + self.n_ctx)
            begin = max(0, end - self.n_ctx)
            found = self.logits(self.torch.tensor([tokens[begin:end]]), start - begin)[0]
            wanted = self.torch.tensor(tokens[start + 1 : end + 1])
            total += float(found.gather(1, wanted[:, None]).double().sum())
        words = len(original.split()) + original.count("\n")
        figures = {
            "token_perplexity": math.exp(-total / count),
            "word_perplexity": math.exp(-total / words),
            "bits_per_byte": -total / math.log(2) / len(original.encode()),
        }
        return Found(figures, [[total]], [count])

    def behind(self, context: str, continuations: Sequence[str]) -> list[list[float]]:
        """The log-probability of each token of some continuations; the context is read once."""
        torch, before = self.torch, self.encode(context)
        rows = [self.encode(continuation) for continuation in continuations]
        longest = max(len(row) for row in rows)
        before = before[max(0, len(before) + longest - 1 - self.n_ctx) :]
        past = None
        if len(before) > 1:
            with torch.inference_mode():
                past = self.model.transformer(torch.tensor([before[:-1]]), use_cache=True).past_key_values
                past.batch_repeat_interleave(len(rows))
        ids = torch.tensor([[before[-1], *row[:-1], *[0] * (longest - len(row))] for row in rows])
        found = self.logits(ids, 0, past)
        return [[float(found[n, place, token]) for place, token in enumerate(row)] for n, row in enumerate(rows)]

    def whole(self, context: str, continuation: str) -> tuple[float, float]:
        """Log-likelihoods of what follows a context, and of the whole but for its first token."""
        before, behind = self.encode(context), self.encode(continuation)
        tokens = [*before, *behind]
        found = self.logits(self.torch.tensor([tokens[:-1]]), 0)[0]
        values = found.gather(1, self.torch.tensor(tokens[1:])[:, None])[:, 0].double()
        return float(values[-len(behind) :].sum()), float(values.sum())


def detokenised(path: Path, name: str) -> tuple[str, str]:
    """The text that is read, and the original."""
    original = path.read_text("utf-8")
    lines = original.removesuffix("\n").split("\n")  # what stands behind the last line feed is no line
    return "".join(DETOKENISERS[name].detokenise(line) + "\n" for line in lines), original


class Item(NamedTuple):
    """What the loop says of an item."""

    sums: list[float]
    """Log-likelihoods of the options."""
    tokens: int
    """As `Found.tokens`."""
    right: list[bool]
    """By each way of choosing."""
    last: float = 0.0
    """The log-probability of the last token."""


def percent(items: Sequence[Item], way: int) -> float:
    """How many are right, in percent."""
    return 100 * sum(item.right[way] for item in items) / len(items)


def hellaswag_items(path: Path) -> Iterator[list[str]]:
    """Blocks of six lines: context, the right ending's number, four endings."""
    lines = path.read_text("utf-8").split("\n")
    for n in range(0, len(lines) // 6 * 6, 6):
        yield lines[n : n + 6]


def hellaswag_item(loop: Loop, item: list[str]) -> Item:
    """Which ending is right, by its log-likelihood and by that of a character."""
    context, label, *endings = item
    values = [sum(found) for found in loop.behind(context, [" " + ending for ending in endings])]
    each = [value / len(ending) for value, ending in zip(values, endings, strict=True)]
    right = [int(np.argmax(values)) == int(label), int(np.argmax(each)) == int(label)]
    return Item(values, len(loop.encode(" " + max(endings, key=len))), right)


def hellaswag(items: Sequence[Item]) -> dict[str, float]:
    """The figures."""
    return {"accuracy": percent(items, 0), "accuracy_norm": percent(items, 1)}


def lambada_item(loop: Loop, line: str) -> Item:
    """The last word of a text; who is right is asked of the tokens before it, one by one."""
    context, word = json.loads(line)["text"].rsplit(" ", 1)
    before, wanted = loop.encode(context), loop.encode(" " + word)
    found = loop.logits(loop.torch.tensor([[*before, *wanted[:-1]]]), len(before) - 1)[0]
    values = [float(found[place, token]) for place, token in enumerate(wanted)]
    best = found.argmax(-1).tolist()
    return Item([sum(values)], len(wanted), [best[-1] == wanted[-1], best == wanted], values[-1])


def lambada(items: Sequence[Item]) -> dict[str, float]:
    """The figures."""
    return {
        "last_token_accuracy": percent(items, 0),
        "last_token_perplexity": math.exp(-sum(item.last for item in items) / len(items)),
        "last_word_accuracy": percent(items, 1),
        "last_word_perplexity": math.exp(-sum(item.sums[0] for item in items) / len(items)),
    }


def winograd_item(loop: Loop, line: str) -> Item:
    """A row with two contexts and what follows both."""
    row = json.loads(line)
    behind = row["continuation"].strip()
    behind = behind if behind[0] in "'.,;:!?" else " " + behind
    both = [loop.whole(context.strip(), behind) for context in row["context_options"]]
    right = [int(np.argmax([pair[part] for pair in both])) == row["gold"] for part in range(2)]
    return Item([part for part, _ in both], len(loop.encode(behind)), right)


def winograd(items: Sequence[Item]) -> dict[str, float]:
    """The figures."""
    return {"accuracy": percent(items, 0), "accuracy_full": percent(items, 1)}


class Loops:
    """The loop over texts here, with all threads; over items in processes of one thread each, which is faster."""

    def __init__(self, folder: Path, data: Path, limit: int | None) -> None:
        self.data, self.limit = data, limit
        self.here = Loop(folder)
        self._pool = ProcessPoolExecutor(THREADS, get_context("spawn"), _begin, (folder,))

    def __call__(self, task: str) -> Found:
        """A set."""
        if task in ("wikitext2", "wikitext103"):
            return self.here.text(*detokenised(self.data / "wikitext-2-raw" / "wiki.test.raw", "wikitext"))
        if task == "ptb":
            return self.here.text(*detokenised(self.data / "ptb" / "ptb.test.txt", "ptb"))
        if task == "lambada":
            return self._items(lambada_item, lambada, self._lines("lambada/lambada_test.jsonl"))
        if task == "hellaswag":
            items = hellaswag_items(self.data / "hellaswag" / "hellaswag_val_full.txt")
            return self._items(hellaswag_item, hellaswag, items)
        name = "winograd/winograd_wsc.jsonl" if task == "winograd" else "winogrande/winogrande.jsonl"
        return self._items(winograd_item, winograd, self._lines(name))

    def _lines(self, name: str) -> list[str]:
        with (self.data / name).open(encoding="utf-8") as file:
            return list(file)

    def _items(
        self,
        score: Callable[[Loop, Any], Item],
        figures: Callable[[Sequence[Item]], dict[str, float]],
        given: Iterable[Any],
    ) -> Found:
        work = functools.partial(_in_process, score)
        items = list(self._pool.map(work, itertools.islice(given, self.limit), chunksize=16))
        return Found(figures(items), [item.sums for item in items], [item.tokens for item in items])


def _begin(folder: Path) -> None:
    global _loop
    _loop = Loop(folder, threads=1)


def _in_process(score: Callable[[Loop, Any], Item], item: Any) -> Item:
    return score(_loop, item)


def differences(table: Mapping[str, Any], theirs: Found) -> Iterator[float]:
    """Of each document, in nats a token."""
    if len(theirs.sums) == 1:
        yield abs(sum(table["log_likelihood"]) - theirs.sums[0][0]) / theirs.tokens[0]
        return
    options = table.get("log_likelihoods", [[value] for value in table["log_likelihood"]])
    for mine, other, count in zip(options, theirs.sums, theirs.tokens, strict=True):
        yield max(abs(a - b) for a, b in zip(mine, other, strict=True)) / count


def bundled(folder: Path) -> Path:
    """The bundled model as transformers reads it."""
    from gpt2.gpt import load_model, save_model

    return Path(save_model(load_model(), folder / "bundled", format="huggingface"))


def main() -> None:
    """Run both and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"of {', '.join(TASKS)}; all by default")
    parser.add_argument("--model", choices=("bundled", "random-124M"), default="bundled")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/eval"))
    parser.add_argument("--limit", type=int, help="only so many items of sets that consist of items")
    given = parser.parse_args()
    wrong = False
    with tempfile.TemporaryDirectory() as temporary:
        folder = bundled(Path(temporary)) if given.model == "bundled" else huggingface()
        model = open_model(engine="litert") if given.model == "bundled" else open_model(folder, engine="litert")
        loops = Loops(folder, given.data, given.limit)
        print(f"{given.model}, litert float32, n_ctx {loops.here.n_ctx}; the loop: transformers, torch, float32")
        for task in given.tasks or TASKS:
            kept = store.home() / "evaluations"
            items = task in ("lambada", "hellaswag", "winograd", "winogrande")
            started = time.perf_counter()
            options = Options(limit=given.limit if items else None)
            ours = evaluate(model, task, given.data, options=options, folder=kept)
            assert ours.folder is not None
            table = read_documents(ours.folder)
            middle = time.perf_counter()
            theirs = loops(task)
            ended = time.perf_counter()
            worst = max(differences(table, theirs))
            count = f"{ours.facts['counts']['documents']} documents, {ours.facts['counts']['tokens']} tokens"
            print(f"{task}: {count}; ours {middle - started:.0f} s, the loop {ended - middle:.0f} s")
            for name, value in theirs.figures.items():
                mine = ours.metrics[name].value
                print(f"  {name:<24}ours {mine:<22.10g}the loop {value:<22.10g}apart {abs(mine - value):.2g}")
                wrong |= abs(mine - value) > 0.1 if "accuracy" in name else abs(mine / value - 1) > 10 * TOLERANCE
            print(f"  the largest difference of a document: {worst:.2g} nats a token", flush=True)
            wrong |= worst > TOLERANCE
    raise SystemExit(int(wrong))


if __name__ == "__main__":
    main()
