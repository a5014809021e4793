"""The learning rate of each step. Pure functions of the settings and of the step, so there is nothing to save."""

from __future__ import annotations

import math

from gpt2.config import TrainingConfig


def peak_learning_rate(config: TrainingConfig, *, fine_tuning: bool) -> float:
    """The highest learning rate: the one that is set, or the default for what is done."""
    if config.learning_rate is not None:
        return config.learning_rate
    if config.lora_rank is not None:
        return 1e-3
    return 1e-4 if fine_tuning else 6e-4


def learning_rate(config: TrainingConfig, peak: float, step: int) -> float:
    """The learning rate of a step, the first being 1: up in a straight line, then down as `config.schedule` says.

    >>> config = TrainingConfig(steps=100, warmup_steps=10, final_learning_rate=0.0)
    >>> [learning_rate(config, 1.0, step) for step in (1, 10, 55, 100)]
    [0.1, 1.0, 0.5, 0.0]
    """
    warmup = min(config.warmup_steps, config.steps // 10)
    if step <= warmup:
        return peak * step / warmup
    done = (step - warmup) / max(1, config.steps - warmup)
    if config.schedule == "constant":
        return peak
    if config.schedule == "inverse_sqrt":
        return peak * math.sqrt(max(1, warmup) / step)
    share = 0.5 * (1 + math.cos(math.pi * done)) if config.schedule == "cosine" else 1 - done
    return peak * (config.final_learning_rate + (1 - config.final_learning_rate) * share)
