"""Rows of tokens -> (x, y) batches for training and for held-out text.

It knows nothing about text. Windows do not overlap; each epoch shifts them by a random offset and shuffles them. Which
windows a batch has follows from its number and the seed alone, so a run can begin anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from gpt2.errors import TrainingError

Batch = tuple[np.ndarray, np.ndarray]
"""Inputs x and targets y, both (B, T) int32: y is x one token later."""


class Tokens(Protocol):
    """A long row of tokens, in memory or in files."""

    @property
    def digest(self) -> str:
        """A hash of the tokens, as hexadecimal digits."""

    def __len__(self) -> int:
        """How many there are."""

    def gather(self, starts: np.ndarray, length: int) -> np.ndarray:
        """The windows (B, length) int32 that begin at `starts` (B,)."""


class TrainingBatches:
    """Batches without end, by number; every window comes once an epoch.

    Args:
        tokens: the text.
        batch_size: sequences in a batch (B).
        sequence_length: tokens in a sequence (T).
        seed: of the offsets and the order.

    Raises:
        TrainingError: the tokens do not fill one batch.
    """

    def __init__(self, tokens: Tokens, batch_size: int, sequence_length: int, seed: int) -> None:
        self.tokens, self.seed = tokens, seed
        self.B, self.T = B, T = batch_size, sequence_length
        if len(tokens) < B * T + 1:
            raise TrainingError(
                f"training data: expected at least batch_size * sequence_length + 1 = {B * T + 1:,} tokens, "
                f"got {len(tokens):,}; give more text, or a smaller batch_size or sequence_length"
            )
        self.offsets = min(T, len(tokens) - B * T)  # an offset leaves room for a whole batch at least
        self.windows = (len(tokens) - self.offsets) // T  # as many with any offset
        self.epoch_length = self.windows // B
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0))

    def __getitem__(self, number: int) -> Batch:
        """Batch `number`, from 0."""
        epoch, place = divmod(number, self.epoch_length)
        if self._order[0] != epoch:
            rng = np.random.default_rng([self.seed, epoch])
            offset = int(rng.integers(0, self.offsets))
            self._order = (epoch, rng.permutation(self.windows) * self.T + offset)
        starts = self._order[1][place * self.B : (place + 1) * self.B]
        return _windows(self.tokens, starts, self.T)


def evaluation_batches(tokens: Tokens, batch_size: int, sequence_length: int, limit: int) -> Iterator[Batch]:
    """At most `limit` batches spread evenly over the tokens, always the same ones.

    Where the text is too short for one batch, there is one with fewer rows.

    Raises:
        TrainingError: the tokens do not fill one window.
    """
    B, T = batch_size, sequence_length
    starts = np.arange((len(tokens) - 1) // T) * T
    if not len(starts):
        raise TrainingError(f"held-out data: expected at least {T + 1:,} tokens, got {len(tokens):,}")
    count = max(1, min(limit, len(starts) // B))
    chosen = starts[np.linspace(0, len(starts) - 1, min(len(starts), count * B)).astype(int)]
    for first in range(0, len(chosen), B):
        yield _windows(tokens, chosen[first : first + B], T)


def _windows(tokens: Tokens, starts: np.ndarray, T: int) -> Batch:
    windows = tokens.gather(starts, T + 1)  # (B, T + 1)
    return windows[:, :-1], windows[:, 1:]
