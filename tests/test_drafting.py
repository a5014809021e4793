"""Drafts change the time and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes import FakeCache, FakeEngine
from gpt2.config import GenerationConfig
from gpt2.drafting import SIZES, Clock, Judge, Lookup
from gpt2.errors import CacheFullError, ConfigError
from gpt2.generation import generate
from gpt2.scheduler import Scheduler


def test_lookup_takes_the_longest_and_latest_match() -> None:
    text = [1, 2, 3, 9, 5, 2, 3, 8, 7, 1, 2, 3]
    assert Lookup(text).draft(3) == [9, 5, 2]  # 1 2 3 before 2 3
    assert Lookup(text).match == 3
    assert Lookup([2, 3, 9, 5, 2, 3, 8, 7, 2, 3]).draft(2) == [8, 7]
    assert Lookup([1, 2, 3]).draft(7) == []
    assert Lookup([1, 2, 3]).match == 0
    assert Lookup([4, 4, 4]).draft(7) == [4] * 7  # what is drafted goes on by itself
    assert Lookup([4, 4, 4]).match == 2
    assert Lookup([1, 2, 1, 2]).draft(5) == [1, 2, 1, 2, 1]
    assert Lookup([]).draft(3) == Lookup(text).draft(0) == []
    assert Lookup([*range(30), *range(20)]).match == 16


def repetitive(tokens: list[int]) -> np.ndarray:
    """Likes to go on as the text went on before, but not always."""
    logits = np.random.default_rng(tokens[-3:]).normal(0, 1, 12)
    logits[(tokens[-1] * 5 + 1) % 12] += 4
    return logits


@settings(max_examples=40, deadline=None)
@given(
    prompts=st.lists(st.lists(st.integers(0, 11), min_size=1, max_size=30), min_size=1, max_size=3),
    options=st.fixed_dictionaries(
        {
            "max_tokens": st.integers(0, 90),
            "num_samples": st.integers(1, 3),
            "temperature": st.sampled_from([0.0, 1.0]),
            "repetition_penalty": st.sampled_from([1.0, 1.3]),
            "logprobs": st.sampled_from([None, 2]),
            "echo": st.booleans(),
        }
    ),
)
def test_same_text_with_and_without(prompts: list[list[int]], options: dict[str, Any]) -> None:
    """Also where the window slides (n_ctx is 40) and where some samples are done before others."""
    options["echo"] = options["echo"] and max(map(len, prompts)) < 40
    made = []
    for drafts in (False, True):
        engine = FakeEngine(12, 40, repetitive)
        engine.exact = True
        config = GenerationConfig.from_options(seed=3, drafts=drafts, **options)
        made.append(generate(engine, None, prompts, config))
    assert made[0] == made[1]


def test_drafts_are_made_and_save_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Judge, "size", lambda self, match, most: most if most < 7 else 7)
    calls = []
    for drafts in (False, True):
        engine = FakeEngine(12, 400, repetitive)
        engine.exact = True
        config = GenerationConfig.from_options(max_tokens=200, temperature=0, drafts=drafts)
        generate(engine, None, [[1, 2]], config)
        calls.append(len(engine.fed))
        assert max(map(len, engine.fed)) == (8 if drafts else 2)
    assert calls[1] < 0.5 * calls[0]


class Cached(FakeEngine):
    """Refuses to hold more than some tokens, as an engine with a small cache does."""

    def feed(self, cache: FakeCache, ids: Sequence[Sequence[int]], *, all_positions: bool = False) -> list[np.ndarray]:
        if sum(map(len, cache.rows)) + sum(map(len, ids)) > 30:
            raise CacheFullError("cache: full")
        return super().feed(cache, ids, all_positions=all_positions)


@pytest.mark.parametrize("kind", ["alike", "unlike", "shorter context", "full cache"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_smaller_model_guesses(monkeypatch: pytest.MonkeyPatch, kind: str, temperature: float) -> None:
    """Same text whatever it guesses; and where it is often right, far fewer steps."""
    monkeypatch.setattr(Judge, "size", lambda self, match, most: 3 if most >= 3 else 0)
    smaller = {
        "alike": FakeEngine(12, 40, repetitive),
        "unlike": FakeEngine(12, 40),
        "shorter context": FakeEngine(12, 9, repetitive),
        "full cache": Cached(12, 40, repetitive),
    }[kind]
    made, steps = [], []
    for drafter in (None, smaller):
        engine = FakeEngine(12, 40, repetitive)
        engine.exact = True
        config = GenerationConfig.from_options(
            max_tokens=120, temperature=temperature, num_samples=2, seed=1, drafts=drafter is not None
        )
        made.append(generate(engine, None, [[1, 2]], config, drafter=drafter))
        steps.append(len(engine.fed))
    assert made[0] == made[1]
    assert smaller.fed
    if kind in ("alike", "shorter context") and temperature == 0:
        assert steps[1] < 0.4 * steps[0]


def test_a_model_with_another_vocabulary_guesses_nothing() -> None:
    engine, other = FakeEngine(12), FakeEngine(13)
    with pytest.raises(ConfigError, match="same vocabulary of 12 tokens, got one with 13"):
        generate(engine, None, [[1]], GenerationConfig(), drafter=other)
    with pytest.raises(ConfigError, match="same vocabulary"):
        Scheduler(engine, None, drafter=other)


@pytest.mark.parametrize("drafter", [None, FakeEngine(12, 40, repetitive)])
def test_in_the_scheduler_too(monkeypatch: pytest.MonkeyPatch, drafter: FakeEngine | None) -> None:
    monkeypatch.setattr(Judge, "size", lambda self, match, most: 3 if most >= 3 else 0)
    config = GenerationConfig.from_options(max_tokens=100, temperature=1.0, seed=4, num_samples=2)
    engine = FakeEngine(12, 40, repetitive)
    wanted = [generate(engine, None, [[n]], config) for n in range(5)]
    engine = FakeEngine(12, 40, repetitive)
    engine.exact = True
    with Scheduler(engine, None, drafter=drafter) as scheduler:
        found = [scheduler.submit([n], config) for n in range(5)]
        assert [request.result() for request in found] == wanted
        few = len(engine.fed)
        assert scheduler.submit([0], config).result() == wanted[0]
        assert max(map(len, engine.fed[few:])) >= 4


def test_not_where_the_engine_is_not_exact_nor_beside_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Judge, "size", lambda self, match, most: most if most < 7 else 7)
    for exact, samples in ((False, 1), (True, 5)):
        engine = FakeEngine(12, 400, repetitive)
        engine.exact = exact
        config = GenerationConfig.from_options(max_tokens=60, temperature=0, num_samples=samples)
        generate(engine, None, [[1, 2]], config)
        assert max(map(len, engine.fed)) == 2


def test_judge_by_the_clock_and_by_what_came_true() -> None:
    clock = Clock()
    judge = Judge(clock)
    assert judge.size(16, 7) == 0  # nothing to compare with yet
    clock.took(1.0, 0)
    assert judge.size(0, 7) == 0
    assert judge.size(16, 7) in SIZES
    for _ in range(10):
        clock.took(1.6, 7)
        judge.fared(16, 7, 7)
    assert judge.size(16, 7) == 7
    assert judge.size(16, 6) == 3  # no room for more
    clock.took(1.3, 1)
    clock.took(1.4, 3)
    for _ in range(10):
        judge.fared(2, 3, 0)
    assert judge.size(2, 7) == 0  # after short matches it went otherwise; after long ones it did not
    assert judge.size(16, 7) == 7
    tries = 0
    while judge.size(2, 7) == 0:  # it is tried again, but not soon
        tries += 1
    assert tries > 10
    for _ in range(20):
        clock.took(9.0, 7)  # now eight tokens cost more than eight steps
    assert judge.size(16, 7) != 7
