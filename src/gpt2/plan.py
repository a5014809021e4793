"""What a training will need, from a short measurement: memory, time a step, and settings that fit.

A process of its own trains a network of the same width with one layer for a few steps, another one with three; both
time and memory grow in a straight line with the layers, which gives those of the whole. It says nothing of the loss.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from gpt2 import processes
from gpt2.config import GPT2Config, TrainingConfig
from gpt2.errors import ConfigError, TrainingError

FEW, MORE = 1, 3
"""Layers of the networks that are measured."""
STEPS = 4
"""Steps of each; the first two are not counted."""


@dataclass(frozen=True)
class Forecast:
    """What one choice of settings needs."""

    training: TrainingConfig
    """The settings."""
    memory: float
    """Peak memory of the process in bytes."""
    seconds_per_step: float
    """Of one update."""
    tokens_per_second: float
    """Tokens read."""

    @property
    def seconds(self) -> float:
        """Of all steps, without looks at the held-out text and saving."""
        return self.seconds_per_step * self.training.steps


def forecast(config: GPT2Config, training: TrainingConfig) -> Forecast:
    """Measure and extrapolate; takes about half a minute for the smallest size.

    Args:
        config: the shape to train.
        training: how.

    Raises:
        ConfigError: a sequence that is longer than the context.
        TrainingError: the measurement could not be done, for want of memory perhaps.
    """
    T = training.sequence_length or config.n_ctx
    if config.n_ctx < T:
        raise ConfigError(f"sequence_length: expected at most n_ctx = {config.n_ctx}, got {T}")
    few = _measured(dataclasses.replace(config, n_layer=min(FEW, config.n_layer)), training)
    if config.n_layer <= FEW:
        memory, seconds = few
    else:
        layers = min(MORE, config.n_layer)
        more = _measured(dataclasses.replace(config, n_layer=layers), training)
        growth = [max(0.0, (b - a) / (layers - FEW)) for a, b in zip(few, more, strict=True)]
        memory, seconds = (a + g * (config.n_layer - FEW) for a, g in zip(few, growth, strict=True))
    tokens = training.batch_size * training.accumulation_steps * T
    return Forecast(training, memory, seconds, tokens / seconds)


def fitting(config: GPT2Config, training: TrainingConfig, memory: float) -> list[Forecast]:
    """Forecasts of the settings and, while they do not fit, of thriftier ones; the last one fits, or none does.

    What changes is first the batch, halved with twice the accumulation, which leaves the training what it is; then
    gradient checkpointing.

    Args:
        config: the shape to train.
        training: how.
        memory: bytes that there are.
    """
    found = [forecast(config, training)]
    while found[-1].memory > memory:
        last = found[-1].training
        if last.batch_size % 2 == 0:
            B, A = last.batch_size // 2, last.accumulation_steps * 2
            following = dataclasses.replace(last, batch_size=B, accumulation_steps=A)
        elif not last.gradient_checkpointing:
            following = dataclasses.replace(last, gradient_checkpointing=True)
        else:
            break
        found.append(forecast(config, following))
    return found


def _measured(config: GPT2Config, training: TrainingConfig) -> tuple[float, float]:
    """Peak memory in bytes and seconds a step, of a process of its own."""
    request = json.dumps({"config": config.to_dict(), "training": training.to_dict()})
    command = processes.command("gpt2.plan", function="_child")
    done = subprocess.run(command, input=request, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        raise TrainingError(f"plan: the measurement could not be done: {reason}")
    memory, seconds = json.loads(done.stdout)
    return memory, seconds


def _child() -> None:
    """Train a few steps on random tokens and print what it took."""
    import statistics
    import time

    import numpy as np

    from gpt2.model import GPT2
    from gpt2.training.step import new_stepper

    request = json.load(sys.stdin)
    config, training = GPT2Config(**request["config"]), TrainingConfig.from_dict(request["training"])
    stepper = new_stepper(GPT2(config), training, end_of_text=0)
    B, T = training.batch_size, training.sequence_length or config.n_ctx
    rng = np.random.default_rng(0)
    seconds = []
    for number in range(1, STEPS + 1):
        windows = [
            rng.integers(0, config.n_vocab, (B, T + 1)).astype(np.int32) for _ in range(training.accumulation_steps)
        ]
        began = time.perf_counter()
        stepper.step(number, [(window[:, :-1], window[:, 1:]) for window in windows], 1e-4)
        seconds.append(time.perf_counter() - began)
    sys.stdout.write(json.dumps([_peak_memory(), statistics.median(seconds[2:])]))


def _peak_memory() -> int:
    """The most memory that this process has had, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not by getrusage, whose peak a process takes over from the one that started it, however large that was.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
