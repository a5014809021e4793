"""Beam search against a search through everything."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fakes import FakeEngine
from gpt2.beams import beam_search
from gpt2.codec import Codec
from gpt2.config import GenerationConfig
from gpt2.generation import generate
from gpt2.sampling import log_softmax


def options(**values: object) -> GenerationConfig:
    return GenerationConfig.from_options(**{"max_tokens": 4, **values})


def score(engine: FakeEngine, prompt: list[int], tokens: tuple[int, ...]) -> float:
    total, so_far = 0.0, list(prompt)
    for token in tokens:
        total += float(log_softmax(np.asarray(engine.function(so_far), np.float32))[token])
        so_far.append(token)
    return total


def test_with_enough_beams_it_finds_the_best_of_all() -> None:
    engine = FakeEngine(5)
    everything = sorted(itertools.product(range(5), repeat=4), key=lambda tokens: -score(engine, [2], tokens))
    found = beam_search(engine, None, [2], options(num_beams=125, num_samples=3))
    assert [tuple(c.tokens) for c in found] == everything[:3]


def test_two_beams_do_no_worse_than_greedy() -> None:
    for seed in range(20):
        engine = FakeEngine(30, function=lambda t, s=seed: np.random.default_rng([s, *t]).normal(0, 2, 30))
        greedy = generate(engine, None, [[1]], options(temperature=0, max_tokens=6))[0].tokens
        best = beam_search(engine, None, [1], options(num_beams=8, max_tokens=6))[0].tokens
        assert score(engine, [1], tuple(best)) >= score(engine, [1], tuple(greedy)) - 1e-6


def ending_engine() -> tuple[FakeEngine, Codec]:
    """Likes to end at once, but a longer text is better for each token."""
    codec = Codec.from_merges("#version: 0.2\n")

    def function(so_far: list[int]) -> np.ndarray:
        logits = np.full(257, -20.0)
        if len(so_far) == 1:
            logits[[256, 64]] = [1.0, 0.9]
        else:
            logits[[256, 64]] = [-5.0, 5.0]
        return logits

    return FakeEngine(257, function=function), codec


@pytest.mark.parametrize(("penalty", "length"), [(0.0, 0), (1.0, 6)])
def test_length_penalty_decides_between_short_and_long(penalty: float, length: int) -> None:
    engine, codec = ending_engine()
    best = beam_search(engine, codec, [1], options(num_beams=3, max_tokens=6, length_penalty=penalty))[0]
    assert len(best.tokens) == length
    assert best.finish_reason == ("stop" if length == 0 else "length")


def test_stop_strings_end_a_beam_and_are_cut_off() -> None:
    codec = Codec.from_merges("#version: 0.2\n")
    target = codec.encode("ab!cd")

    def function(so_far: list[int]) -> np.ndarray:
        logits = np.zeros(257)
        logits[target[min(len(so_far) - 1, 4)]] = 9.0
        return logits

    best = beam_search(FakeEngine(257, function=function), codec, [1], options(num_beams=2, max_tokens=5, stop="!"))[0]
    assert (best.text, best.finish_reason) == ("ab", "stop")


def test_log_probabilities_and_echo() -> None:
    engine = FakeEngine(9)
    best = beam_search(engine, None, [2, 3], options(num_beams=3, logprobs=2, echo=True))[0]
    assert best.tokens[:2] == [2, 3]
    assert best.log_probabilities is not None
    assert best.log_probabilities[0] is None
    assert best.log_probabilities[1] == pytest.approx(score(engine, [2], (3,)))
    assert sum(value or 0 for value in best.log_probabilities[2:]) == pytest.approx(
        score(engine, [2, 3], tuple(best.tokens[2:])), abs=1e-4
    )
    assert len(best.top_log_probabilities or []) == len(best.tokens)


def test_past_the_context() -> None:
    engine = FakeEngine(9, n_ctx=6)
    assert len(beam_search(engine, None, [2, 3], options(num_beams=3, max_tokens=15))[0].tokens) == 15


def test_no_tokens_asked_for() -> None:
    assert beam_search(FakeEngine(9), None, [2], options(num_beams=2, max_tokens=0))[0].tokens == []
