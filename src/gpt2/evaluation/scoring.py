"""Log-likelihoods of continuations behind contexts, by any engine, and texts of any length cut into windows.

Everything that is evaluated becomes a `Request`: a context, and what may follow it. Requests are read together, some
thousand tokens at a time, in their own lengths (no engine here needs padding); several continuations of one context
share what was computed for it; logits are made at the positions that are scored, and nowhere else, and are gone as soon
as they have been looked at. So memory does not grow with the set, the window, or the vocabulary.

What cannot be shared: GPT-2's positions are absolute, so a window that has moved cannot keep its keys and values. An
overlapping stride computes the overlap again; only its head and what follows the last layer's attention are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gpt2.engines import Cache, Engine
from gpt2.errors import CacheFullError, EvaluationError
from gpt2.evaluation.likelihood import Reader

BATCH_TOKENS = 2048
"""Tokens that are read together; more gain nothing."""

Tokens = Sequence[int]


@dataclass(frozen=True)
class Request:
    """What is asked about: the probability of each of some continuations behind a context."""

    context: Tokens
    """At least one token; of a longer one than the network's context only the end is read."""
    continuations: Sequence[Tokens]
    skip: Sequence[int] = ()
    """For each continuation, how many of its first tokens are read but not scored; none where this is empty."""

    def skipped(self, number: int) -> int:
        """What `skip` says of a continuation."""
        return self.skip[number] if self.skip else 0

    @classmethod
    def of_choices(cls, choices: Sequence[tuple[Tokens, Tokens]]) -> Request:
        """The request for (context, continuation) pairs, of which what all begin with is read once.

        >>> Request.of_choices([([1, 2, 3], [9]), ([1, 2, 4], [9])])
        Request(context=[1, 2], continuations=[[3, 9], [4, 9]], skip=[1, 1])
        """
        wholes = [[*context, *continuation] for context, continuation in choices]
        shared = min(len(context) for context, _ in choices)
        while any(whole[:shared] != wholes[0][:shared] for whole in wholes):
            shared -= 1
        return cls(
            wholes[0][:shared],
            [whole[shared:] for whole in wholes],
            [len(context) - shared for context, _ in choices],
        )


@dataclass(frozen=True)
class Scores:
    """What an engine says of one continuation; N is the number of its scored tokens."""

    tokens: np.ndarray
    """(N,) the scored tokens."""
    log_probabilities: np.ndarray
    """(N,) float64, nats."""
    best: np.ndarray
    """(N,) the most probable token at each place."""
    kept: np.ndarray
    """(N,) the most probable token but those that the scorer excludes."""
    dropped: int
    """Tokens of the context that did not fit."""

    @property
    def log_likelihood(self) -> float:
        """Of all scored tokens together, nats."""
        return float(self.log_probabilities.sum())

    @property
    def greedy(self) -> bool:
        """Whether each token is the most probable one."""
        return bool((self.best == self.tokens).all())


