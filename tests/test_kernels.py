"""The kernels of training give what the plain network gives, gradients included."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from gpt2 import kernels
from gpt2.config import GPT2Config
from gpt2.model import GPT2, gelu

SHAPE = GPT2Config(n_vocab=33, n_ctx=16, n_embd=16, n_head=2, n_layer=2)
rng = np.random.default_rng(0)
X = rng.integers(0, 33, (3, 11)).astype(np.int32)
Y = rng.integers(0, 33, (3, 11)).astype(np.int32)
SEGMENTS = np.cumsum(rng.random((3, 11)) < 0.2, axis=1).astype(np.int32)
WEIGHTS = {name: rng.normal(size=v.shape) * 0.3 for name, v in GPT2(SHAPE).tensors().items()}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks, the last ones not full."""
    monkeypatch.setattr(kernels, "QUERY_BLOCK", 4)
    monkeypatch.setattr(kernels, "LOSS_BLOCK", 7)


def gradients(fused: bool, dtype: str = "float32", key=None, segments=None, dropout: float = 0.0, recompute=False):
    network = GPT2(SHAPE, dtype=dtype, fused=fused, dropout=dropout, recompute=recompute, initialize=False)
    for name, variable in network.tensors().items():
        variable.assign(WEIGHTS[name])

    @tf.function
    def run(x, y):
        with tf.GradientTape() as tape:
            hidden, _ = network.hidden(x, key=key, segments=segments)
            if fused:
                loss = kernels.cross_entropy(tf.reshape(hidden, (-1, 16)), network.wte.value, tf.reshape(y, (-1,)))
            else:
                logits = network.head(hidden)
                loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=logits))
            loss = loss * 3.0  # so that the gradient from above is not 1
        found = tape.gradient(loss, [v.value for v in network.tensors().values()])
        return loss, [tf.convert_to_tensor(g) for g in found]

    loss, found = run(tf.constant(X), tf.constant(Y))
    return float(loss), {name: g.numpy() for name, g in zip(WEIGHTS, found, strict=True)}


def assert_equal(ours, plain, atol: float):
    assert ours[0] == pytest.approx(plain[0], abs=atol * 10)
    for name, gradient in plain[1].items():
        np.testing.assert_allclose(ours[1][name], gradient, atol=atol, err_msg=name)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("segments", [None, tf.constant(SEGMENTS)])
def test_loss_and_every_gradient_equal_the_plain_networks(segments, recompute):
    ours = gradients(fused=True, segments=segments, recompute=recompute)
    assert_equal(ours, gradients(fused=False, segments=segments), 1e-6)


def test_the_plain_network_recomputes_exactly():
    assert_equal(gradients(fused=False, recompute=True), gradients(fused=False), 1e-7)


def test_in_bfloat16_they_agree_to_its_precision():
    ours, plain = gradients(True, "mixed_bfloat16"), gradients(False, "mixed_bfloat16")
    exact = gradients(False)
    for name, gradient in exact[1].items():
        scale = np.abs(gradient).max()
        ours_off = np.abs(ours[1][name] - gradient).max()
        assert ours_off <= 2 * np.abs(plain[1][name] - gradient).max() + 0.02 * scale, name


def test_segments_change_the_result():
    assert abs(gradients(True)[0] - gradients(True, segments=tf.constant(SEGMENTS))[0]) > 1e-3


def test_dropout_follows_from_its_key_also_where_layers_are_recomputed():
    key = tf.constant([3, 7])
    first = gradients(True, dropout=0.2, key=key)
    assert_equal(gradients(True, dropout=0.2, key=key), first, 0.0)
    assert_equal(gradients(True, dropout=0.2, key=key, recompute=True), first, 1e-7)
    assert abs(gradients(True, dropout=0.2, key=key + 1)[0] - first[0]) > 1e-4
    assert abs(gradients(True)[0] - first[0]) > 1e-4


def test_dropout_in_attention_has_the_gradient_of_what_it_computes():
    """By finite differences, since the backward pass draws anew."""
    qkv = rng.normal(size=(1, 9, 24)).astype(np.float32)
    direction = rng.normal(size=qkv.shape).astype(np.float32)
    weights = rng.normal(size=(1, 9, 8)).astype(np.float32)
    key = tf.constant([1, 2])

    def value(x):
        return tf.reduce_sum(kernels.attention(x, 2, None, 0.3, key) * weights)

    x = tf.constant(qkv)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = value(x)
    slope = float(tf.reduce_sum(tape.gradient(y, x) * direction))
    step = 1e-2
    measured = (float(value(x + step * direction)) - float(value(x - step * direction))) / (2 * step)
    assert slope == pytest.approx(measured, rel=0.02, abs=0.02)


def test_dropout_keeps_the_mean():
    x = tf.ones((100, 100))
    dropped = kernels.dropout(x, 0.25, tf.constant([0, 1]))
    assert set(np.unique(dropped.numpy().round(4))) == {0.0, np.float32(1.3333)}
    assert float(tf.reduce_mean(dropped)) == pytest.approx(1, abs=0.02)


def test_a_loss_beyond_what_probabilities_can_say_is_exact():
    """An earlier loss went by the softmax and reported 87 nats for all above."""
    x, head = tf.constant([[1.0, 0.0]]), tf.constant([[0.0, 0.0], [1000.0, 0.0]])
    assert float(kernels.cross_entropy(x, head, tf.constant([0]))) == pytest.approx(1000)


def test_a_loss_that_is_only_measured_is_the_same():
    x = tf.constant(rng.normal(size=(17, 16)).astype(np.float32))
    head, targets = tf.constant(WEIGHTS["wte"].astype(np.float32)), tf.constant(rng.integers(0, 33, 17), tf.int32)
    trained, measured = (kernels.cross_entropy(x, head, targets, measure_only=m) for m in (False, True))
    assert float(trained) == pytest.approx(float(measured), rel=1e-6)


def test_gelu_and_layer_norm_over_a_wide_range():
    x = tf.constant(np.linspace(-30, 30, 1000, dtype=np.float32))
    np.testing.assert_allclose(kernels.gelu(x).numpy(), keras.ops.convert_to_numpy(gelu(x)), atol=1e-5)
    wide = tf.constant(rng.normal(scale=1e3, size=(5, 64)).astype(np.float32))
    normal = kernels.layer_norm(wide, tf.ones(64), tf.zeros(64), "float32").numpy()
    np.testing.assert_allclose(normal.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(normal.std(-1), 1, atol=1e-4)
