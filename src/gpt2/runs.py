"""A training run on disk: its settings, its numbers, its checkpoints; killed at any moment, it can go on.

    RUN/run.json                 settings, data, versions
    RUN/data/, valid/            the tokens, where they were prepared for this run
    RUN/metrics.jsonl            a line for each entry of the log
    RUN/samples.jsonl            what the model wrote on the way
    RUN/evaluations.jsonl        evaluations at the checkpoints, a line for each figure
    RUN/tensorboard/             the same numbers for TensorBoard
    RUN/checkpoints/step-00000100/   a model that loads as RUN@100, and what is needed to go on from it
    RUN/best.json                which checkpoint had the lowest held-out loss
    RUN/loss.png, report.html    made at the end of every call

A checkpoint is a native model's folder with `training.safetensors` (the optimizer's state and adapters),
`training.json` (the `Progress`) and a manifest of hashes, put in place by one rename. It knows nothing of batches.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gpt2 import checkpoints, report, store
from gpt2.atomic import atomic_file, atomic_folder, locked
from gpt2.checkpoints import manifest, native, tensor_file
from gpt2.checkpoints.json_file import read_object
from gpt2.codec import Codec
from gpt2.errors import CheckpointError, TrainingError
from gpt2.tensorboard import TensorBoardLog
from gpt2.training import LogEntry, Progress
from gpt2.training.step import Stepper

FORMAT = 1
DATA, VALID = "data", "valid"
"""In a run's folder, text that `gpt2 train` has prepared for it."""
EVALUATIONS = "evaluations.jsonl"


