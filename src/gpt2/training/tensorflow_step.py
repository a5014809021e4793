"""The step as a TensorFlow graph, on one device or, by `tf.distribute`, on several."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from gpt2 import kernels
from gpt2.config import TrainingConfig
from gpt2.data.batches import Batch
from gpt2.errors import ConfigError
from gpt2.model import GPT2
from gpt2.training.optimizer import AdamW
from gpt2.training.step import Stepper


class TensorFlowStepper(Stepper):
    """Takes steps with one network.

    Args:
        network: made by `training_network`, under the strategy's scope.
        config: how.
        end_of_text: the token that ends documents, for `cross_documents=False`.
        strategy: of `tf.distribute`, or None for this process' own device; every replica takes its part of a batch.
    """

    def __init__(
        self, network: GPT2, config: TrainingConfig, *, end_of_text: int | None = None, strategy: Any = None
    ) -> None:
        self.strategy = strategy or tf.distribute.get_strategy()
        self.replicas = self.strategy.num_replicas_in_sync
        if config.batch_size % self.replicas:
            raise ConfigError(f"batch_size: expected a multiple of {self.replicas} devices, got {config.batch_size}")
        with self.strategy.scope():
            super().__init__(network, config, end_of_text)
            self.optimizer = AdamW(self.variables, config)
            self.sums = (
                [tf.Variable(tf.zeros(v.shape), trainable=False) for v in self.variables.values()]
                if config.accumulation_steps > 1
                else []
            )
        self._graphs: dict[tuple[str, tuple[int, ...]], Callable[..., Any]] = {}

    def step(self, number: int, batches: Sequence[Batch], rate: float) -> tuple[float, float]:
        """See `Stepper.step`."""
        constants = (tf.constant(rate, tf.float32), tf.constant(number, tf.float32))
        first = (number - 1) * len(batches)
        if not self.sums:
            loss, norm = self._graph("_update", batches[0])(
                *map(tf.constant, batches[0]), self._draw(first), *constants
            )
            return float(loss), float(norm)
        losses = []
        for n, batch in enumerate(batches):
            add = self._graph("_accumulate", batch)
            losses.append(add(*map(tf.constant, batch), self._draw(first + n), tf.constant(n == 0)))
        mean = float(np.mean([float(loss) for loss in losses]))
        norm = self._graph("_finish", batches[0])(tf.constant(mean, tf.float32), *constants)
        return mean, float(norm)

    def measure(self, batch: Batch) -> float:
        """The loss of one batch in nats a token, without dropout; computed whole on every device."""
        return float(self._graph("_measure", batch)(*map(tf.constant, batch)))

    def optimizer_state(self) -> dict[str, Any]:
        """See `Stepper.optimizer_state`."""
        return self.optimizer.state()

    def ceiling(self) -> float:
        """See `Stepper.ceiling`."""
        return _ceiling(self.config.precision) * self.replicas

    # In graphs

    def _draw(self, count: int) -> Any:
        return tf.constant(self.draw(count), tf.int32)

    def _graph(self, name: str, batch: Batch) -> Callable[..., Any]:
        place = (name, batch[0].shape)
        if place not in self._graphs:
            function = getattr(self, name)
            self._graphs[place] = tf.function(
                lambda *arguments: self._one(self.strategy.run(function, arguments)), autograph=False
            )
        return self._graphs[place]

    def _one(self, results: Any) -> Any:
        """What the first replica here gives; all give the same."""
        return tf.nest.map_structure(lambda r: self.strategy.experimental_local_results(r)[0], results)

    def _update(self, x: Any, y: Any, key: Any, rate: Any, step: Any) -> Any:
        loss, gradients = self._gradients(x, y, key)
        loss, gradients = self._reduced(loss, gradients)
        return loss, self.optimizer.apply(gradients, loss, rate, step)

    def _accumulate(self, x: Any, y: Any, key: Any, first: Any) -> Any:
        loss, gradients = self._gradients(x, y, key)
        for total, gradient in zip(self.sums, gradients, strict=True):
            before = tf.cond(first, lambda t=total: tf.zeros_like(t), lambda t=total: t.read_value())  # type: ignore[misc]
            total.assign(before + gradient / self.config.accumulation_steps, read_value=False)
        return self._reduced(loss, [])[0]

    def _finish(self, loss: Any, rate: Any, step: Any) -> Any:
        gradients = self._reduced(tf.zeros(()), [total.read_value() for total in self.sums])[1]
        return self.optimizer.apply(gradients, loss, rate, step)

    def _measure(self, x: Any, y: Any) -> Any:
        return self._loss(x, y, None, tf.convert_to_tensor(self.network.wte.value), measure_only=True)

    def _gradients(self, x: Any, y: Any, key: Any) -> tuple[Any, list[Any]]:
        """Loss and gradients of this replica's rows, divided by the number of replicas."""
        if self.replicas > 1:
            number = tf.distribute.get_replica_context().replica_id_in_sync_group
            rows = x.shape[0] // self.replicas
            x = tf.ensure_shape(tf.slice(x, [number * rows, 0], [rows, -1]), (rows, x.shape[1]))
            y = tf.ensure_shape(tf.slice(y, [number * rows, 0], [rows, -1]), (rows, y.shape[1]))
            key = key + tf.stack([0, tf.cast(number, tf.int32) * self.sites])
        values = [v.value for v in self.variables.values()]
        head = tf.convert_to_tensor(self.network.wte.value)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([*values, head])
            loss = self._loss(x, y, key, head)
            loss = loss / self.replicas if self.replicas > 1 else loss
        names = list(self.variables)
        *gradients, of_head = tape.gradient(loss, [*values, head])
        if "wte" in names:
            # The embedding's part is a few rows: added to the head's in place, not made as large as that first.
            rows = gradients[names.index("wte")]
            gradients[names.index("wte")] = tf.tensor_scatter_nd_add(of_head, rows.indices[:, None], rows.values)
        return loss, [tf.convert_to_tensor(gradient) for gradient in gradients]

    def _loss(self, x: Any, y: Any, key: Any, head: Any, measure_only: bool = False) -> Any:
        network = self.network
        segments = None
        if not self.config.cross_documents:  # the end of a document belongs to it
            segments = tf.cumsum(tf.cast(x == self.end_of_text, tf.int32), axis=1, exclusive=True)
        key = None if measure_only or not self.config.dropout else key
        hidden, _ = network.hidden(x, key=key, segments=segments)
        rows, targets = tf.reshape(hidden, (-1, network.config.n_embd)), tf.reshape(y, (-1,))
        train_head = "wte" in self.variables
        return kernels.cross_entropy(
            rows, head, targets, source=network.wte, train_head=train_head, measure_only=measure_only
        )

    def _reduced(self, loss: Any, gradients: list[Any]) -> tuple[Any, list[Any]]:
        if self.replicas == 1:
            return loss, gradients
        summed = tf.distribute.get_replica_context().all_reduce("sum", [loss, *gradients])
        return summed[0], summed[1:]


@functools.cache
def _ceiling(precision: str) -> float:
    a = tf.cast(tf.random.stateless_normal((2048, 2048), (0, 0)), precision)
    product = tf.function(tf.matmul)
    product(a, a).numpy()
    times: list[float] = []
    for _ in range(5):
        started = time.perf_counter()
        result: Any = product(a, a)
        result.numpy()
        times.append(time.perf_counter() - started)
    return 2.0 * 2048**3 / min(times)
