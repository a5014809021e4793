"""Samples that are written together: the one step that all generation takes.

A batch has a cache with a row for each of its samples. Those that continue the same prompt share a row until it is
read. Samples join and leave between two steps; long prompts can be read in parts beside the others' steps. Where it
pays, drafts are fed along and verified (`gpt2.drafting`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from gpt2.continuation import Piece, Sample
from gpt2.drafting import SIZES, Clock, Drafter, Judge, Lookup, ModelDrafter, check_drafter
from gpt2.engines import Cache, Engine
from gpt2.errors import GPT2Error

MAX_ROWS = 16
"""Samples that are stepped together; more wait. It bounds the memory of the cache and changes no result."""

MAX_DRAFTED_ROWS = 4
"""Beside more rows no drafts are made: then a step's tokens are no longer nearly free."""


class _Row:
    """A row of the cache: whose it is, and what is to be fed yet."""

    def __init__(self, samples: Sequence[Sample], clock: Clock, *, read: bool = False) -> None:
        self.samples = list(samples)  # several until their prompt is read, none when it is idle
        self.pending = [] if read else samples[0].window
        self.draft: list[int] = []  # fed behind the last certain token
        self.match = 0  # what spoke for the draft
        self.judge = Judge(clock)
        self._drafter: Drafter | None = None

    def drafter(self, engine: Engine | None) -> Drafter:
        """What guesses, made when it is first needed."""
        if self._drafter is None:
            text = self.samples[0].prompt + self.samples[0].tokens
            self._drafter = Lookup(text) if engine is None else ModelDrafter(engine, text)
        return self._drafter

    def chosen(self, token: int) -> None:
        """The text goes on with this token."""
        if self._drafter is not None:
            self._drafter.add(token)


