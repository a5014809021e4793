"""The network: the oracle's logits, the sizes, initialisation, dropout, precision, and other Keras backends."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import oracle
from gpt2.checkpoints.names import expected_shapes
from gpt2.config import SIZES, GPT2Config
from gpt2.model import GPT2

CONFIG = GPT2Config(n_vocab=97, n_ctx=24, n_embd=24, n_head=3, n_layer=3)


def network_with(tensors: oracle.Arrays, config: GPT2Config = CONFIG, **options: object) -> GPT2:
    network = GPT2(config, initialize=False, **options)  # type: ignore[arg-type]
    for name, variable in network.tensors().items():
        variable.assign(tensors[name])
    return network


def logits(network: GPT2, ids: np.ndarray) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(network(ids)))


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        GPT2Config(n_vocab=5, n_ctx=3, n_embd=2, n_head=1, n_layer=1),
        GPT2Config(n_vocab=50, n_ctx=64, n_embd=40, n_head=10, n_layer=4),
    ],
)
def test_logits_are_the_oracles(config: GPT2Config) -> None:
    tensors = oracle.random_tensors(config, seed=1)
    network = network_with(tensors, config)
    ids = np.random.default_rng(2).integers(0, config.n_vocab, (3, config.n_ctx))
    got = logits(network, ids)
    assert got.dtype == np.float32
    for row in range(3):
        np.testing.assert_allclose(got[row], oracle.logits(config, tensors, ids[row]), atol=1e-4)


def test_golden_logits() -> None:
    """Stored numbers: they change only if the network does (the weights are NumPy's, stable over versions)."""
    network = network_with(oracle.random_tensors(CONFIG, seed=7))
    got = logits(network, np.array([[1, 50, 96]]))[0, :, :3]
    np.testing.assert_allclose(got, GOLDEN, atol=2e-5)


GOLDEN = [[1.573147, -1.615462, -0.266623], [0.609059, -1.897640, 0.039838], [0.081932, -1.768750, -0.108862]]


def test_position_sees_only_what_is_before_it() -> None:
    network = network_with(oracle.random_tensors(CONFIG))
    ids = np.random.default_rng(0).integers(0, 97, (1, 24))
    changed = ids.copy()
    changed[0, 10] = (changed[0, 10] + 1) % 97
    before, after = logits(network, ids)[0], logits(network, changed)[0]
    np.testing.assert_allclose(before[:10], after[:10], atol=1e-6)
    assert np.abs(before[10:] - after[10:]).max(axis=1).min() > 1e-3


def test_tensors_are_those_of_the_release() -> None:
    network = GPT2(CONFIG)
    assert {name: tuple(v.shape) for name, v in network.tensors().items()} == expected_shapes(CONFIG)
    assert list(network.tensors()) == list(expected_shapes(CONFIG))
    assert sum(int(np.prod(v.shape)) for v in network.trainable_variables) == CONFIG.num_parameters


def test_released_sizes_count_their_parameters() -> None:
    counts = {"124M": 124_439_808, "355M": 354_823_168, "774M": 774_030_080, "1558M": 1_557_611_200}
    assert {name: config.num_parameters for name, config in SIZES.items()} == counts
    for config in SIZES.values():
        assert sum(int(np.prod(shape)) for shape in expected_shapes(config).values()) == config.num_parameters


def test_initialisation() -> None:
    keras.utils.set_random_seed(0)
    config = GPT2Config(n_vocab=2000, n_ctx=500, n_embd=64, n_head=4, n_layer=8)
    found = {name: np.asarray(v.numpy()) for name, v in GPT2(config).tensors().items()}
    for name, stddev in (("wte", 0.02), ("wpe", 0.01), ("h3/attn/c_attn/w", 0.02), ("h3/mlp/c_fc/w", 0.02)):
        assert found[name].std() == pytest.approx(stddev, rel=0.05), name
    for name in ("h3/attn/c_proj/w", "h3/mlp/c_proj/w"):
        assert found[name].std() == pytest.approx(0.02 / 4, rel=0.05), name
    assert (found["h0/ln_1/g"] == 1).all()
    assert not found["h0/ln_1/b"].any()
    assert not found["h0/mlp/c_fc/b"].any()


def test_dropout_acts_in_training_alone() -> None:
    network = network_with(oracle.random_tensors(CONFIG), dropout=0.3)
    ids = np.arange(20)[None]
    quiet = logits(network, ids)
    np.testing.assert_array_equal(quiet, logits(network, ids))
    np.testing.assert_allclose(quiet, logits(network_with(oracle.random_tensors(CONFIG)), ids), atol=1e-5)
    one, two, again = (np.asarray(network(ids, key=np.array([0, n], np.int32))) for n in (1, 2, 1))
    assert np.abs(one - two).max() > 0.1
    np.testing.assert_array_equal(one, again)


def test_mixed_precision_keeps_float32_weights_and_logits() -> None:
    tensors = oracle.random_tensors(CONFIG, scale=0.1)
    network = network_with(tensors, dtype="mixed_bfloat16")
    assert {v.dtype for v in network.trainable_variables} == {"float32"}
    got = logits(network, np.arange(20)[None])[0]
    assert got.dtype == np.float32
    expected = oracle.logits(CONFIG, tensors, np.arange(20))
    error = np.abs(got - expected).max() / np.abs(expected).max()
    assert 1e-5 < error < 0.05


BACKEND = """
import sys
sys.path[:0] = sys.argv[2:]
import keras, numpy as np, oracle
from gpt2.engines.keras import KerasEngine
from test_model import CONFIG, network_with
assert keras.backend.backend() == "jax"
engine = KerasEngine(network_with(oracle.random_tensors(CONFIG)))
ids = np.arange(20)[None]
cache = engine.new_cache(2)
engine.feed(cache, [[1, 2, 3], [4]])
np.savez(sys.argv[1], whole=engine.logits(ids), step=np.stack(engine.feed(cache, [[5], [6]])))
"""


@pytest.mark.reference
@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not installed (pip install .[jax])")
def test_equal_logits_with_jax(tmp_path: Path) -> None:
    from gpt2.engines.keras import KerasEngine

    out = tmp_path / "logits.npz"
    paths = [str(Path(__file__).parent), *filter(None, sys.path)]
    command = [sys.executable, "-c", BACKEND, str(out), *paths]
    subprocess.run(command, check=True, env={**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"})
    theirs = np.load(out)
    engine = KerasEngine(network_with(oracle.random_tensors(CONFIG)))
    np.testing.assert_allclose(theirs["whole"], engine.logits(np.arange(20)[None]), atol=1e-4)
    cache = engine.new_cache(2)
    engine.feed(cache, [[1, 2, 3], [4]])
    np.testing.assert_allclose(theirs["step"], np.stack(engine.feed(cache, [[5], [6]])), atol=1e-4)
