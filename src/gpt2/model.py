"""The network: GPT-2 in Keras 3, one forward pass with an optional key/value cache.

Written in Keras' own operations, so it runs on any Keras backend; TensorFlow is the one that everything is tested on.
It knows nothing about text, files or sampling. Letters in the shapes: B batch, T time, P past, C channels (n_embd),
H heads, D head size, V vocabulary, L layers. Tensors keep the names of OpenAI's release (`wte`, `h0/attn/c_attn/w`).

Source: Radford et al., "Language Models are Unsupervised Multitask Learners" (2019).
"""

from __future__ import annotations

import contextlib
import importlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from gpt2 import shared_memory
from gpt2.config import LAYER_NORM_EPSILON, GPT2Config

INIT_STDDEV = 0.02
"""Of every matrix; half of it for `wpe`, as in the released code, and less for what is added to the residual stream
(divided by sqrt(2 * n_layer), section 2.3 of the paper)."""

SITES_OF_A_BLOCK = 3
"""Places of dropout in a block: attention weights, and the outputs of attention and MLP. Site 0 is the embedding's."""

Tensor = Any
"""A tensor of the Keras backend in use."""
Cache = Sequence[Any]
"""For each layer the keys and the values of earlier tokens, each (B, H, P, D)."""
Tap = Callable[[str, Tensor], Tensor]
"""Is shown an activation with its name (`h0/attn/pattern`), and gives what is computed with in its place: see
`gpt2.inspection`, whose `names` lists them all. Without one the network is what it was, to the bit."""


def gelu(x: Tensor) -> Tensor:
    """The tanh form of GELU that GPT-2 was trained with (Hendrycks and Gimpel 2016)."""
    return 0.5 * x * (1.0 + ops.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x)))


class Untouched(keras.initializers.Initializer):
    """Zeros that take no memory until the variable is assigned, so a model that is loaded is never there twice."""

    def __call__(self, shape: Any, dtype: Any = None) -> Tensor:
        """A tensor of zeros."""
        return ops.cast(shared_memory.as_tensor(shared_memory.zeros(tuple(shape))), dtype or "float32")


def _tapped(tap: Tap | None, name: str, value: Tensor) -> Tensor:
    """What the tap gives for a value; without a tap, the value."""
    return value if tap is None else tap(name, value)


@contextlib.contextmanager
def _own_errors(tap: Tap | None) -> Iterator[Tap | None]:
    """A tap whose errors leave the block as they were raised, without all that Keras adds to those of a layer."""
    if tap is None:
        yield None
        return
    failed: list[Exception] = []

    def told(name: str, value: Tensor) -> Tensor:
        try:
            return tap(name, value)
        except Exception as error:
            failed.append(error)
            raise

    try:
        yield told
    except Exception:
        if failed:
            raise failed[0] from None
        raise


def _under(tap: Tap | None, part: str) -> Tap | None:
    """The tap of a part of the network, in which names are below that of the part."""
    return None if tap is None else lambda name, value: tap(f"{part}/{name}", value)


def _kernels() -> Any:
    """The module with the costly parts for the backend in use."""
    return importlib.import_module("gpt2.jax_kernels" if keras.backend.backend() == "jax" else "gpt2.kernels")


def _normal(stddev: float) -> keras.initializers.Initializer:
    """N(0, stddev), or for stddev 0 what costs nothing."""
    return keras.initializers.RandomNormal(stddev=stddev) if stddev else Untouched()


class Dropout(keras.layers.Layer):
    """Set a share of the elements to 0 and scale up the rest.

    What is dropped follows from a key alone, so that a step of training can be repeated, also in part: a run that is
    resumed, a layer that is computed again in the backward pass.
    """

    def __init__(self, rate: float, site: int, **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)
        self.rate, self.site = rate, site

    def call(self, x: Tensor, key: Tensor | None) -> Tensor:
        """Drop from x (any shape), unless key, (2,) int32, is None."""
        key = self.own_key(key)
        if key is None:
            return x
        return _kernels().dropout(x, self.rate, key)

    def own_key(self, key: Tensor | None) -> Tensor | None:
        """The key of this place among all places of dropout, or None where nothing is dropped."""
        if key is None or not self.rate:
            return None
        return key + ops.convert_to_tensor([0, self.site], dtype="int32")


