"""Batches: the same seed the same batches, every window once an epoch, any batch by its number."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2.data.batches import TrainingBatches, evaluation_batches
from gpt2.data.rows import ArrayTokens
from gpt2.errors import TrainingError

laws = settings(max_examples=100, deadline=None, derandomize=True)
sizes = {"B": st.integers(1, 5), "T": st.integers(1, 9)}


def counting(n: int) -> ArrayTokens:
    """Each token is its own place."""
    return ArrayTokens(np.arange(n, dtype=np.uint16))


@laws
@given(extra=st.integers(0, 200), seed=st.integers(0, 1000), **sizes)
def test_targets_are_inputs_one_later(extra, seed, B, T):
    tokens = counting(B * T + 1 + extra)
    training = TrainingBatches(tokens, B, T, seed)
    for x, y in [*(training[n] for n in range(5)), *evaluation_batches(tokens, B, T, 3)]:
        assert x.dtype == y.dtype == np.int32
        assert x.shape == y.shape == (len(x), T)
        np.testing.assert_array_equal(y, x + 1)
        np.testing.assert_array_equal(x, x[:, :1] + np.arange(T))


@laws
@given(extra=st.integers(0, 300), seed=st.integers(0, 1000), **sizes)
def test_an_epoch_has_every_window_at_most_once_and_leaves_out_little(extra, seed, B, T):
    n = B * T + 1 + extra
    batches = TrainingBatches(counting(n), B, T, seed)
    for epoch in range(2):
        rows = [batches[epoch * batches.epoch_length + k][0] for k in range(batches.epoch_length)]
        starts = np.concatenate([row[:, 0] for row in rows])
        assert len(set(starts.tolist())) == len(starts)
        assert len({int(start) % T for start in starts}) == 1
        assert len(starts) * T > n - B * T - 2 * T


def test_a_batch_follows_from_its_number_alone():
    tokens = counting(500)
    straight = TrainingBatches(tokens, 3, 7, 1)
    expected = [straight[n][0] for n in range(60)]
    for n in (59, 0, 31, 30, 59):
        np.testing.assert_array_equal(TrainingBatches(tokens, 3, 7, 1)[n][0], expected[n])
        np.testing.assert_array_equal(straight[n][0], expected[n])


def test_epochs_and_seeds_differ():
    tokens = counting(500)
    batches = TrainingBatches(tokens, 3, 7, 1)
    assert (batches[0][0] != batches[batches.epoch_length][0]).any()
    assert (batches[0][0] != TrainingBatches(tokens, 3, 7, 2)[0][0]).any()


def test_too_little_text():
    with pytest.raises(
        TrainingError, match=r"expected at least batch_size \* sequence_length \+ 1 = 13 tokens, got 12"
    ):
        TrainingBatches(counting(12), 3, 4, 0)
    with pytest.raises(TrainingError, match="held-out data: expected at least 5 tokens, got 4"):
        list(evaluation_batches(counting(4), 3, 4, 1))


def test_evaluation_batches_are_spread_over_the_text_and_always_the_same():
    tokens = counting(1001)
    batches = [x for x, _ in evaluation_batches(tokens, 4, 10, 5)]
    assert [x.shape for x in batches] == [(4, 10)] * 5
    starts = np.concatenate([x[:, 0] for x in batches])
    assert starts[0] == 0
    assert starts[-1] == 990
    np.testing.assert_array_equal(starts, np.concatenate([x[:, 0] for x, _ in evaluation_batches(tokens, 4, 10, 5)]))


def test_a_text_shorter_than_a_batch_is_evaluated_whole():
    assert [x.shape for x, _ in evaluation_batches(counting(25), 4, 10, 5)] == [(2, 10)]


def test_the_digest_is_of_the_tokens_not_of_their_type():
    tokens = np.array([1, 2, 3])
    assert ArrayTokens(tokens.astype(np.uint16)).digest == ArrayTokens(tokens).digest
    assert ArrayTokens(tokens[::-1]).digest != ArrayTokens(tokens).digest
