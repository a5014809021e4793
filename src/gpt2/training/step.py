"""One update of the weights, as a graph: gradients of some batches, summed over devices, and AdamW.

It knows nothing of data or of when to stop. What a step does follows from the weights, the optimizer's state and the
step's number alone; there is no other state, so a run that is resumed goes on exactly.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from gpt2 import kernels
from gpt2.config import TrainingConfig
from gpt2.data.batches import Batch
from gpt2.errors import ConfigError
from gpt2.model import GPT2, SITES_OF_A_BLOCK
from gpt2.training import lora
from gpt2.training.optimizer import AdamW


class Stepper:
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
        self.network, self.config, self.end_of_text = network, config, end_of_text
        self.strategy = strategy or tf.distribute.get_strategy()
        self.replicas: int = self.strategy.num_replicas_in_sync
        if config.batch_size % self.replicas:
            raise ConfigError(f"batch_size: expected a multiple of {self.replicas} devices, got {config.batch_size}")
        if not config.cross_documents and end_of_text is None:
            raise ConfigError("cross_documents: expected true, since this vocabulary has no <|endoftext|>, got false")
        with self.strategy.scope():
            self.adapters: dict[str, lora.Adapter] = {}
            if config.lora_rank is not None:
                settings = (config.lora_rank, config.lora_alpha, config.lora_targets, config.seed)
                self.adapters = lora.attach(network, *settings)
            self.variables = self._trainable()
            self.optimizer = AdamW(self.variables, config)
            self.sums = (
                [tf.Variable(tf.zeros(v.shape), trainable=False) for v in self.variables.values()]
                if config.accumulation_steps > 1
                else []
            )
        self.sites = SITES_OF_A_BLOCK * network.config.n_layer + 1
        self._graphs: dict[tuple[str, tuple[int, ...]], Callable[..., Any]] = {}

    def _trainable(self) -> dict[str, Any]:
        if self.adapters:
            return {f"{name}/{x}": getattr(a, x) for name, a in self.adapters.items() for x in "ab"}
        tensors, patterns = self.network.tensors(), self.config.trainable
        if not patterns:
            return tensors
        for pattern in patterns:
            if not fnmatch.filter(tensors, pattern):
                raise ConfigError(f"trainable: expected patterns of names like h0/attn/c_attn/w, got {pattern!r}")
        return {name: v for name, v in tensors.items() if any(fnmatch.fnmatchcase(name, p) for p in patterns)}

    @property
    def num_trainable(self) -> int:
        """How many numbers change."""
        return sum(math.prod(v.shape) for v in self.variables.values())

    def step(self, number: int, batches: Sequence[Batch], rate: float) -> tuple[float, float]:
        """Update the weights, unless loss or gradient are not finite.

        Args:
            number: of the step, from 1.
            batches: `accumulation_steps` of them, each (B, T) twice.
            rate: the learning rate.

        Returns:
            The loss in nats a token, and the norm of the gradient before clipping.
        """
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

    def parameters(self) -> Any:
        """Every parameter under its canonical name, float32, adapters merged; one at a time."""
        return lora.merged(self.network, self.adapters)

    def state(self) -> dict[str, Any]:
        """Name -> variable of what a checkpoint needs besides the parameters."""
        return {f"lora/{name}": v for name, v in self.variables.items() if self.adapters} | self.optimizer.state()

    # In graphs

    def _draw(self, count: int) -> Any:
        """The seed of one batch's dropout: no other batch, device or place of dropout has the same."""
        return tf.constant([self.config.seed, count * self.replicas * self.sites % 2**30], tf.int32)

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
        return self._loss(x, y, None, measure_only=True)

    def _gradients(self, x: Any, y: Any, key: Any) -> tuple[Any, list[Any]]:
        """Loss and gradients of this replica's rows, divided by the number of replicas."""
        if self.replicas > 1:
            number = tf.distribute.get_replica_context().replica_id_in_sync_group
            rows = x.shape[0] // self.replicas
            x = tf.ensure_shape(tf.slice(x, [number * rows, 0], [rows, -1]), (rows, x.shape[1]))
            y = tf.ensure_shape(tf.slice(y, [number * rows, 0], [rows, -1]), (rows, y.shape[1]))
            key = key + tf.stack([0, tf.cast(number, tf.int32) * self.sites])
        values = [v.value for v in self.variables.values()]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            loss = self._loss(x, y, key) / self.replicas
        return loss, [tf.convert_to_tensor(gradient) for gradient in tape.gradient(loss, values)]

    def _loss(self, x: Any, y: Any, key: Any, measure_only: bool = False) -> Any:
        network = self.network
        segments = None
        if not self.config.cross_documents:  # the end of a document belongs to it
            segments = tf.cumsum(tf.cast(x == self.end_of_text, tf.int32), axis=1, exclusive=True)
        key = None if measure_only or not self.config.dropout else key
        hidden, _ = network.hidden(x, key=key, segments=segments)
        rows = tf.reshape(hidden, (-1, network.config.n_embd))
        wte = tf.convert_to_tensor(network.wte.value)
        head = "wte" in self.variables
        return kernels.cross_entropy(rows, wte, tf.reshape(y, (-1,)), train_head=head, measure_only=measure_only)

    def _reduced(self, loss: Any, gradients: list[Any]) -> tuple[Any, list[Any]]:
        if self.replicas == 1:
            return loss, gradients
        summed = tf.distribute.get_replica_context().all_reduce("sum", [loss, *gradients])
        return summed[0], summed[1:]


def training_network(source: GPT2, config: TrainingConfig, strategy: Any = None) -> GPT2:
    """A network to train, with the source's weights: fused, and with the dropout and the precision of `config`."""
    with (strategy or tf.distribute.get_strategy()).scope():
        network = GPT2(
            source.config,
            dropout=config.dropout,
            dtype="mixed_bfloat16" if config.precision == "bfloat16" else "float32",
            initialize=False,
            fused=True,
            recompute=config.gradient_checkpointing,
        )
        network.set_tensors(source.arrays())
    return network
