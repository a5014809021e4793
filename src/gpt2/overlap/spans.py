"""Which spans of a text stand verbatim in a training set: the longest ones, token for token, and where they stand.

The texts are held in memory and the training set's shards are read by, once, so its size does not matter. A span is
compared token by token. That is a little less than letter by letter: at its ends the same letters can be other tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from gpt2.data.batches import Tokens
from gpt2.errors import ConfigError
from gpt2.overlap.grams import Grams
from gpt2.overlap.sources import CHUNK

SHORTEST = 32
"""Tokens of a span; shorter ones are not told."""

_PAIRS = 1 << 20  # of a place in the training set and one in the texts, looked at together
_STEP = 64  # tokens that are compared at once


@dataclass(frozen=True)
class Span:
    """A stretch of a text that stands in the training set, and cannot be made longer there."""

    first: int
    """Its first token's number in the text."""
    last: int
    """The number of the token behind its last."""
    offset: int
    """Where it first stands: a token's number in the training set."""
    document: int
    """The number of the document that this is in, from 0."""
    places: int
    """How often it stands there, as long as this."""

    def __len__(self) -> int:
        return self.last - self.first


@dataclass(frozen=True)
class Memorized:
    """What of a text stands in the training set."""

    tokens: int
    """Of the text."""
    spans: tuple[Span, ...]
    """In the order of the text. They may overlap; none lies in another."""

    @property
    def covered(self) -> int:
        """Tokens of the text that are in a span."""
        inside = np.zeros(self.tokens, bool)
        for span in self.spans:
            inside[span.first : span.last] = True
        return int(inside.sum())

    @property
    def longest(self) -> int:
        """Tokens of the longest span, or 0."""
        return max(map(len, self.spans), default=0)


def memorized(
    texts: Sequence[Sequence[int] | np.ndarray],
    training: Tokens,
    *,
    end_of_text: int | None = None,
    shortest: int = SHORTEST,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Memorized]:
    """Find the spans of each text that stand in a training set.

    Args:
        texts: token ids.
        training: of a prepared folder (`gpt2.overlap.sources.open_prepared`), or other tokens of the same vocabulary.
        end_of_text: what stands after each document of the training set; no text may hold it.
        shortest: tokens that a span has at least.
        on_progress: told how many of how many tokens of the training set have been read.

    Raises:
        ConfigError: `shortest` is not 1 or more.
    """
    if shortest < 1:
        raise ConfigError(f"shortest: expected 1 or more tokens, got {shortest!r}")
    search = _Search([np.asarray(text, np.int32) for text in texts], training, shortest, end_of_text)
    for first in range(0, len(training), CHUNK):
        search.read(first)
        if on_progress is not None:
            on_progress(min(first + CHUNK, len(training)), len(training))
    return search.result()


class _Search:
    """The longest match so far from each place of the texts."""

    def __init__(self, rows: list[np.ndarray], training: Tokens, n: int, end_of_text: int | None) -> None:
        self.rows, self.training, self.n, self.end_of_text = rows, training, n, end_of_text
        self.grams = Grams(rows, n)
        self.begins = np.cumsum([0, *map(len, rows)])
        self._order = np.argsort(self.grams.kinds, kind="stable")  # the places of each gram, one gram after another
        self._counts = np.bincount(self.grams.kinds, minlength=len(self.grams))
        self._first = np.cumsum(self._counts) - self._counts
        self._documents = 0
        self.best: dict[int, tuple[int, int, int, int]] = {}
        """Place in the texts -> length, offset, document, places."""

    def read(self, first: int) -> None:
        """Look at the part of the training set that begins there."""
        before = min(first, 1)
        length = min(CHUNK + self.n - 1, len(self.training) - first)
        part = self.training.gather(np.array([first - before]), before + length)[0]
        places, kinds = self.grams.find(part[before:])
        sums = np.cumsum(self._counts[kinds])
        begin = 0
        while begin < len(places):
            done = int(sums[begin - 1]) if begin else 0
            end = max(begin + 1, int(np.searchsorted(sums, done + _PAIRS, side="right")))
            self._pairs(part, before, first, places[begin:end], kinds[begin:end])
            begin = end
        self._documents += int(np.count_nonzero(part[before : before + CHUNK] == self.end_of_text))

    def _pairs(self, part: np.ndarray, before: int, first: int, places: np.ndarray, kinds: np.ndarray) -> None:
        """Take the matches that begin at these places."""
        counts = self._counts[kinds]
        number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        mine = self.grams.places[self._order[np.repeat(self._first[kinds], counts) + number]]
        theirs = np.repeat(places, counts)
        # Where the tokens before are equal too, the match has begun there.
        new = np.isin(mine, self.begins) | (theirs + before == 0)
        new |= self.grams.numbers[mine - 1] != part[theirs + before - 1]
        for at, offset in zip(mine[new].tolist(), theirs[new].tolist(), strict=True):
            length = self._length(at, first + offset)
            known = self.best.get(at, (0, 0, 0, 0))
            if length > known[0]:
                ended = int(np.count_nonzero(part[before : before + offset] == self.end_of_text))
                self.best[at] = (length, first + offset, self._documents + ended, 1)
            elif length == known[0]:
                self.best[at] = (*known[:3], known[3] + 1)

    def _length(self, at: int, offset: int) -> int:
        """How many tokens are equal from a place of the texts and one of the training set on."""
        row = int(np.searchsorted(self.begins, at, side="right"))
        most = min(int(self.begins[row]) - at, len(self.training) - offset)
        length = self.n
        while length < most:
            step = min(_STEP, most - length)
            theirs = self.training.gather(np.array([offset + length]), step)[0]
            other = np.flatnonzero(theirs != self.grams.numbers[at + length : at + length + step])
            if len(other):
                return length + int(other[0])
            length += step
        return length

    def result(self) -> list[Memorized]:
        """What there is, without spans that lie in others."""
        spans: list[list[Span]] = [[] for _ in self.rows]
        for at, (length, offset, document, places) in sorted(self.best.items()):
            row = int(np.searchsorted(self.begins, at, side="right")) - 1
            first = at - int(self.begins[row])
            if not spans[row] or first + length > spans[row][-1].last:
                spans[row].append(Span(first, first + length, offset, document, places))
        return [Memorized(len(row), tuple(found)) for row, found in zip(self.rows, spans, strict=True)]
