"""Training on tiny networks: it learns, repeats itself, and takes the steps of an AdamW written out here."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from gpt2.config import GPT2Config, TrainingConfig
from gpt2.data.batches import TrainingBatches
from gpt2.data.rows import ArrayTokens
from gpt2.errors import ConfigError, TrainingError
from gpt2.model import GPT2
from gpt2.training import LogEntry, lora, train
from gpt2.training.loop import flops_per_token
from gpt2.training.schedule import learning_rate, peak_learning_rate
from gpt2.training.step import Stepper, new_stepper

on_tensorflow = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="of TensorFlow's step")
"""`tests/test_jax.py` runs this file with KERAS_BACKEND=jax too."""

SHAPE = GPT2Config(n_vocab=17, n_ctx=8, n_embd=16, n_head=2, n_layer=2)
TOKENS = np.tile([3, 1, 4, 1, 5, 9, 2, 6], 20).astype(np.uint16)
NOISE = np.random.default_rng(0).integers(0, 17, 400)


def network(seed: int = 0) -> GPT2:
    keras.utils.set_random_seed(seed)
    return GPT2(SHAPE)


def settings(**changes: object) -> TrainingConfig:
    values = {"steps": 20, "batch_size": 4, "learning_rate": 1e-2, "warmup_steps": 2, "eval_every": 1}
    return TrainingConfig(**values | changes)


def stepper(config: TrainingConfig, seed: int = 0, **options: object) -> Stepper:
    return new_stepper(network(seed), config, **options)


def run(config: TrainingConfig, tokens=TOKENS, valid=None, **options: object) -> tuple[Stepper, list[LogEntry]]:
    made = stepper(config)
    peak = peak_learning_rate(config, fine_tuning=False)
    valid_tokens = None if valid is None else ArrayTokens(valid)
    return made, train(made, ArrayTokens(tokens), peak=peak, valid_tokens=valid_tokens, **options)


def weights(made: Stepper) -> dict[str, np.ndarray]:
    return dict(made.parameters())


def test_a_repeated_sequence_is_learnt_and_training_repeats_itself():
    runs = []
    for _ in range(2):
        seen: list[LogEntry] = []
        config = settings(steps=120, eval_every=40, eval_batches=2)
        _, log = run(config, valid=TOKENS[:60], on_log=seen.append)
        assert seen == log
        runs.append(log)
    log = runs[0]
    assert [(entry.step, entry.tokens) for entry in log] == [(40, 1280), (80, 2560), (120, 3840)]
    # All that stays uncertain is what follows a 1 at the beginning of a window.
    assert log[0].loss > log[-1].loss
    assert log[-1].loss < 0.5
    assert log[-1].valid_loss < 0.5
    assert log[-1].seconds >= log[0].seconds > 0
    assert all(entry.tokens_per_second > 0 and entry.gradient_norm > 0 for entry in log)
    assert [(e.loss, e.valid_loss) for e in runs[1]] == [(e.loss, e.valid_loss) for e in log]


def test_another_seed_gives_other_losses():
    losses = [[e.loss for e in run(settings(steps=3, seed=seed), NOISE)[1]] for seed in (1, 2)]
    assert losses[0] != losses[1]


def test_the_first_loss_is_that_of_guessing():
    assert run(settings(steps=1), NOISE)[1][0].loss == pytest.approx(math.log(17), abs=0.02)


# Twenty steps beside an independent AdamW


def reference_losses(config: TrainingConfig, tokens: np.ndarray) -> list[float]:
    """Plain NumPy AdamW on gradients of TensorFlow's own cross-entropy and of the plain network."""
    model = network()
    variables = list(model.tensors().values())
    values = [v.numpy().astype(np.float64) for v in variables]
    means, squares = [np.zeros_like(w) for w in values], [np.zeros_like(w) for w in values]
    losses = []
    batches = TrainingBatches(ArrayTokens(tokens), config.batch_size, SHAPE.n_ctx, config.seed)
    for step in range(1, config.steps + 1):
        x, y = batches[step - 1]
        rate = learning_rate(config, config.learning_rate, step)
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=model(x)))
        losses.append(float(loss))
        found = tape.gradient(loss, [v.value for v in variables])
        gradients = [tf.convert_to_tensor(g).numpy().astype(np.float64) for g in found]
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))
        for n, variable in enumerate(variables):
            g = gradients[n] * min(1.0, config.gradient_clip / norm)
            means[n] = config.beta_1 * means[n] + (1 - config.beta_1) * g
            squares[n] = config.beta_2 * squares[n] + (1 - config.beta_2) * g**2
            step_taken = means[n] / (1 - config.beta_1**step)
            step_taken = step_taken / (np.sqrt(squares[n] / (1 - config.beta_2**step)) + 1e-8)
            decay = config.weight_decay if values[n].ndim > 1 else 0.0
            values[n] -= rate * (step_taken + decay * values[n])
            variable.assign(values[n])
    return losses


