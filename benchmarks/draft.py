"""What drafts give on texts that repeat themselves: `python benchmarks/draft.py`.

GPT-2 124M with random weights would write nothing sensible, so the text is given: after all the work of the engine, the
logit of the token that the text has next is raised above all others. So the engine's time is measured on exactly this
text, greedy, with drafts and without, in turns; the ratio last. The texts: a module of Python's library (code), a page
of this project's documentation followed by a summary that quotes it, and the same page alone, which repeats little.
"""

from __future__ import annotations

import argparse
import inspect
import json.decoder
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rivals import Ours, timed

from gpt2.codec import decode, encode
from gpt2.config import GenerationConfig
from gpt2.engines import Cache
from gpt2.generation import generate

PAGE = (Path(__file__).parents[1] / "docs" / "engines.md").read_text(encoding="utf-8")


class Forced:
    """An engine whose most probable next token is always that of a text."""

    def __init__(self, engine: Any, text: Sequence[int]) -> None:
        self.engine, self.text = engine, text
        self.name, self.precision, self.config, self.exact = "forced", engine.precision, engine.config, True
        self.steps = 0

    def new_cache(self, rows: int, *, keep: bool = True) -> Cache:
        """As the engine's."""
        return self.engine.new_cache(rows, keep=keep)

    def feed(self, cache: Cache, ids: Sequence[Sequence[int]], *, all_positions: bool = False) -> list[np.ndarray]:
        """As the engine's, for one row."""
        self.steps += 1
        (logits,) = self.engine.feed(cache, ids, all_positions=all_positions)
        end = int(cache.lengths[0])
        for place, values in enumerate(logits):
            values[self.text[min(end - len(logits) + 1 + place, len(self.text) - 1)]] = 1e9
        return [logits]


def summary(page: str) -> str:
    """A made-up summary: of every third sentence the beginning is quoted."""
    sentences = [sentence.strip() for sentence in re.split(r"(?<=\.)\s", page) if len(sentence) > 60]
    return " ".join(f'It says: "{sentence[:120]}", which is worth noting.' for sentence in sentences[::3])


def main() -> None:
    """Measure in turns and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", nargs="*", default=["int8", "int4", "float32"])
    given = parser.parse_args()
    start = encode(PAGE)[:450]
    texts = {
        "code": (200, encode(inspect.getsource(json.decoder))[:900]),
        "summary with quotations": (len(start), (start + encode("\n\n" + summary(decode(start))))[:900]),
        "prose": (200, encode(PAGE)[:900]),
    }
    for precision in given.precision:
        engine = Ours(precision).engine
        for name, (prompt, tokens) in texts.items():
            found: dict[bool, list[float]] = {False: [], True: []}
            steps = {}
            for _ in range(given.rounds):
                for drafts in (False, True):
                    forced = Forced(engine, tokens)
                    config = GenerationConfig.from_options(
                        max_tokens=len(tokens) - prompt, temperature=0, drafts=drafts
                    )

                    def run(forced: Forced = forced, config: GenerationConfig = config) -> None:
                        (done,) = generate(forced, None, [tokens[:prompt]], config)  # noqa: B023
                        assert done.tokens == list(tokens[prompt:])  # noqa: B023

                    found[drafts].append(timed(run))
                    steps[drafts] = forced.steps
            plain, drafted = (statistics.median(found[drafts]) for drafts in (False, True))
            count = len(tokens) - prompt
            print(
                f"{precision}, {name}: {count / plain:.0f} tokens/s without drafts, {count / drafted:.0f} with "
                f"({steps[True]} steps instead of {steps[False]}); ratio {plain / drafted:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
