"""Logits to intervals of whole numbers, the same on every machine that has the same logits.

A token's weight is 2**22 exp(logit - highest logit), rounded, from a table in steps of 1/1024: the difference of two
float32 and its product with 1024 are exact in IEEE arithmetic or rounded once, all else is whole numbers. With P(n) the
sum of the weights of the tokens before n, W of all, and V tokens, the interval of token n begins at

    n + P(n) * (2**24 - V) // W

and ends where the next one begins. So each has a width of at least 1, and can be coded however improbable it is. What
that costs is log2 of 1 - V / 2**24: 0.004 bits a token for GPT-2's vocabulary.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from gpt2.compiled import compiled
from gpt2.compression.range_coder import BITS
from gpt2.errors import ConfigError, GenerationError

MAX_VOCABULARY = 1 << 17
"""Tokens; with more, 64 bits would not suffice."""

_STEPS = 1024  # of the table, a nat
_WEIGHT_BITS = 22
_BLOCK = 256  # weights that are summed together
_F = np.float32


class Intervals:
    """The intervals of one distribution after another.

    Args:
        n_vocab: how many tokens there are.

    Raises:
        ConfigError: more than `MAX_VOCABULARY`.
    """

    def __init__(self, n_vocab: int) -> None:
        if n_vocab > MAX_VOCABULARY:
            raise ConfigError(f"n_vocab: expected at most {MAX_VOCABULARY:,} to compress with, got {n_vocab:,}")
        self._weights = np.empty(n_vocab, np.uint32)
        self._sums = np.empty(-(-n_vocab // _BLOCK), np.int64)
        self._total = 0

    def set(self, logits: np.ndarray) -> None:
        """Take the distribution of these logits (V,) float32.

        Raises:
            GenerationError: they hold NaN or infinity, or are all -inf.
        """
        peak = logits.max()  # NaN, if there is one
        if not np.isfinite(peak):
            raise GenerationError(f"logits: expected numbers, got {peak}; are the weights sound?")
        self._total = _weigh(logits, peak, _table(), self._weights, self._sums)

    def of(self, token: int) -> tuple[int, int]:
        """Start and width of a token's interval."""
        start, end = _bounds(self._weights, self._sums, self._total, token)
        return start, end - start

    def at(self, target: int) -> int:
        """The token whose interval holds a number."""
        return int(_find(self._weights, self._sums, self._total, target))


@functools.cache
def _table() -> np.ndarray:
    """round(2**22 exp(-n / 1024)) for n = 0, 1, ... until it is 0: (N,) uint32. By Python's integers alone."""
    bits = 128
    one = 1 << bits
    factor, term, n = one, one, 0
    while term:  # exp(-1 / 1024) = sum of (-1 / 1024)**n / n!
        n += 1
        term //= _STEPS * n
        factor += -term if n % 2 else term
    shift = bits - _WEIGHT_BITS
    values: list[int] = []
    value = one
    while not values or values[-1]:
        values.append(value + (1 << shift - 1) >> shift)
        value = value * factor >> bits
    return np.array(values, np.uint32)


@compiled(nogil=True)
def _weigh(logits: Any, peak: Any, table: Any, weights: Any, sums: Any) -> Any:
    """Fill in the weights, and their sums in blocks; the sum of all."""
    limit = _F(len(table) - 1)
    for n in range(len(logits)):
        weights[n] = table[np.int32(min((peak - logits[n]) * _F(_STEPS), limit))]
    total = np.int64(0)
    for block in range(len(sums)):
        some = np.int64(0)
        for n in range(block * _BLOCK, min(block * _BLOCK + _BLOCK, len(weights))):
            some += np.int64(weights[n])
        sums[block] = some
        total += some
    return total


@compiled(nogil=True)
def _bounds(weights: Any, sums: Any, total: int, token: int) -> Any:
    """Where the interval of a token begins and ends."""
    room = (1 << BITS) - len(weights)
    before = np.int64(0)
    for block in range(token // _BLOCK):
        before += sums[block]
    for n in range(token // _BLOCK * _BLOCK, token):
        before += np.int64(weights[n])
    after = before + np.int64(weights[token])
    return token + before * room // total, token + 1 + after * room // total


@compiled(nogil=True)
def _find(weights: Any, sums: Any, total: int, target: int) -> int:
    """The token whose interval holds `target`."""
    room = (1 << BITS) - len(weights)
    block, before = 0, np.int64(0)
    while block < len(sums) - 1 and (block + 1) * _BLOCK + (before + sums[block]) * room // total <= target:
        before += sums[block]
        block += 1
    n = block * _BLOCK
    while n < len(weights) - 1:
        before += np.int64(weights[n])
        if n + 1 + before * room // total > target:
            break
        n += 1
    return n
