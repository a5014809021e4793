"""Evaluations at the checkpoints of a training: what a model forgets, or learns, of what it is not trained on.

They are made before the first step and at every checkpoint, and stand in the run's `evaluations.jsonl`, its report and
TensorBoard. An evaluation that fails is noted, and the training goes on.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2 import report
from gpt2.errors import ConfigError, GPT2Error
from gpt2.evaluation import Evaluated, Options, evaluate, find_data, task_of
from gpt2.runs import EVALUATIONS, Run

_FACTS = (
    *("version", "protocol", "options", "detokeniser"),
    *("weights_sha256", "vocabulary_sha256", "engine", "precision", "versions", "seconds"),
)
"""What is kept of `Result.facts` beside the figures, so that they can be traced."""


@dataclass(frozen=True)
class Monitor:
    """One evaluation.

    Raises:
        ConfigError: no such task, or a limit below 1.
    """

    task: str
    """Its name, as for `gpt2 eval`."""
    data: str
    """The set's file, or a folder in which it is looked for."""
    limit: int | None = None
    """Only so many documents of it, the first ones; None takes all."""

    def __post_init__(self) -> None:
        task_of(self.task)
        Options(limit=self.limit)

    @classmethod
    def parse(cls, text: str, limit: int | None = None) -> Monitor:
        """A monitor from `TASK=PATH`."""
        task, equals, data = text.partition("=")
        if not (task and equals and data):
            raise ConfigError(f"monitor: expected TASK=PATH, such as wikitext2=wiki.test.raw, got {text!r}")
        return cls(task, os.path.abspath(data), limit)

    @property
    def name(self) -> str:
        """What it is called in the run: the task, and the file where the task is any text."""
        return f"{self.task} {Path(self.data).name}" if task_of(self.task).files == ("*",) else self.task


def check_monitors(monitors: Sequence[Monitor]) -> None:
    """See before a training whether all of them can be made.

    Raises:
        ConfigError: two have the same name.
        EvaluationError: the data of one is not there.
    """
    names = [monitor.name for monitor in monitors]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"monitors: expected each of them once, got {twice!r} twice")
    for monitor in monitors:
        find_data(task_of(monitor.task), Path(monitor.data))


class Watch:
    """The monitors of a run.

    Args:
        run: where the results go.
        monitors: what is evaluated.
        model: what is trained; its weights are up to date whenever `look` is called.
        note: told the results, and what went wrong.
    """

    def __init__(self, run: Run, monitors: Sequence[Monitor], model: Evaluated, note: Callable[[str], None]) -> None:
        self._run, self._monitors, self._model, self._note = run, monitors, model, note
        self._first: dict[tuple[str, str], Mapping[str, Any]] = {}
        self._done: set[tuple[str, int]] = set()
        for values in report.read_lines(run.folder / EVALUATIONS):
            self._done.add((values["name"], values["step"]))
            self._first.setdefault((values["name"], values["metric"]), values)

    def is_due(self, step: int) -> bool:
        """Whether there is something to do at a step."""
        return any((monitor.name, step) not in self._done for monitor in self._monitors)

    def look(self, step: int) -> None:
        """Make all evaluations of a step that have not been made."""
        for monitor in self._monitors:
            if (monitor.name, step) not in self._done:
                self._done.add((monitor.name, step))
                try:
                    self._evaluate(monitor, step)
                except (GPT2Error, OSError) as error:
                    self._note(f"{monitor.name} was not evaluated at step {step}: {error}")

    def _evaluate(self, monitor: Monitor, step: int) -> None:
        result = evaluate(self._model, monitor.task, monitor.data, options=Options(limit=monitor.limit))
        data = " ".join(entry["sha256"] for entry in result.facts["data"])
        known = self._first.get((monitor.name, next(iter(result.metrics))), {"data_sha256": data})
        if known["data_sha256"] != data:
            self._note(f"{monitor.name}: its data is not what it was at step {known['step']}; left out")
            return
        titles = {metric.name: metric.title for metric in task_of(monitor.task).metrics}
        for name, found in result.metrics.items():
            values = {
                **{"step": step, "name": monitor.name, "metric": name, "title": titles[name], **found.to_dict()},
                **{"documents": result.facts["counts"]["documents"], "limit": monitor.limit},
                **{"task": monitor.task, "data_sha256": data},
                **{fact: result.facts[fact] for fact in _FACTS},
            }
            self._run.evaluated(values)
            self._first.setdefault((monitor.name, name), values)
        name, found = next(iter(result.metrics.items()))
        start = self._first[monitor.name, name]
        before = math.nan if start["value"] is None else start["value"]
        since = f", {found.value - before:+.4g} since step {start['step']}" if step != start["step"] else ""
        self._note(f"{monitor.name} at step {step}: {titles[name]} {found.value:.4g}{since}")
