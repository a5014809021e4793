"""Training on tiny networks: it learns, it repeats itself, and it takes the steps of an AdamW written out here."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from gpt2.config import GPT2Config, TrainingConfig
from gpt2.data.batches import training_batches
from gpt2.errors import TrainingError
from gpt2.model import GPT2
from gpt2.training import cross_entropy, make_optimizer, train

SHAPE = GPT2Config(n_vocab=17, n_ctx=8, n_embd=16, n_head=2, n_layer=2)
TOKENS = np.tile([3, 1, 4, 1, 5, 9, 2, 6], 20).astype(np.uint16)
NOISE = np.random.default_rng(0).integers(0, 17, 400)


def network(seed: int = 0) -> GPT2:
    keras.utils.set_random_seed(seed)
    return GPT2(SHAPE)


def settings(**changes: object) -> TrainingConfig:
    values = {"steps": 20, "batch_size": 4, "learning_rate": 1e-2, "warmup_steps": 5, "eval_every": 1}
    return TrainingConfig(**values | changes)


def test_a_repeated_sequence_is_learnt_and_training_repeats_itself():
    runs = []
    for _ in range(2):
        seen: list[object] = []
        config = settings(steps=120, eval_every=40, eval_batches=2)
        log = train(network(), TOKENS, config, valid_tokens=TOKENS[:60], on_log=seen.append)
        assert seen == log
        runs.append(log)
    log = runs[0]
    assert [(entry.step, entry.tokens) for entry in log] == [(40, 1280), (80, 2560), (120, 3840)]
    # All that stays uncertain is what follows a 1 at the beginning of a window.
    assert log[0].loss > 1
    assert log[-1].loss < 0.5
    assert log[-1].valid_loss < 0.5
    assert log[-1].seconds >= log[0].seconds > 0
    assert [(e.loss, e.valid_loss) for e in runs[1]] == [(e.loss, e.valid_loss) for e in log]


def test_another_seed_gives_other_losses():
    losses = [[e.loss for e in train(network(), NOISE, settings(steps=3, seed=seed))] for seed in (1, 2)]
    assert losses[0] != losses[1]


def test_the_first_loss_is_that_of_guessing():
    assert train(network(), NOISE, settings(steps=1))[0].loss == pytest.approx(math.log(17), abs=0.02)


# Twenty steps beside an independent AdamW


def learning_rates(config: TrainingConfig) -> list[float]:
    """A straight line up from 0, then half a cosine down to a share of the peak."""
    peak, low, warmup = config.learning_rate, config.learning_rate * config.final_learning_rate, config.warmup_steps
    rates = [peak * step / warmup for step in range(warmup)]
    turns = np.arange(config.steps - warmup) / (config.steps - warmup)
    return [*rates, *(low + (peak - low) * 0.5 * (1 + np.cos(np.pi * turns)))]


def reference_losses(model: GPT2, tokens: np.ndarray, config: TrainingConfig) -> list[float]:
    """Plain NumPy AdamW on gradients of TensorFlow's own cross-entropy."""
    variables = model.trainable_variables
    weights = [v.numpy().astype(np.float64) for v in variables]
    means, squares = [np.zeros_like(w) for w in weights], [np.zeros_like(w) for w in weights]
    losses = []
    batches = training_batches(tokens, config.batch_size, SHAPE.n_ctx, config.seed)
    for step, ((x, y), rate) in enumerate(zip(batches, learning_rates(config), strict=False), start=1):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=model(x)))
        losses.append(float(loss))
        gradients = [tf.convert_to_tensor(g).numpy().astype(np.float64) for g in tape.gradient(loss, variables)]
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))
        for n, variable in enumerate(variables):
            g = gradients[n] * min(1.0, config.gradient_clip / norm)
            means[n] = config.beta_1 * means[n] + (1 - config.beta_1) * g
            squares[n] = config.beta_2 * squares[n] + (1 - config.beta_2) * g**2
            root = np.sqrt(squares[n] / (1 - config.beta_2**step))
            # Keras adds its epsilon to the root before the bias is corrected.
            step_taken = means[n] / (1 - config.beta_1**step) / (root + 1e-7 / math.sqrt(1 - config.beta_2**step))
            decay = config.weight_decay if weights[n].ndim > 1 else 0.0
            weights[n] -= rate * (step_taken + decay * weights[n])
            variable.assign(weights[n])
    return losses


