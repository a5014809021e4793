"""Many requests on one engine: each gives what it gives alone, in turn, and leaves when it is given up."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fakes import FakeCache, FakeEngine
from gpt2.batch import MAX_ROWS
from gpt2.config import GenerationConfig
from gpt2.engines import Cache
from gpt2.engines.litert import LiteRTEngine
from gpt2.engines.litert_build import build
from gpt2.errors import CacheFullError, CancelledError, ContextLengthError, GenerationError, PromptError, QueueFullError
from gpt2.generation import generate
from gpt2.scheduler import PROMPT_TOKENS, Scheduler
from test_litert import CONFIG, network_of


class SlowEngine(FakeEngine):
    """Takes its time, and remembers how many tokens each step had."""

    def __init__(self, *arguments: Any, seconds: float = 0.001, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.seconds = seconds
        self.steps: list[list[int]] = []

    def feed(self, cache: FakeCache, ids: Sequence[Sequence[int]], *, all_positions: bool = False) -> list[np.ndarray]:
        time.sleep(self.seconds)
        self.steps.append([len(tokens) for tokens in ids])
        return super().feed(cache, ids, all_positions=all_positions)


def options(**given: Any) -> GenerationConfig:
    return GenerationConfig.from_options(**{"seed": 5, **given})


def wait_for_idle(scheduler: Scheduler) -> None:
    """The last piece comes a moment before its row is given back."""
    end = time.monotonic() + 10
    while scheduler.load != (0, 0):
        assert time.monotonic() < end
        time.sleep(0.001)


def test_a_step_is_over_before_anybody_hears_of_it() -> None:
    heard: list[float] = []
    done = threading.Event()

    def deliver(piece: Any) -> None:
        heard.append(scheduler.stuck_seconds)
        if piece.finish_reason is not None:
            done.set()

    with Scheduler(SlowEngine(20, 24), None) as scheduler:
        scheduler.submit([1], options(max_tokens=3), deliver)
        assert done.wait(10)
    assert heard == [0.0] * 3, "who has an answer may ask at once whether the engine is stuck"


def requests(vocabulary: int, n_ctx: int) -> list[tuple[list[int], GenerationConfig]]:
    """Of all kinds: short and long, past the context, several samples, log-probabilities, echoes."""
    rng = np.random.default_rng(1)
    kinds: list[dict[str, Any]] = [
        {"max_tokens": 5},
        {"max_tokens": 2 * n_ctx},
        {"max_tokens": 12, "num_samples": 3},
        {"max_tokens": 7, "logprobs": 2, "echo": True},
        {"max_tokens": 0, "echo": True},
        {"max_tokens": 20, "temperature": 0, "repetition_penalty": 1.2},
    ]
    lengths = [3, n_ctx, n_ctx // 2, 1, n_ctx - 1, 9, 2 * n_ctx]
    return [
        (rng.integers(0, vocabulary, length).tolist(), options(**kinds[n % len(kinds)], **{"seed": n}))
        for n, length in enumerate(lengths * 3)
        if not ("logprobs" in kinds[n % len(kinds)] and length > n_ctx)
    ]


@pytest.mark.parametrize("max_rows", [1, 4, MAX_ROWS])
def test_each_gives_what_it_gives_alone(max_rows: int) -> None:
    engine = SlowEngine(30, 24, seconds=0)
    wanted = [generate(engine, None, [prompt], config) for prompt, config in requests(30, 24)]
    engine.steps.clear()
    with Scheduler(engine, None, max_rows=max_rows) as scheduler:
        found = [scheduler.submit(prompt, config) for prompt, config in requests(30, 24)]
        assert [request.result() for request in found] == wanted
        wait_for_idle(scheduler)
    assert max(map(len, engine.steps)) <= max_rows


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_the_fast_engine_too_from_many_threads_to_the_last_bit(tmp_path: Path, precision: str) -> None:
    """The cache is so small that texts are sent back to the queue and read again."""
    build(tmp_path / "built", CONFIG, network_of(CONFIG).arrays(), precision)
    alone = LiteRTEngine(tmp_path / "built")
    work = requests(CONFIG.n_vocab, CONFIG.n_ctx)
    wanted = [generate(alone, None, [prompt], config) for prompt, config in work]
    block = 2 * CONFIG.n_layer * CONFIG.n_embd * 32 * (4 if precision == "float32" else 2)
    small = LiteRTEngine(tmp_path / "built", cache_bytes=7 * block)
    found: dict[int, Any] = {}
    with Scheduler(small, None, max_rows=8) as scheduler:

        def client(numbers: list[int]) -> None:
            for n in numbers:
                found[n] = scheduler.submit(*work[n]).result()

        threads = [threading.Thread(target=client, args=(list(range(n, len(work), 5)),)) for n in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [found[n] for n in range(len(work))] == wanted
    assert small.pool.available == 7


def test_join_and_leave_between_steps() -> None:
    engine = SlowEngine(30, 400)
    with Scheduler(engine, None) as scheduler:
        long = scheduler.submit([1], options(max_tokens=300))
        first = next(iter(long))
        assert first.tokens
        short = scheduler.submit([2], options(max_tokens=3)).result()
        assert len(short[0].tokens) == 3
        assert scheduler.load[0] == 1  # the long one goes on
        long.cancel()


def test_a_long_prompt_does_not_stop_the_others() -> None:
    engine = SlowEngine(30, 2000)
    with Scheduler(engine, None) as scheduler:
        writing = scheduler.submit([1], options(max_tokens=50))
        next(iter(writing))
        scheduler.submit([2] * 1000, options(max_tokens=1)).result()
        writing.result()
    reading = [step for step in engine.steps if max(step) > 1]
    assert max(max(step) for step in reading) == PROMPT_TOKENS
    assert all(1 in step for step in reading)  # the other has its token in each of these steps


def test_first_come_first_served() -> None:
    engine = SlowEngine(30, 64)
    order = []
    with Scheduler(engine, None, max_rows=1) as scheduler:
        waiting = [scheduler.submit([n], options(max_tokens=3)) for n in range(6)]
        assert scheduler.load[1] >= 4

        def wait(n: int) -> None:
            waiting[n].result()
            order.append(n)

        threads = [threading.Thread(target=wait, args=(n,)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert order == sorted(order)


def test_given_up_before_the_next_token() -> None:
    engine = SlowEngine(30, 4000, seconds=0.005)
    with Scheduler(engine, None, max_rows=1) as scheduler:
        living = scheduler.submit([1], options(max_tokens=1000))
        waiting = scheduler.submit([2], options(max_tokens=1000))
        pieces = iter(living)
        next(pieces)
        steps = len(engine.steps)
        waiting.cancel()
        living.cancel()
        with pytest.raises(CancelledError, match="given up"):
            list(pieces)
        with pytest.raises(CancelledError):
            waiting.result()
        assert len(engine.steps) <= steps + 3
        wait_for_idle(scheduler)


def test_no_more_wait_than_allowed() -> None:
    with Scheduler(SlowEngine(30, 64), None, max_rows=1, max_waiting=2) as scheduler:
        first = scheduler.submit([1], options(max_tokens=60))
        next(iter(first))
        scheduler.submit([1], options(num_samples=2))
        with pytest.raises(QueueFullError, match="2 texts wait already, of at most 2"):
            scheduler.submit([1], options())


def test_what_goes_wrong_for_one_is_no_matter_to_the_others() -> None:
    def nan_after_seven(tokens: list[int]) -> np.ndarray:
        return (
            np.full(30, np.nan)
            if tokens[0] == 7 and len(tokens) > 4
            else np.random.default_rng(tokens).normal(0, 1, 30)
        )

    with Scheduler(SlowEngine(30, 64, nan_after_seven), None) as scheduler:
        bad = scheduler.submit([7], options(max_tokens=20))
        good = scheduler.submit([1], options(max_tokens=20))
        with pytest.raises(GenerationError):
            bad.result()
        assert len(good.result()[0].tokens) == 20


def test_a_text_that_the_cache_cannot_hold() -> None:
    class Full(SlowEngine):
        def feed(self, cache: Cache, ids: Sequence[Sequence[int]], *, all_positions: bool = False) -> list[np.ndarray]:
            if sum(map(len, cache.rows)) + sum(map(len, ids)) > 20:  # type: ignore[attr-defined]
                raise CacheFullError("cache: full")
            return super().feed(cache, ids, all_positions=all_positions)  # type: ignore[arg-type]

    engine = Full(30, 64, seconds=0)
    wanted = generate(FakeEngine(30, 64), None, [[1]], options(max_tokens=15))
    with Scheduler(engine, None) as scheduler:
        some = [scheduler.submit([1], options(max_tokens=15)) for _ in range(4)]
        for request in some:
            assert request.result() == wanted
        with pytest.raises(CacheFullError):
            scheduler.submit([1] * 30, options()).result()


def test_an_engine_that_breaks_leaves_nobody_waiting() -> None:
    def broken(tokens: list[int]) -> np.ndarray:
        raise OSError("gone")

    with Scheduler(SlowEngine(30, 64, broken), None) as scheduler, pytest.raises(OSError, match="gone"):
        scheduler.submit([1], options()).result()


@pytest.fixture
def closed() -> Iterator[Scheduler]:
    scheduler = Scheduler(SlowEngine(30, 4000), None)
    yield scheduler
    scheduler.close()


def test_closing_gives_up_what_is_there(closed: Scheduler) -> None:
    request = closed.submit([1], options(max_tokens=3000))
    next(iter(request))
    closed.close()
    with pytest.raises(CancelledError, match="closed"):
        request.result()
    with pytest.raises(CancelledError, match="closed"):
        closed.submit([1], options())


def test_what_is_refused_at_once() -> None:
    with Scheduler(SlowEngine(30, 64), None) as scheduler:
        with pytest.raises(PromptError, match="at least one token"):
            scheduler.submit([], options())
        with pytest.raises(PromptError, match="no beam search"):
            scheduler.submit([1], options(num_beams=2))
        with pytest.raises(PromptError, match="codec"):
            scheduler.submit([1], options(stop="x"))
        with pytest.raises(ContextLengthError):
            scheduler.submit([1] * 60, options(context="error", max_tokens=20))
