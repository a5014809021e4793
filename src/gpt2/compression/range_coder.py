"""A range coder: intervals of whole numbers to bytes, and back. It knows nothing of what the intervals stand for.

The coder keeps a stretch of the numbers below 2**32, `size` of them from `low` on. Each step narrows it to the share
that an interval [start, start + width) has of 2**24, and gives out the first byte whenever less than 2**24 numbers are
left, so no share comes out empty. These are integers alone, the same on every machine.

Source: Martin, "Range encoding: an algorithm for removing redundancy from a digitised message" (1979).
"""

from __future__ import annotations

BITS = 24
"""Intervals are of the whole numbers below 2**BITS."""
_TOP = 1 << BITS
_ALL = 1 << 32


class RangeEncoder:
    """Takes intervals, gives bytes."""

    def __init__(self) -> None:
        self._low, self._size = 0, _ALL - 1
        self._out = bytearray()

    def encode(self, start: int, width: int) -> None:
        """Add the interval [start, start + width) of [0, 2**24); its width is at least 1."""
        assert 0 <= start < start + width <= _TOP, (start, width)
        first = self._size * start >> BITS
        self._low += first
        self._size = (self._size * (start + width) >> BITS) - first
        if self._low >= _ALL:
            self._low -= _ALL
            self._carry()
        while self._size < _TOP:
            self._out.append(self._low >> 24)
            self._low = self._low << 8 & _ALL - 1
            self._size <<= 8

    def finish(self) -> bytes:
        """All bytes. Zeros at the end are left out, since the decoder reads zeros behind it."""
        last = self._low + _TOP - 1 >> 24  # a number of the stretch that is zero but for its first byte
        if last == 256:
            self._carry()
            last = 0
        return bytes(self._out + bytes([last])).rstrip(b"\0")

    def _carry(self) -> None:
        """Add one to the number that the bytes so far are."""
        at = len(self._out) - 1
        while self._out[at] == 255:
            self._out[at] = 0
            at -= 1
        self._out[at] += 1


class RangeDecoder:
    """Takes the bytes of `RangeEncoder`, gives its intervals back to whoever can tell them by a number inside.

    Any bytes can be read: other ones than the encoder's give other intervals, never an error.
    """

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 4
        self._size = _ALL - 1
        self._code = min(int.from_bytes(data[:4].ljust(4, b"\0"), "big"), self._size - 1)  # its distance from `low`

    def target(self) -> int:
        """A number of the next interval."""
        return ((self._code + 1 << BITS) - 1) // self._size

    def take(self, start: int, width: int) -> None:
        """Go on behind that interval."""
        first = self._size * start >> BITS
        self._code -= first
        self._size = (self._size * (start + width) >> BITS) - first
        while self._size < _TOP:
            byte = self._data[self._at] if self._at < len(self._data) else 0
            self._at += 1
            self._code = self._code << 8 | byte
            self._size <<= 8
