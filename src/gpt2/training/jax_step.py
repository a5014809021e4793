"""The step as a JAX program, on one device; for an NVIDIA GPU, for which TensorFlow 2.17 need not be installed.

The same mathematics as `tensorflow_step`, told to XLA whole: weights and the optimizer's state go in, are donated, and
come out changed.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

from gpt2 import jax_kernels
from gpt2.config import TrainingConfig
from gpt2.data.batches import Batch
from gpt2.model import GPT2
from gpt2.training.step import Stepper

EPSILON = 1e-8

Arrays = list[Any]


class JaxStepper(Stepper):
    """Takes steps with one network.

    Args:
        network: made by `training_network`.
        config: how.
        end_of_text: the token that ends documents, for `cross_documents=False`.
    """

    def __init__(self, network: GPT2, config: TrainingConfig, *, end_of_text: int | None = None) -> None:
        super().__init__(network, config, end_of_text)
        mine = {id(v) for v in self.variables.values()}
        self.frozen = [v for v in network.tensors().values() if id(v) not in mine]
        self.moments: dict[str, Any] = {}
        for letter in "mv":
            for name, variable in self.variables.items():
                zeros = np.zeros(variable.shape, np.float32)
                self.moments[f"{letter}/{name}"] = keras.Variable(zeros, trainable=False, dtype="float32")
        self._value_and_gradients = jax.jit(self._value_and_gradients_of)
        self._add = jax.jit(self._add_of, donate_argnums=(2,))
        self._apply = jax.jit(self._apply_of, donate_argnums=(0, 1, 2))
        self._update = jax.jit(self._update_of, donate_argnums=(0, 1, 2))
        self._measure = jax.jit(self._loss_of)

    def step(self, number: int, batches: Sequence[Batch], rate: float) -> tuple[float, float]:
        """See `Stepper.step`."""
        names = list(self.variables)
        weights = [v.value for v in self.variables.values()]
        means = [self.moments[f"m/{name}"].value for name in names]
        squares = [self.moments[f"v/{name}"].value for name in names]
        constants = (np.float32(rate), np.float32(number))
        frozen = [v.value for v in self.frozen]
        first = (number - 1) * len(batches)
        with self._precision():
            if len(batches) == 1:
                x, y = batches[0]
                state, loss, norm = self._update(weights, means, squares, frozen, x, y, self._key(first), *constants)
            else:
                sums, losses = [jnp.zeros_like(w) for w in weights], []
                for n, (x, y) in enumerate(batches):
                    loss, sums = self._add(weights, frozen, sums, x, y, self._key(first + n))
                    losses.append(float(loss))
                loss = np.float32(np.mean(losses))
                state, norm = self._apply(weights, means, squares, sums, loss, *constants)
        for variables, values in zip((self.variables, *self._moments()), state, strict=True):
            for variable, value in zip(variables.values(), values, strict=True):
                variable.assign(value)
        return float(loss), float(norm)

    def measure(self, batch: Batch) -> float:
        """See `Stepper.measure`."""
        values = [v.value for v in self.variables.values()], [v.value for v in self.frozen]
        with self._precision():
            return float(self._measure(*values, *batch, None))

    def optimizer_state(self) -> dict[str, Any]:
        """See `Stepper.optimizer_state`."""
        return self.moments

    def ceiling(self) -> float:
        """See `Stepper.ceiling`."""
        with self._precision():
            return _ceiling(self.config.precision)

    def _moments(self) -> list[dict[str, Any]]:
        return [{name: self.moments[f"{letter}/{name}"] for name in self.variables} for letter in "mv"]

    def _key(self, count: int) -> np.ndarray:
        return np.array(self.draw(count), np.int32)

    def _precision(self) -> Any:
        """On a GPU, JAX would round the factors of float32 products to 11 bits."""
        return jax.default_matmul_precision("highest" if self.config.precision == "float32" else "default")

    # What is compiled: pure functions of what they are given

    def _loss_of(self, weights: Arrays, frozen: Arrays, x: Any, y: Any, key: Any) -> Any:
        network, measure_only = self.network, key is None
        segments = None
        if not self.config.cross_documents:  # the end of a document belongs to it
            ends = (x == self.end_of_text).astype(jnp.int32)
            segments = jnp.cumsum(ends, axis=1) - ends
        variables = [*self.variables.values(), *self.frozen]
        with keras.StatelessScope(state_mapping=list(zip(variables, [*weights, *frozen], strict=True))):
            hidden, _ = network.hidden(x, key=key if self.config.dropout else None, segments=segments)
            rows = jnp.reshape(hidden, (-1, network.config.n_embd))
            head = "wte" in self.variables
            wte = jnp.asarray(network.wte.value)
            return jax_kernels.cross_entropy(rows, wte, y.reshape(-1), train_head=head, measure_only=measure_only)

    def _value_and_gradients_of(self, weights: Arrays, frozen: Arrays, x: Any, y: Any, key: Any) -> tuple[Any, Arrays]:
        return jax.value_and_grad(self._loss_of)(weights, frozen, x, y, key)

    def _add_of(self, weights: Arrays, frozen: Arrays, sums: Arrays, x: Any, y: Any, key: Any) -> tuple[Any, Arrays]:
        loss, gradients = self._value_and_gradients_of(weights, frozen, x, y, key)
        count = self.config.accumulation_steps
        return loss, [total + gradient / count for total, gradient in zip(sums, gradients, strict=True)]

    def _update_of(
        self, weights: Arrays, means: Arrays, squares: Arrays, frozen: Arrays, x: Any, y: Any, key: Any, *constants: Any
    ) -> tuple[Any, Any, Any]:
        loss, gradients = self._value_and_gradients_of(weights, frozen, x, y, key)
        state, norm = self._apply_of(weights, means, squares, gradients, loss, *constants)
        return state, loss, norm

    def _apply_of(
        self, weights: Arrays, means: Arrays, squares: Arrays, gradients: Arrays, loss: Any, rate: Any, step: Any
    ) -> tuple[Any, Any]:
        """AdamW with decoupled decay and clipping, as `optimizer.AdamW`; what is not finite changes nothing."""
        c = self.config
        norm = jnp.sqrt(sum(jnp.sum(jnp.square(gradient)) for gradient in gradients))
        finite = jnp.isfinite(norm) & jnp.isfinite(loss)
        scale = jnp.where(norm > c.gradient_clip, c.gradient_clip / norm, 1.0)
        b1, b2 = 1 - c.beta_1**step, 1 - c.beta_2**step
        state: tuple[Arrays, Arrays, Arrays] = ([], [], [])
        for w, m, v, gradient in zip(weights, means, squares, gradients, strict=True):
            g = gradient * scale
            new_m = c.beta_1 * m + (1 - c.beta_1) * g
            new_v = c.beta_2 * v + (1 - c.beta_2) * jnp.square(g)
            decayed = w * (1 - rate * c.weight_decay) if w.ndim > 1 else w
            new_w = decayed - rate * (new_m / b1) / (jnp.sqrt(new_v / b2) + EPSILON)
            for values, new, old in zip(state, (new_w, new_m, new_v), (w, m, v), strict=True):
                values.append(jnp.where(finite, new, old))
        return state, norm


@functools.cache
def _ceiling(precision: str) -> float:
    n = 2048 if jax.default_backend() == "cpu" else 8192
    a = jax.random.normal(jax.random.key(0), (n, n)).astype(precision)
    product = jax.jit(jnp.matmul)
    product(a, a).block_until_ready()
    times: list[float] = []
    for _ in range(5):
        started = time.perf_counter()
        product(a, a).block_until_ready()
        times.append(time.perf_counter() - started)
    return 2.0 * n**3 / min(times)