@on_tensorflow
def test_twenty_steps_as_an_adamw_of_our_own_takes_them():
    config = settings(gradient_clip=0.5, weight_decay=0.3)
    ours = [entry.loss for entry in run(config)[1]]
    expected = reference_losses(config, TOKENS)
    assert len(ours) == len(expected) == 20
    np.testing.assert_allclose(ours, expected, atol=1e-4)
    assert ours[-1] < ours[0] - 1  # the weights have moved far


def test_accumulated_batches_are_one_large_batch():
    """Two batches of 2 take the step of one batch of 4."""
    x, y = TrainingBatches(ArrayTokens(NOISE), 4, 8, 0)[0]
    whole, halves = stepper(settings()), stepper(settings(batch_size=2, accumulation_steps=2))
    for number in (1, 2):
        one = whole.step(number, [(x, y)], 1e-2)
        two = halves.step(number, [(x[:2], y[:2]), (x[2:], y[2:])], 1e-2)
        assert two == pytest.approx(one, rel=1e-5)
    for name, expected in weights(whole).items():
        np.testing.assert_allclose(weights(halves)[name], expected, atol=1e-5, err_msg=name)


def test_checkpointed_gradients_change_nothing():
    losses = [[e.loss for e in run(settings(gradient_checkpointing=c, dropout=0.1))[1]] for c in (False, True)]
    np.testing.assert_allclose(losses[0], losses[1], atol=1e-5)


def test_bfloat16_learns_too():
    _, log = run(settings(steps=60, precision="bfloat16", eval_every=60))
    assert log[0].loss < 2


def test_documents_that_do_not_see_each_other():
    config = settings(cross_documents=False)
    made = stepper(config, end_of_text=0)
    x = np.array([[5, 6, 0, 7, 8, 9, 1, 2]], np.int32)
    other = x.copy()
    other[0, :2] = [3, 4]  # before the end of the first document
    y = np.full_like(x, 1)

    def last_loss(x: np.ndarray) -> float:
        ends = (x == 0).astype(np.int32)
        hidden, _ = made.network.hidden(keras.ops.array(x), segments=keras.ops.array(np.cumsum(ends, axis=1) - ends))
        return float(keras.ops.sum(hidden[:, 3:]))

    assert last_loss(x) == last_loss(other)
    assert made.measure((x, y)) != stepper(settings()).measure((x, y))
    with pytest.raises(ConfigError, match="cross_documents: expected true, since this vocabulary has no"):
        stepper(config)


# The learning rate


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("cosine", [0.05, 0.5, 0.5 * (0.2 + 0.8 * 0.5), 0.1]),
        ("linear", [0.05, 0.5, 0.3, 0.1]),
        ("constant", [0.05, 0.5, 0.5, 0.5]),
        ("inverse_sqrt", [0.05, 0.5, 0.5 * math.sqrt(10 / 55), 0.5 * math.sqrt(0.1)]),
    ],
)
def test_the_learning_rate_rises_and_falls(schedule, expected):
    config = settings(steps=100, warmup_steps=10, final_learning_rate=0.2, schedule=schedule)
    assert [learning_rate(config, 0.5, step) for step in (1, 10, 55, 100)] == pytest.approx(expected)


def test_the_warm_up_is_at_most_a_tenth():
    config = settings(steps=50, warmup_steps=100)
    assert learning_rate(config, 1.0, 5) == 1.0
    assert learning_rate(settings(steps=1), 1.0, 1) > 0


def test_default_learning_rates():
    plain = settings(learning_rate=None)
    assert peak_learning_rate(plain, fine_tuning=False) == 6e-4
    assert peak_learning_rate(plain, fine_tuning=True) == 1e-4
    assert peak_learning_rate(settings(learning_rate=None, lora_rank=2), fine_tuning=True) == 1e-3
    assert peak_learning_rate(settings(), fine_tuning=True) == 1e-2


@on_tensorflow
def test_gains_and_biases_do_not_decay():
    """Where the gradient is nothing, only decay moves a weight."""
    made = stepper(settings(weight_decay=0.1))
    for variable in made.variables.values():
        variable.assign(np.ones(variable.shape))
    zeros = [tf.zeros(v.shape) for v in made.variables.values()]
    made.optimizer.apply(zeros, tf.constant(0.0), tf.constant(0.5), tf.constant(1.0))
    for name, array in weights(made).items():
        np.testing.assert_allclose(array, 0.95 if array.ndim > 1 else 1.0, rtol=1e-6, err_msg=name)


# Parts that train, and adapters


