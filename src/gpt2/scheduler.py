"""Many requests on one engine: continuous batching.

A thread of the scheduler's own steps all texts that are being written together. New ones join and finished ones leave
between two steps. A long prompt is read in parts beside the others' steps, so nobody waits for it. Who came first joins
first; a request that is given up leaves before the next step. What a request gives is what `generation.generate` gives
for it alone (to the last bit with an engine that is exact).

    with Scheduler(model.engine, model.codec) as scheduler:
        request = scheduler.submit(model.prompt_tokens("Once upon a time")[0], GenerationConfig(max_tokens=40))
        for piece in request:
            print(piece.text, end="")
"""

from __future__ import annotations

import queue
import secrets
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from types import TracebackType

import numpy as np

from gpt2.codec import Codec
from gpt2.config import GenerationConfig
from gpt2.engines import Cache, Engine
from gpt2.errors import CacheFullError, CancelledError, GPT2Error, PromptError, QueueFullError
from gpt2.generation import Completion, Piece, Sample, check_prompts

MAX_ROWS = 16
"""Texts that are written at once."""
MAX_WAITING = 256
"""Texts that wait for their turn."""
PROMPT_TOKENS = 128
"""Tokens of prompts that are read in one step: how long the others wait for it at most."""


class Request:
    """Texts on their way: iterate over their pieces, as they come."""

    def __init__(self, scheduler: Scheduler, prompt: Sequence[int], config: GenerationConfig) -> None:
        self.config = config
        self.prompt = list(prompt)
        self.cancelled = False
        self._scheduler = scheduler
        self._pieces: queue.SimpleQueue[Piece | BaseException] = queue.SimpleQueue()
        self._unfinished = config.num_samples

    def __iter__(self) -> Iterator[Piece]:
        """The pieces of all samples, in the order in which they come.

        Raises:
            GPT2Error: what kept the request from being finished.
        """
        while self._unfinished:
            piece = self._pieces.get()
            if isinstance(piece, BaseException):
                self._unfinished = 0
                raise piece
            self._unfinished -= piece.finish_reason is not None
            yield piece

    def result(self) -> list[Completion]:
        """Wait for all samples."""
        done = [Completion(prompt=0, sample=n, prompt_tokens=len(self.prompt)) for n in range(self.config.num_samples)]
        for piece in self:
            done[piece.sample].add(piece)
        return done

    def cancel(self) -> None:
        """Give it up; whoever iterates gets a `CancelledError`."""
        self.cancelled = True
        self._scheduler.wake()


