"""One update of the weights: gradients of some batches, summed, and AdamW.

It knows nothing of data or of when to stop. What a step does follows from the weights, the optimizer's state and the
step's number alone; there is no other state, so a run that is resumed goes on exactly. How it is computed is
`tensorflow_step`'s or `jax_step`'s business.
"""

from __future__ import annotations

import abc
import contextlib
import fnmatch
import math
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from gpt2.config import TrainingConfig
from gpt2.data.batches import Batch
from gpt2.errors import ConfigError
from gpt2.model import GPT2, SITES_OF_A_BLOCK
from gpt2.training import lora


class Stepper(abc.ABC):
    """Takes steps with one network. Made by `new_stepper`.

    Args:
        network: made by `training_network`.
        config: how.
        end_of_text: the token that ends documents, for `cross_documents=False`.
    """

    replicas: int = 1
    """Devices that each take their part of a batch."""

    def __init__(self, network: GPT2, config: TrainingConfig, end_of_text: int | None) -> None:
        self.network, self.config, self.end_of_text = network, config, end_of_text
        if not config.cross_documents and end_of_text is None:
            raise ConfigError("cross_documents: expected true, since this vocabulary has no <|endoftext|>, got false")
        self.adapters: dict[str, lora.Adapter] = {}
        if config.lora_rank is not None:
            settings = (config.lora_rank, config.lora_alpha, config.lora_targets, config.seed)
            self.adapters = lora.attach(network, *settings)
        self.variables = self._trainable()
        self.sites = SITES_OF_A_BLOCK * network.config.n_layer + 1

    @abc.abstractmethod
    def step(self, number: int, batches: Sequence[Batch], rate: float) -> tuple[float, float]:
        """Update the weights, unless loss or gradient are not finite.

        Args:
            number: of the step, from 1.
            batches: `accumulation_steps` of them, each (B, T) twice.
            rate: the learning rate.

        Returns:
            The loss in nats a token, and the norm of the gradient before clipping.
        """

    @abc.abstractmethod
    def measure(self, batch: Batch) -> float:
        """The loss of one batch in nats a token, without dropout; computed whole on every device."""

    @abc.abstractmethod
    def optimizer_state(self) -> dict[str, Any]:
        """Name -> variable of what the optimizer remembers."""

    @abc.abstractmethod
    def ceiling(self) -> float:
        """Operations a second of a large matrix product in the precision of training, on all devices together;
        measured once."""

    @property
    def num_trainable(self) -> int:
        """How many numbers change."""
        return sum(math.prod(v.shape) for v in self.variables.values())

    def parameters(self) -> Iterator[tuple[str, np.ndarray]]:
        """Every parameter under its canonical name, float32, adapters merged; one at a time."""
        return lora.merged(self.network, self.adapters)

    def state(self) -> dict[str, Any]:
        """Name -> variable of what a checkpoint needs besides the parameters."""
        return {f"lora/{name}": v for name, v in self.variables.items() if self.adapters} | self.optimizer_state()

    def draw(self, count: int) -> tuple[int, int]:
        """The seed of one batch's dropout: no other batch, device or place of dropout has the same."""
        return self.config.seed, count * self.replicas * self.sites % 2**30

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


def new_stepper(
    source: GPT2, config: TrainingConfig, *, end_of_text: int | None = None, strategy: Any = None
) -> Stepper:
    """A stepper with a network of its own that begins with the source's weights, for the Keras backend in use.

    Args:
        source: it stays as it is.
        config: how.
        end_of_text: the token that ends documents.
        strategy: of `tf.distribute`, or None for this process' own device.

    Raises:
        ConfigError: settings that this network or backend cannot follow.
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        from gpt2.training.tensorflow_step import TensorFlowStepper

        network = training_network(source, config, strategy)
        return TensorFlowStepper(network, config, end_of_text=end_of_text, strategy=strategy)
    if backend != "jax":
        raise ConfigError(f"KERAS_BACKEND: expected tensorflow or jax for training, got {backend}")
    if strategy is not None:
        raise ConfigError("strategy: expected none with KERAS_BACKEND=jax, since it is TensorFlow's; got one")
    from gpt2.training.jax_step import JaxStepper

    return JaxStepper(training_network(source, config), config, end_of_text=end_of_text)


def training_network(source: GPT2, config: TrainingConfig, strategy: Any = None) -> GPT2:
    """A network to train, with the source's weights: fused, and with the dropout and the precision of `config`."""
    with contextlib.nullcontext() if strategy is None else strategy.scope():
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