class Scorer:
    """Answers requests.

    Args:
        engine: what runs the network.
        excluded: tokens that `Scores.kept` passes over.
        batch_tokens: how many tokens are read together.
    """

    def __init__(self, engine: Engine, *, excluded: np.ndarray | None = None, batch_tokens: int = BATCH_TOKENS) -> None:
        self.engine = engine
        self._read = Reader(engine.config.n_vocab, excluded)
        self._batch_tokens = batch_tokens

    def score(self, requests: Iterable[Request]) -> Iterator[list[Scores]]:
        """The scores of each request's continuations, in the order of the requests.

        Raises:
            EvaluationError: a context without tokens, a continuation longer than n_ctx, or logits that are no numbers.
            CacheFullError: a single request does not fit the engine's cache.
        """
        batch: list[tuple[Request, int]] = []
        tokens = rows = 0
        for request in requests:
            fitted, dropped = self._fitted(request)
            cost = len(fitted.context) + sum(len(continuation) for continuation in fitted.continuations)
            if batch and (
                tokens + cost > self._batch_tokens or rows + len(fitted.continuations) > self.engine.max_rows
            ):
                yield from self._batch(batch)
                batch, tokens, rows = [], 0, 0
            batch.append((fitted, dropped))
            tokens, rows = tokens + cost, rows + len(fitted.continuations)
        yield from self._batch(batch)

    def _fitted(self, request: Request) -> tuple[Request, int]:
        n_ctx = self.engine.config.n_ctx
        if not len(request.context):
            raise EvaluationError(
                "context: expected at least one token, from which the first one is predicted; got none"
            )
        longest = max((len(continuation) for continuation in request.continuations), default=0)
        if longest > n_ctx:
            raise EvaluationError(f"continuation: expected at most n_ctx = {n_ctx} tokens, got {longest}")
        dropped = max(0, len(request.context) + longest - 1 - n_ctx)
        if not dropped:
            return request, 0
        return Request(request.context[dropped:], request.continuations, request.skip), dropped

    def _batch(self, batch: Sequence[tuple[Request, int]]) -> list[list[Scores]]:
        """The scores of some requests, which are read together if the cache has the memory."""
        try:
            return self._scored(batch)
        except CacheFullError:
            if len(batch) > 1:
                half = len(batch) // 2
                return self._batch(batch[:half]) + self._batch(batch[half:])
            ((request, dropped),) = batch
            if len(request.continuations) < 2:
                raise
            singles = [
                (Request(request.context, [continuation], [request.skipped(n)]), dropped)
                for n, continuation in enumerate(request.continuations)
            ]
            return [[scores for single in singles for scores in self._batch([single])[0]]]

    def _scored(self, batch: Sequence[tuple[Request, int]]) -> list[list[Scores]]:
        alone = [n for n, (request, _) in enumerate(batch) if len(request.continuations) == 1]
        shared = [n for n, (request, _) in enumerate(batch) if len(request.continuations) != 1]
        found: dict[tuple[int, int], Scores] = {}
        if alone:
            cache = self.engine.new_cache(len(alone), keep=False)
            heads = [batch[n][0].context for n in alone]
            self._scan(cache, batch, [(n, 0) for n in alone], heads, found)
        if shared:
            contexts = [batch[n][0].context for n in shared]
            cache = self.engine.new_cache(len(shared), keep=False)
            if any(len(context) > 1 for context in contexts):
                nothing = [np.empty(0, np.int64)] * len(shared)
                self.engine.scan(cache, [context[:-1] for context in contexts], nothing, _ignore)
            places = [(row, n, k) for row, n in enumerate(shared) for k in range(len(batch[n][0].continuations))]
            if places:
                cache = cache.select([row for row, _, _ in places])
                ends = [contexts[row][-1:] for row, _, _ in places]
                self._scan(cache, batch, [(n, k) for _, n, k in places], ends, found)
        return [
            [found[n, k] for k in range(len(request.continuations))] for n, (request, _) in enumerate(batch)
        ]  # fmt: skip

    def _scan(
        self,
        cache: Cache,
        batch: Sequence[tuple[Request, int]],
        places: Sequence[tuple[int, int]],
        heads: Sequence[Tokens],
        found: dict[tuple[int, int], Scores],
    ) -> None:
        """Score continuations, each in a row of the cache, which is fed `heads` before it."""
        fed, wanted, targets = [], [], []
        for (n, k), head in zip(places, heads, strict=True):
            request = batch[n][0]
            continuation = request.continuations[k]
            first = min(request.skipped(k), len(continuation))
            fed.append([*head, *continuation[:-1]] if len(continuation) else list(head))
            wanted.append(np.arange(len(head) - 1 + first, len(head) - 1 + len(continuation)))
            targets.append(np.array(continuation[first:], np.int64))
        starts = np.cumsum([0, *(len(part) for part in targets)])
        wholes = np.concatenate(targets)
        offsets = np.array([numbers[0] if len(numbers) else 0 for numbers in wanted])
        out, best, kept = np.empty(len(wholes)), np.empty(len(wholes), np.int64), np.empty(len(wholes), np.int64)

        def take(rows: np.ndarray, numbers: np.ndarray, logits: np.ndarray) -> None:
            at = starts[rows] + numbers - offsets[rows]
            out[at], best[at], kept[at] = self._read(logits, wholes[at])

        self.engine.scan(cache, fed, wanted, take)
        if np.isnan(out).any():
            raise EvaluationError(f"logits: expected numbers, got NaN or infinity from the {self.engine.name} engine")
        for number, (n, k) in enumerate(places):
            part = slice(starts[number], starts[number + 1])
            found[n, k] = Scores(wholes[part], out[part], best[part], kept[part], batch[n][1])


@dataclass(frozen=True)
class Window:
    """A part of a stream of tokens that is read at once."""

    request: Request
    first: int
    """Where its first scored token stands in the stream."""


def windows(stream: Iterable[Tokens | np.ndarray], window: int, stride: int, begin: int | None) -> Iterator[Window]:
    """Cut a stream of tokens into windows, so that every token is scored exactly once.

    A window reads `window` tokens and scores the `stride` that come last; the first one scores all. The last window
    is filled up with context, so that no token but the first ones has less before it than `window - stride`.

    Args:
        stream: the tokens, in pieces of any size.
        window: tokens that are read at once, at most n_ctx.
        stride: from 1 to `window`; tokens between the windows' ends.
        begin: a token that is put before the stream; None leaves the first token unscored, since nothing is before it.
    """
    held: list[int] = [] if begin is None else [begin]
    start = 0 if begin is not None else 1  # of the stream's tokens, the first to be scored
    base = -1 if begin is not None else 0  # where held[0] stands in the stream
    scored = start

    def cut(count: int) -> Window:
        nonlocal held, base, scored
        end = scored + count
        first = max(base, end - 1 - window)
        inputs = held[first - base : end - base]
        context = scored - first
        made = Window(Request(inputs[:context], [inputs[context:]]), scored)
        drop = max(0, end - window - base)
        held, base, scored = held[drop:], base + drop, end
        return made

    for piece in stream:
        held += [int(token) for token in piece]
        while base + len(held) - scored >= (window if scored == start else stride):
            yield cut(window if scored == start else stride)
    if base + len(held) > scored:
        yield cut(base + len(held) - scored)


def _ignore(*_: np.ndarray) -> None:
    pass
