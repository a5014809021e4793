"""Training of one network on one row of tokens: AdamW, warm-up and cosine, held-out loss.

It knows nothing about text or files: tokens come in, the network's weights change, and a log of numbers comes out. It
leaves out what a long run wants (resuming, several devices, adapters); a run that stops early is lost but for what
the caller's `on_log` has kept. The step is a TensorFlow graph, so training needs Keras' TensorFlow backend.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gpt2.config import TrainingConfig
from gpt2.data.batches import Batch, evaluation_batches, training_batches
from gpt2.errors import TrainingError
from gpt2.model import GPT2


@dataclass(frozen=True)
class LogEntry:
    """What is known after some steps of training."""

    step: int
    """Weight updates so far."""
    tokens: int
    """Tokens read so far."""
    loss: float
    """Mean loss since the entry before, in nats a token."""
    valid_loss: float | None
    """Loss on the held-out text, in nats a token, if there is any."""
    learning_rate: float
    """The learning rate of the last step."""
    seconds: float
    """Wall-clock time since the start."""


def train(
    network: GPT2,
    tokens: np.ndarray,
    config: TrainingConfig,
    *,
    valid_tokens: np.ndarray | None = None,
    on_log: Callable[[LogEntry], None] | None = None,
) -> list[LogEntry]:
    """Train `network` in place.

    Args:
        network: its dtype policy and dropout should be those of `config`.
        tokens: (N,) integers, the training text.
        config: how.
        valid_tokens: (M,) integers, held-out text, or None.
        on_log: called with each entry as it is made, every `config.eval_every` steps.

    Returns:
        All entries.

    Raises:
        TrainingError: too little text, a sequence longer than the context, or a loss that is not a number.
    """
    if keras.backend.backend() != "tensorflow":
        raise TrainingError(f"training: expected KERAS_BACKEND=tensorflow, got {keras.backend.backend()}")
    n_ctx = network.config.n_ctx
    B, T = config.batch_size, config.sequence_length or n_ctx
    if n_ctx < T:
        raise TrainingError(f"sequence_length: expected at most the model's n_ctx {n_ctx}, got {T}")
    held_out = [] if valid_tokens is None else list(evaluation_batches(valid_tokens, B, T, config.eval_batches))
    keras.utils.set_random_seed(config.seed)
    optimizer = make_optimizer(network, config)

    @tf.function
    def update(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = cross_entropy(network(x, training=True), y)
        optimizer.apply(tape.gradient(loss, variables), variables)
        return loss

    @tf.function
    def measure(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        return cross_entropy(network(x), y)

    variables = network.trainable_variables
    log: list[LogEntry] = []
    losses: list[float] = []
    started = time.monotonic()
    for step, (x, y) in enumerate(training_batches(tokens, B, T, config.seed), start=1):
        logs = step % config.eval_every == 0 or step == config.steps
        learning_rate = float(optimizer.learning_rate) if logs else 0.0  # of this step; after it, that of the next
        losses.append(float(update(tf.constant(x), tf.constant(y))))
        if not math.isfinite(losses[-1]):
            raise TrainingError(f"the loss is {losses[-1]} after step {step}; try a lower learning_rate")
        if logs:
            entry = LogEntry(
                step=step,
                tokens=step * B * T,
                loss=float(np.mean(losses)),
                valid_loss=_mean_loss(measure, held_out) if held_out else None,
                learning_rate=learning_rate,
                seconds=time.monotonic() - started,
            )
            losses.clear()
            log.append(entry)
            if on_log is not None:
                on_log(entry)
        if step == config.steps:
            break
    return log


@tf.custom_gradient
def cross_entropy(logits: Any, targets: Any) -> Any:
    """The mean of -log p(target) in nats, for logits (B, T, V) float32 and targets (B, T) int32.

    By way of the softmax, which on the CPU is twice as fast as TensorFlow's fused cross-entropy; the gradient is the
    exact one. The price: a loss above 87 nats, where p underflows float32, is reported as 87.
    """
    B, T, V = tf.unstack(tf.shape(logits))
    p = tf.nn.softmax(tf.reshape(logits, (B * T, V)))
    at_target = tf.stack([tf.range(B * T), tf.reshape(targets, (-1,))], axis=1)  # (B*T, 2)
    loss = -tf.reduce_mean(tf.math.log(tf.maximum(tf.gather_nd(p, at_target), np.finfo(np.float32).tiny)))

    def gradient(upstream: Any) -> tuple[Any, None]:
        d = tf.tensor_scatter_nd_sub(p, at_target, tf.ones((B * T,)))  # p - onehot(target)
        return tf.reshape(d * (upstream / tf.cast(B * T, tf.float32)), (B, T, V)), None

    return loss, gradient


def make_optimizer(network: GPT2, config: TrainingConfig) -> keras.optimizers.Optimizer:
    """AdamW with warm-up and cosine; weight decay on matrices and embeddings alone (gains and biases have one axis)."""
    warmup = min(config.warmup_steps, config.steps - 1)
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warmup else config.learning_rate,
        warmup_target=config.learning_rate if warmup else None,
        warmup_steps=warmup,
        decay_steps=config.steps - warmup,
        alpha=config.final_learning_rate,
    )
    optimizer = keras.optimizers.AdamW(
        learning_rate=schedule,
        weight_decay=config.weight_decay,
        beta_1=config.beta_1,
        beta_2=config.beta_2,
        global_clipnorm=config.gradient_clip,
    )
    optimizer.exclude_from_weight_decay(var_list=[v for v in network.trainable_variables if len(v.shape) < 2])
    optimizer.build(network.trainable_variables)
    return optimizer


def _mean_loss(measure: Callable[[Any, Any], Any], batches: Iterable[Batch]) -> float:
    return float(np.mean([float(measure(tf.constant(x), tf.constant(y))) for x, y in batches]))
