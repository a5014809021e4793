"""How fast the reference engine writes: `python benchmarks/decode.py`.

GPT-2 124M with random weights (speed does not depend on them), greedy steps after 64 tokens, alone and with eight rows
at once; and, where torch and transformers are installed, the same by `transformers` in float32, in turns in one run.
The median of the rounds is printed, the ratio last.
"""

from __future__ import annotations

import statistics
import time

import numpy as np

from gpt2.config import SIZES
from gpt2.gpt import new_model

ROUNDS, STEPS, PAST = 5, 16, 64


def ours(rows: int) -> float:
    """Seconds a step of `rows` rows."""
    prompt = np.random.default_rng(0).integers(0, 50257, PAST).tolist()
    cache = ENGINE.new_cache(rows)
    ENGINE.feed(cache, [prompt] * rows)
    ENGINE.feed(cache, [[1]] * rows)  # compiles the first time
    started = time.perf_counter()
    for _ in range(STEPS):
        ENGINE.feed(cache, [[1]] * rows)
    return (time.perf_counter() - started) / STEPS


def make_peer():  # type: ignore[no-untyped-def]
    """The same by transformers, or None where it is not installed."""
    try:
        import torch
        from transformers import GPT2Config, GPT2LMHeadModel
    except ImportError:
        return None
    network = GPT2LMHeadModel(GPT2Config()).eval()
    torch.set_num_threads(2)

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def theirs(rows: int) -> float:
        ids = torch.randint(0, 50257, (rows, PAST))
        past = network(ids, use_cache=True).past_key_values
        started = time.perf_counter()
        for _ in range(STEPS):
            past = network(
                torch.ones((rows, 1), dtype=torch.long), past_key_values=past, use_cache=True
            ).past_key_values
        return (time.perf_counter() - started) / STEPS

    return theirs


ENGINE = new_model(SIZES["124M"]).engine


def main() -> None:
    """Measure in turns and print."""
    theirs = make_peer()
    for rows in (1, 8):
        mine, others = [], []
        for _ in range(ROUNDS):
            mine.append(ours(rows))
            if theirs is not None:
                others.append(theirs(rows))
        seconds = statistics.median(mine)
        print(f"124M float32, {rows} rows: ours {rows / seconds:.1f} tokens/s", end="")
        if others:
            peer = statistics.median(others)
            print(f", transformers {rows / peer:.1f} tokens/s, ratio {peer / seconds:.2f}", end="")
        print(flush=True)


if __name__ == "__main__":
    main()
