"""One long row of tokens -> (x, y) batches for training and for held-out text.

It knows nothing about text. Windows do not overlap; each epoch shifts them by a random offset and shuffles them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gpt2.errors import TrainingError

Batch = tuple[np.ndarray, np.ndarray]
"""Inputs x and targets y, both (B, T) int32: y is x one token later."""


def training_batches(tokens: np.ndarray, batch_size: int, sequence_length: int, seed: int) -> Iterator[Batch]:
    """Batches without end, every window once an epoch; the same seed gives the same batches.

    Args:
        tokens: (N,) integers.
        batch_size: sequences in a batch (B).
        sequence_length: tokens in a sequence (T).
        seed: of the offsets and the order.

    Raises:
        TrainingError: the tokens do not fill one batch.
    """
    B, T = batch_size, sequence_length
    if len(tokens) < B * T + 1:
        raise TrainingError(
            f"training data: expected at least batch_size * sequence_length + 1 = {B * T + 1:,} tokens, "
            f"got {len(tokens):,}; give more text, or a smaller batch_size or sequence_length"
        )
    rng = np.random.default_rng(seed)
    while True:
        # An offset that leaves room for a whole batch at least.
        offset = int(rng.integers(0, min(T, len(tokens) - B * T)))
        starts = rng.permutation((len(tokens) - 1 - offset) // T) * T + offset
        for first in range(0, len(starts) - B + 1, B):
            yield _windows(tokens, starts[first : first + B], T)


def evaluation_batches(tokens: np.ndarray, batch_size: int, sequence_length: int, limit: int) -> Iterator[Batch]:
    """At most `limit` batches spread evenly over the tokens, always the same ones; a short last one is left out."""
    B, T = batch_size, sequence_length
    starts = np.arange((len(tokens) - 1) // T) * T
    if not len(starts):
        raise TrainingError(f"held-out data: expected at least {T + 1:,} tokens, got {len(tokens):,}")
    count = max(1, min(limit, len(starts) // B))
    chosen = starts[np.linspace(0, len(starts) - 1, min(len(starts), count * B)).astype(int)]
    for first in range(0, len(chosen), B):
        yield _windows(tokens, chosen[first : first + B], T)


def _windows(tokens: np.ndarray, starts: np.ndarray, T: int) -> Batch:
    windows = tokens[starts[:, None] + np.arange(T + 1)].astype(np.int32)  # (B, T + 1)
    return windows[:, :-1], windows[:, 1:]