def test_only_chosen_parameters_change():
    made, _ = run(settings(trainable=("h1/*", "ln_f/g")))
    before = {name: v.numpy() for name, v in network().tensors().items()}
    for name, array in weights(made).items():
        assert (array != before[name]).any() == (name.startswith("h1/") or name == "ln_f/g"), name
    assert made.num_trainable == 12 * 16 * 16 + 13 * 16 + 16
    with pytest.raises(ConfigError, match=r"trainable: expected patterns of names like h0/attn/c_attn/w, got 'h9/\*'"):
        stepper(settings(trainable=("h9/*",)))


def test_adapters_begin_equal_to_the_base_and_train_alone():
    config = settings(lora_rank=2, steps=30, learning_rate=3e-2)
    made = stepper(config)
    batch = TrainingBatches(ArrayTokens(TOKENS), 4, 8, 0)[0]
    base = stepper(settings())
    assert made.measure(batch) == pytest.approx(base.measure(batch), abs=1e-6)
    assert made.num_trainable == 2 * 2 * ((16 + 48) + (16 + 16) + (16 + 64) + (64 + 16))
    log = train(made, ArrayTokens(TOKENS), peak=3e-2)
    assert log[-1].loss < log[0].loss - 0.05  # little: what is random and stays is most of the network
    for name, variable in made.network.tensors().items():
        np.testing.assert_array_equal(variable.numpy(), base.network.tensors()[name].numpy(), err_msg=name)
    # What is saved is merged: an ordinary network with these weights has the same loss.
    merged = stepper(settings())
    for name, array in made.parameters():
        merged.network.tensors()[name].assign(array)
    assert merged.measure(batch) == pytest.approx(made.measure(batch), abs=1e-5)
    assert merged.measure(batch) < base.measure(batch) - 0.05


def test_chosen_targets_of_adapters():
    made = stepper(settings(lora_rank=1, lora_targets=("attn/c_attn",), lora_alpha=4.0))
    assert list(made.variables) == [f"h{n}/attn/c_attn/w/{x}" for n in (0, 1) for x in "ab"]
    adapter = made.adapters["h0/attn/c_attn/w"]
    assert isinstance(adapter, lora.Adapter)
    assert adapter.scale == 4.0


# What stops it


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_a_gradient_that_is_no_number_stops_the_run_and_leaves_the_weights(bad):
    """Bit for bit, and what the optimizer remembers too: the step could be tried again."""
    made = stepper(settings())
    batch = TrainingBatches(ArrayTokens(TOKENS), 2, 8, 0)[0]
    made.step(1, [batch], 1e-2)
    made.network.ln_f.g.assign(np.full(16, bad))
    before = weights(made) | {name: np.array(v) for name, v in made.optimizer_state().items()}
    assert any(before[name].any() for name in made.optimizer_state())
    loss, norm = made.step(2, [batch], 1e-2)
    assert not (np.isfinite(loss) and np.isfinite(norm))
    with pytest.raises(TrainingError, match="at step 1; nothing was changed by it. Try a lower learning_rate"):
        train(made, ArrayTokens(TOKENS), peak=1e-2)
    after = weights(made) | {name: np.array(v) for name, v in made.optimizer_state().items()}
    for name in before:
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)


def test_patience():
    """Noise learnt by heart: the held-out loss soon rises."""
    config = settings(steps=400, learning_rate=3e-2, patience=3, eval_every=5, eval_batches=2)
    saved = []
    _, log = run(config, NOISE[:60], valid=NOISE[200:300], on_save=saved.append)
    assert log[-1].step < 400
    losses = [entry.valid_loss for entry in log]
    assert int(np.argmin(losses)) == len(losses) - 4
    assert saved[-1].step == log[-1].step
    assert saved[-1].best_step == log[-4].step
    assert saved[-1].looks_since_best == 3


@pytest.mark.parametrize(
    ("tokens", "changes", "message"),
    [
        (TOKENS, {"sequence_length": 9}, "sequence_length: expected at most the model's n_ctx 8, got 9"),
        (TOKENS[:30], {}, r"training data: expected at least batch_size \* sequence_length \+ 1 = 33 tokens, got 30"),
    ],
)
def test_bad_requests(tokens, changes, message):
    with pytest.raises(TrainingError, match=message):
        run(settings(**changes), tokens)


def test_too_little_held_out_text():
    with pytest.raises(TrainingError, match="held-out data: expected at least 9 tokens, got 8"):
        run(settings(), valid=TOKENS[:8])


def test_a_shorter_sequence_is_trained_on():
    _, log = run(settings(steps=2, sequence_length=3))
    assert [entry.tokens for entry in log] == [12, 24]


def test_a_ceiling_is_measured_and_operations_are_counted():
    assert stepper(settings()).ceiling() > 1e9
    # Every weight of a product once forward and twice backward, two operations each.
    assert flops_per_token(SHAPE, 8) == 6 * (12 * 2 * 16 * 16 + 17 * 16) + 6 * 2 * 8 * 16
