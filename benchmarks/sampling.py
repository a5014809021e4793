"""What choosing a token costs: `python benchmarks/sampling.py`.

Milliseconds a token for the usual settings, on the 50,257 logits that the bundled model gives at each place of a text
of its own (random ones would be flatter, and top-p would have thousands of tokens to sort). There is no peer here.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np

from gpt2.config import SamplingConfig
from gpt2.language_model import open_model
from gpt2.sampling import sample, sample_rng

SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "plain": {},
    "temperature 0.7": {"temperature": 0.7},
    "top-k 40": {"top_k": 40},
    "top-p 0.9": {"top_p": 0.9},
    "top-k 40, top-p 0.9, temperature 0.8": {"top_k": 40, "top_p": 0.9, "temperature": 0.8},
    "min-p 0.05": {"min_p": 0.05},
    "typical-p 0.9": {"typical_p": 0.9},
    "repetition penalty 1.2, top-k 40": {"repetition_penalty": 1.2, "top_k": 40},
}


def main() -> None:
    """Measure and print."""
    model = open_model()
    (text,) = model.generate("Once upon a time", max_tokens=100, seed=1, echo=True)
    rows, context = model.logits([text.tokens])[0], text.tokens
    for name, options in SETTINGS.items():
        config, own = SamplingConfig(**options), sample_rng(1, 0)
        seconds = []
        for row in np.concatenate([rows, rows]):
            started = time.perf_counter()
            sample(row, config, own, context=context, generated=context[50:])
            seconds.append(time.perf_counter() - started)
        print(f"{name:<40}{1e3 * statistics.median(seconds[len(rows) :]):.3f} ms")


if __name__ == "__main__":
    main()
