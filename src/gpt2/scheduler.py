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
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType

from gpt2.batch import MAX_ROWS, Batch
from gpt2.codec import Codec
from gpt2.config import GenerationConfig
from gpt2.continuation import Completion, Piece, Sample
from gpt2.engines import Engine
from gpt2.errors import CacheFullError, CancelledError, GPT2Error, PromptError, QueueFullError
from gpt2.generation import check_prompts, new_seed, samples_of

MAX_WAITING = 256
"""Texts that wait for their turn."""
PROMPT_TOKENS = 128
"""Tokens of prompts that are read in one step: how long the others wait for it at most."""


Deliver = Callable[[Piece | BaseException], None]
"""Takes each piece of a request, or what ended it, in the scheduler's thread; it must not wait or raise."""


class Request:
    """Texts on their way: iterate over their pieces, as they come (unless they are delivered elsewhere)."""

    def __init__(
        self, scheduler: Scheduler, prompt: Sequence[int], config: GenerationConfig, deliver: Deliver | None = None
    ) -> None:
        self.config = config
        self.prompt = list(prompt)
        self.cancelled = False
        self._scheduler = scheduler
        self._pieces: queue.SimpleQueue[Piece | BaseException] = queue.SimpleQueue()
        self.deliver: Deliver = deliver or self._pieces.put
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


class Scheduler:
    """Steps the texts of many requests together on one engine, which nobody else may use meanwhile.

    Args:
        engine: what runs the network.
        codec: for text and stop strings; None gives tokens alone.
        drafter: runs a smaller model with the same vocabulary, which guesses what comes next; see `gpt2.drafting`.
        max_rows: texts that are written at once.
        max_waiting: texts that wait for their turn; more are refused.

    Raises:
        ConfigError: the drafter has another vocabulary.
    """

    def __init__(
        self,
        engine: Engine,
        codec: Codec | None,
        *,
        drafter: Engine | None = None,
        max_rows: int = MAX_ROWS,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        self.engine, self.codec = engine, codec
        self.max_rows, self.max_waiting = max_rows, max_waiting
        self._waiting: deque[list[Sample]] = deque()  # those of a list can share the reading of their prompt
        self._batch = Batch(engine, drafter=drafter, prompt_tokens=PROMPT_TOKENS)
        self._requests: dict[Sample, Request] = {}  # of all samples that wait or are being written
        self._writing = 0
        self._changed = threading.Condition()
        self._closed = False
        self._held = False  # the cache was full: nobody joins before somebody has left
        self._stepping: float | None = None  # since when the engine has been at a step
        self._thread = threading.Thread(target=self._run, name="gpt2-scheduler", daemon=True)
        self._thread.start()

    def submit(self, prompt: Sequence[int], config: GenerationConfig, deliver: Deliver | None = None) -> Request:
        """Have a prompt continued.

        Args:
            prompt: token ids, at least one.
            config: what to generate; no beams.
            deliver: is given the pieces instead of who iterates over the request, such as an event loop.

        Raises:
            PromptError: as for `generation.generate`.
            QueueFullError: too many wait already.
            CancelledError: the scheduler is closed.
        """
        check_prompts(self.engine, self.codec, [prompt], config)
        if config.num_beams > 1:
            raise PromptError("num_beams: expected 1 for a scheduler, which has no beam search")
        request = Request(self, prompt, config, deliver)
        samples = samples_of(self.engine, self.codec, prompt, config, new_seed(config))
        with self._changed:
            if self._closed:
                raise CancelledError("scheduler: it is closed")
            waiting = sum(map(len, self._waiting))
            if waiting + len(samples) > self.max_waiting:
                raise QueueFullError(f"scheduler: {waiting} texts wait already, of at most {self.max_waiting}")
            self._waiting.append(samples)
            self._requests.update(dict.fromkeys(samples, request))
            self._changed.notify()
        return request

    @property
    def alive(self) -> bool:
        """Whether texts are being written, or would be."""
        return self._thread.is_alive() and not self._closed

    @property
    def load(self) -> tuple[int, int]:
        """Texts that are being written, and texts that wait."""
        with self._changed:
            return self._writing, sum(map(len, self._waiting))

    @property
    def stuck_seconds(self) -> float:
        """How long the engine has been at its present step; 0 between steps."""
        since = self._stepping
        return 0.0 if since is None else time.monotonic() - since

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
        try:
            self._work()
        except BaseException as error:  # a bug; nobody may wait for ever, and `alive` tells whoever hosts it
            with self._changed:
                self._closed = True
                left = set(self._requests.values())
                self._requests.clear()
                self._waiting.clear()
            for request in left:
                request.deliver(error)
            raise

    def _work(self) -> None:
        while True:
            with self._changed:
                self._writing = len(self._batch.samples)
                while not (self._waiting or self._writing or self._closed):
                    self._changed.wait()
                if self._closed:
                    self._fail(list(self._requests), CancelledError("scheduler: it was closed"))
                    return
                self._drop_cancelled()
                self._admit()
                self._writing = len(self._batch.samples)
            if self._writing:
                try:
                    self._step()
                except CacheFullError as error:
                    self._make_room(error)
                except Exception as error:  # nobody may wait for ever, whatever it is
                    self._fail(self._batch.samples, error)
                    self._batch.drop(lambda _: True)

    def _drop_cancelled(self) -> None:
        gone = [sample for sample, request in self._requests.items() if request.cancelled]
        if not gone:
            return
        self._fail(gone, CancelledError("request: it was given up"))
        left = [[sample for sample in samples if sample in self._requests] for samples in self._waiting]
        self._waiting = deque(samples for samples in left if samples)
        self._batch.drop(lambda sample: sample not in self._requests)
        self._held = False

    def _admit(self) -> None:
        """Let the next ones join."""
        groups = []
        room = self.max_rows - len(self._batch.samples)
        while self._waiting and room and not (self._held and self._batch.samples):
            samples = self._waiting.popleft()
            if samples[room:]:
                self._waiting.appendleft(samples[room:])
            groups.append(samples[:room])
            room -= len(groups[-1])
        if groups:
            self._batch.join(groups)

    def _step(self) -> None:
        self._stepping = time.monotonic()
        try:
            pieces = self._batch.step()
        finally:  # before anybody hears of it: whoever has an answer finds the engine between steps
            self._stepping = None
        for sample, piece in pieces:
            if isinstance(piece, GPT2Error):
                self._fail([sample], piece)
            elif sample in self._requests:
                self._requests[sample].deliver(piece)
                if piece.finish_reason is not None:
                    del self._requests[sample]
                    self._held = False

    def _fail(self, samples: Sequence[Sample], error: BaseException) -> None:
        """Let requests end with an error; all samples of a request do, before the next step."""
        for sample in samples:
            request = self._requests.pop(sample)
            request.cancelled = True
            request.deliver(error)

    def _make_room(self, error: CacheFullError) -> None:
        """Who joined last goes back to the front of the queue, and is read again later; one alone cannot be helped."""
        last = self._batch.drop_last()
        if not self._batch.samples:
            self._fail(last, error)
            return
        with self._changed:
            self._waiting.appendleft(last)
        self._held = True
