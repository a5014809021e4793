"""How sure a figure is, and a difference of two: bootstrap and a paired test over documents, with a seed.

Documents are drawn, not tokens: tokens of one document are alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gpt2.evaluation.tasks import Metric

LEVEL = 0.95
_ENDS = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
_AT_ONCE = 1 << 22  # drawn numbers in memory


@dataclass(frozen=True)
class Estimate:
    """A figure with its confidence interval; what is not defined is NaN."""

    value: float
    """NaN where there is nothing to divide by, or where it is too large for a number."""
    low: float
    """NaN, as `high`, with fewer than two documents."""
    high: float

    def to_dict(self) -> dict[str, float | None]:
        """As JSON has it, which knows no NaN."""
        return _plain(asdict(self))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Estimate:
        """From what `to_dict` gave."""
        return cls(*(math.nan if values[name] is None else float(values[name]) for name in ("value", "low", "high")))


@dataclass(frozen=True)
class Difference:
    """How two runs on the same documents differ in a figure: the second's minus the first's. NaN as in `Estimate`."""

    first: float
    second: float
    low: float
    """Of the confidence interval of the difference."""
    high: float
    p: float
    """How often a difference at least so large comes about when each document's results are swapped at random."""

    @property
    def difference(self) -> float:
        """The second's figure minus the first's."""
        return self.second - self.first

    def to_dict(self) -> dict[str, float | None]:
        """As JSON has it."""
        return _plain({"first": self.first, "second": self.second, "difference": self.difference} | asdict(self))


def estimate(metric: Metric, top: np.ndarray, bottom: np.ndarray, *, seed: int, resamples: int) -> Estimate:
    """A figure and its 95 % interval by the percentiles of a bootstrap over documents.

    Where all of N documents are right, or none is, every draw is alike, and the exact binomial interval (Clopper and
    Pearson 1934) stands instead: up to 1 - 0.025 ** (1 / N).

    Args:
        metric: which figure.
        top: (N,) its column.
        bottom: (N,) what it is divided by.
        seed: the same one draws the same documents.
        resamples: how often N of N documents are drawn, with replacement.
    """
    value = _number(metric.value(top.sum(), bottom.sum()))
    if math.isnan(value) or len(top) < 2:
        return Estimate(value, math.nan, math.nan)
    if metric.kind == "share" and value in (0, 100):
        widest = 100 - 100 * _ENDS[0] ** (1 / len(top))
        return Estimate(value, max(0.0, value - widest), min(100.0, value + widest))
    return Estimate(value, *_interval(_bootstrap(metric, (top, bottom), seed, resamples)))


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
    one, two = (_number(metric.value(top.sum(), bottom.sum())) for top, bottom in (first, second))
    if math.isnan(one) or math.isnan(two):
        return Difference(one, two, math.nan, math.nan, math.nan)
    low = high = math.nan
    if len(first[0]) > 1:
        with np.errstate(invalid="ignore"):  # infinite figures of some draws
            drawn = _bootstrap(metric, second, seed, resamples) - _bootstrap(metric, first, seed, resamples)
        low, high = _interval(drawn)
    rng = np.random.default_rng(seed)
    N, real, extreme = len(first[0]), abs(two - one), 0
    totals = [a.sum() + b.sum() for a, b in zip(first, second, strict=True)]
    for rows in _portions(resamples, N):
        swapped = rng.integers(0, 2, (rows, N), np.int8).astype(bool)
        sums = [np.where(swapped, b, a).sum(axis=1) for a, b in zip(first, second, strict=True)]
        other = [total - part for total, part in zip(totals, sums, strict=True)]
        found = np.abs(metric.value(*other) - metric.value(*sums))
        extreme += int((found >= real * (1 - 1e-12)).sum())
    return Difference(one, two, low, high, (extreme + 1) / (resamples + 1))


def _bootstrap(metric: Metric, columns: tuple[np.ndarray, np.ndarray], seed: int, resamples: int) -> np.ndarray:
    """(resamples,) the figure for documents drawn with replacement; the same seed draws the same ones."""
    rng = np.random.default_rng(seed)
    top, bottom = columns
    found = []
    for rows in _portions(resamples, len(top)):
        chosen = rng.integers(0, len(top), (rows, len(top)))
        found.append(metric.value(top[chosen].sum(axis=1), bottom[chosen].sum(axis=1)))
    return np.concatenate(found)


def _interval(drawn: np.ndarray) -> tuple[float, float]:
    """The ends that hold the middle of the draws; those of empty documents alone, which have no figure, left out."""
    drawn = drawn[~np.isnan(drawn)]
    low, high = np.quantile(drawn, _ENDS) if len(drawn) else (math.nan, math.nan)
    return _number(low), _number(high)


def _number(value: Any) -> float:
    return float(value) if np.isfinite(value) else math.nan


def _plain(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in values.items()}


def _portions(total: int, each: int) -> list[int]:
    """`total` rows of `each` numbers in portions that fit the memory."""
    rows = max(1, _AT_ONCE // max(1, each))
    return [min(rows, total - n) for n in range(0, total, rows)]
