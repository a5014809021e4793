"""Training beside an independent implementation in PyTorch with the same weights and batches."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest

from gpt2.config import GPT2Config, TrainingConfig
from gpt2.data.batches import TrainingBatches
from gpt2.data.rows import ArrayTokens
from gpt2.model import GPT2
from gpt2.training.step import new_stepper

pytestmark = pytest.mark.reference

SHAPE = GPT2Config(n_vocab=97, n_ctx=16, n_embd=32, n_head=4, n_layer=3)
TOKENS = ArrayTokens(np.random.default_rng(0).zipf(1.3, 3000) % 97)


def pair(config: TrainingConfig):
    torch = pytest.importorskip("torch")
    from torch_gpt2 import TorchGPT2

    keras.utils.set_random_seed(1)
    ours = new_stepper(GPT2(SHAPE), config)
    theirs = TorchGPT2(**SHAPE.to_dict())
    with torch.no_grad():
        for name, variable in ours.network.tensors().items():
            variable.assign(variable.numpy() * 5)  # away from the gentle beginning
            theirs.get_parameter(name.replace("/", ".")).copy_(torch.tensor(variable.numpy()))
    return torch, ours, theirs


def gradients_of(ours, x, y):
    if keras.backend.backend() == "jax":
        return ours._value_and_gradients([v.value for v in ours.variables.values()], [], x, y, np.zeros(2, np.int32))
    import tensorflow as tf

    return tf.function(ours._gradients)(tf.constant(x), tf.constant(y), tf.constant([0, 0]))


def test_every_gradient_is_pytorchs():
    torch, ours, theirs = pair(TrainingConfig(batch_size=4))
    x, y = TrainingBatches(TOKENS, 4, 16, 0)[0]
    loss, gradients = gradients_of(ours, x, y)
    expected = theirs(torch.tensor(x).long(), torch.tensor(y).long())
    expected.backward()
    assert float(loss) == pytest.approx(expected.item(), abs=1e-5)
    for name, gradient in zip(ours.variables, gradients, strict=True):
        target = theirs.get_parameter(name.replace("/", ".")).grad.numpy()
        np.testing.assert_allclose(np.asarray(gradient), target, atol=1e-5 * max(1, np.abs(target).max()), err_msg=name)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_twenty_losses_are_pytorchs(accumulation):
    config = TrainingConfig(steps=20, batch_size=4, accumulation_steps=accumulation, learning_rate=3e-3)
    torch, ours, theirs = pair(config)
    optimizer = theirs.optimizer(config.weight_decay, (config.beta_1, config.beta_2))
    batches = TrainingBatches(TOKENS, 4, 16, 0)
    losses, expected = [], []
    for step in range(1, 21):
        rate = 3e-3 * min(step / 2, 0.5 * (1 + math.cos(math.pi * step / 25)))
        mine = [batches[(step - 1) * accumulation + n] for n in range(accumulation)]
        losses.append(ours.step(step, mine, rate)[0])
        x, y = (torch.tensor(np.concatenate(part)).long() for part in zip(*mine, strict=True))
        expected.append(theirs.step(optimizer, x, y, rate, bf16=False))
    np.testing.assert_allclose(losses, expected, atol=1e-4)
    assert losses[-1] < losses[0] - 0.5
