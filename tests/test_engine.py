"""The reference engine: the cache gives what the whole sequence gives, and neighbours change nothing."""

from __future__ import annotations

import numpy as np
import pytest

from gpt2.config import GPT2Config
from gpt2.engines.keras import KerasEngine
from gpt2.errors import ContextLengthError, PromptError
from gpt2.model import GPT2

CONFIG = GPT2Config(n_vocab=300, n_ctx=48, n_embd=32, n_head=4, n_layer=2)


@pytest.fixture(scope="module")
def engine() -> KerasEngine:
    import keras

    keras.utils.set_random_seed(3)
    network = GPT2(CONFIG)
    for name, variable in network.tensors().items():  # larger than at the start of training: errors show
        if name.endswith(("/w", "wte")):
            variable.assign(variable * 5.0)
    return KerasEngine(network)


def rows(seed: int, *lengths: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, CONFIG.n_vocab, n).tolist() for n in lengths]


def test_cache_equals_whole_sequence(engine: KerasEngine) -> None:
    (tokens,) = rows(0, 40)
    whole = engine.logits(np.array([tokens]))[0]
    cache = engine.new_cache(1)
    parts = [engine.feed(cache, [tokens[a:b]], all_positions=True)[0] for a, b in ((0, 7), (7, 8), (8, 30), (30, 40))]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-5)
    assert cache.lengths.tolist() == [40]


def test_last_position_is_the_same_bits_with_and_without_the_others(engine: KerasEngine) -> None:
    (tokens,) = rows(1, 20)
    last = engine.feed(engine.new_cache(1), [tokens])[0]
    every = engine.feed(engine.new_cache(1), [tokens], all_positions=True)[0]
    assert every.shape == (20, CONFIG.n_vocab)
    np.testing.assert_array_equal(every[-1:], last)


@pytest.mark.parametrize("count", [2, 3, 5, 8])
def test_a_row_does_not_depend_on_its_neighbours(engine: KerasEngine, count: int) -> None:
    """Bit for bit: a kernel that rounds by batch size (rsqrt did) would show here."""
    prompts = rows(2, *([5, 1, 30, 12, 7, 2, 9, 20][:count]))
    steps = rows(3, *([6] * count))
    cache = engine.new_cache(count)
    together = [[logits] for logits in engine.feed(cache, prompts)]
    for t in range(6):
        for row, logits in enumerate(engine.feed(cache, [[tokens[t]] for tokens in steps])):
            together[row].append(logits)
    for row in range(count):
        cache = engine.new_cache(1)
        alone = [engine.feed(cache, [prompts[row]])[0]]
        alone += [engine.feed(cache, [[token]])[0] for token in steps[row]]
        np.testing.assert_array_equal(np.concatenate(together[row]), np.concatenate(alone))


def test_idle_rows_are_left_alone(engine: KerasEngine) -> None:
    first, second = rows(4, 5, 9)
    cache = engine.new_cache(2)
    engine.feed(cache, [first, second])
    logits = engine.feed(cache, [[], [1]])
    assert logits[0].shape == (0, CONFIG.n_vocab)
    assert cache.lengths.tolist() == [5, 10]
    after = engine.feed(cache, [[2], []])[0]
    np.testing.assert_allclose(after[0], engine.logits(np.array([[*first, 2]]))[0, -1], atol=1e-5)


def test_scan_shows_what_feed_gives(engine: KerasEngine) -> None:
    first, second, third = rows(8, 40, 6, 9)
    cache = engine.new_cache(3)
    engine.feed(cache, [first[:20], second, []])
    shown: dict[tuple[int, int], np.ndarray] = {}

    def take(row: np.ndarray, number: np.ndarray, logits: np.ndarray) -> None:
        shown.update({(int(r), int(n)): v.copy() for r, n, v in zip(row, number, logits, strict=True)})

    engine.scan(cache, [first[20:], [], third], [np.array([0, 7, 19]), np.array([], int), np.array([], int)], take)
    assert list(shown) == [(0, 0), (0, 7), (0, 19)]
    assert cache.lengths.tolist() == [40, 6, 9]
    whole = engine.logits(np.array([first]))[0]
    for (_, number), values in shown.items():
        np.testing.assert_allclose(values, whole[20 + number], atol=1e-5)


def test_select_copies_rows(engine: KerasEngine) -> None:
    first, second = rows(5, 6, 8)
    cache = engine.new_cache(2)
    engine.feed(cache, [first, second])
    chosen = cache.select([1, 1, 0])
    assert chosen.lengths.tolist() == [8, 8, 6]
    one, two, three = engine.feed(chosen, [[1], [2], [1]])
    np.testing.assert_allclose(one[0], engine.logits(np.array([[*second, 1]]))[0, -1], atol=1e-5)
    np.testing.assert_allclose(two[0], engine.logits(np.array([[*second, 2]]))[0, -1], atol=1e-5)
    np.testing.assert_allclose(three[0], engine.logits(np.array([[*first, 1]]))[0, -1], atol=1e-5)
    assert cache.lengths.tolist() == [6, 8]


def test_clear_starts_a_row_anew(engine: KerasEngine) -> None:
    first, second = rows(6, 10, 4)
    cache = engine.new_cache(1)
    engine.feed(cache, [first])
    cache.truncate(0, 0)
    np.testing.assert_array_equal(engine.feed(cache, [second])[0], engine.feed(engine.new_cache(1), [second])[0])


def test_a_full_row_beside_one_that_goes_on(engine: KerasEngine) -> None:
    full, short = rows(7, CONFIG.n_ctx, 3)
    cache = engine.new_cache(2)
    engine.feed(cache, [full, short])
    logits = engine.feed(cache, [[], [1]])[1]
    np.testing.assert_allclose(logits[0], engine.logits(np.array([[*short, 1]]))[0, -1], atol=1e-5)
    with pytest.raises(ContextLengthError, match="expected at most n_ctx = 48 in a row, got 48 \\+ 1"):
        engine.feed(cache, [[1], []])


def test_bad_ids(engine: KerasEngine) -> None:
    with pytest.raises(PromptError, match="expected ids from 0 to 299, got 300"):
        engine.feed(engine.new_cache(1), [[300]])
    with pytest.raises(PromptError, match="expected 2 rows"):
        engine.feed(engine.new_cache(2), [[1]])


def test_rows_of_another_cache_are_taken_over(engine: KerasEngine) -> None:
    prompts = rows(9, 5, 11, 3)
    caches = [engine.new_cache(1) for _ in prompts]
    for cache, prompt in zip(caches, prompts, strict=True):
        engine.feed(cache, [prompt])
    wanted = [engine.feed(cache.select([0]), [[7]])[0] for cache in caches]
    joined = engine.new_cache(0)
    for cache in caches:
        joined.extend(cache)
        assert len(cache.lengths) == 0
    assert joined.lengths.tolist() == [5, 11, 3]
    for found, logits in zip(engine.feed(joined, [[7]] * 3), wanted, strict=True):
        np.testing.assert_array_equal(found, logits)
