"""The log-probability of given tokens and the most probable ones, from logits, in one pass; compiled by Numba.

A position costs one look at its V logits for their maximum and one for the sum of their exponentials, and nothing is
written but the few numbers that come out. Exponentials are float32 (2 units in the last place), their sum is float64:
the result is within 1e-6 nats of a computation in float64.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from gpt2 import machine
from gpt2.compiled import compiled
from gpt2.engines.attention import exp

_F = np.float32
_LANES = 64  # partial sums, and a constant, so that vector registers are used
_SHARED_FROM = 8  # positions from which on it pays to wake other threads
_compiled = compiled(fastmath={"contract", "nsz"}, error_model="numpy", nogil=True)


@_compiled
def _largest(x: Any, penalty: Any) -> Any:
    """The first place of the largest of x + penalty (V,); with NaN anywhere, -1."""
    best, at, bad = _F(-np.inf), 0, 0
    tops = np.empty(_LANES, np.float32)
    whole = len(x) - len(x) % _LANES
    for first in range(0, whole, _LANES):
        a, b = x[first : first + _LANES], penalty[first : first + _LANES]
        for lane in range(_LANES):
            tops[lane] = a[lane] + b[lane]
            bad |= a[lane] != a[lane]
        top = tops[0]
        for lane in range(_LANES):
            top = max(top, tops[lane])
        if top > best:
            best, at = top, first
    for n in range(whole, len(x)):
        bad |= x[n] != x[n]
        if x[n] + penalty[n] > best:
            best, at = x[n] + penalty[n], n
    if bad:
        return -1
    while at < len(x) - 1 and x[at] + penalty[at] != best:
        at += 1
    return at


@_compiled
def _total(x: Any, peak: Any) -> Any:
    """The sum of exp(x - peak)."""
    sums = np.zeros(_LANES, np.float32)
    total = 0.0
    whole = len(x) - len(x) % _LANES
    for begin in range(0, whole, 64 * _LANES):
        for first in range(begin, min(begin + 64 * _LANES, whole), _LANES):
            a = x[first : first + _LANES]
            for lane in range(_LANES):
                sums[lane] += exp(a[lane] - peak)
        for lane in range(_LANES):
            total += sums[lane]
            sums[lane] = _F(0)
    for n in range(whole, len(x)):
        total += exp(x[n] - peak)
    return total


@_compiled
def _read(logits: Any, targets: Any, zeros: Any, penalty: Any, filtered: bool, out: Any, best: Any, kept: Any) -> None:
    """Fill out, best and kept, one number a row of logits."""
    for row in range(len(logits)):
        x = logits[row]
        at = _largest(x, zeros)
        best[row] = at
        if at < 0 or x[at] == np.inf or x[at] == -np.inf:
            out[row] = np.nan
            kept[row] = -1
            continue
        out[row] = np.float64(x[targets[row]]) - np.float64(x[at]) - math.log(_total(x, x[at]))
        kept[row] = _largest(x, penalty) if filtered else at


class Reader:
    """Reads logits of a vocabulary.

    Args:
        n_vocab: how many there are of a position.
        excluded: ids that are passed over where the best token but these is asked for.
        threads: None takes all cores that this process may use.
    """

    def __init__(self, n_vocab: int, excluded: np.ndarray | None = None, *, threads: int | None = None) -> None:
        self._zeros = np.zeros(n_vocab, np.float32)
        self._penalty = self._zeros.copy()
        self._filtered = excluded is not None
        if excluded is not None:
            self._penalty[excluded] = -np.inf
        self._threads = threads or machine.cores()
        self._pool = ThreadPoolExecutor(self._threads) if self._threads > 1 else None

    def __call__(self, logits: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What logits say of the tokens that came.

        Args:
            logits: (N, V) float32.
            targets: (N,) ids.

        Returns:
            (N,) float64, the log-probability of each target in nats, NaN where the logits are no numbers; (N,) the
            most probable id, the lowest of several, -1 where they are not; (N,) the same among those not excluded.
        """
        N = len(logits)
        out, best, kept = np.empty(N), np.empty(N, np.int64), np.empty(N, np.int64)
        targets = np.ascontiguousarray(targets, np.int64)

        def read(first: int, last: int) -> None:
            part = slice(first, last)
            _read(
                logits[part], targets[part], self._zeros, self._penalty, self._filtered,
                *(out[part], best[part], kept[part]),
            )  # fmt: skip

        if self._pool is None or N < _SHARED_FROM:
            read(0, N)
        else:
            bounds = [N * n // self._threads for n in range(self._threads + 1)]
            list(self._pool.map(read, bounds, bounds[1:]))
        return out, best, kept