class Run:
    """The folder of a run. Made by `create` or `open`.

    Args:
        folder: RUN.
        facts: what is in `run.json`.
        note: told what a person should know, such as that a damaged checkpoint was skipped.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any], note: Callable[[str], None]) -> None:
        self.folder, self.facts, self.note = folder, facts, note
        self._tensorboard: TensorBoardLog | None = None

    @classmethod
    def create(
        cls, folder: Path, facts: Mapping[str, Any], note: Callable[[str], None], save_base: Callable[[Path], object]
    ) -> Run:
        """Begin a run in a folder that is empty or not there yet, or that a call killed in here has left.

        Args:
            folder: RUN.
            facts: for `run.json`.
            note: see the class.
            save_base: writes the model that the run begins from, so that it needs nothing from outside to go on.

        Raises:
            TrainingError: there is something in it.
        """
        left = {".lock", "base", "checkpoints", DATA, VALID}
        if folder.exists() and (
            not folder.is_dir() or any(e.name not in left and ".gpt2-tmp-" not in e.name for e in folder.iterdir())
        ):
            hint = f"; to go on with it: gpt2 train --resume {folder}" if store.is_run(folder) else ""
            raise TrainingError(f"{folder}: expected an empty folder or none for a new run, found something{hint}")
        folder.mkdir(parents=True, exist_ok=True)
        save_base(folder / "base")
        (folder / "checkpoints").mkdir(exist_ok=True)
        facts = {"format": FORMAT, **facts, "versions": versions()}
        with atomic_file(folder / "run.json") as path:
            path.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        return cls(folder, facts, note)

    @classmethod
    def open(cls, folder: Path, note: Callable[[str], None]) -> Run:
        """Open a run that was begun.

        Raises:
            TrainingError: there is none.
        """
        if not store.is_run(folder):
            raise TrainingError(f"{folder}: expected the folder of a training run, with run.json; found none")
        facts = read_object(folder / "run.json")
        if facts.get("format") != FORMAT:
            raise TrainingError(f"{folder / 'run.json'}: expected format {FORMAT}, got {facts.get('format')!r}")
        return cls(folder, facts, note)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep others from training in this folder meanwhile.

        Raises:
            TrainingError: another process does.
        """
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(self.folder / ".lock", wait=False))
            except BlockingIOError:
                raise TrainingError(f"{self.folder}: another process is training in it") from None
            yield

    # Checkpoints

    def save(self, stepper: Stepper, progress: Progress, codec: Codec | None) -> Path:
        """Write a checkpoint, and remove old ones: the last `keep_last` and the best one stay."""
        target = store.checkpoint_folder(self.folder, progress.step)
        state = stepper.state()
        with atomic_folder(target, replaceable=lambda _: True) as folder:
            native.write_files(folder, stepper.network.config, stepper.parameters(), codec, "float32")
            shapes = {name: tuple(variable.shape) for name, variable in state.items()}
            arrays = ((name, variable.numpy()) for name, variable in state.items())
            tensor_file.write_file(
                folder / "training.safetensors", arrays, shapes, "float32", {"step": str(progress.step)}
            )
            (folder / "training.json").write_text(json.dumps(dataclasses.asdict(progress)), encoding="utf-8")
            manifest.write(folder)
        if progress.best_step is not None and store.checkpoint_folder(self.folder, progress.best_step).is_dir():
            with atomic_file(self.folder / "best.json") as path:
                path.write_text(json.dumps({"step": progress.best_step, "valid_loss": progress.best_loss}))
        self._prune(stepper.config.keep_last)
        self.note(f"checkpoint {target.name} saved")
        return target

    def restore(self, stepper: Stepper) -> Progress:
        """Give the stepper the newest checkpoint that is whole. It only reads, so every worker may do it.

        Returns:
            Where the run is; the beginning, if it was stopped before its first checkpoint.

        Raises:
            TrainingError: there are checkpoints, but none is whole.
        """
        steps = store.checkpoint_steps(self.folder)
        for step in reversed(steps):
            folder = store.checkpoint_folder(self.folder, step)
            try:
                progress = self._load(stepper, folder)
            except CheckpointError as error:
                self.note(f"{folder.name} is damaged and is skipped: {error}")
                continue
            return progress
        if steps:
            raise TrainingError(f"{self.folder}: none of its {len(steps)} checkpoints is whole")
        return Progress()

    def _load(self, stepper: Stepper, folder: Path) -> Progress:
        if not manifest.verify(folder):
            raise CheckpointError(f"{folder}: expected {manifest.NAME}, found none")
        values = read_object(folder / "training.json")
        variables = stepper.state()
        entries = tensor_file.read_header(folder / "training.safetensors")
        shapes = {name: tuple(v.shape) for name, v in variables.items()}
        if {name: entry.shape for name, entry in entries.items()} != shapes:
            raise CheckpointError(f"{folder / 'training.safetensors'}: expected the state of other settings")
        # With adapters, the weights stay those of the base: merged ones would have the adapters twice.
        if not stepper.adapters:
            stepper.network.set_tensors(checkpoints.read(folder)[1])
        for name, array in tensor_file.stream(entries):
            variables[name].assign(array)
        try:
            return Progress(**values)
        except TypeError:
            raise CheckpointError(f"{folder / 'training.json'}: expected a run's progress") from None

    def _prune(self, keep_last: int) -> None:
        steps = store.checkpoint_steps(self.folder)
        best = store.best_step(self.folder)
        for step in steps[:-keep_last]:
            if step != best:
                folder = store.checkpoint_folder(self.folder, step)
                # Renamed first: what is half removed must not be taken for a checkpoint.
                doomed = folder.with_name(f".{folder.name}.removed")
                shutil.rmtree(doomed, ignore_errors=True)
                os.rename(folder, doomed)
                shutil.rmtree(doomed, ignore_errors=True)

    # Numbers

    def log(self, entry: LogEntry) -> None:
        """Add an entry to the metrics."""
        values = dataclasses.asdict(entry)
        _append(self.folder / "metrics.jsonl", values)
        self._board().metrics(values)

    def sample(self, step: int, prompt: str, text: str) -> None:
        """Add what the model made of a prompt."""
        _append(self.folder / "samples.jsonl", {"step": step, "prompt": prompt, "text": text})
        self._board().sample(step, prompt, text)

    def evaluated(self, values: Mapping[str, Any]) -> None:
        """Add a figure of an evaluation: `step`, `name`, `metric`, `value` (or None) and what else is known of it."""
        _append(self.folder / EVALUATIONS, values)
        if values["value"] is not None:
            self._board().figure(values)

    def _board(self) -> TensorBoardLog:
        if self._tensorboard is None:
            self._tensorboard = TensorBoardLog(self.folder / "tensorboard")
        return self._tensorboard

    def close(self) -> Path:
        """Write the report; it is returned."""
        if self._tensorboard is not None:
            self._tensorboard.close()
            self._tensorboard = None
        return report.write_report(self.folder)

    def forget_after(self, step: int) -> None:
        """Drop lines about steps that will be taken again; for the one process that writes, under the lock."""
        for name in ("metrics.jsonl", "samples.jsonl", EVALUATIONS):
            path = self.folder / name
            if path.is_file():
                kept = [values for values in report.read_lines(path) if values["step"] <= step]
                with atomic_file(path) as new:
                    new.write_text("".join(json.dumps(values) + "\n" for values in kept), encoding="utf-8")
        # TensorBoard's files cannot be shortened; they are made anew from the lines that stay.
        shutil.rmtree(self.folder / "tensorboard", ignore_errors=True)
        for values in report.read_lines(self.folder / "metrics.jsonl"):
            self._board().metrics(values)
        for values in report.read_lines(self.folder / "samples.jsonl"):
            self._board().sample(values["step"], values["prompt"], values["text"])
        for values in report.read_lines(self.folder / EVALUATIONS):
            self._board().figure(values)


def versions() -> dict[str, str]:
    """What the run was made with."""
    import keras

    backend = keras.backend.backend()
    return {
        **{"gpt2": importlib.metadata.version("gpt2"), "keras": keras.__version__},
        backend: importlib.import_module(backend).__version__,
        **{"numpy": np.__version__, "python": platform.python_version()},
    }


def _append(path: Path, values: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(values) + "\n")
