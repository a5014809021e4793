"""Drafts of what comes next, found in the text itself (prompt lookup), and whether they pay.

Feeding an engine a few tokens at once costs little more than one. So what followed the last few tokens when they stood
in the text before is fed along as a draft; the logits at each place then decide, as they would have anyway, and the
first token that differs ends the draft. Nothing but the time changes (Saxena 2023, "Prompt Lookup Decoding"; Leviathan
et al. 2023 for the principle). It knows nothing about models or sampling.
"""

from __future__ import annotations

from collections.abc import Iterable

SIZES = (1, 3, 7)
"""Tokens that a draft may have: with the one that is certain, 2, 4 or 8 are fed."""
_LENGTHS = (4, 3, 2)  # of the last tokens that are looked for, the longest first
_BACK = 16  # tokens before a place that are compared with the last ones
_SLOW = 0.8  # share of the old in a moving average
_GUESS = 0.1  # of the time of a step: what a further token costs, until it has been measured
_HOPE = 0.7  # the chance of a drafted token, until it has been seen
_FORGET = 0.02  # of the way back to that chance, for each draft that was not made


class Lookup:
    """The places of short sequences in a text that grows."""

    def __init__(self, tokens: Iterable[int]) -> None:
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        self._found: int | None = None
        for token in tokens:
            self.add(token)

    def add(self, token: int) -> None:
        """The text goes on with this token."""
        self._tokens.append(token)
        self._found = None
        for length in _LENGTHS:
            if len(self._tokens) >= length:
                last = tuple(self._tokens[-length:])
                if self._found is None:
                    self._found = self._after.get(last)
                self._after[last] = len(self._tokens)

    @property
    def match(self) -> int:
        """How many of the last tokens stood in the text before, up to 16; 0 where nothing was found."""
        if self._found is None:
            return 0
        tokens, end, known = self._tokens, self._found, len(self._tokens)
        for length in range(min(_BACK, end)):
            if tokens[end - 1 - length] != tokens[known - 1 - length]:
                return length
        return min(_BACK, end)

    def draft(self, size: int) -> list[int]:
        """What followed the last tokens when they stood in the text before, `size` tokens, or nothing.

        >>> Lookup([1, 2, 3, 4, 1, 2]).draft(2)
        [3, 4]
        """
        if self._found is None:
            return []
        known = len(self._tokens)
        draft: list[int] = []
        for place in range(self._found, self._found + size):  # past the end it goes on with the draft itself
            draft.append(self._tokens[place] if place < known else draft[place - known])
        return draft


class Judge:
    """How long a draft should be, by the clock and by how earlier ones fared.

    A draft of k tokens, each right with the chance p, gives 1 + p + ... + p^k tokens. What a step with k drafted tokens
    takes is measured; p is kept for each length of the match that the draft comes from, since a long match rarely ends.
    The size is the one that promises the most tokens a second, which may be 0.
    """

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._chances: dict[int, float] = {}

    def size(self, match: int, most: int) -> int:
        """How many tokens to draft behind a match of this length, at most `most`."""
        if not match or 0 not in self._seconds:  # first, what a step costs without
            return 0
        chance = self._chances.get(_kind(match), _HOPE)
        best, rate = 0, 1 / self._seconds[0]
        for size in SIZES:
            expected = sum(chance**n for n in range(size + 1))
            if size <= most and expected / self._cost(size) > rate:
                best, rate = size, expected / self._cost(size)
        if best == 0:
            self._chances[_kind(match)] = chance + _FORGET * (_HOPE - chance)
        return best

    def took(self, seconds: float, size: int) -> None:
        """How long a step took whose longest draft had this size."""
        self._seconds[size] = _mixed(self._seconds.get(size, seconds), seconds)

    def fared(self, match: int, size: int, right: int) -> None:
        """How many tokens of a draft behind a match of this length were right."""
        kind = _kind(match)
        for n in range(min(right + 1, size)):
            self._chances[kind] = _mixed(self._chances.get(kind, _HOPE), float(n < right))

    def _cost(self, size: int) -> float:
        return self._seconds.get(size, self._seconds[0] * (1 + _GUESS * size))


def _kind(match: int) -> int:
    """Matches of 2, 3, 4 to 7, and more tokens are told apart."""
    return min(match.bit_length() + (match == 3), 5)


def _mixed(old: float, new: float) -> float:
    return _SLOW * old + (1 - _SLOW) * new
