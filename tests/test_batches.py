"""Batches: the same seed the same batches, every window once an epoch, and too little text refused."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2.data.batches import evaluation_batches, training_batches
from gpt2.errors import TrainingError

laws = settings(max_examples=100, deadline=None, derandomize=True)
sizes = {"B": st.integers(1, 5), "T": st.integers(1, 9)}


def epoch(n: int, B: int, T: int, seed: int = 0) -> list[np.ndarray]:
    """The inputs of the first epoch over the tokens 0, 1, ... n - 1."""
    tokens = np.arange(n, dtype=np.uint16)
    windows = (n - 1 - int(np.random.default_rng(seed).integers(0, min(T, n - B * T)))) // T
    return [x for x, _ in itertools.islice(training_batches(tokens, B, T, seed), windows // B)]


@laws
@given(extra=st.integers(0, 200), seed=st.integers(0, 1000), **sizes)
def test_targets_are_inputs_one_later(extra, seed, B, T):
    tokens = np.arange(B * T + 1 + extra, dtype=np.uint16)  # each token is its own place
    batches = [
        *itertools.islice(training_batches(tokens, B, T, seed), 5),
        *evaluation_batches(tokens, B, T, 3),
    ]
    for x, y in batches:
        assert x.dtype == y.dtype == np.int32
        assert x.shape == y.shape == (len(x), T)
        np.testing.assert_array_equal(y, x + 1)
        np.testing.assert_array_equal(x, x[:, :1] + np.arange(T))


@laws
@given(extra=st.integers(0, 200), seed=st.integers(0, 1000), **sizes)
def test_no_token_twice_in_an_epoch(extra, seed, B, T):
    seen = np.concatenate(epoch(B * T + 1 + extra, B, T, seed), axis=None)
    assert len(set(seen.tolist())) == len(seen)


def test_an_epoch_misses_little():
    """What an offset, a short last window and a short last batch leave out, and nothing else."""
    B, T, n = 4, 8, 1000
    for seed in range(20):
        assert sum(x.size for x in epoch(n, B, T, seed)) > n - 2 * T - B * T


def test_the_same_seed_gives_the_same_batches():
    tokens = np.arange(500)

    def first(seed: int) -> list[list[int]]:
        return [x.ravel().tolist() for x, _ in itertools.islice(training_batches(tokens, 3, 7, seed), 60)]

    assert first(1) == first(1)
    assert first(1) != first(2)


def test_epochs_differ_in_order_and_offset():
    batches = training_batches(np.arange(1000), 2, 10, seed=0)
    starts = [x[0, 0] % 10 for x, _ in itertools.islice(batches, 400)]
    assert len(set(starts)) > 2


def test_exactly_one_batch_is_enough():
    for x, y in itertools.islice(training_batches(np.arange(13), 3, 4, seed=0), 10):
        assert sorted(x.ravel().tolist()) == list(range(12))
        assert y.max() == 12


def test_too_little_text():
    with pytest.raises(TrainingError, match=r"at least batch_size \* sequence_length \+ 1 = 13 tokens, got 12"):
        next(training_batches(np.arange(12), 3, 4, seed=0))
    with pytest.raises(TrainingError, match="held-out data: expected at least 5 tokens, got 4"):
        next(evaluation_batches(np.arange(4), 3, 4, limit=2))


@laws
@given(extra=st.integers(0, 300), limit=st.integers(1, 6), **sizes)
def test_held_out_batches_are_few_spread_and_always_the_same(extra, limit, B, T):
    tokens = np.arange(T + 1 + extra)
    batches = [x for x, _ in evaluation_batches(tokens, B, T, limit)]
    assert 1 <= len(batches) <= limit
    places = np.concatenate(batches, axis=0)[:, 0].tolist()
    assert places == sorted(set(places))
    assert places[0] == 0
    again = [x for x, _ in evaluation_batches(tokens, B, T, limit)]
    assert all(np.array_equal(one, other) for one, other in zip(batches, again, strict=True))
