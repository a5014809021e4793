"""What a job's process does, which is given the job's id. It ends by itself when whoever started it is gone.

Its standard input is a line to its parent: when that is closed, however the parent ended, the job saves a checkpoint
and leaves, to go on another time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2 import store
from gpt2.atomic import locked
from gpt2.config import GPT2Config, TrainingConfig, shape_of
from gpt2.errors import CancelledError, GPT2Error, TrainingError
from gpt2.jobs.records import Job, Records, is_file_id

if TYPE_CHECKING:
    from gpt2.codec import Codec
    from gpt2.gpt import Model
    from gpt2.training import LogEntry

BUSY = 75
"""Exit status: another job is running."""
LOOK_SECONDS = 0.3
NICE = 10
"""Lower than who asks models meanwhile."""


def lock_path() -> Path:
    """The file whose lock the one job that runs holds."""
    return store.home() / ".jobs.lock"


def main() -> int:
    """Run the job whose id is the argument."""
    records = Records()
    job_id = sys.argv[1]
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(lock_path(), wait=False))
        except BlockingIOError:
            return BUSY
        with contextlib.suppress(OSError):
            os.nice(NICE)
        _Work(records, records.job(job_id)).run()
    return 0


class _Work:
    """A job being done."""

    def __init__(self, records: Records, job: Job) -> None:
        self.records, self.job, self.order = records, job, job.order
        self.folder = store.runs_folder() / job.order.name
        self.stop = threading.Event()
        threading.Thread(target=self._watch_parent, daemon=True).start()
        threading.Thread(target=self._watch_wishes, daemon=True).start()

    def run(self) -> None:
        now = int(time.time())
        self.records.update(self.job.id, status="validating_files", started=self.job.started or now)
        try:
            model = self._train()
            self._save(model)
        except CancelledError:
            self._stopped()
        except GPT2Error as error:
            self._failed(" ".join(str(error).split()))
        except Exception as error:
            self._failed(f"{type(error).__name__}: {error}")
            raise

    def _train(self) -> Model:
        from gpt2 import gpt

        told: dict[str, Any] = {
            "on_log": self._on_log,
            "on_step": self._on_step,
            "note": self._note,
            "stop_asked": self.stop.is_set,
        }
        if store.is_run(self.folder):
            steps = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))["training"]["steps"]
            self.records.update(self.job.id, status="running", steps=steps)
            self.records.say(self.job.id, "the training goes on")
            return gpt.resume_training(self.folder, **told)
        shape, codec = self._shape_and_codec()
        self.folder.mkdir(parents=True, exist_ok=True)
        valid = bool(self.order.valid_files)
        data = [str(self._prepared(self.order.files, "data", 0.0 if valid else 0.05, codec))]
        valid_data = [str(self._prepared(self.order.valid_files, "valid", 0.0, codec))] if valid else None
        tokens, held_out = gpt.read_data(data, None, codec)
        training = self._settings(len(tokens), 0 if held_out is None else len(held_out), shape)
        if self.order.epochs is not None:
            steps = gpt.steps_of(self.order.epochs, tokens, training, shape)
            training = dataclasses.replace(training, steps=steps)
        if "eval_every" in self.order.auto:
            # A look costs seconds, with its checkpoint and its samples: few of them where a step takes less.
            training = dataclasses.replace(training, eval_every=max(1, min(100, training.steps // 5)))
        if self.stop.is_set():
            raise CancelledError("training: it was asked to stop before its first step")
        self.records.update(self.job.id, status="running", steps=training.steps)
        self.records.say(self.job.id, f"the training begins: {len(tokens):,} tokens, {training.steps} steps")
        return gpt.train_model(
            data,
            model=None if self.order.size else self.order.model or store.BUNDLED,
            config=shape if self.order.size else None,
            valid_data=valid_data,
            training=training,
            run=self.folder,
            **told,
        )

    def _shape_and_codec(self) -> tuple[GPT2Config, Codec | None]:
        from gpt2 import gpt
        from gpt2.codec import fitting_default

        if self.order.size:
            shape = shape_of(self.order.size)
            return shape, fitting_default(shape.n_vocab)
        return gpt.shape_and_codec(self.order.model)

    def _settings(self, tokens: int, held_out: int, shape: GPT2Config) -> TrainingConfig:
        """The settings, with those that are to be chosen: sequences that a short text fills several times."""
        settings = dict(self.order.training)
        if "sequence_length" in self.order.auto:
            fitting = [T for T in (64, 128, 256) if shape.n_ctx >= T and tokens >= 16 * T]
            settings["sequence_length"] = fitting[-1] if fitting else min(shape.n_ctx, max(8, tokens // 4))
        if "batch_size" in self.order.auto:
            T = settings.get("sequence_length") or shape.n_ctx
            settings["batch_size"] = max(1, min(4, (tokens - 1) // T))
        return TrainingConfig.from_dict(settings)

    def _prepared(self, files: tuple[str, ...], name: str, valid_fraction: float, codec: Codec | None) -> Path:
        """The files as tokens, in the run's folder."""
        from gpt2.data.prepare import prepare
        from gpt2.data.shards import is_prepared

        target = self.folder / name
        if not is_prepared(target):
            inputs = [self._text_file(file, name) for file in files]
            prepare(inputs, target, codec=codec, valid_fraction=valid_fraction)
        return target

    def _text_file(self, file: str, name: str) -> str:
        """A file that `prepare` reads: an upload gets its suffix back, and OpenAI's lines become documents."""
        if not is_file_id(file):
            return file
        path, filename = self.records.file_path(file), self.records.file(file).filename
        suffixes = "".join(Path(filename).suffixes[-2:]).lower()
        folder = self.records.path.parent / "prepared" / self.job.id
        folder.mkdir(parents=True, exist_ok=True)
        if suffixes.endswith(".jsonl"):
            return str(_documents(path, folder / f"{name}-{file}.jsonl", filename))
        known = next(
            (s for s in (".md", ".csv", ".tsv", ".parquet", ".txt.gz", ".txt") if suffixes.endswith(s)), ".txt"
        )
        target = folder / f"{name}-{file}{known}"
        target.unlink(missing_ok=True)
        os.link(path, target)
        return str(target)

    def _save(self, model: Model) -> None:
        import shutil

        from gpt2 import gpt

        with store.writing(self.order.name, wait=True) as folder:
            gpt.save_model(model, folder)
        shutil.rmtree(self.records.path.parent / "prepared" / self.job.id, ignore_errors=True)
        self.records.update(self.job.id, status="succeeded", finished=int(time.time()))
        self.records.say(self.job.id, f"the model {self.order.name} is there")

    def _stopped(self) -> None:
        wanted = self.records.job(self.job.id).wanted
        status = {"pause": "paused", "cancel": "cancelled"}.get(wanted, "queued")
        finished = int(time.time()) if status == "cancelled" else None
        self.records.update(self.job.id, status=status, finished=finished)
        self.records.say(self.job.id, f"the training stopped: {status}")

    def _failed(self, why: str) -> None:
        self.records.update(self.job.id, status="failed", error=why[:2000], finished=int(time.time()))
        self.records.say(self.job.id, why[:2000], level="error")

    def _on_log(self, entry: LogEntry) -> None:
        values = dataclasses.asdict(entry)
        held_out = "" if entry.valid_loss is None else f", held-out loss {entry.valid_loss:.4f}"
        self.records.update(self.job.id, step=entry.step, tokens=entry.tokens)
        self.records.say(self.job.id, f"step {entry.step}: loss {entry.loss:.4f}{held_out}", "metrics", values)
        for line in _samples_at(self.folder, entry.step):
            self.records.say(self.job.id, f"sample after step {entry.step}", "sample", line)

    def _on_step(self, step: int) -> None:
        now = time.monotonic()
        if now - getattr(self, "_told", 0.0) > 1:
            self._told = now
            self.records.update(self.job.id, step=step)

    def _note(self, text: str) -> None:
        if text.startswith("checkpoint"):
            self.records.update(self.job.id, interruptions=0)
        self.records.say(self.job.id, text)

    def _watch_parent(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            while os.read(sys.stdin.fileno(), 1):  # not by sys.stdin, which is locked meanwhile: Python cannot end then
                pass
        self.stop.set()

    def _watch_wishes(self) -> None:
        while not self.stop.wait(LOOK_SECONDS):
            if self.records.job(self.job.id).wanted != "run":
                self.stop.set()


def _samples_at(run: Path, step: int) -> list[dict[str, Any]]:
    from gpt2 import report

    path = run / "samples.jsonl"
    return [line for line in report.read_lines(path) if line["step"] == step] if path.is_file() else []


def _documents(source: Path, target: Path, filename: str) -> Path:
    """Lines of {"text"}, or of {"prompt", "completion"}, as lines of {"text"}.

    Raises:
        TrainingError: a line is neither, with its number.
    """
    with source.open("rb") as lines, target.open("w", encoding="utf-8") as out:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{filename}, line {number}"
            try:
                value = json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError):
                raise TrainingError(f"{where}: expected JSON in UTF-8") from None
            if isinstance(value, dict) and "messages" in value:
                raise TrainingError(
                    f'{where}: GPT-2 has no chat format; expected {{"prompt", "completion"}} or {{"text"}}'
                )
            texts = (
                [value.get(key) for key in (("text",) if "text" in value else ("prompt", "completion"))]
                if (isinstance(value, dict))
                else [None]
            )
            if not all(isinstance(text, str) for text in texts):
                raise TrainingError(f'{where}: expected {{"prompt", "completion"}} or {{"text"}} with strings')
            out.write(json.dumps({"text": "".join(map(str, texts))}) + "\n")
    return target
