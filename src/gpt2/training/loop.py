"""From step to step: batches in, losses out, looks at the held-out text, when to save and when to stop.

It writes no files: whoever calls it is told (`on_log`, `on_save`) and gives back what was saved (`progress`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from gpt2.config import GPT2Config, TrainingConfig
from gpt2.data.batches import Tokens, TrainingBatches, evaluation_batches
from gpt2.errors import CancelledError, TrainingError
from gpt2.training.schedule import learning_rate
from gpt2.training.step import Stepper


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
    gradient_norm: float
    """The norm of the last step's gradient, before clipping."""
    tokens_per_second: float
    """Since the entry before, without looks at the held-out text and without saving."""
    ceiling_share: float
    """The speed as a share of the matrix products that this machine was measured to do; see `Stepper.ceiling`."""
    seconds: float
    """Wall-clock time since the start, earlier parts of a resumed run included."""
    seconds_left: float
    """A forecast from the speed so far."""


@dataclass
class Progress:
    """Where a run is; besides weights and the optimizer's state all that is needed to go on exactly."""

    step: int = 0
    """Weight updates so far."""
    losses: list[float] = field(default_factory=list)
    """Of the steps since the last entry of the log."""
    best_loss: float | None = None
    """The lowest held-out loss so far."""
    best_step: int | None = None
    """Where it was."""
    looks_since_best: int = 0
    """Looks at the held-out text since then."""
    seconds: float = 0.0
    """Wall-clock time so far."""


def train(
    stepper: Stepper,
    tokens: Tokens,
    *,
    peak: float,
    valid_tokens: Tokens | None = None,
    progress: Progress | None = None,
    on_log: Callable[[LogEntry], None] | None = None,
    on_step: Callable[[int], None] | None = None,
    on_save: Callable[[Progress], None] | None = None,
    stop_asked: Callable[[], bool] | None = None,
) -> list[LogEntry]:
    """Train the stepper's network in place.

    Args:
        stepper: network, settings and optimizer.
        tokens: the training text.
        peak: the highest learning rate.
        valid_tokens: held-out text, or None.
        progress: where to go on; None begins.
        on_log: called with each entry as it is made, every `eval_every` steps and at the end.
        on_step: called with each step's number.
        on_save: called every `save_every` steps and at the end, after `on_log`.
        stop_asked: asked after each step; if so, `on_save` is called and the training ends with a `CancelledError`.

    Returns:
        The entries of this call.

    Raises:
        TrainingError: too little text, a sequence longer than the context, or a loss that is not a number. The weights
            are then those after the last step with a finite loss.
        CancelledError: it was asked to stop before its end.
    """
    config, shape = stepper.config, stepper.network.config
    B, T = config.batch_size, config.sequence_length or shape.n_ctx
    if shape.n_ctx < T:
        raise TrainingError(f"sequence_length: expected at most the model's n_ctx {shape.n_ctx}, got {T}")
    batches = TrainingBatches(tokens, B, T, config.seed)
    held_out = [] if valid_tokens is None else list(evaluation_batches(valid_tokens, B, T, config.eval_batches))
    state = progress or Progress()
    flops = flops_per_token(shape, T)
    log: list[LogEntry] = []
    began, busy, counted = time.monotonic() - state.seconds, 0.0, 0
    first, stop = state.step + 1, False
    while state.step < config.steps and not stop:
        started = time.monotonic()
        number = state.step + 1
        A = config.accumulation_steps
        rate = learning_rate(config, peak, number)
        loss, norm = stepper.step(number, [batches[(number - 1) * A + n] for n in range(A)], rate)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingError(
                f"the loss is {loss} and the gradient's norm {norm} at step {number}; nothing was changed by it. "
                "Try a lower learning_rate"
            )
        state.step = number
        state.losses.append(loss)
        if number > first or number == config.steps:  # the first step builds the graph
            busy += time.monotonic() - started
            counted += 1
        last = number == config.steps
        if number % config.eval_every == 0 or last:
            valid = float(np.mean([stepper.measure(batch) for batch in held_out])) if held_out else None
            stop = _judge(state, valid, config)
            speed = counted * A * B * T / busy if busy else 0.0
            state.seconds = time.monotonic() - began
            entry = LogEntry(
                step=number,
                tokens=number * A * B * T,
                loss=float(np.mean(state.losses)),
                valid_loss=valid,
                learning_rate=rate,
                gradient_norm=norm,
                tokens_per_second=speed,
                ceiling_share=flops * speed / stepper.ceiling(),
                seconds=state.seconds,
                seconds_left=0.0 if stop else (config.steps - number) * busy / max(1, counted),
            )
            state.losses, busy, counted = [], 0.0, 0
            log.append(entry)
            if on_log is not None:
                on_log(entry)
        if on_step is not None:
            on_step(number)
        asked = not (last or stop) and stop_asked is not None and stop_asked()
        if on_save is not None and (number % (config.save_every or config.eval_every) == 0 or last or stop or asked):
            state.seconds = time.monotonic() - began
            on_save(replace(state, losses=list(state.losses)))
        if asked:
            raise CancelledError(f"training: it was asked to stop, and did after step {number}")
    return log


def _judge(state: Progress, valid: float | None, config: TrainingConfig) -> bool:
    """Note a look at the held-out text; whether patience is at its end."""
    if valid is None:
        return False
    if state.best_loss is None or valid < state.best_loss:
        state.best_loss, state.best_step, state.looks_since_best = valid, state.step, 0
        return False
    state.looks_since_best += 1
    return config.patience is not None and state.looks_since_best >= config.patience


def flops_per_token(config: GPT2Config, sequence_length: int) -> float:
    """Floating-point operations that training on a token needs: 6 for each weight of a matrix product, forward and
    backward, and 12 * L * T * C for attention (Chowdhery et al. 2022, appendix B; causal, so half of it)."""
    C = config.n_embd
    matrices = 12 * config.n_layer * C * C + config.n_vocab * C
    return 6.0 * matrices + 6.0 * config.n_layer * sequence_length * C
