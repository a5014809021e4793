"""Sampling: each filter by hand, laws by Hypothesis, draws by chi-square, and streams that must stay the same."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gpt2 import sampling
from gpt2.config import SamplingConfig
from gpt2.errors import ConfigError, GenerationError, GPT2Error
from gpt2.sampling import adjust, candidates, log_softmax, sample, sample_rng, top_log_probabilities

LOGITS = np.log([0.05, 0.4, 0.2, 0.25, 0.1])

# On a grid: what differs by less than float32 can tell apart after the shift to the peak is a tie by design.
rows = arrays(
    np.float32,
    st.integers(1, 40),
    elements=st.one_of(st.integers(-1280, 1280).map(lambda n: n / 64), st.sampled_from([-np.inf, -1.0, 0.0, 2.0])),
)
shares = st.floats(0.05, 0.99)
laws = settings(max_examples=200, deadline=None, derandomize=True)


def kept(logits: np.ndarray, **settings_: float) -> list[int]:
    return candidates(np.asarray(logits), SamplingConfig(**settings_))[0].tolist()


# Each filter by hand


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({}, [1, 3, 2, 4, 0]),
        ({"temperature": 0}, [1]),
        ({"temperature": 1e-300, "top_p": 0.99}, [1]),
        ({"top_k": 1}, [1]),
        ({"top_k": 3}, [1, 3, 2]),
        ({"top_k": 5}, [1, 3, 2, 4, 0]),
        ({"top_k": 1000}, [1, 3, 2, 4, 0]),
        ({"top_p": 0.39}, [1]),
        ({"top_p": 0.41}, [1, 3]),  # the token that crosses the threshold is kept
        ({"top_p": 0.64}, [1, 3]),
        ({"top_p": 0.66}, [1, 3, 2]),
        ({"top_p": 1e-9}, [1]),
        ({"min_p": 0.2}, [1, 3, 2, 4]),
        ({"min_p": 0.6}, [1, 3]),
        ({"min_p": 1.0}, [1]),
        # Entropy 1.415 nats; distances: 3 -> .03, 2 -> .19, 1 -> .50, 4 -> .89, 0 -> 1.58.
        ({"typical_p": 0.24}, [3]),
        ({"typical_p": 0.26}, [3, 2]),
        ({"typical_p": 0.5}, [1, 3, 2]),
        ({"typical_p": 0.9}, [1, 3, 2, 4]),
    ],
)
def test_filters_by_hand(chosen, expected):
    assert kept(LOGITS, **chosen) == expected


def test_temperature_by_hand():
    tokens, probabilities = candidates(np.log([0.2, 0.8]), SamplingConfig(temperature=0.5))
    assert tokens.tolist() == [1, 0]
    np.testing.assert_allclose(probabilities, [0.64 / 0.68, 0.04 / 0.68])


def test_ties_go_to_the_lower_token():
    level = np.zeros(9, np.float32)
    assert kept(level, top_k=3) == [0, 1, 2]
    assert kept(level, top_p=0.3) == [0, 1, 2]
    assert kept(level, typical_p=0.3) == [0, 1, 2]
    assert kept(level, temperature=0) == [0]
    assert sample(level, SamplingConfig(temperature=0), sample_rng(0, 0)) == 0
    assert kept([1.0, 3.0, 2.0, 3.0, 2.0], top_k=3) == [1, 3, 2]


def test_temperature_acts_before_the_filters():
    assert kept(LOGITS, top_p=0.64) == [1, 3]
    assert kept(LOGITS, top_p=0.64, temperature=3.0) == [1, 3, 2]
    assert kept(LOGITS, min_p=0.6, temperature=3.0) == [1, 3, 2, 4]


def test_top_p_acts_on_what_top_k_leaves():
    """0.4 and 0.25 are 65 % of everything, but 76 % of the three that top-k leaves."""
    assert kept(LOGITS, top_p=0.7) == [1, 3, 2]
    assert kept(LOGITS, top_k=3, top_p=0.7) == [1, 3]


def test_typical_p_acts_on_what_min_p_leaves():
    """Token 2 is the second most typical of all, but min-p has taken it away; of 1 and 3 the first is more typical."""
    assert kept(LOGITS, typical_p=0.26) == [3, 2]
    assert kept(LOGITS, min_p=0.6, typical_p=0.26) == [1]


def test_impossible_tokens_are_never_kept():
    logits = np.array([-np.inf, 0.0, -np.inf, 1.0])
    for chosen in ({}, {"top_k": 3}, {"top_p": 0.999}, {"typical_p": 0.999}, {"min_p": 1e-9}, {"temperature": 100.0}):
        assert sorted(kept(logits, **chosen)) == [1, 3]


def test_huge_logits_are_no_trouble():
    top = float(np.finfo(np.float32).max)
    logits = np.array([-top, top, 0.0], np.float32)
    for temperature in (1e-300, 0.5, 1.0, 100.0):
        tokens, probabilities = candidates(logits, SamplingConfig(temperature=temperature, top_k=2))
        assert tokens[0] == 1
        assert probabilities[0] == 1


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int32])
def test_any_kind_of_number_will_do(dtype):
    logits = np.array([3, 1, 2], dtype)
    assert kept(logits, top_k=2) == [0, 2]
    assert log_softmax(logits).dtype == (np.float64 if dtype == np.float64 else np.float32)


# Bias and penalties


def adjusted(logits: list[float], *, context=(), generated=(), end_of_text=None, **settings_) -> list[float]:
    config = SamplingConfig(**settings_)
    row = np.array(logits)
    before = row.copy()
    result = adjust(row, config, context=context, generated=generated, end_of_text=end_of_text)
    np.testing.assert_array_equal(row, before)  # what comes in is never changed
    return result.tolist()


def test_logit_bias():
    assert adjusted([1.0, 2.0, 3.0], logit_bias={0: 5.5, 2: -100}) == [6.5, 2.0, -97.0]
    rng = sample_rng(0, 0)
    assert {sample(LOGITS, SamplingConfig(logit_bias={0: 100}), rng) for _ in range(50)} == {0}
    assert 1 not in {sample(LOGITS, SamplingConfig(logit_bias={1: -100}), rng) for _ in range(200)}


def test_logit_bias_names_tokens_of_the_vocabulary():
    with pytest.raises(ConfigError, match="logit_bias: expected token ids below 5, got 5"):
        sample(LOGITS, SamplingConfig(logit_bias={1: 1.0, 5: 1.0}), sample_rng(0, 0))


def test_min_tokens_holds_the_end_back():
    assert adjusted([1.0, 2.0], min_tokens=2, generated=[0], end_of_text=1) == [1.0, -math.inf]
    assert adjusted([1.0, 2.0], min_tokens=2, generated=[0, 0], end_of_text=1) == [1.0, 2.0]
    assert adjusted([1.0, 2.0], min_tokens=2, generated=[0]) == [1.0, 2.0]
    assert adjusted([1.0, 2.0], min_tokens=1, end_of_text=1, logit_bias={1: 100}) == [1.0, -math.inf]


def test_repetition_penalty_sees_prompt_and_continuation_once():
    row = [2.0, -2.0, 2.0, 0.0, -math.inf]
    assert adjusted(row, repetition_penalty=2.0, context=[0, 0, 4], generated=[1, 0]) == [1, -4, 2, 0, -math.inf]
    assert adjusted(row, repetition_penalty=2.0) == row


def test_frequency_and_presence_penalties_see_the_continuation_alone():
    row = [0.0, 0.0, 0.0]
    assert adjusted(row, frequency_penalty=0.5, context=[2, 2], generated=[0, 1, 0]) == [-1.0, -0.5, 0.0]
    assert adjusted(row, presence_penalty=0.5, context=[2, 2], generated=[0, 1, 0]) == [-0.5, -0.5, 0.0]
    assert adjusted(row, frequency_penalty=-2, presence_penalty=1, generated=[0, 1, 0]) == [3.0, 1.0, 0.0]


def test_nothing_to_do_costs_nothing():
    row = np.zeros(3, np.float32)
    assert adjust(row, SamplingConfig(), context=[1], generated=[2], end_of_text=0) is row


# Broken logits


@pytest.mark.parametrize("config", [SamplingConfig(), SamplingConfig(temperature=0), SamplingConfig(top_k=2)])
@pytest.mark.parametrize(
    ("logits", "message"),
    [
        ([0.0, math.nan, 1.0], "expected numbers, got nan"),
        ([0.0, math.inf, 1.0], "expected numbers, got inf"),
        ([-math.inf, -math.inf], "got -inf for every one"),
        ([], r"expected the shape \(n_vocab,\), got \(0,\)"),
        ([[1.0, 2.0]], r"expected the shape \(n_vocab,\), got \(1, 2\)"),
    ],
)
def test_broken_logits(logits, message, config):
    for ask in (lambda row: sample(row, config, sample_rng(0, 0)), lambda row: candidates(row, config), log_softmax):
        with pytest.raises(GenerationError, match=message):
            ask(np.array(logits))
    assert issubclass(GenerationError, GPT2Error)


# Laws


def possible(logits: np.ndarray) -> None:
    assume(np.isfinite(logits).any())


@laws
@given(rows, st.floats(0, 3), st.integers(0, 45), shares, st.floats(0, 1), shares)
def test_probabilities_are_sorted_and_sum_to_one(logits, temperature, top_k, top_p, min_p, typical_p):
    possible(logits)
    tokens, probabilities = candidates(
        logits, SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, typical_p=typical_p)
    )
    assert len(tokens) == len(set(tokens.tolist())) >= 1
    assert probabilities.sum() == pytest.approx(1)
    pairs = [(-logits[token], token) for token in tokens]
    assert pairs == sorted(pairs)
    assert (np.diff(probabilities) <= 0).all()


@laws
@given(rows, st.integers(1, 45))
def test_top_k_keeps_the_first_k(logits, k):
    possible(logits)
    order = [n for n in np.argsort(-logits, kind="stable").tolist() if np.isfinite(logits[n])]
    assert kept(logits, top_k=k) == order[:k]


@laws
@given(rows, shares)
def test_top_p_keeps_the_smallest_prefix_that_reaches_p(logits, p):
    possible(logits)
    everything, probabilities = candidates(logits, SamplingConfig())
    nucleus = kept(logits, top_p=p)
    assert nucleus == everything[: len(nucleus)].tolist()
    mass = probabilities[: len(nucleus)]
    assert mass.sum() >= p - 1e-6
    assert mass[:-1].sum() < p + 1e-6


@laws
@given(rows, st.floats(0.001, 1))
def test_min_p_keeps_what_is_probable_enough(logits, share):
    possible(logits)
    everything, probabilities = candidates(logits, SamplingConfig())
    ratios = probabilities / probabilities[0]
    assume((np.abs(ratios - share) > 1e-6).all())
    assert kept(logits, min_p=share) == everything[ratios >= share].tolist()


@laws
@given(rows, shares)
def test_typical_p_keeps_the_most_typical(logits, p):
    possible(logits)
    everything, probabilities = candidates(logits, SamplingConfig())
    assume((probabilities > 0).all())
    distance = np.abs(-np.log(probabilities) + (probabilities * np.log(probabilities)).sum())
    typical = np.isin(everything, kept(logits, typical_p=p))
    assert probabilities[typical].sum() >= p - 1e-5
    if not typical.all():
        assert distance[typical].max() <= distance[~typical].min() + 1e-4


@laws
@given(rows, st.integers(0, 5), shares)
def test_greedy_is_the_first_candidate_of_any_setting(logits, top_k, top_p):
    possible(logits)
    rng = sample_rng(0, 0)
    state = rng.bit_generator.state
    greedy = sample(logits, SamplingConfig(temperature=0, top_k=top_k), rng)
    assert greedy == int(np.argmax(logits)) == kept(logits, top_k=top_k, top_p=top_p)[0]
    assert rng.bit_generator.state == state  # no draw


@laws
@given(st.integers(1, 3000), st.integers(1, 3100), st.integers(0, 2**32), st.sampled_from([1, 4, 1000]))
def test_the_highest_are_found_without_sorting_all(n, k, seed, different):
    scores = np.random.default_rng(seed).integers(0, different, n).astype(np.float32)
    np.testing.assert_array_equal(sampling._highest(scores, k), np.argsort(-scores, kind="stable")[:k])


@pytest.mark.parametrize("temperature", [0.3, 1.0, 8.0])
def test_a_nucleus_of_any_size_is_found(temperature):
    """Flat distributions need more tokens than the first look takes in."""
    logits = np.random.default_rng(0).normal(size=50257) * 3
    order = np.argsort(-logits)
    scaled = logits[order] / temperature
    probabilities = np.exp(scaled - scaled[0])
    probabilities /= probabilities.sum()
    expected = int(np.searchsorted(np.cumsum(probabilities), 0.95)) + 1
    assert kept(logits, temperature=temperature, top_p=0.95) == order[:expected].tolist()


# Draws


@pytest.mark.parametrize(
    "config",
    [
        SamplingConfig(),
        SamplingConfig(temperature=0.7),
        SamplingConfig(top_k=4),
        SamplingConfig(temperature=1.5, top_p=0.9),
        SamplingConfig(min_p=0.2),
        SamplingConfig(typical_p=0.8),
    ],
    ids=lambda config: f"{config.temperature}-{config.top_k}-{config.top_p}-{config.min_p}-{config.typical_p}",
)
def test_draws_follow_the_probabilities(config):
    tokens, probabilities = candidates(LOGITS, config)
    rng, n = sample_rng(7, 0), 4000
    counts = np.bincount([sample(LOGITS, config, rng) for _ in range(n)], minlength=len(LOGITS))
    assert counts.sum() == counts[tokens].sum() == n
    chi_square = ((counts[tokens] - n * probabilities) ** 2 / (n * probabilities)).sum()
    assert chi_square < 18.5  # 99.9 % of the distribution with 4 degrees of freedom


def test_every_setting_takes_one_draw_a_token():
    for config in (SamplingConfig(), SamplingConfig(top_k=2), SamplingConfig(top_p=0.1), SamplingConfig(typical_p=0.5)):
        ours, expected = sample_rng(1, 2), sample_rng(1, 2)
        for _ in range(3):
            sample(LOGITS, config, ours)
            expected.random()
        assert ours.bit_generator.state == expected.bit_generator.state


def test_the_last_number_before_one_draws_a_possible_token():
    class Edge:
        def random(self) -> float:
            return math.nextafter(1, 0)

    weights = np.array([0.1] * 7 + [0.0, 0.0])
    assert sampling._draw(weights, Edge()) == 6  # type: ignore[arg-type]
    assert sample(np.array([0.0, 1.0, -np.inf]), SamplingConfig(), Edge()) == 1  # type: ignore[arg-type]


def test_streams_stay_the_same():
    """Whoever notes a seed gets the same text with any later version: never change these numbers."""
    assert sample_rng(0, 0).random(3).tolist() == GOLDEN_DRAWS[0, 0]
    assert sample_rng(42, 1).random(3).tolist() == GOLDEN_DRAWS[42, 1]
    assert sample_rng(-1, 0).random() == sample_rng(2**64 - 1, 0).random()
    assert len({sample_rng(seed, index).random() for seed in range(20) for index in range(20)}) == 400


GOLDEN_DRAWS = {
    (0, 0): [0.9429375528828794, 0.3163371523854981, 0.7223425886498254],
    (42, 1): [0.4674907799518424, 0.04644889644868733, 0.5955100095961371],
}


# Log-probabilities


@laws
@given(rows, st.integers(0, 45))
def test_log_probabilities(logits, n):
    possible(logits)
    logs = log_softmax(logits)
    assert logs.dtype == np.float32
    assert np.exp(logs.astype(np.float64)).sum() == pytest.approx(1, abs=1e-5)
    best = top_log_probabilities(logits, n)
    assert [token for token, _ in best] == np.argsort(-logits, kind="stable")[:n].tolist()
    assert all(value == float(logs[token]) for token, value in best)
    assert best == sorted(best, key=lambda entry: -entry[1])


def test_log_probabilities_by_hand():
    np.testing.assert_allclose(np.exp(log_softmax(LOGITS + 1000)), np.exp(LOGITS), rtol=1e-9)
    assert top_log_probabilities(LOGITS, 0) == []
    assert [token for token, _ in top_log_probabilities(LOGITS, 99)] == [1, 3, 2, 4, 0]