def test_twenty_steps_as_an_adamw_of_our_own_takes_them():
    config = settings(gradient_clip=0.5, weight_decay=0.3)
    ours = [entry.loss for entry in train(network(), TOKENS, config)]
    expected = reference_losses(network(), TOKENS, config)
    assert len(ours) == len(expected) == 20
    np.testing.assert_allclose(ours, expected, atol=1e-4)
    assert ours[-1] < ours[0] - 1  # the weights have moved far


# The parts


def test_cross_entropy_and_its_gradient_are_tensorflows():
    rng = np.random.default_rng(0)
    logits = tf.constant(rng.normal(scale=5, size=(3, 4, 17)).astype(np.float32))
    targets = tf.constant(rng.integers(0, 17, (3, 4)).astype(np.int32))
    results = []
    for loss_of in (
        cross_entropy,
        lambda x, y: tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=x)),
    ):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            loss = loss_of(logits, targets) * 3.0  # so that the gradient from above is not 1
        results.append((loss.numpy(), tape.gradient(loss, logits).numpy()))
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-5)
    np.testing.assert_allclose(results[0][1], results[1][1], atol=1e-6)


def test_cross_entropy_of_the_impossible_is_finite():
    loss = cross_entropy(tf.constant([[[0.0, 1000.0]]]), tf.constant([[0]]))
    assert float(loss) == pytest.approx(87.3, abs=0.1)


def test_the_learning_rate_rises_and_falls():
    config = settings(steps=50, warmup_steps=10, learning_rate=0.5, final_learning_rate=0.2)
    schedule = make_optimizer(network(), config)._learning_rate
    assert [float(schedule(step)) for step in (0, 5, 10, 30, 50)] == pytest.approx([0, 0.25, 0.5, 0.3, 0.1])
    assert [float(schedule(step)) for step in range(50)] == pytest.approx(learning_rates(config), abs=1e-6)


def test_a_run_shorter_than_the_warm_up_and_one_without():
    schedule = make_optimizer(network(), settings(steps=5, warmup_steps=100))._learning_rate
    assert float(schedule(4)) == pytest.approx(1e-2)
    schedule = make_optimizer(network(), settings(steps=5, warmup_steps=0))._learning_rate
    assert float(schedule(0)) == pytest.approx(1e-2)


def test_gains_and_biases_do_not_decay():
    """Where the gradient is nothing, only decay moves a weight."""
    model = network()
    for variable in model.trainable_variables:
        variable.assign_add(tf.ones(variable.shape))
    before = [v.numpy() for v in model.trainable_variables]
    optimizer = make_optimizer(model, settings(warmup_steps=0, learning_rate=0.5, weight_decay=0.1))
    optimizer.apply([tf.zeros(v.shape) for v in model.trainable_variables], model.trainable_variables)
    for old, variable in zip(before, model.trainable_variables, strict=True):
        expected = old * (1 - 0.5 * 0.1) if old.ndim > 1 else old
        np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-6, err_msg=variable.path)


# What stops it


def test_a_loss_that_is_no_number_stops_the_run():
    model = network()
    model.wpe.assign(np.full(model.wpe.shape, np.nan))
    with pytest.raises(TrainingError, match="the loss is nan after step 1; try a lower learning_rate"):
        train(model, TOKENS, settings())


@pytest.mark.parametrize(
    ("tokens", "changes", "message"),
    [
        (TOKENS, {"sequence_length": 9}, "sequence_length: expected at most the model's n_ctx 8, got 9"),
        (TOKENS[:30], {}, r"training data: expected at least batch_size \* sequence_length \+ 1 = 33 tokens, got 30"),
    ],
)
def test_bad_requests(tokens, changes, message):
    with pytest.raises(TrainingError, match=message):
        train(network(), tokens, settings(**changes))


def test_too_little_held_out_text():
    with pytest.raises(TrainingError, match="held-out data: expected at least 9 tokens, got 8"):
        train(network(), TOKENS, settings(), valid_tokens=TOKENS[:8])


def test_a_shorter_sequence_is_trained_on():
    log = train(network(), TOKENS, settings(steps=2, sequence_length=3))
    assert [entry.tokens for entry in log] == [12, 24]
