"""How sure a figure is, and a difference of two: bootstrap and a paired test over documents, with a seed.

Documents are drawn, not tokens: tokens of one document are alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gpt2.evaluation.tasks import Metric

LEVEL = 0.95
_ENDS = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
_AT_ONCE = 1 << 22  # drawn numbers in memory


@dataclass(frozen=True)
class Estimate:
    """A figure with its confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """How two runs on the same documents differ in a figure: the second's minus the first's."""

    first: float
    second: float
    low: float
    """Of the confidence interval of the difference."""
    high: float
    p: float
    """How often a difference at least so large comes about when each document's results are swapped at random."""


def estimate(metric: Metric, top: np.ndarray, bottom: np.ndarray, *, seed: int, resamples: int) -> Estimate:
    """A figure and its 95 % interval by the percentiles of a bootstrap over documents.

    Args:
        metric: which figure.
        top: (N,) its column.
        bottom: (N,) what it is divided by.
        seed: the same one draws the same documents.
        resamples: how often N of N documents are drawn, with replacement.
    """
    value = float(metric.value(top.sum(), bottom.sum()))
    low, high = np.nanquantile(_bootstrap(metric, (top, bottom), seed, resamples), _ENDS)
    return Estimate(value, float(low), float(high))


def compare(
    metric: Metric,
    first: tuple[np.ndarray, np.ndarray],
    second: tuple[np.ndarray, np.ndarray],
    *,
    seed: int,
    resamples: int,
) -> Difference:
    """The difference of two runs in a figure, with its interval and a paired test.

    The test swaps the two results of each document or not, by a coin, and counts how often the difference is at least
    as large as the real one (a permutation test; for right and wrong answers it tends to McNemar's).

    Args:
        metric: which figure.
        first: its columns (N,), top and bottom, of the first run.
        second: those of the second, the same documents in the same order.
        seed: of both.
        resamples: of both.
    """
    one, two = (float(metric.value(top.sum(), bottom.sum())) for top, bottom in (first, second))
    drawn = _bootstrap(metric, second, seed, resamples) - _bootstrap(metric, first, seed, resamples)
    low, high = np.nanquantile(drawn, _ENDS)
    rng = np.random.default_rng(seed)
    N, real, extreme = len(first[0]), abs(two - one), 0
    totals = [a.sum() + b.sum() for a, b in zip(first, second, strict=True)]
    for rows in _portions(resamples, N):
        swapped = rng.integers(0, 2, (rows, N), np.int8).astype(bool)
        sums = [np.where(swapped, b, a).sum(axis=1) for a, b in zip(first, second, strict=True)]
        other = [total - part for total, part in zip(totals, sums, strict=True)]
        found = np.abs(metric.value(*other) - metric.value(*sums))
        extreme += int((found >= real * (1 - 1e-12)).sum())
    return Difference(one, two, float(low), float(high), (extreme + 1) / (resamples + 1))


def _bootstrap(metric: Metric, columns: tuple[np.ndarray, np.ndarray], seed: int, resamples: int) -> np.ndarray:
    """(resamples,) the figure for documents drawn with replacement; the same seed draws the same ones."""
    rng = np.random.default_rng(seed)
    top, bottom = columns
    found = []
    for rows in _portions(resamples, len(top)):
        chosen = rng.integers(0, len(top), (rows, len(top)))
        with np.errstate(divide="ignore", invalid="ignore"):  # documents that are all empty: left out below
            found.append(metric.value(top[chosen].sum(axis=1), bottom[chosen].sum(axis=1)))
    return np.concatenate(found)


def _portions(total: int, each: int) -> list[int]:
    """`total` rows of `each` numbers in portions that fit the memory."""
    rows = max(1, _AT_ONCE // max(1, each))
    return [min(rows, total - n) for n in range(0, total, rows)]
