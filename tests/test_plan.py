"""Forecasts of a training: they are measured, they grow with the layers, and what is proposed fits."""

from __future__ import annotations

import numpy as np
import pytest

from gpt2 import plan
from gpt2.config import GPT2Config, TrainingConfig
from gpt2.errors import ConfigError, TrainingError
from test_cli import gpt2, out

SHAPE = GPT2Config(n_vocab=300, n_ctx=16, n_embd=16, n_head=2, n_layer=4)


def test_a_forecast_is_in_the_right_region() -> None:
    """A process that trains needs what TensorFlow needs, and a little more for a network as small as this.

    The memory of who asks does not count: a process takes over the peak that getrusage reports from its parent, 2.1 GB
    in a full test run, not 0.7.
    """
    held = np.ones(3_000_000_000, np.uint8)
    found = plan.forecast(SHAPE, TrainingConfig(batch_size=2, steps=10))
    assert held.nbytes == 3e9
    assert 0.3e9 < found.memory < 2e9
    assert 0 < found.seconds_per_step < 5
    assert found.tokens_per_second == pytest.approx(32 / found.seconds_per_step)
    assert found.seconds == pytest.approx(10 * found.seconds_per_step)


def measured(config: GPT2Config, training: TrainingConfig) -> tuple[float, float]:
    """Memory and time of a machine made up for the test."""
    layer = 1.0 if training.gradient_checkpointing else 10.0 * training.batch_size
    return 100 + layer * config.n_layer, 0.5 + 0.25 * config.n_layer


def test_layers_are_extrapolated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_measured", measured)
    found = plan.forecast(GPT2Config(n_layer=12), TrainingConfig(batch_size=2))
    assert found.memory == pytest.approx(100 + 20 * 12)
    assert found.seconds_per_step == pytest.approx(0.5 + 0.25 * 12)
    assert plan.forecast(GPT2Config(n_layer=1), TrainingConfig(batch_size=2)).memory == pytest.approx(120)


@pytest.mark.parametrize(
    ("memory", "expected"),
    [(1000, [(8, 1, False)]), (350, [(8, 1, False), (4, 2, False), (2, 4, False)]), (50, None)],
)
def test_thriftier_settings_until_one_fits(
    monkeypatch: pytest.MonkeyPatch, memory: float, expected: list[tuple[int, int, bool]] | None
) -> None:
    monkeypatch.setattr(plan, "_measured", measured)
    found = plan.fitting(GPT2Config(n_layer=10), TrainingConfig(batch_size=8), memory)
    tried = [(f.training.batch_size, f.training.accumulation_steps, f.training.gradient_checkpointing) for f in found]
    assert tried == (expected or [(8, 1, False), (4, 2, False), (2, 4, False), (1, 8, False), (1, 8, True)])
    assert (found[-1].memory <= memory) == (expected is not None)


def test_errors() -> None:
    with pytest.raises(ConfigError, match="sequence_length: expected at most n_ctx = 16, got 17"):
        plan.forecast(SHAPE, TrainingConfig(sequence_length=17))
    with pytest.raises(TrainingError, match="plan: the measurement could not be done: .*trainable: expected patterns"):
        plan.forecast(SHAPE, TrainingConfig(trainable=("nothing",)))


def test_the_command() -> None:
    shape = ("--n-layer", "2", "--n-embd", "16", "--n-head", "2", "--n-ctx", "8", "--batch-size", "1")
    lines = out("plan", *shape, "--memory", "20").splitlines()
    assert lines[0].endswith("1,000 steps; 20.0 GB of memory")
    assert lines[2].split()[:3] == ["1", "1", "no"]
    assert len(lines) == 3
    assert gpt2("plan", *shape, "--memory", "-1").returncode == 2
