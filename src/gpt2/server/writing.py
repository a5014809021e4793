"""From the scheduler's thread to the event loop: the pieces of several prompts as they come, in one line."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from starlette.requests import Request as HttpRequest

from gpt2.config import GenerationConfig
from gpt2.continuation import Completion, Piece
from gpt2.hosting import Host, Hosted
from gpt2.scheduler import Request
from gpt2.server.problems import Problem

T = TypeVar("T")
_OPENAI_CHECKPOINT = re.compile(r":ckpt-step-(\d{1,11})$")


LONG_TEXT = 2000
"""Characters that are encoded beside the event loop; shorter ones take no time."""
_openers = ThreadPoolExecutor(4, "gpt2-open")  # of their own: who waits for a model keeps nobody else waiting


def store_name(name: str) -> str:
    """A model's name as the store has it: OpenAI's form of a checkpoint's is `RUN:ckpt-step-N`."""
    return _OPENAI_CHECKPOINT.sub(r"@\1", name)


async def apart(is_long: bool, work: Callable[..., T], *args: Any) -> T:
    """The result of some work, done in a thread where it would keep the event loop."""
    return await asyncio.to_thread(work, *args) if is_long else work(*args)


@contextlib.asynccontextmanager
async def leased(host: Host, name: str | None) -> AsyncIterator[Hosted]:
    """An open model; one that is not is opened in a thread. See `Host.lease`."""
    name = None if name is None else store_name(name)
    hosted = host.take(name)
    if hosted is None:
        opening = asyncio.get_running_loop().run_in_executor(_openers, host.open_and_take, name)
        try:
            hosted = await asyncio.shield(opening)
        except asyncio.CancelledError:  # the client left, but the model is being opened
            opening.add_done_callback(_if_done(host.give_back))
            raise
    try:
        yield hosted
    finally:
        host.give_back(hosted)


def _if_done(then: Callable[[T], None]) -> Callable[[asyncio.Future[T]], None]:
    """What is done with the result of some work for which nobody waits any more."""

    def done(work: asyncio.Future[T]) -> None:
        if not work.cancelled() and work.exception() is None:
            then(work.result())

    return done


class Texts:
    """The continuations of some prompts on their way: see `begun`. Iterate over it once; `close` gives up the rest.

    Args:
        hosted: what writes them.
        prompts: token ids.
        config: what to generate, of each.
        together: whether the pieces of a text may come all at its end. That spares the event loop a call a token.
    """

    def __init__(
        self, hosted: Hosted, prompts: Sequence[Sequence[int]], config: GenerationConfig, *, together: bool = False
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._together = together
        self._pieces: asyncio.Queue[tuple[int, Piece | BaseException]] = asyncio.Queue()
        self._unfinished = len(prompts) * config.num_samples
        self._samples = config.num_samples
        self._prompts, self._hosted, self._config = prompts, hosted, config
        self._requests: list[Request] = []

    @classmethod
    async def begun(
        cls, hosted: Hosted, prompts: Sequence[Sequence[int]], config: GenerationConfig, *, together: bool = False
    ) -> Texts:
        """Texts that wait for their turn.

        Raises:
            GPT2Error: a prompt or setting that is refused, or no room to wait.
        """
        texts = cls(hosted, prompts, config, together=together)
        if config.regex is None and config.json_schema is None:
            texts._submit()
            return texts
        submitting = asyncio.ensure_future(asyncio.to_thread(texts._submit))  # compiling a constraint can take a while
        try:
            await asyncio.shield(submitting)
        except asyncio.CancelledError:
            submitting.add_done_callback(_if_done(lambda _: texts.close()))
            raise
        return texts

    def _submit(self) -> None:
        try:
            for number, prompt in enumerate(self._prompts):
                request = self._hosted.scheduler.submit(prompt, self._config, self._deliver(number))
                self._requests.append(request)
        except BaseException:
            self.close()
            raise

    def _deliver(self, number: int) -> Callable[[Piece | BaseException], None]:
        held: list[tuple[int, Piece | BaseException]] = []  # the scheduler's thread alone sees it

        def deliver(piece: Piece | BaseException) -> None:
            held.append((number, piece))
            if self._together and isinstance(piece, Piece) and piece.finish_reason is None:
                return
            given = held.copy()
            held.clear()
            with contextlib.suppress(RuntimeError):  # the loop has ended before its scheduler
                self._loop.call_soon_threadsafe(self._take, given)

        return deliver

    def _take(self, pieces: Sequence[tuple[int, Piece | BaseException]]) -> None:
        for piece in pieces:
            self._pieces.put_nowait(piece)

    async def __aiter__(self) -> AsyncIterator[tuple[int, Piece]]:
        """Pieces, each with the number of its prompt.

        Raises:
            GPT2Error: what kept a text from being finished.
        """
        while self._unfinished:
            number, piece = await self._pieces.get()
            if isinstance(piece, BaseException):
                raise piece
            self._unfinished -= piece.finish_reason is not None
            yield number, piece

    async def completions(self) -> list[list[Completion]]:
        """Wait for all: the samples of each prompt."""
        done = [
            [Completion(prompt=n, sample=m, prompt_tokens=len(prompt)) for m in range(self._samples)]
            for n, prompt in enumerate(self._prompts)
        ]
        async for number, piece in self:
            done[number][piece.sample].add(piece)
        return done

    def close(self) -> None:
        """Give up what is unfinished; the scheduler leaves it before its next step."""
        if self._unfinished:
            for request in self._requests:
                request.cancel()


async def while_connected(request: HttpRequest, work: Awaitable[T], seconds: float) -> T:
    """Wait for some work as long as the client does, and at most so long.

    Raises:
        Problem: it took too long (504), or the client is gone.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((task, watch), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if watch.done():
            raise Problem(400, "the client left", code="client_left")
        raise Problem(504, f"request: expected to be answered within {seconds:g} seconds", code="too_slow")
    finally:
        for either in (task, watch):
            either.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _left(request: HttpRequest) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
