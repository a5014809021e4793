"""What fewer bits cost: `python benchmarks/quality.py FILE... [--model NAME] [--windows 64]`.

The perplexity of a text, in windows of n_ctx tokens spread evenly over it, for the reference and each precision of the
fast engine; and the largest difference of logits from the reference's on the first window.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np

from gpt2.language_model import open_model


def surprisal(logits: np.ndarray, tokens: np.ndarray) -> float:
    """The sum of -log p of each next token, in nats."""
    shifted = logits[:-1].astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    chosen = np.take_along_axis(shifted, tokens[1:, None], axis=-1)[:, 0]
    return float((np.log(np.exp(shifted).sum(axis=-1)) - chosen).sum())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--model", default=None)
    parser.add_argument("--windows", type=int, default=64)
    given = parser.parse_args()
    text = "\n\n".join(path.read_text(encoding="utf-8") for path in given.files)
    reference = open_model(given.model, engine="keras")
    T = reference.config.n_ctx
    ids = np.array(reference.prompt_tokens(text)[0])
    starts = np.linspace(0, len(ids) - T, given.windows).astype(int)
    windows = [ids[start : start + T] for start in starts]
    models = {"reference": reference}
    models |= {name: open_model(given.model, engine="litert", precision=name) for name in ("float32", "int8", "int4")}
    first = reference.logits(windows[0][None])[0]
    exact = 0.0
    for name, model in models.items():
        total = sum(surprisal(model.logits(window[None])[0], window) for window in windows)
        perplexity = math.exp(total / (given.windows * (T - 1)))
        exact = exact or perplexity
        largest = np.abs(model.logits(windows[0][None])[0] - first).max()
        change = 100 * (perplexity / exact - 1)
        print(
            f"{name:<10} perplexity {perplexity:.4f} ({change:+.3f} %), logits off by up to {largest:.2g}", flush=True
        )


if __name__ == "__main__":
    main()
