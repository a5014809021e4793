"""Which n-grams of a few texts stand in a very large one: hashed to find candidates, compared to be sure.

The few texts are held in memory, the large one streams by. Texts are rows of whole numbers, whatever these stand for:
tokens, or words. Nothing is approximate: a candidate counts when all n numbers are equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpt2.compiled import compiled

_BITS_A_GRAM = 32  # of the filter that candidates pass: about 3 % of the others do
_MULTIPLIERS = tuple(0x9E3779B97F4A7C15 + 2 * 0x6A09E667F3BCC908 * n & 2**64 - 1 for n in range(8))


class Grams:
    """The n-grams of some rows; none goes across the end of a row.

    Args:
        rows: of numbers from 0 to 2**31 - 1.
        n: how many numbers a gram has.
    """

    def __init__(self, rows: Sequence[np.ndarray], n: int) -> None:
        self.n = n
        counts = [max(0, len(row) - n + 1) for row in rows]
        self.ends = np.cumsum(counts)
        """(R,): how many grams there are up to the end of each row."""
        begins = np.cumsum([0, *(len(row) for row in rows)])[:-1]
        self.numbers = np.concatenate([np.zeros(0, np.int32), *rows]).astype(np.int32)
        """All rows, one after another."""
        self.places = np.concatenate(
            [np.zeros(0, np.int64), *(b + np.arange(c) for b, c in zip(begins, counts, strict=True))]
        )
        """(G,): where in `numbers` each gram begins."""
        for multiplier in _MULTIPLIERS:
            self._multiplier = np.uint64(multiplier)
            if self._sort():
                return
        raise AssertionError("two different grams have the same hash, whatever the hash")

    def _sort(self) -> bool:
        """Number the grams that differ; False where two of them have the same hash."""
        everything = np.full(1 << 7, 255, np.uint8)
        hashes = np.empty(max(0, len(self.numbers) - self.n + 1), np.uint64)
        places = np.empty(len(hashes), np.int64)
        _candidates(self.numbers, self.n, self._multiplier, everything, np.uint64(54), places, hashes)
        hashes = hashes[self.places]
        self._hashes, first, self.kinds = np.unique(hashes, return_index=True, return_inverse=True)
        self._firsts = self.places[first]
        bits = max(10, (_BITS_A_GRAM * len(self._hashes)).bit_length())
        self._shift = np.uint64(64 - bits)
        self._filter = np.zeros(1 << bits - 3, np.uint8)
        at = self._hashes >> self._shift
        np.bitwise_or.at(self._filter, at >> np.uint64(3), np.uint8(1) << (at & np.uint64(7)).astype(np.uint8))
        return bool(self._equal(self.numbers, self.places, self.kinds).all())

    def __len__(self) -> int:
        """How many different grams there are; they are numbered from 0."""
        return len(self._hashes)

    def row(self, number: int) -> np.ndarray:
        """The numbers (G,) of the different grams in a row, in its order."""
        return self.kinds[self.ends[number - 1] if number else 0 : self.ends[number]]

    def find(self, text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where in a text (N,) int32 which of the grams stand: places (F,), rising, and the grams' numbers (F,)."""
        if len(text) < self.n or not len(self):
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        places = np.empty(len(text) - self.n + 1, np.int64)
        hashes = np.empty(len(places), np.uint64)
        count = _candidates(text, self.n, self._multiplier, self._filter, self._shift, places, hashes)
        places, hashes = places[:count], hashes[:count]
        kinds = np.minimum(np.searchsorted(self._hashes, hashes), len(self) - 1)
        likely = self._hashes[kinds] == hashes
        places, kinds = places[likely], kinds[likely]
        equal = self._equal(text, places, kinds)
        return places[equal], kinds[equal]

    def _equal(self, text: np.ndarray, places: np.ndarray, kinds: np.ndarray) -> np.ndarray:
        """Whether the numbers of the text at these places are those of the grams."""
        equal = np.ones(len(places), bool)
        firsts = self._firsts[kinds]
        for offset in range(self.n):
            equal &= text[places + offset] == self.numbers[firsts + offset]
        return equal


@compiled(nogil=True)
def _candidates(text: Any, n: int, multiplier: Any, known: Any, shift: Any, places: Any, hashes: Any) -> int:
    """Where the filter lets an n-gram of the text pass, and the hashes there; how many.

    The hash is a polynomial modulo 2**64, which goes from one gram to the next in two steps, with its bits mixed after.
    """
    value, power = np.uint64(0), np.uint64(1)
    for _ in range(n):
        power *= multiplier
    count = 0
    for at in range(len(text)):
        value = value * multiplier + np.uint64(text[at] + 1)
        if at >= n:
            value -= power * np.uint64(text[at - n] + 1)
        if at >= n - 1:
            mixed = (value ^ (value >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
            mixed ^= mixed >> np.uint64(32)
            bit = mixed >> shift
            if known[bit >> np.uint64(3)] >> np.uint8(bit & np.uint64(7)) & np.uint8(1):
                places[count] = at - n + 1
                hashes[count] = mixed
                count += 1
    return count