class Batch:
    """Samples that are written together on one engine.

    Args:
        engine: what runs the network.
        drafter: runs a smaller model with the same vocabulary, which guesses what comes next; None looks it up in the
            text.
        prompt_tokens: tokens of prompts that are read in one step, None for all.

    Raises:
        ConfigError: the drafter has another vocabulary.
    """

    def __init__(self, engine: Engine, *, drafter: Engine | None = None, prompt_tokens: int | None = None) -> None:
        check_drafter(engine, drafter)
        self.engine, self.drafter, self.prompt_tokens = engine, drafter, prompt_tokens
        self._rows: list[_Row] = []
        self._cache: Cache = engine.new_cache(0)
        self._clock = Clock()

    @property
    def samples(self) -> list[Sample]:
        """All that are being written, those that joined first at first."""
        return [sample for row in self._rows for sample in row.samples]

    def join(self, groups: Sequence[Sequence[Sample]]) -> None:
        """Let samples join; those of a group have the same prompt, and none of several has begun."""
        self._keep_live()
        self._cache.extend(self.engine.new_cache(len(groups)))
        self._rows += [_Row(group, self._clock) for group in groups]

    def drop(self, unwanted: Callable[[Sample], bool]) -> None:
        """Let samples leave."""
        for row in self._rows:
            row.samples = [sample for sample in row.samples if not unwanted(sample)]
        self._keep_live()

    def drop_last(self) -> list[Sample]:
        """Let those leave that joined last, together; they can join again."""
        self._keep_live()
        last = self._rows[-1].samples
        self._keep(range(len(self._rows) - 1))
        return last

    def step(self) -> list[tuple[Sample, Piece | GPT2Error]]:
        """Feed each row some tokens; whoever's are read chooses the next one.

        Returns:
            What came of it, each sample's pieces in their order, or what ended it.

        Raises:
            CacheFullError: the memory of the cache does not suffice. Nothing has changed.
        """
        started = time.perf_counter()
        fed, every = self._plan()
        logits = self.engine.feed(self._cache, fed, all_positions=every)
        if all(len(tokens) == 1 + len(row.draft) for row, tokens in zip(self._rows, fed, strict=True) if row.samples):
            size, live = max(len(row.draft) for row in self._rows), sum(bool(row.samples) for row in self._rows)
            self._clock.took(time.perf_counter() - started, size, live)
        given: list[tuple[Sample, Piece | GPT2Error]] = []
        for number, (row, tokens, values) in enumerate(zip(self._rows, fed, logits, strict=True)):
            row.pending = row.pending[len(tokens) - len(row.draft) :]
            if not len(tokens) or row.pending:
                continue
            for sample in row.samples:
                try:
                    self._write(number, sample, values, given)
                except GPT2Error as error:
                    sample.finished = True
                    given.append((sample, error))
            row.samples = [sample for sample in row.samples if not sample.finished]
            if not row.samples:
                self._cache.truncate(number, 0)
        self._tidy()
        return given

    def _plan(self) -> tuple[list[Sequence[int]], bool]:
        """What each row is fed, and whether the logits at every token are wanted."""
        for row in self._rows:
            row.draft = []
        for number, row in enumerate(self._rows):
            if any(sample.wants_prompt for sample in row.samples):  # it is read at once, and alone
                return [row.pending if other == number else () for other in range(len(self._rows))], True
            if row.samples and not row.pending:
                if int(self._cache.lengths[number]) < self.engine.config.n_ctx:
                    row.pending = row.samples[0].tokens[-1:]
                else:
                    self._cache.truncate(number, 0)
                    row.samples[0].slide()
                    row.pending = row.samples[0].window
        live = [number for number, row in enumerate(self._rows) if row.samples]
        if len(live) <= MAX_DRAFTED_ROWS and self.engine.exact and not any(self._is_reading(row) for row in self._rows):
            for number in live:
                self._draft(number)
        fed: list[Sequence[int]] = []
        room = self.prompt_tokens
        for row in self._rows:
            if len(row.pending) == 1 or room is None:  # one token is a step, and always goes
                fed.append([*row.pending, *row.draft] if row.samples else ())
            else:
                fed.append(row.pending[:room] if row.samples else ())
                room -= len(fed[-1])
        return fed, any(row.draft for row in self._rows)

    def _is_reading(self, row: _Row) -> bool:
        return any(len(row.pending) > 1 or not sample.begun for sample in row.samples)

    def _draft(self, number: int) -> None:
        """Guess how a row goes on."""
        row, length = self._rows[number], int(self._cache.lengths[number])
        sample = row.samples[0]
        if not sample.config.drafts:
            return
        room = min(self.engine.config.n_ctx - length, sample.config.max_tokens - len(sample.tokens)) - 1
        if room >= SIZES[0]:
            drafter = row.drafter(self.drafter)
            row.match = drafter.match
            row.draft = drafter.draft(row.judge.size(row.match, room))

    def _write(
        self, number: int, sample: Sample, logits: np.ndarray, given: list[tuple[Sample, Piece | GPT2Error]]
    ) -> None:
        """Let a sample choose, by the logits (N, V) behind the last of its tokens and those of the draft."""
        row = self._rows[number]
        draft = row.draft
        if not sample.begun:
            given += [(sample, piece) for piece in sample.begin(logits)]
        if sample.finished:
            return
        for place, values in enumerate(logits[-len(draft) - 1 :]):
            given.append((sample, sample.step(values)))
            if sample.finished:
                return
            row.chosen(sample.tokens[-1])
            if place == len(draft) or draft[place] != sample.tokens[-1]:
                if draft:
                    self._cache.truncate(number, int(self._cache.lengths[number]) - len(draft) + place)
                    row.judge.fared(row.match, len(draft), place)
                return

    def _tidy(self) -> None:
        """Give each sample a row of its own where prompts have been read, and drop rows where half of them are idle."""
        order: list[int] = []
        rows: list[_Row] = []
        split = False
        for number, row in enumerate(self._rows):
            if len(row.samples) > 1 and not row.pending:
                split = True
                order += [number] * len(row.samples)
                rows += [_Row([sample], self._clock, read=True) for sample in row.samples]
            elif row.samples:
                order.append(number)
                rows.append(row)
        if split or 2 * len(rows) <= len(self._rows):
            self._cache, self._rows = self._cache.select(order), rows

    def _keep_live(self) -> None:
        live = [number for number, row in enumerate(self._rows) if row.samples]
        if len(live) < len(self._rows):
            self._keep(live)

    def _keep(self, numbers: Sequence[int]) -> None:
        self._cache, self._rows = self._cache.select(numbers), [self._rows[number] for number in numbers]
