"""Drafts of what comes next, and whether they pay.

Feeding an engine a few tokens at once costs little more than one. So a guess at the next tokens is fed along as a
draft; the logits at each place then decide, as they would have anyway, and the first token that differs ends the draft.
Nothing but the time changes (Leviathan et al. 2023, "Fast Inference from Transformers via Speculative Decoding"). The
guess is what followed the last few tokens when they stood in the text before (Saxena 2023, "Prompt Lookup Decoding"),
or what a smaller model holds most probable. This module knows nothing about sampling.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from gpt2.engines import Engine, kept_tokens
from gpt2.errors import CacheFullError, ConfigError

SIZES = (1, 3, 7)
"""Tokens that a draft may have: with the one that is certain, 2, 4 or 8 are fed."""
_LENGTHS = (4, 3, 2)  # of the last tokens that are looked for, the longest first
_BACK = 16  # tokens before a place that are compared with the last ones
_SLOW = 0.8  # share of the old in a moving average
_GUESS = 0.1  # of the time of a step: what a further token costs, until it has been measured
_HOPE = 0.7  # the chance of a drafted token, until it has been seen
_FORGET = 0.02  # of the way back to that chance, for each draft that was not made


class Drafter(Protocol):
    """What guesses how one text goes on."""

    def add(self, token: int) -> None:
        """The text goes on with this token."""

    @property
    def match(self) -> int:
        """How much speaks for the guess: one of a few kinds that fare differently; 0 where there is none."""

    def draft(self, size: int) -> list[int]:
        """The next `size` tokens, or nothing."""


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


class ModelDrafter:
    """The tokens that a smaller model holds most probable.

    Args:
        engine: runs the smaller model, whose vocabulary is that of the larger one.
        tokens: the text so far.
    """

    match = 1

    def __init__(self, engine: Engine, tokens: Sequence[int]) -> None:
        self._engine = engine
        self._cache = engine.new_cache(1)
        self._tokens = list(tokens)
        self._start = 0  # of what the smaller model sees

    def add(self, token: int) -> None:
        """The text goes on with this token."""
        self._tokens.append(token)

    def draft(self, size: int) -> list[int]:
        """The next `size` tokens, each the most probable behind those before it; nothing where its cache is full."""
        n_ctx = self._engine.config.n_ctx
        if len(self._tokens) - self._start + size > n_ctx:
            self._start = max(0, len(self._tokens) - kept_tokens(n_ctx))
            self._cache.truncate(0, 0)
        known = int(self._cache.lengths[0])
        fed, draft = self._tokens[self._start + known :], list[int]()
        try:
            while len(draft) < size and known + len(fed) <= n_ctx:
                draft.append(int(self._engine.feed(self._cache, [fed])[0][-1].argmax()))
                fed = draft[-1:]
                known = int(self._cache.lengths[0])
        except CacheFullError:
            return []
        finally:
            self._cache.truncate(0, len(self._tokens) - self._start)
        return draft


def check_drafter(engine: Engine, drafter: Engine | None) -> None:
    """Refuse a model as drafter of another where their vocabularies differ.

    Raises:
        ConfigError: they do.
    """
    if drafter is not None and drafter.config.n_vocab != engine.config.n_vocab:
        raise ConfigError(
            f"draft_model: expected a model with the same vocabulary of {engine.config.n_vocab} tokens, "
            f"got one with {drafter.config.n_vocab}"
        )


class Clock:
    """What steps take whose longest draft has a given size."""

    def __init__(self) -> None:
        self._rows = 0
        self._seconds: dict[int, float] = {}

    def took(self, seconds: float, size: int, rows: int = 1) -> None:
        """How long a step of so many rows took; where their number changes, all that was measured is forgotten."""
        if rows != self._rows:
            self._rows, self._seconds = rows, {}
        self._seconds[size] = _mixed(self._seconds.get(size, seconds), seconds)

    def seconds(self, size: int) -> float | None:
        """What a step takes; a guess where this size was not measured, and None where nothing was without drafts."""
        alone = self._seconds.get(0)
        return None if alone is None else self._seconds.get(size, alone * (1 + _GUESS * size))


class Judge:
    """How long a draft of one text should be, by the clock and by how earlier ones fared.

    A draft of k tokens, each right with the chance p, gives 1 + p + ... + p^k tokens. What a step with k drafted tokens
    takes is measured; p is kept for each kind of match that the draft comes from, since a long match rarely ends. The
    size is the one that promises the most tokens a second, which may be 0.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._chances: dict[int, float] = {}

    def size(self, match: int, most: int) -> int:
        """How many tokens to draft behind a match of this length, at most `most`."""
        alone = self._clock.seconds(0)
        if not match or alone is None:  # first, what a step costs without
            return 0
        chance = self._chances.get(_kind(match), _HOPE)
        best, rate = 0, 1 / alone
        for size in SIZES:
            expected = sum(chance**n for n in range(size + 1))
            seconds = self._clock.seconds(size) or alone
            if size <= most and expected / seconds > rate:
                best, rate = size, expected / seconds
        if best == 0:
            self._chances[_kind(match)] = chance + _FORGET * (_HOPE - chance)
        return best

    def fared(self, match: int, size: int, right: int) -> None:
        """How many tokens of a draft behind a match of this length were right."""
        kind = _kind(match)
        for n in range(min(right + 1, size)):
            self._chances[kind] = _mixed(self._chances.get(kind, _HOPE), float(n < right))


def _kind(match: int) -> int:
    """Matches of 2, 3, 4 to 7, and more tokens are told apart."""
    return min(match.bit_length() + (match == 3), 5)


def _mixed(old: float, new: float) -> float:
    return _SLOW * old + (1 - _SLOW) * new
