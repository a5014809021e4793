"""What runs a network to write text: fed token ids, it gives logits and keeps a key/value cache.

An engine knows nothing about text or sampling. `keras` is the reference; every faster one is tested against it.
`litert` is the fast one for CPUs. `gpt2.engines.registry` opens them; this module imports none, so that whoever only
wants the protocol does not import TensorFlow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from gpt2.config import GPT2Config
from gpt2.errors import ContextLengthError, PromptError

Take = Callable[[np.ndarray, np.ndarray, np.ndarray], None]
"""Told rows (N,), numbers of their new tokens (N,) and the logits (N, V) float32 behind these; see `Engine.scan`."""


class Cache(Protocol):
    """The keys and values of several rows of tokens, each of its own length."""

    @property
    def lengths(self) -> np.ndarray:
        """(B,) integers: how many tokens each row holds."""

    def select(self, rows: Sequence[int]) -> Cache:
        """A new cache with these rows, in this order; a row may be named several times (samples, beams) or not."""

    def extend(self, other: Cache) -> None:
        """Take over the rows of another cache of the same engine, behind one's own; the other has none then."""

    def truncate(self, row: int, length: int) -> None:
        """Forget the tokens of one row from `length` on."""


class Engine(Protocol):
    """A network that can be fed."""

    name: str
    precision: str
    """Of the weights: float32, int8 or int4."""
    exact: bool
    """Whether a row's logits are the same bits however its tokens are cut into calls, so that drafts change nothing."""
    max_rows: int
    """Of a cache; more take too much memory or gain nothing."""
    config: GPT2Config

    @property
    def weights_sha256(self) -> str:
        """Of the weights before they were rounded to a precision; see `gpt2.checkpoints.names.weights_sha256`."""

    def new_cache(self, rows: int, *, keep: bool = True) -> Cache:
        """An empty cache of `rows` rows.

        Args:
            rows: how many.
            keep: what is computed for them may be found by later rows that begin alike, as long as there is memory. An
                engine need not do so. Without, their memory is used again at once: less of it, and sooner at hand.
        """

    def feed(self, cache: Cache, ids: Sequence[Sequence[int]], *, all_positions: bool = False) -> list[np.ndarray]:
        """Add tokens to rows of a cache and give the logits of what follows.

        What a row gives depends on that row's tokens alone, never on its neighbours.

        Args:
            cache: from `new_cache` or `select`; it is changed in place.
            ids: for each row the new tokens, which may be none; a row may not grow past n_ctx.
            all_positions: give logits at every new token, not only at the last.

        Returns:
            For each row logits (N, V) float32: N is 1, or the number of the row's new tokens with `all_positions`, and
            0 for a row that was fed nothing.
        """

    def scan(self, cache: Cache, ids: Sequence[Sequence[int]], wanted: Sequence[np.ndarray], take: Take) -> None:
        """Add tokens to rows of a cache and show the logits behind chosen ones of them, some at a time.

        The same numbers as by `feed`, but never more than a few positions of them in memory, and the head is computed
        for these positions alone.

        Args:
            cache: as for `feed`.
            ids: as for `feed`.
            wanted: for each row the numbers of its new tokens, increasing, behind which logits are wanted; may be none.
            take: called until all have been shown, a row's in their order. What it is given is overwritten when it
                returns, and it may not use the engine.
        """

    def logits(self, ids: np.ndarray) -> np.ndarray:
        """Logits (B, T, V) float32 of ids (B, T), without a cache."""


def kept_tokens(n_ctx: int) -> int:
    """How many of the newest tokens stay in a context that is full.

    Positions are absolute, so a cache cannot be shifted: these are read again from its start.
    """
    return max(1, n_ctx // 2)


def check_fed(config: GPT2Config, lengths: Sequence[int], ids: Sequence[Sequence[int]]) -> None:
    """Refuse what `Engine.feed` cannot take.

    Args:
        config: of the network.
        lengths: how many tokens each row of the cache holds.
        ids: for each row the new tokens.

    Raises:
        PromptError: a token that is not in the vocabulary, or not one row of tokens for each row of the cache.
        ContextLengthError: a row would grow past n_ctx.
    """
    if len(ids) != len(lengths):
        raise PromptError(f"ids: expected {len(lengths)} rows as in the cache, got {len(ids)}")
    for length, tokens in zip(lengths, ids, strict=True):
        if length + len(tokens) > config.n_ctx:
            raise ContextLengthError(
                f"tokens: expected at most n_ctx = {config.n_ctx} in a row, got {length} + {len(tokens)}"
            )
        bad = next((token for token in tokens if not 0 <= token < config.n_vocab), None)
        if bad is not None:
            raise PromptError(f"tokens: expected ids from 0 to {config.n_vocab - 1}, got {bad}")
