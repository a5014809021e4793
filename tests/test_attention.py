"""Attention over the paged cache, by itself: against float64, in any cut of the tokens, and with what is no number."""

from __future__ import annotations

import numpy as np
import pytest

from gpt2.config import GPT2Config
from gpt2.engines.attention import BLOCK, TILE, Attention, blocks_for

LENGTH = 2 * BLOCK + 9


def attend(config: GPT2Config, dtype: type, qkv: np.ndarray, cuts: list[int]) -> np.ndarray:
    """What comes out for one row (T, 3 C), fed in calls that end at `cuts`; blocks lie in another order than tokens."""
    attention = Attention(2)
    keys, values = blocks_for(config, 5, dtype)
    tables, found = np.array([[3, 0, 4, 1]], np.int32), []
    for first, last in zip([0, *cuts], [*cuts, len(qkv)], strict=True):
        tiles = [[0, at - first, at, min(TILE, last - at)] for at in range(first, last, TILE)]
        found.append(attention(qkv[first:last], keys[0], values[0], tables, np.array(tiles, np.int32)))
    return np.concatenate(found)


def oracle(config: GPT2Config, qkv: np.ndarray) -> np.ndarray:
    """The same in float64, without a cache."""
    T, H, D = len(qkv), config.n_head, config.head_size
    q, k, v = qkv.astype(np.float64).reshape(T, 3, H, D).transpose(1, 2, 0, 3)
    scores = np.where(np.tri(T, dtype=bool), q @ k.transpose(0, 2, 1) / np.sqrt(D), -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True) @ v).transpose(1, 0, 2).reshape(T, H * D)


def example(head_size: int) -> tuple[GPT2Config, np.ndarray]:
    config = GPT2Config(n_vocab=5, n_ctx=128, n_embd=3 * head_size, n_head=3, n_layer=1)
    return config, 2 * np.random.default_rng(head_size).standard_normal((LENGTH, 9 * head_size), np.float32)


@pytest.mark.parametrize("head_size", [3, 16, 64, 80])
@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
def test_any_cut_gives_the_same_bits_and_they_are_right(head_size: int, dtype: type) -> None:
    config, qkv = example(head_size)
    whole = attend(config, dtype, qkv, [])
    np.testing.assert_allclose(whole, oracle(config, qkv), atol=2e-5 if dtype == np.float32 else 2e-2)
    for cuts in ([1, 2, 5, 9, 14, 20, 50], [*range(1, LENGTH)], [BLOCK, BLOCK + 3]):
        np.testing.assert_array_equal(attend(config, dtype, qkv, cuts), whole)


@pytest.mark.parametrize("cuts", [[], [*range(1, LENGTH)]])
def test_what_is_no_number_stays_so_and_does_not_spread(cuts: list[int]) -> None:
    config, qkv = example(16)
    C, n = config.n_embd, np.arange(LENGTH)
    sure = (n < 40 - 40 % TILE) | (n >= 40)  # the queries beside it may see its value, with a weight of 0
    for column in (0, C, 2 * C):  # of the first head: a query, a key, a value of token 40
        broken = qkv.copy()
        broken[40, column] = np.nan
        wrong = np.isnan(attend(config, np.float32, broken, cuts))
        heads = wrong.reshape(LENGTH, 3, 16).any(-1)
        seen = n == 40 if column == 0 else n >= 40
        np.testing.assert_array_equal(heads[sure], (seen[:, None] & [True, False, False])[sure])