class LayerNorm(keras.layers.Layer):
    """Normalise the last axis to mean 0 and variance 1, then scale by `g` and shift by `b`; always in float32."""

    def __init__(self, kernels: Any = None, **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)
        self.kernels = kernels

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Make `g` and `b`."""
        c = input_shape[-1]
        self.g = self.add_weight(shape=(c,), initializer="ones", name="g", autocast=False)
        self.b = self.add_weight(shape=(c,), initializer="zeros", name="b", autocast=False)

    def call(self, x: Tensor) -> Tensor:
        """Normalise x (..., C), of any dtype, to the dtype of the products."""
        if self.kernels is not None:
            return self.kernels.layer_norm(x, self.g, self.b, self.compute_dtype)
        x32 = ops.cast(x, "float32")
        mean = ops.mean(x32, axis=-1, keepdims=True)
        centred = x32 - mean
        variance = ops.mean(ops.square(centred), axis=-1, keepdims=True)
        # Not by rsqrt, whose last bit depends on how many rows are in the batch (its vector and scalar forms differ).
        # The maximum changes nothing; it keeps TensorFlow's graph optimiser from making an rsqrt of the quotient.
        deviation = ops.maximum(ops.sqrt(variance + LAYER_NORM_EPSILON), 1e-3)
        return ops.cast(centred / deviation * self.g + self.b, self.compute_dtype)


class Linear(keras.layers.Layer):
    """`x @ w + b` with w (in, out), which the original calls conv1d."""

    def __init__(self, n_out: int, stddev: float, kernels: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.n_out, self.stddev, self.kernels = n_out, stddev, kernels
        self.adapter: Any = None  # what a low-rank adapter adds, (N, in) -> (N, out); see gpt2.training.lora

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Make `w` and `b`."""
        initializer = _normal(self.stddev)
        shape = (input_shape[-1], self.n_out)
        self.w = self.add_weight(shape=shape, initializer=initializer, name="w", autocast=False)
        self.b = self.add_weight(shape=(self.n_out,), initializer="zeros", name="b", autocast=False)

    def call(self, x: Tensor, after_gelu: bool = False) -> Tensor:
        """Map x (..., in) to (..., out), or with `after_gelu` gelu(x)."""
        # One matrix product over all rows: a product with three axes is slower on every CPU backend.
        *outer, n_in = ops.shape(x)
        rows = ops.reshape(x, (-1, n_in))
        if self.kernels is not None and after_gelu and self.adapter is None:
            y = self.kernels.linear_of_gelu(rows, self.w, self.b)
        elif self.kernels is not None:
            rows = self.kernels.gelu(rows) if after_gelu else rows
            y = self.kernels.linear(rows, self.w, self.b)
        else:
            rows = gelu(rows) if after_gelu else rows
            y = ops.matmul(rows, ops.cast(self.w, rows.dtype)) + ops.cast(self.b, rows.dtype)  # (B*T, n_out)
        if self.adapter is not None:
            y = y + self.adapter(rows)
        return ops.reshape(y, (*outer, self.n_out))


def _recomputed(block: Any, x: Tensor, visible: Tensor, key: Tensor | None, segments: Tensor | None) -> Tensor:
    """The block's output; its inner activations are made again when the gradient needs them."""
    return keras.remat(lambda x: block(x, visible=visible, key=key, segments=segments)[0])(x)


