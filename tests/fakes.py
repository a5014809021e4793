"""An engine without a network, for tests of what stands on engines: fast, and its logits are a known function."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from gpt2.config import GPT2Config


class FakeCache:
    """Remembers the tokens of each row."""

    def __init__(self, rows: list[list[int]]) -> None:
        self.rows = rows

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(row) for row in self.rows])

    def select(self, rows: Sequence[int]) -> FakeCache:
        return FakeCache([list(self.rows[row]) for row in rows])

    def extend(self, other: FakeCache) -> None:
        self.rows += other.rows
        other.rows = []

    def truncate(self, row: int, length: int) -> None:
        del self.rows[row][length:]


class FakeEngine:
    """Logits are `function(tokens so far)`; by default random numbers that depend on all tokens in the window."""

    name = "fake"
    precision = "float32"
    exact = False
    max_rows = 16
    weights_sha256 = "fake"

    def __init__(
        self, n_vocab: int, n_ctx: int = 64, function: Callable[[list[int]], np.ndarray] | None = None
    ) -> None:
        self.config = GPT2Config(n_vocab=n_vocab, n_ctx=n_ctx, n_embd=1, n_head=1, n_layer=1)
        self.function = function or (lambda tokens: np.random.default_rng(tokens).normal(0, 2, n_vocab))
        self.fed: list[list[int]] = []

    def new_cache(self, rows: int, *, keep: bool = True) -> FakeCache:
        return FakeCache([[] for _ in range(rows)])

    def feed(self, cache: FakeCache, ids: Sequence[Sequence[int]], *, all_positions: bool = False) -> list[np.ndarray]:
        out = []
        for row, tokens in enumerate(ids):
            logits = []
            for token in tokens:
                cache.rows[row].append(token)
                assert len(cache.rows[row]) <= self.config.n_ctx
                logits.append(np.asarray(self.function(cache.rows[row]), np.float32))
            self.fed.append(list(tokens))
            values = np.array(logits, np.float32).reshape(-1, self.config.n_vocab)
            out.append(values if all_positions else values[-1:])
        return out

    def scan(
        self,
        cache: FakeCache,
        ids: Sequence[Sequence[int]],
        wanted: Sequence[np.ndarray],
        take: Callable[[np.ndarray, np.ndarray, np.ndarray], None],
    ) -> None:
        for row, (logits, places) in enumerate(zip(self.feed(cache, ids, all_positions=True), wanted, strict=True)):
            if len(places):
                take(np.full(len(places), row), np.asarray(places), logits[places])
