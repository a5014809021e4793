"""A row of tokens in memory."""

from __future__ import annotations

import hashlib

import numpy as np


class ArrayTokens:
    """Tokens (N,) in an array, as `gpt2.data.batches.Tokens`."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = np.asarray(array)

    @property
    def digest(self) -> str:
        """SHA-256 of the tokens as little-endian 32-bit numbers."""
        return hashlib.sha256(self.array.astype("<u4").tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.array)

    def gather(self, starts: np.ndarray, length: int) -> np.ndarray:
        """The windows (B, length) int32 that begin at `starts` (B,)."""
        return self.array[starts[:, None] + np.arange(length)].astype(np.int32)