class _Text:
    """One sample of a request: what is to be fed yet, and what was chosen."""

    def __init__(self, request: Request, sample: Sample, n_ctx: int) -> None:
        self.request, self.sample, self.n_ctx = request, sample, n_ctx
        self.pending: list[int] = []
        self.echoed = not request.config.echo
        self._start = max(0, len(request.prompt) - n_ctx)  # of the window, in the prompt and what was chosen

    def restart(self) -> None:
        """The window is to be read from its start, since there is no row for it yet, or no longer."""
        self.pending = (self.sample.prompt + self.sample.tokens)[self._start :]

    def slide(self) -> None:
        """The context is full: go on with the newer half of it, as `generation.generate` does."""
        length = len(self.sample.prompt) + len(self.sample.tokens)
        self._start = length - max(1, self.n_ctx // 2)
        self.restart()


class Scheduler:
    """Steps the texts of many requests together on one engine, which nobody else may use meanwhile.

    Args:
        engine: what runs the network.
        codec: for text and stop strings; None gives tokens alone.
        max_rows: texts that are written at once.
        max_waiting: texts that wait for their turn; more are refused.
    """

    def __init__(
        self, engine: Engine, codec: Codec | None, *, max_rows: int = MAX_ROWS, max_waiting: int = MAX_WAITING
    ) -> None:
        self.engine, self.codec = engine, codec
        self.max_rows, self.max_waiting = max_rows, max_waiting
        self._waiting: deque[_Text] = deque()
        self._live: list[_Text] = []  # in the order of the cache's rows
        self._cache: Cache = engine.new_cache(0)
        self._changed = threading.Condition()
        self._closed = False
        self._held = False  # the cache was full: nobody joins before somebody has left
        self._thread = threading.Thread(target=self._run, name="gpt2-scheduler", daemon=True)
        self._thread.start()

    def submit(self, prompt: Sequence[int], config: GenerationConfig) -> Request:
        """Have a prompt continued.

        Args:
            prompt: token ids, at least one.
            config: what to generate; no beams.

        Raises:
            PromptError: as for `generation.generate`.
            QueueFullError: too many wait already.
            CancelledError: the scheduler is closed.
        """
        check_prompts(self.engine, [prompt], config)
        if config.num_beams > 1:
            raise PromptError("num_beams: expected 1 for a scheduler, which has no beam search")
        if config.stop and self.codec is None:
            raise PromptError("stop: expected a model with a codec, got one without")
        seed = secrets.randbits(63) if config.seed is None else config.seed
        request = Request(self, prompt, config)
        V = self.engine.config.n_vocab
        samples = [Sample(0, n, request.prompt, config, self.codec, seed, V) for n in range(config.num_samples)]
        texts = [_Text(request, sample, self.engine.config.n_ctx) for sample in samples]
        with self._changed:
            if self._closed:
                raise CancelledError("scheduler: it is closed")
            if len(self._waiting) + len(texts) > self.max_waiting:
                raise QueueFullError(
                    f"scheduler: {len(self._waiting)} texts wait already, of at most {self.max_waiting}"
                )
            self._waiting.extend(texts)
            self._changed.notify()
        return request

    @property
    def load(self) -> tuple[int, int]:
        """Texts that are being written, and texts that wait."""
        with self._changed:
            return len(self._live), len(self._waiting)

    def wake(self) -> None:
        """Look at requests that were given up."""
        with self._changed:
            self._changed.notify()

    def close(self) -> None:
        """Give up all requests and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def __enter__(self) -> Scheduler:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, where: TracebackType | None) -> None:
        self.close()

    # The scheduler's thread

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._live or self._closed):
                    self._changed.wait()
                if self._closed:
                    for text in [*self._live, *self._waiting]:
                        self._fail(text, CancelledError("scheduler: it was closed"))
                    return
                self._drop_cancelled()
                self._admit()
            if self._live:
                try:
                    self._step()
                except CacheFullError as error:
                    self._make_room(error)
                except Exception as error:  # nobody may wait for ever, whatever it is
                    for text in self._live:
                        self._fail(text, error)
                    self._keep([])

    def _drop_cancelled(self) -> None:
        for text in [*self._live, *self._waiting]:
            if text.request.cancelled:
                self._fail(text, CancelledError("request: it was given up"))
        self._waiting = deque(text for text in self._waiting if not text.request.cancelled)
        if any(text.request.cancelled for text in self._live):
            self._keep([row for row, text in enumerate(self._live) if not text.request.cancelled])
            self._held = False

    def _admit(self) -> None:
        """Let the next ones join. Samples of a prompt that is being read wait, to share what was computed for it."""
        if self._held and self._live:
            return
        while self._waiting and len(self._live) < self.max_rows:
            text = self._waiting[0]
            if any(other.request is text.request and other.pending for other in self._live):
                return
            self._waiting.popleft()
            text.restart()
            self._live.append(text)
            self._cache.extend(self.engine.new_cache(1))

    def _step(self) -> None:
        """Feed every live text some tokens, and let those whose prompt is read choose the next."""
        fed: list[Sequence[int]] = []
        room, every = PROMPT_TOKENS, False
        for row, text in enumerate(self._live):
            if not text.echoed and text.request.config.logprobs is not None:
                # The logits at every token of the prompt are wanted: it is read at once, and alone.
                fed = [text.pending if other == row else [] for other in range(len(self._live))]
                every = True
                break
            if not text.pending:
                if int(self._cache.lengths[row]) >= self.engine.config.n_ctx:
                    self._cache.truncate(row, 0)
                    text.slide()
                else:
                    text.pending = text.sample.tokens[-1:]
            # One token is a step and always goes; of prompts, as much as there is room for.
            count = 1 if len(text.pending) == 1 else min(room, len(text.pending))
            room -= count if len(text.pending) > 1 else 0
            fed.append(text.pending[:count])
        logits = self.engine.feed(self._cache, fed, all_positions=every)
        for text, tokens, values in zip(self._live, fed, logits, strict=True):
            text.pending = text.pending[len(tokens) :]
            if len(tokens) and not text.pending:
                self._choose(text, values)
        done = [text.sample.finished for text in self._live]
        if any(done):
            self._keep([row for row, finished in enumerate(done) if not finished])
            self._held = False

    def _choose(self, text: _Text, logits: np.ndarray) -> None:
        try:
            if not text.echoed:
                text.echoed = True
                text.request._pieces.put(text.sample.echo(logits))
            if text.request.config.max_tokens == 0:
                text.sample.finished = True
                text.request._pieces.put(Piece(0, text.sample.number, "", (), None, None, "length"))
            else:
                text.request._pieces.put(text.sample.step(logits[-1]))
        except GPT2Error as error:
            self._fail(text, error)

    def _fail(self, text: _Text, error: BaseException) -> None:
        text.sample.finished = text.request.cancelled = True  # its other samples too
        text.request._pieces.put(error)

    def _make_room(self, error: CacheFullError) -> None:
        """The newest text goes back to the front of the queue, and is read again later; one alone cannot be helped."""
        if len(self._live) == 1:
            self._fail(self._live[0], error)
            self._keep([])
            return
        with self._changed:
            self._waiting.appendleft(self._live[-1])
        self._keep(list(range(len(self._live) - 1)))
        self._held = True

    def _keep(self, rows: Sequence[int]) -> None:
        self._cache, self._live = self._cache.select(rows), [self._live[row] for row in rows]
