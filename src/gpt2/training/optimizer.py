"""AdamW with decoupled decay (Loshchilov and Hutter 2019) and clipping by the norm of all gradients.

By TensorFlow's fused kernel, which reads and writes each number once. The gradient's norm is known before any weight
changes; a gradient that is not finite changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from gpt2.config import TrainingConfig

EPSILON = 1e-8


class AdamW:
    """The optimizer of some variables.

    Args:
        variables: name -> Keras variable.
        config: betas, decay and clipping. Only what has two axes decays: matrices and embeddings.
    """

    def __init__(self, variables: Mapping[str, Any], config: TrainingConfig) -> None:
        self.variables, self.config = dict(variables), config
        self.means = {name: tf.Variable(tf.zeros(v.shape), trainable=False) for name, v in variables.items()}
        self.squares = {name: tf.Variable(tf.zeros(v.shape), trainable=False) for name, v in variables.items()}

    def apply(self, gradients: list[Any], loss: Any, rate: Any, step: Any) -> Any:
        """Change the variables, in a graph.

        Args:
            gradients: one dense one for each variable, in their order.
            loss: a scalar; nothing changes unless it is finite.
            rate: the learning rate, a scalar float32.
            step: the number of this step, from 1, a scalar float32.

        Returns:
            The norm of all gradients before clipping.
        """
        c = self.config
        norm = tf.sqrt(2 * tf.add_n([tf.nn.l2_loss(gradient) for gradient in gradients]))  # one pass, no squares kept
        finite = tf.math.is_finite(norm) & tf.math.is_finite(loss)
        # What is not finite changes nothing: the gradients become 0, and these numbers leave everything as it is. (Not
        # by a condition around it all, which would hold every gradient until the end.)
        rate, scale = tf.where(finite, rate, 0.0), tf.where(finite, c.gradient_clip / norm, 0.0)
        beta_1, beta_2 = tf.where(finite, c.beta_1, 1.0), tf.where(finite, c.beta_2, 1.0)
        b1, b2 = tf.pow(c.beta_1, step), tf.pow(c.beta_2, step)
        as_it_is = finite & (norm <= c.gradient_clip)
        done: list[Any] = []
        pairs = zip(self.variables.items(), gradients, strict=True)
        # One variable after the other, or TensorFlow would make the scaled copies of all at once; the largest last,
        # when the other gradients are no longer there.
        for (name, variable), gradient in sorted(pairs, key=lambda pair: math.prod(pair[1].shape)):
            with tf.control_dependencies(done):
                scaled = lambda g=gradient: tf.math.multiply_no_nan(g, scale)  # noqa: E731
                clipped = tf.cond(as_it_is, lambda g=gradient: g, scaled)  # type: ignore[misc]
            value = variable.value
            if len(variable.shape) > 1 and c.weight_decay:
                with tf.control_dependencies([clipped]):
                    value.assign(value.read_value() * (1 - rate * c.weight_decay), read_value=False)
            update = tf.raw_ops.ResourceApplyAdam(
                **{"var": value.handle, "m": self.means[name].handle, "v": self.squares[name].handle},
                **{"beta1_power": b1, "beta2_power": b2, "lr": rate, "beta1": beta_1, "beta2": beta_2},
                # The kernel adds it before the bias is corrected; this makes it what the paper has.
                epsilon=EPSILON * tf.sqrt(1 - b2),
                grad=clipped,
            )
            done = [update]
        return norm

    def state(self) -> dict[str, Any]:
        """Name -> TensorFlow variable of all that must be saved."""
        means = {f"m/{name}": v for name, v in self.means.items()}
        return means | {f"v/{name}": v for name, v in self.squares.items()}