class CausalSelfAttention(keras.layers.Layer):
    """Each position looks at itself and at the positions before it."""

    def __init__(
        self, config: GPT2Config, dropout: float, stddev: float, site: int, kernels: Any = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.kernels = kernels
        self.n_head, self.head_size = config.n_head, config.head_size
        residual_stddev = stddev / math.sqrt(2 * config.n_layer)
        self.c_attn = Linear(3 * config.n_embd, stddev, kernels, name="c_attn", dtype=self.dtype_policy)
        self.c_proj = Linear(config.n_embd, residual_stddev, kernels, name="c_proj", dtype=self.dtype_policy)
        self.attn_drop = Dropout(dropout, site, dtype=self.dtype_policy)
        self.resid_drop = Dropout(dropout, site + 1, dtype=self.dtype_policy)

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Make the two linear layers' variables."""
        self.c_attn.build(input_shape)
        self.c_proj.build(input_shape)

    def call(
        self,
        x: Tensor,
        visible: Tensor,
        past: tuple[Tensor, Tensor] | None = None,
        key: Tensor | None = None,
        segments: Tensor | None = None,
        tap: Tap | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Attend.

        Args:
            x: (B, T, C).
            visible: (B or 1, 1, T, P + T) bool, true where a position may be looked at.
            past: keys and values of earlier tokens, each (B, H, P, D), or None.
            key: (2,) int32, the seed of the dropout; None for no dropout.
            segments: for the kernels of training, instead of `visible`: (B, T) int32, the document of each position.
            tap: sees `c_attn` (B, T, 3C), `scores` and `pattern` (B, H, T, P + T), and `z` (B, T, C), c_proj's input.

        Returns:
            The output (B, T, C), and the new tokens' keys and values, each (B, H, T, D) (None from the kernels).
        """
        if self.kernels is not None and past is None and tap is None:
            drop = self.attn_drop
            y = self.kernels.attention(self.c_attn(x), self.n_head, segments, drop.rate, drop.own_key(key))
            return self.resid_drop(self.c_proj(y), key=key), None
        B, T, C = ops.shape(x)
        qkv = ops.reshape(_tapped(tap, "c_attn", self.c_attn(x)), (B, T, 3, self.n_head, self.head_size))
        q, k, v = ops.unstack(ops.transpose(qkv, (2, 0, 3, 1, 4)), 3, axis=0)  # each (B, H, T, D)
        scores = ops.matmul(q, ops.transpose(k, (0, 1, 3, 2)))  # (B, H, T, T)
        if past is not None:
            past_k, past_v = past
            # Scores over the past and over the new tokens are made apart, so that the cache is never copied.
            scores = ops.concatenate([ops.matmul(q, ops.transpose(past_k, (0, 1, 3, 2))), scores], axis=-1)
        scores = ops.cast(scores, "float32") / math.sqrt(self.head_size)  # (B, H, T, P + T)
        scores = _tapped(tap, "scores", ops.where(visible, scores, -1e9))
        pattern = _tapped(tap, "pattern", ops.softmax(scores, axis=-1))
        attention = self.attn_drop(ops.cast(pattern, x.dtype), key=key)
        if past is None:
            y = ops.matmul(attention, v)  # (B, H, T, D)
        else:
            P = ops.shape(past_k)[2]
            y = ops.matmul(attention[..., :P], past_v) + ops.matmul(attention[..., P:], v)
        y = _tapped(tap, "z", ops.reshape(ops.transpose(y, (0, 2, 1, 3)), (B, T, C)))
        return self.resid_drop(self.c_proj(y), key=key), (k, v)


class MLP(keras.layers.Layer):
    """Two linear layers with a GELU between them, applied to each position by itself."""

    def __init__(
        self, config: GPT2Config, dropout: float, stddev: float, site: int, kernels: Any = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        C = config.n_embd
        residual_stddev = stddev / math.sqrt(2 * config.n_layer)
        self.c_fc = Linear(4 * C, stddev, kernels, name="c_fc", dtype=self.dtype_policy)
        self.c_proj = Linear(C, residual_stddev, kernels, name="c_proj", dtype=self.dtype_policy)
        self.drop = Dropout(dropout, site, dtype=self.dtype_policy)

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Make the two linear layers' variables."""
        self.c_fc.build(input_shape)
        self.c_proj.build((*input_shape[:-1], 4 * (input_shape[-1] or 0)))

    def call(self, x: Tensor, key: Tensor | None = None, tap: Tap | None = None) -> Tensor:
        """Map x (B, T, C) to (B, T, C); `key` as in the attention. A tap sees `c_fc` and its `gelu`, (B, T, 4C)."""
        if tap is None:
            return self.drop(self.c_proj(self.c_fc(x), after_gelu=True), key=key)
        h = tap("gelu", gelu(tap("c_fc", self.c_fc(x))))
        return self.drop(self.c_proj(h), key=key)


class Block(keras.layers.Layer):
    """One layer: attention, then MLP, each behind a layer norm and added to the residual stream."""

    def __init__(self, config: GPT2Config, dropout: float, stddev: float, n: int, kernels: Any, **kwargs: Any) -> None:
        super().__init__(name=f"h{n}", autocast=False, **kwargs)  # the residual stream stays float32
        dtype, site = self.dtype_policy, SITES_OF_A_BLOCK * n + 1
        self.ln_1 = LayerNorm(kernels, name="ln_1", dtype=dtype)
        self.attn = CausalSelfAttention(config, dropout, stddev, site, kernels, name="attn", dtype=dtype)
        self.ln_2 = LayerNorm(kernels, name="ln_2", dtype=dtype)
        self.mlp = MLP(config, dropout, stddev, site + 2, kernels, name="mlp", dtype=dtype)

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Make the parts' variables."""
        for layer in (self.ln_1, self.attn, self.ln_2, self.mlp):
            layer.build(input_shape)

    def call(self, x: Tensor, tap: Tap | None = None, **attention: Any) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Map x (B, T, C) to (B, T, C); the arguments and the second result are the attention's.

        A tap sees x as it comes (`in`), after the attention (`mid`) and as it goes (`out`), the norms, what is inside
        the two parts, and what each adds to x (`attn`, `mlp`), all (B, T, C).
        """
        x = _tapped(tap, "in", x)
        a = _tapped(tap, "ln_1", self.ln_1(x))
        a, present = self.attn(a, tap=_under(tap, "attn"), **attention)
        x = _tapped(tap, "mid", x + ops.cast(_tapped(tap, "attn", a), x.dtype))
        m = _tapped(tap, "ln_2", self.ln_2(x))
        m = self.mlp(m, key=attention.get("key"), tap=_under(tap, "mlp"))
        return _tapped(tap, "out", x + ops.cast(_tapped(tap, "mlp", m), x.dtype)), present


class GPT2(keras.Model):
    """The whole network.

    Args:
        config: the shape.
        dropout: the share of activations dropped where a key is given.
        dtype: a Keras dtype policy, `"float32"` or `"mixed_bfloat16"`; logits are float32 with either.
        initialize: False leaves the matrices at zero, for a caller that sets every one of them.
        fused: for training, use `gpt2.kernels` (or `gpt2.jax_kernels`) where there is no cache; shapes must be static.
        recompute: gradient checkpointing: each block keeps only its input and is computed again for its gradient.
    """

    def __init__(
        self,
        config: GPT2Config,
        *,
        dropout: float = 0.0,
        dtype: Any = "float32",
        initialize: bool = True,
        fused: bool = False,
        recompute: bool = False,
    ) -> None:
        super().__init__(dtype=dtype, name="model")
        self.config = config
        self.stddev = INIT_STDDEV if initialize else 0.0
        self.recompute = recompute
        kernels: Any = _kernels() if fused else None
        self.drop = Dropout(dropout, 0, dtype=self.dtype_policy)
        self.blocks: list[Any] = [
            Block(config, dropout, self.stddev, n, kernels, dtype=self.dtype_policy) for n in range(config.n_layer)
        ]
        self.ln_f = LayerNorm(kernels, name="ln_f", dtype=self.dtype_policy)
        self.build((None, None))

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Make the variables."""
        if getattr(self, "built", False):
            return
        V, C = self.config.n_vocab, self.config.n_embd
        self.wte = self.add_weight(shape=(V, C), initializer=_normal(self.stddev), name="wte", autocast=False)
        self.wpe = self.add_weight(
            shape=(self.config.n_ctx, C), initializer=_normal(self.stddev / 2), name="wpe", autocast=False
        )
        layers: list[Any] = [*self.blocks, self.ln_f]
        for layer in layers:
            layer.build((*input_shape, C))
        self.built = True

    def call(self, ids: Tensor, key: Tensor | None = None) -> Tensor:
        """Logits of the next token at every position, (B, T, V) float32, for ids (B, T): `head(hidden(ids))`."""
        return self.head(self.hidden(ids, key=key)[0])

    def hidden(
        self,
        ids: Tensor,
        past: Cache | None = None,
        past_length: Tensor | None = None,
        key: Tensor | None = None,
        segments: Tensor | None = None,
        tap: Tap | None = None,
    ) -> tuple[Tensor, Cache]:
        """The forward pass up to the head.

        Args:
            ids: (B, T) integers from 0 to n_vocab - 1; T plus what is past is at most n_ctx.
            past: keys and values of earlier tokens for each layer, each (B, H, P, D), or None.
            past_length: (B,) int32, how many of the P positions are in use in each row; needed with `past`.
            key: (2,) int32, the seed of the dropout; None for no dropout.
            segments: (B, T) int32, without a past: positions of different numbers do not see each other.
            tap: sees and may replace every activation; the network is then neither fused nor recomputed.

        Returns:
            The final hidden states (B, T, C), and for each layer the new tokens' keys and values, each (B, H, T, D),
            which the caller adds to its cache (None for each where the network is fused and there is no past).
        """
        T = ops.shape(ids)[1]
        positions = ops.expand_dims(ops.arange(T, dtype="int32"), 0)  # (1, T)
        if past is not None:
            positions = positions + ops.expand_dims(past_length, 1)  # (B, T)
        visible = self._visible(T, None if past is None else ops.shape(past[0][0])[2], past_length)
        if segments is not None:
            visible = ops.logical_and(visible, (segments[:, :, None] == segments[:, None, :])[:, None])  # (B, 1, T, T)
        tokens = _tapped(tap, "wte", ops.take(self.wte, ids, axis=0))  # (B, T, C)
        x = tokens + _tapped(tap, "wpe", ops.take(self.wpe, positions, axis=0))  # (B or 1, T, C)
        x = self.drop(x, key=key)
        present = []
        for n, block in enumerate(self.blocks):
            if self.recompute and past is None and tap is None:
                x, keys_values = _recomputed(block, x, visible, key, segments), None
            else:
                own = None if past is None else past[n]
                with _own_errors(tap) as told:
                    x, keys_values = block(
                        x, visible=visible, past=own, key=key, segments=segments, tap=_under(told, block.name)
                    )
            present.append(keys_values)
        return _tapped(tap, "ln_f", self.ln_f(x)), present

    def head(self, x: Tensor) -> Tensor:
        """Logits (B, T, V) float32 of final hidden states x (B, T, C): the head is the token embedding."""
        B, T, C = ops.shape(x)
        wte = ops.cast(self.wte, self.compute_dtype)
        logits = ops.matmul(ops.reshape(x, (-1, C)), ops.transpose(wte))
        return ops.cast(ops.reshape(logits, (B, T, self.config.n_vocab)), "float32")

    @staticmethod
    def _visible(T: int, P: int | None, past_length: Tensor | None) -> Tensor:
        """True where a query may look: (1, 1, T, T), or (B, 1, T, P + T) with a past."""
        steps = ops.arange(T)
        visible = ops.expand_dims(steps, 1) >= ops.expand_dims(steps, 0)  # (T, T)
        visible = ops.expand_dims(visible, (0, 1))  # (1, 1, T, T)
        if P is not None:
            B = ops.shape(past_length)[0]
            in_use = ops.expand_dims(ops.arange(P, dtype="int32"), 0) < ops.expand_dims(past_length, 1)  # (B, P)
            in_use = ops.broadcast_to(ops.expand_dims(in_use, (1, 2)), (B, 1, T, P))
            visible = ops.concatenate([in_use, ops.broadcast_to(visible, (B, 1, T, T))], axis=-1)
        return visible

    def tensors(self) -> dict[str, keras.Variable]:
        """Every variable under its canonical name (`wte`, `h0/attn/c_attn/w`), in the order of OpenAI's release."""
        found: dict[str, keras.Variable] = {"wte": self.wte, "wpe": self.wpe}
        for block in self.blocks:
            parts = (
                ("ln_1", block.ln_1, "gb"),
                ("attn/c_attn", block.attn.c_attn, "wb"),
                ("attn/c_proj", block.attn.c_proj, "wb"),
                ("ln_2", block.ln_2, "gb"),
                ("mlp/c_fc", block.mlp.c_fc, "wb"),
                ("mlp/c_proj", block.mlp.c_proj, "wb"),
            )
            for part, layer, letters in parts:
                found |= {f"{block.name}/{part}/{letter}": getattr(layer, letter) for letter in letters}
        return found | {"ln_f/g": self.ln_f.g, "ln_f/b": self.ln_f.b}

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """A float32 copy of every variable under its canonical name, one at a time."""
        for name, variable in self.tensors().items():
            yield name, np.array(ops.convert_to_numpy(variable), dtype=np.float32)

    def set_tensors(self, values: Iterable[tuple[str, np.ndarray]]) -> None:
        """Set the variables of some canonical names."""
        variables = self.tensors()
        for name, array in values:
            variables[name].assign(array)
