"""The network's costly parts for training on JAX: the same functions as in `kernels.py`.

XLA makes one pass of the elementwise work by itself, and on a GPU attention is cuDNN's where that takes the dtype. What
remains to be said is that neither attention weights nor logits need to stand in memory whole.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt2.config import LAYER_NORM_EPSILON

LOSS_BLOCK = 2048
"""Rows whose logits stand in memory at once: 2048 * 50,257 float32 are 412 MB."""

Tensor = Any


def linear(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """x (N, in) @ w (in, out) + b (out,), both float32; the product and the result have x's dtype."""
    return x @ jnp.asarray(w).astype(x.dtype) + jnp.asarray(b).astype(x.dtype)


def linear_of_gelu(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """`linear(gelu(x), w, b)`; what GELU gives is made again in the backward pass, not kept."""
    return linear(jax.checkpoint(gelu)(x), w, b)


def gelu(x: Tensor) -> Tensor:
    """GELU in its tanh form; any shape."""
    return jax.nn.gelu(x.astype(jnp.float32), approximate=True).astype(x.dtype)


def layer_norm(x: Tensor, g: Tensor, b: Tensor, dtype: Any) -> Tensor:
    """Layer norm of x (..., C) with gain and shift (C,) float32; the result has `dtype`."""
    v = x.astype(jnp.float32)
    centred = v - v.mean(-1, keepdims=True)
    r = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + LAYER_NORM_EPSILON)
    return (centred * r * jnp.asarray(g) + jnp.asarray(b)).astype(dtype)


def attention(
    qkv: Tensor, n_head: int, segments: Tensor | None = None, dropout: float = 0.0, key: Tensor | None = None
) -> Tensor:
    """Causal self-attention from qkv (B, T, 3C) to (B, T, C).

    Args:
        qkv: queries, keys and values of all heads side by side.
        n_head: H.
        segments: (B, T) int32; positions of different numbers do not see each other. None: all do.
        dropout: share of the attention weights dropped.
        key: (2,) int32, the seed of the dropout; None for no dropout.
    """
    B, T, C3 = qkv.shape
    q, k, v = jnp.unstack(qkv.reshape(B, T, 3, n_head, C3 // 3 // n_head), axis=2)  # each (B, T, H, D)
    mask = None if segments is None else (segments[:, :, None] == segments[:, None, :])[:, None]  # (B, 1, T, T)
    if key is None:
        fast = jax.default_backend() == "gpu" and qkv.dtype == jnp.bfloat16
        implementation = "cudnn" if fast else "xla"
        y = jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=True, implementation=implementation)
        return y.reshape(B, T, C3 // 3)
    visible = jnp.tril(jnp.ones((T, T), bool)) if mask is None else jnp.tril(mask)
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32) / np.sqrt(q.shape[-1])
    weights = jax.nn.softmax(jnp.where(visible, scores, -1e9), axis=-1).astype(qkv.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", globals()["dropout"](weights, dropout, key), v).reshape(B, T, C3 // 3)


def cross_entropy(
    x: Tensor, wte: Tensor, targets: Tensor, *, train_head: bool = True, measure_only: bool = False
) -> Tensor:
    """The mean of -log p(target) in nats, straight from the final hidden states.

    Loss and gradient are made together for a block of rows at a time, in the forward pass: the logits (N, V) never
    stand in memory whole, nor are they computed twice.

    Args:
        x: (N, C) hidden states after the last layer norm, in the dtype of the products.
        wte: (V, C) float32, the head.
        targets: (N,) int32.
        train_head: whether `wte` gets a gradient from here.
        measure_only: there is no gradient at all.
    """
    N, C = x.shape
    V = wte.shape[0]
    block = min(LOSS_BLOCK, N)
    missing = -N % block
    blocks = (
        jnp.pad(x, ((0, missing), (0, 0))).reshape(-1, block, C),
        jnp.pad(targets, (0, missing), constant_values=-1).reshape(-1, block),
    )

    def one(w: Tensor, rows: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The sum over a block, and its gradient by the logits; rows without a target count nothing."""
        logits = jnp.matmul(rows, w.T, preferred_element_type=jnp.float32)
        total = jax.nn.logsumexp(logits, axis=-1)
        hit = jnp.arange(V)[None, :] == target[:, None]
        real = target >= 0
        loss = jnp.sum(jnp.where(real, total - jnp.sum(jnp.where(hit, logits, 0.0), -1), 0.0))
        return loss, jnp.where(real[:, None], jnp.exp(logits - total[:, None]) - hit, 0.0).astype(rows.dtype)

    def without_gradient(x: Tensor, targets: Tensor, wte: Tensor) -> Tensor:
        w = wte.astype(x.dtype)
        return jax.lax.map(lambda rows: one(w, *rows)[0], (x, targets)).sum() / N

    def with_gradient(x: Tensor, targets: Tensor, wte: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor | None]]:
        w = wte.astype(x.dtype)

        def add(carry: tuple[Tensor, Tensor | None], rows: tuple[Tensor, Tensor]) -> tuple[Any, Tensor]:
            total, dw = carry
            loss, d = one(w, *rows)
            if dw is not None:
                dw = dw + jnp.matmul(d.T, rows[0], preferred_element_type=jnp.float32)
            return (total + loss, dw), jnp.matmul(d, w)

        start = (jnp.zeros(()), jnp.zeros((V, C)) if train_head else None)
        (total, dw), dx = jax.lax.scan(add, start, (x, targets))
        return total / N, (dx, dw)

    def backward(made: tuple[Tensor, Tensor | None], upstream: Tensor) -> tuple[Tensor, None, Tensor]:
        dx, dw = made
        share = upstream / N
        return dx * share.astype(dx.dtype), None, jnp.zeros((V, C)) if dw is None else dw * share

    if measure_only:
        return without_gradient(*blocks, wte)
    loss = jax.custom_vjp(without_gradient)
    loss.defvjp(with_gradient, backward)
    return loss(*blocks, wte)


def dropout(x: Tensor, rate: float, key: Tensor) -> Tensor:
    """Drop a share of x; the same key (2,) int32 drops the same elements."""
    keep = jax.random.bernoulli(jax.random.fold_in(jax.random.key(key[0]), key[1]), 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)
