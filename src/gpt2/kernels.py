"""The network's costly parts for training on TensorFlow: the same mathematics as in `model.py`, with less traffic.

TensorFlow runs `x * (1 + tanh(...))` as a dozen passes over memory and keeps what each pass made until the backward
pass. Here each part is a function with its gradient written out. The elementwise work is compiled by XLA into one
pass (small functions: milliseconds to compile); matrix products stay with oneDNN, which is faster at them than XLA.
What can be computed again from the inputs is not kept: attention weights, normalised activations, logits.

Every function agrees with the plain one to rounding, gradients included (`tests/test_kernels.py`). Static shapes are
needed. Letters as in `model.py`; N is B * T rows.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gpt2.config import LAYER_NORM_EPSILON
from gpt2.quiet import quiet

QUERY_BLOCK = 256
"""Queries of one attention product. A block looks at the keys up to its own end, so that for long sequences nearly
half of the scores, those above the diagonal, are never made."""
LOSS_BLOCK = 512
"""Rows whose float32 logits stand in memory at once, of bfloat16 twice as many: 512 * 50,257 * 4 bytes are 103 MB."""
SUM_BLOCK = 128
"""Rows of logits that are summed at once."""

Tensor = Any


@functools.cache
def _xla_works() -> bool:
    """Whether this TensorFlow can compile; the functions below are right without it, only slower."""
    try:
        # XLA greets when it is first used. In this scope it is so now, not as part of the graph that is being made.
        with quiet(), tf.init_scope():
            tf.function(lambda x: x + 1.0, jit_compile=True)(tf.constant(1.0))
    except (tf.errors.OpError, ValueError):
        return False
    return True


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.cache
    def made() -> Callable[..., Any]:
        return tf.function(function, jit_compile=_xla_works(), autograph=False)

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        return made()(*arguments)

    return call


# Linear layers


def _read_after(event: Tensor, source: Any) -> Tensor:
    """The value of a variable (or a tensor), not before `event` is there.

    For casts: those of a tensor TensorFlow makes once and as early as it can, and keeps until the last use, whatever
    they are told to wait for. A variable is read when it is told.
    """
    with tf.control_dependencies([event]):
        return source.value.read_value() if isinstance(source, keras.Variable) else tf.identity(source)


def _input_gradient(source: Any, upstream: Tensor) -> Tensor:
    w = tf.cast(_read_after(upstream, source), upstream.dtype)
    return tf.matmul(upstream, w, transpose_b=True)


def _weights_gradient(x: Tensor, upstream: Tensor, dtype: Any) -> Tensor:
    return tf.cast(tf.matmul(x, upstream, transpose_a=True), dtype)


@_compiled
def _sum_of_rows(upstream: Tensor) -> Tensor:
    return tf.reduce_sum(tf.cast(upstream, tf.float32), 0)


def linear(x: Tensor, w: Any, b: Any) -> Tensor:
    """x (N, in) @ w (in, out) + b (out,), float32 variables; the product and the result have x's dtype."""

    source = w

    @tf.custom_gradient
    def apply(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        y = tf.nn.bias_add(tf.matmul(x, tf.cast(w, x.dtype)), tf.cast(b, x.dtype))

        def gradient(upstream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            dx = _input_gradient(source, upstream)
            return dx, _weights_gradient(x, upstream, w.dtype), _sum_of_rows(upstream)

        return y, gradient

    return apply(x, tf.convert_to_tensor(w), tf.convert_to_tensor(b))


# GELU, tanh form: 0.5 v (1 + tanh(z)) = v sigmoid(2 z), with 2 z = v (a + b v^2)

_A = 2 * math.sqrt(2 / math.pi)
_B = _A * 0.044715


@_compiled
def _gelu(x: Tensor) -> Tensor:
    v = tf.cast(x, tf.float32)
    return tf.cast(v * tf.sigmoid(v * (_A + _B * v * v)), x.dtype)


@_compiled
def _gelu_and_gradient(x: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor]:
    v, d = tf.cast(x, tf.float32), tf.cast(upstream, tf.float32)
    s = tf.sigmoid(v * (_A + _B * v * v))
    return tf.cast(v * s, x.dtype), tf.cast(d * (s + v * s * (1 - s) * (_A + 3 * _B * v * v)), x.dtype)


@tf.custom_gradient
def gelu(x: Tensor) -> Tensor:
    """GELU in its tanh form; any shape."""
    return _gelu(x), lambda upstream: _gelu_and_gradient(x, upstream)[1]


def linear_of_gelu(x: Tensor, w: Any, b: Any) -> Tensor:
    """`linear(gelu(x), w, b)`; what GELU gives is made again in the backward pass, not kept."""

    source = w

    @tf.custom_gradient
    def apply(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        y = tf.nn.bias_add(tf.matmul(_gelu(x), tf.cast(w, x.dtype)), tf.cast(b, x.dtype))

        def gradient(upstream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            activated, dx = _gelu_and_gradient(x, _input_gradient(source, upstream))
            return dx, _weights_gradient(activated, upstream, w.dtype), _sum_of_rows(upstream)

        return y, gradient

    return apply(x, tf.convert_to_tensor(w), tf.convert_to_tensor(b))


# Layer norm


def _normalised(x: Tensor) -> tuple[Tensor, Tensor]:
    """(x - mean) / deviation in float32, and 1 / deviation."""
    v = tf.cast(x, tf.float32)
    centred = v - tf.reduce_mean(v, -1, keepdims=True)
    r = tf.math.rsqrt(tf.reduce_mean(centred * centred, -1, keepdims=True) + LAYER_NORM_EPSILON)
    return centred * r, r


def layer_norm(x: Tensor, g: Tensor, b: Tensor, dtype: Any) -> Tensor:
    """Layer norm of x (..., C) with gain and shift (C,) float32; the result has `dtype`."""
    return _layer_norms(tf.as_dtype(dtype))(x, tf.convert_to_tensor(g), tf.convert_to_tensor(b))


@functools.cache
def _layer_norms(dtype: tf.DType) -> Callable[..., Any]:
    @_compiled
    def forward(x: Tensor, g: Tensor, b: Tensor) -> Tensor:
        return tf.cast(_normalised(x)[0] * g + b, dtype)

    @_compiled
    def backward(x: Tensor, g: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n, r = _normalised(x)
        d = tf.cast(upstream, tf.float32)
        dn = d * g
        dx = r * (dn - tf.reduce_mean(dn, -1, keepdims=True) - n * tf.reduce_mean(dn * n, -1, keepdims=True))
        rows = list(range(len(x.shape) - 1))
        return tf.cast(dx, x.dtype), tf.reduce_sum(d * n, rows), tf.reduce_sum(d, rows)

    @tf.custom_gradient
    def norm(x: Tensor, g: Tensor, b: Tensor) -> Tensor:
        return forward(x, g, b), lambda upstream: backward(x, g, upstream)

    return norm


# Attention


def _masked(scores: Tensor, scale: Tensor, start: Tensor, segments: Tensor | None) -> Tensor:
    Tq, Tk = scores.shape[-2:]
    visible = (tf.range(Tq)[:, None] + start) >= tf.range(Tk)[None, :]
    if segments is not None:
        own = tf.slice(segments, [0, start], [segments.shape[0], Tq])  # (B, Tq)
        visible = visible & (own[:, :, None] == segments[:, None, :Tk])  # (B, Tq, Tk)
        visible = visible[:, None]
    return tf.where(visible, tf.cast(scores, tf.float32) * scale, -1e9)


@_compiled
def _attention_weights(
    scores: Tensor, scale: Tensor, start: Tensor, segments: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The weights (B, H, Tq, Tk), and the log of the sum of exp of each row, (B, H, Tq, 1) float32."""
    v = _masked(scores, scale, start, segments)
    top = tf.reduce_max(v, -1, keepdims=True)
    e = tf.exp(v - top)
    total = tf.reduce_sum(e, -1, keepdims=True)
    return tf.cast(e / total, scores.dtype), tf.math.log(total) + top


@_compiled
def _weights_again(
    scores: Tensor, log_sums: Tensor, scale: Tensor, start: Tensor, segments: Tensor | None = None
) -> Tensor:
    """The same weights without sums."""
    return tf.cast(tf.exp(_masked(scores, scale, start, segments) - log_sums), scores.dtype)


@_compiled
def _row_sums(y: Tensor, upstream: Tensor) -> Tensor:
    """What a row's weights times their gradients sum up to, by way of the result (Dao 2023): (B, H, T, 1) float32."""
    return tf.transpose(tf.reduce_sum(tf.cast(y, tf.float32) * tf.cast(upstream, tf.float32), -1), (0, 2, 1))[..., None]


@_compiled
def _scores_gradient(p: Tensor, upstream: Tensor, row_sums: Tensor, scale: Tensor) -> Tensor:
    return tf.cast(tf.cast(p, tf.float32) * (tf.cast(upstream, tf.float32) - row_sums) * scale, p.dtype)


def attention(
    qkv: Tensor, n_head: int, segments: Tensor | None = None, dropout: float = 0.0, key: Tensor | None = None
) -> Tensor:
    """Causal self-attention from qkv (B, T, 3C) to (B, T, C).

    The backward pass makes the weights anew, a block of queries at a time, so nothing of size T * T is kept.

    Args:
        qkv: queries, keys and values of all heads side by side.
        n_head: H.
        segments: (B, T) int32; positions of different numbers do not see each other. None: all do.
        dropout: share of the attention weights dropped.
        key: (2,) int32, the seed of the dropout; None for no dropout.
    """
    B, T, C3 = qkv.shape
    H, D = n_head, C3 // 3 // n_head
    scale = 1 / math.sqrt(D)
    blocks = [(start, min(T, start + QUERY_BLOCK)) for start in range(0, T, QUERY_BLOCK)]

    def heads(qkv: Tensor) -> list[Tensor]:
        return tf.unstack(tf.transpose(tf.reshape(qkv, (B, T, 3, H, D)), (2, 0, 3, 1, 4)), 3)  # (B, H, T, D) each

    def scores(q: Tensor, k: Tensor) -> Tensor:
        return tf.matmul(q, k, transpose_b=True)  # (B, H, Tq, Tk)

    def place(start: int) -> tuple[Tensor, ...]:
        return (tf.constant(scale), tf.constant(start), *(() if segments is None else (segments,)))

    def kept(p: Tensor, start: int) -> Tensor | None:
        """What dropout multiplies the weights by, the same in both passes."""
        if key is None:
            return None
        draws = tf.random.stateless_uniform(tf.shape(p), key + tf.constant([start, 0]))
        return tf.cast(draws >= dropout, p.dtype) / tf.cast(1 - dropout, p.dtype)

    @tf.custom_gradient
    def attend(qkv: Tensor) -> Tensor:
        q, k, v = heads(qkv)
        parts, log_sums = [], []
        for start, end in blocks:
            p, log_sum = _attention_weights(scores(q[:, :, start:end], k[:, :, :end]), *place(start))
            log_sums.append(log_sum)
            keep = kept(p, start)
            parts.append(tf.matmul(p if keep is None else p * keep, v[:, :, :end]))
        y = tf.reshape(tf.transpose(tf.concat(parts, 2), (0, 2, 1, 3)), (B, T, C3 // 3))

        def gradient(upstream: Tensor) -> Tensor:
            with tf.control_dependencies([upstream]):  # or TensorFlow would make the weights early and keep them
                q, k, v = heads(tf.identity(qkv))
            upstream = tf.reshape(upstream, (B, T, H, D))
            row_sums = _row_sums(tf.reshape(y, (B, T, H, D)), upstream)
            d = tf.transpose(upstream, (0, 2, 1, 3))  # (B, H, T, D)
            dq, dk, dv = [], [], []
            for (start, end), log_sum in zip(blocks, log_sums, strict=True):
                own, keys, values = q[:, :, start:end], k[:, :, :end], v[:, :, :end]
                p = _weights_again(scores(own, keys), log_sum, *place(start))
                keep = kept(p, start)
                dp = tf.matmul(d[:, :, start:end], values, transpose_b=True)
                dp = dp if keep is None else dp * keep
                ds = _scores_gradient(p, dp, row_sums[:, :, start:end], tf.constant(scale))
                dq.append(tf.matmul(ds, keys))
                rest = [[0, 0], [0, 0], [0, T - end], [0, 0]]
                dk.append(tf.pad(tf.matmul(ds, own, transpose_a=True), rest))
                p = p if keep is None else p * keep
                dv.append(tf.pad(tf.matmul(p, d[:, :, start:end], transpose_a=True), rest))
            together = tf.stack([tf.concat(dq, 2), tf.add_n(dk), tf.add_n(dv)])  # (3, B, H, T, D)
            return tf.reshape(tf.transpose(together, (1, 3, 0, 2, 4)), (B, T, C3))

        return y, gradient

    return attend(qkv)


# Cross-entropy


@_compiled
def _log_sums_of_few(logits: Tensor) -> Tensor:
    v = tf.cast(logits, tf.float32)
    top = tf.reduce_max(v, -1, keepdims=True)
    return tf.math.log(tf.reduce_sum(tf.exp(v - top), -1, keepdims=True)) + top


def _log_sums(logits: Tensor) -> Tensor:
    """log of the sum of exp of each row, (N, 1) float32; of bfloat16 a few rows at a time, since XLA makes a float32
    copy of all that it sums."""
    if logits.dtype == tf.float32:
        return _log_sums_of_few(logits)
    parts: list[Tensor] = []
    for start in range(0, logits.shape[0], SUM_BLOCK):
        with tf.control_dependencies(parts[-1:]):
            few = tf.identity(logits[start : start + SUM_BLOCK])
        parts.append(_log_sums_of_few(few))
    return tf.concat(parts, 0)


@_compiled
def _logits_gradient(logits: Tensor, log_sums: Tensor, targets: Tensor, share: Tensor) -> Tensor:
    """The gradient of the sum of -log p(target), times `share`, in the logits' dtype."""
    # By comparison, not by a table of ones: XLA makes neither.
    hit = tf.range(logits.shape[1])[None, :] == targets[:, None]
    d = tf.exp(tf.cast(logits, tf.float32) - log_sums) - tf.cast(hit, tf.float32)
    return tf.cast(d * share, logits.dtype)


def cross_entropy(
    x: Tensor,
    wte: Tensor,
    targets: Tensor,
    *,
    source: Any = None,
    train_head: bool = True,
    measure_only: bool = False,
) -> Tensor:
    """The mean of -log p(target) in nats, straight from the final hidden states.

    Loss and gradient are made together for a block of rows at a time, in the forward pass: the logits (N, V) never
    stand in memory whole, nor are they computed twice.

    Args:
        x: (N, C) hidden states after the last layer norm, in the dtype of the products.
        wte: (V, C) float32, the head.
        targets: (N,) int32.
        source: the variable that `wte` was read from, to read it again when it is needed.
        train_head: whether `wte` gets a gradient from here.
        measure_only: there is no gradient at all.
    """
    N = x.shape[0]

    @tf.custom_gradient
    def loss(x: Tensor, wte: Tensor, late: Tensor) -> Tensor:
        w = tf.cast(late, x.dtype)
        total, dw = tf.zeros(()), None
        dx: list[Tensor] = []
        previous: list[Tensor] = []
        block = LOSS_BLOCK * 4 // x.dtype.size
        for start in range(0, N, block):
            # One block after the other: TensorFlow would run them at once and need the memory of all.
            with tf.control_dependencies(previous):
                rows = tf.identity(x[start : start + block])
            logits, own = tf.matmul(rows, w, transpose_b=True), targets[start : start + block]
            log_sums = _log_sums(logits)
            hits = tf.gather(logits, own, batch_dims=1)  # not compiled: XLA would first make all logits float32
            part = tf.reduce_sum(log_sums) - tf.reduce_sum(tf.cast(hits, tf.float32))
            total, previous = total + part, [part]
            if measure_only:
                continue
            d = _logits_gradient(logits, log_sums, own, tf.constant(1 / N))
            dx.append(tf.matmul(d, w))
            previous = [dx[-1]]
            if train_head:
                with tf.control_dependencies([dx[-1]]):
                    more = tf.cast(tf.matmul(d, rows, transpose_a=True), tf.float32)
                dw = more if dw is None else dw + more
                previous = [dw]

        def gradient(upstream: Tensor) -> tuple[Tensor, Tensor | None, None]:
            # One where nothing follows the loss, and TensorFlow sees that: no pass over the head's gradient.
            return tf.concat(dx, 0) * tf.cast(upstream, x.dtype), None if dw is None else dw * upstream, None

        return total / N, gradient

    return loss(x, wte, _read_after(x, wte if source is None else source))


def dropout(x: Tensor, rate: float, key: Tensor) -> Tensor:
    """Drop a share of x; the same key (2,) int32 drops the same elements."""
    keep = tf.cast(tf.random.stateless_uniform(x.shape, key) >= rate, x.dtype)
    return x * keep / tf.cast(np.float32(1 - rate), x.dtype)
