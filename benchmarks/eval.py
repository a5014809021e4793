"""How fast a model is evaluated: `python benchmarks/eval.py [--data FOLDER]`. Ours and transformers in turns.

GPT-2 124M with random weights, two threads, tokens made beforehand: windows of 1024 tokens of WikiText-2's test set,
and HellaSwag's items. transformers does it as lm-eval does: windows one by one, each of the four endings with its
context, eight of similar length in a batch, log-probabilities of all positions. Every round has other documents. The
sums of log-likelihoods are compared, so that nobody is fast by doing something else. Printed last is how fast float32
could be at most: the windows' products with weights at the speed that NumPy, torch or LiteRT has in a large product.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rivals import CONFIG, THREADS, Ours, huggingface, timed

from gpt2.codec import default_codec
from gpt2.evaluation import TASKS, Options, find_data
from gpt2.evaluation.detokenisers import DETOKENISERS
from gpt2.evaluation.scoring import Request, Scorer
from gpt2.evaluation.work import work_for

N_CTX = 1024
TASK_NAMES = ("wikitext2", "hellaswag")
BATCH = 8


class OurEvaluation:
    """This package, by the litert engine."""

    def __init__(self, precision: str) -> None:
        self.scorer = Scorer(Ours(precision).engine)

    def score(self, requests: list[Request]) -> float:
        """The sum of all log-likelihoods."""
        return sum(answer.log_likelihood for answers in self.scorer.score(requests) for answer in answers)


class Transformers:
    """transformers and torch, float32."""

    def __init__(self) -> None:
        import torch
        import transformers

        torch.set_num_threads(THREADS)
        self.torch = torch
        self.model = transformers.GPT2LMHeadModel.from_pretrained(huggingface(), dtype=torch.float32).eval()

    def score(self, requests: list[Request]) -> float:
        """As `OurEvaluation.score`."""
        torch, total = self.torch, 0.0
        rows = [
            ([*request.context, *continuation], len(continuation))
            for request in requests
            for continuation in request.continuations
        ]
        rows.sort(key=lambda row: -len(row[0]))
        size = 1 if len(rows[0][0]) >= N_CTX else BATCH
        for n in range(0, len(rows), size):
            batch = rows[n : n + size]
            longest = max(len(row) for row, _ in batch) - 1
            ids = torch.zeros((len(batch), longest), dtype=torch.long)
            for number, (row, _) in enumerate(batch):
                ids[number, : len(row) - 1] = torch.tensor(row[:-1])
            with torch.no_grad():
                found = torch.log_softmax(self.model(ids).logits, dim=-1)
            for number, (row, count) in enumerate(batch):
                part = found[number, len(row) - 1 - count : len(row) - 1]
                targets = torch.tensor(row[-count:])
                total += float(part.gather(1, targets[:, None]).double().sum())
        return total


CONTENDERS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "ours int8": (OurEvaluation, ("int8",)),
    "ours float32": (OurEvaluation, ("float32",)),
    "transformers float32": (Transformers, ()),
}


def products_per_second() -> float:
    """How many float32 multiplications with additions this machine does a second, in products of large matrices."""
    import torch

    def best(work: Callable[[], object]) -> float:
        return min(timed(work) for _ in range(7))

    torch.set_num_threads(THREADS)
    size, rows = 2048, 512
    a = np.random.default_rng(0).standard_normal((size, size), dtype=np.float32)
    b = torch.tensor(a)
    speeds = [size**3 / best(lambda: a @ a), size**3 / best(lambda: b @ b)]
    block = Ours("float32").engine._blocks[0]  # LiteRT's products of a layer
    x = np.ascontiguousarray(a[:rows, : CONFIG.n_embd])
    speeds.append(12 * rows * CONFIG.n_embd**2 / best(lambda: block(x, x)))
    return max(speeds)


def requests_of(task: str, data: Path) -> list[Request]:
    """All requests of a task."""
    options = Options().filled(TASKS[task], N_CTX)
    work = work_for(TASKS[task], default_codec(), options)
    (path,) = find_data(TASKS[task], data)
    items = TASKS[task].read(path, DETOKENISERS[TASKS[task].detokeniser])
    return [unit.request for unit in work.units(items)]


def contend(name: str, data: Path) -> None:
    """Be a contender: told a task and which of its requests, answer seconds and the sum."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    kind, arguments = CONTENDERS[name]
    contender = kind(*arguments)
    sets = {task: requests_of(task, data) for task in TASK_NAMES}
    for line in sys.stdin:
        task, first, last = json.loads(line)
        chosen = sets[task][first:last]
        started = time.perf_counter()
        total = contender.score(chosen)
        seconds = time.perf_counter() - started
        tokens = sum(len(continuation) for request in chosen for continuation in request.continuations)
        print(json.dumps([seconds, total, tokens]), file=answers, flush=True)


def main() -> None:
    """Measure in turns and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/eval"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--windows", type=int, default=2, help="of WikiText-2, a round")
    parser.add_argument("--items", type=int, default=16, help="of HellaSwag, a round")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.contender:
        contend(given.contender, given.data)
        return
    command = [sys.executable, __file__, "--data", str(given.data), "--contender"]
    processes = {
        name: subprocess.Popen([*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for name in CONTENDERS
    }
    sizes = {"wikitext2": given.windows, "hellaswag": given.items}
    found: dict[tuple[str, str], list[list[float]]] = {}
    for number in range(given.rounds + 1):  # the first round is for warming up
        for task, size in sizes.items():
            for name, process in processes.items():
                assert process.stdin is not None
                assert process.stdout is not None
                print(json.dumps([task, number * size, (number + 1) * size]), file=process.stdin, flush=True)
                answer = json.loads(process.stdout.readline())
                if number:
                    found.setdefault((task, name), []).append(answer)
    for process in processes.values():
        process.communicate()
    theirs_alone = math.nan
    for task in sizes:
        print(f"{task}: scored tokens a second, median of {given.rounds} rounds")
        rates = {}
        for name in CONTENDERS:
            answers = found[task, name]
            rates[name] = statistics.median(tokens / seconds for seconds, _, tokens in answers)
            theirs = found[task, "transformers float32"]
            off = np.mean([abs(a[1] - b[1]) / a[2] for a, b in zip(answers, theirs, strict=True)])
            print(f"  {name:<22}{rates[name]:10,.1f}   (off by {off:.2g} nats a token)")
        for name in ("ours float32", "ours int8"):
            ratio = rates[name] / rates["transformers float32"]
            print(f"  ratio {name} / transformers float32, {task}: {ratio:.2f}", flush=True)
        if task == "wikitext2":
            theirs_alone = rates["transformers float32"]
    C, L, V = CONFIG.n_embd, CONFIG.n_layer, CONFIG.n_vocab
    speed = products_per_second()
    ceiling = speed / (12 * C * C * L + V * C)
    print(
        f"float32 products, the fastest of three libraries: {2 * speed / 1e9:.0f} GFLOP/s; with all else for nothing:"
    )
    print(f"  the windows of WikiText-2: {ceiling:,.0f} tokens a second")
    print(f"  ratio of these products alone to transformers float32, wikitext2: {ceiling / theirs_alone:.2f}")


if __name__ == "__main__":
    main()
