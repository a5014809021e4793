"""A training run for TensorBoard: its numbers and samples in an event file.

It writes the file format by itself, with the protocol buffers of the `tensorboard` package that TensorFlow brings:
`tf.summary` would need TensorFlow, a graph context and a thread of its own for what are a few lines a minute here.
To look at it: tensorboard --logdir FOLDER
"""

from __future__ import annotations

import itertools
import math
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
from tensorboard.compat.proto.tensor_pb2 import TensorProto  # type: ignore[import-untyped]
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto  # type: ignore[import-untyped]
from tensorboard.compat.proto.types_pb2 import DT_STRING  # type: ignore[import-untyped]
from tensorboard.plugins.text.metadata import create_summary_metadata  # type: ignore[import-untyped]
from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]

from gpt2.errors import TrainingError

SCALARS = ("loss", "valid_loss", "perplexity", "learning_rate", "gradient_norm", "tokens_per_second")

_TAG_LENGTH = 60
_FILES = itertools.count()  # tells apart the files that one process begins in one second


class TensorBoardLog:
    """An event file in a folder, to be used in a `with` block or closed; each entry is handed to the system at once.

    Args:
        folder: where the file goes; it is made if it is not there. Files of earlier runs in it stay.

    Raises:
        TrainingError: the file cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        # TensorBoard reads the files of a folder in the order of their names, which begin with the time.
        now = f"{int(time.time()):010d}"
        self.path = folder / f"events.out.tfevents.{now}.{socket.gethostname()}.{os.getpid()}.{next(_FILES):06d}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._records = RecordWriter(self.path.open("xb"))
        except OSError as error:
            raise self._failed(error) from error
        self._write(Event(file_version="brain.Event:2"))

    def __enter__(self) -> TensorBoardLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def metrics(self, entry: Mapping[str, Any]) -> None:
        """Write a line of the run's metrics: those of `SCALARS` that are in it and not None.

        The perplexity is that of the validation loss. NaN is written as it is; TensorBoard marks it.

        Raises:
            TrainingError: the file cannot be written.
        """
        values = {name: entry.get(name) for name in SCALARS}
        if values["valid_loss"] is not None:
            values["perplexity"] = _perplexity(values["valid_loss"])
        summary = Summary(
            value=[
                Summary.Value(tag=name, simple_value=float(value))
                for name, value in values.items()
                if value is not None
            ]
        )
        self._write(Event(step=entry["step"], summary=summary))

    def figure(self, values: Mapping[str, Any]) -> None:
        """Write a figure of an evaluation, under its name and metric.

        Raises:
            TrainingError: the file cannot be written.
        """
        tag = f"evaluations/{values['name']}/{values['metric']}".encode("utf-8", "replace").decode()
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=float(values["value"]))])
        self._write(Event(step=values["step"], summary=summary))

    def sample(self, step: int, prompt: str, text: str) -> None:
        """Write a sample under a tag made of its prompt; it is shown as it is, not as Markdown.

        Raises:
            TrainingError: the file cannot be written.
        """
        name = " ".join(prompt.replace("/", " ").split())[:_TAG_LENGTH]  # a slash would make a group of its own
        # Indented lines are code in Markdown. A form feed or the like is no new line for it: split at line feeds alone.
        verbatim = "\n".join("    " + line for line in text.split("\n"))
        tensor = TensorProto(
            dtype=DT_STRING, tensor_shape=TensorShapeProto(), string_val=[verbatim.encode("utf-8", "replace")]
        )
        metadata = create_summary_metadata(display_name="", description="Synthetic text, written by the model")
        tag = f"samples/{name or 'no prompt'}".encode("utf-8", "replace").decode()
        value = Summary.Value(tag=tag, tensor=tensor, metadata=metadata)
        self._write(Event(step=step, summary=Summary(value=[value])))

    def close(self) -> None:
        """Close the file; closing it again does nothing."""
        try:
            self._records.close()
        except OSError as error:
            raise self._failed(error) from error

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        try:
            self._records.write(event.SerializeToString())
            self._records.flush()
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> TrainingError:
        return TrainingError(f"{self.path}: cannot be written: {error.strerror or error}")


def _perplexity(loss: float) -> float:
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
