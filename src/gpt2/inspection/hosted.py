"""Inspections that strangers ask for: one model stays open, one inspection runs at a time, few wait.

The reference engine has to hold the model a second time, beside the one that writes text, so a large one is refused.
"""

from __future__ import annotations

import threading
from pathlib import Path

from gpt2 import checkpoints
from gpt2.errors import ConfigError, QueueFullError
from gpt2.gpt import Model, load_model
from gpt2.inspection.reading import Inspection, inspect
from gpt2.inspection.running import Prompt

MAX_WAITING = 2
MAX_PARAMETERS = 500_000_000
"""Of a model; two gigabytes."""


class Inspector:
    """Opens a model when it is asked for, and keeps it until another one is."""

    def __init__(self) -> None:
        self._turns = threading.BoundedSemaphore(1 + MAX_WAITING)
        self._running = threading.Lock()
        self._open: tuple[tuple[Path, int, int], Model] | None = None

    def inspect(self, folder: Path, prompt: Prompt, *, top: int) -> Inspection:
        """As `gpt2.inspection.inspect`, for the model in a folder.

        Raises:
            QueueFullError: others are waiting already.
            ConfigError: the model is too large.
        """
        if not self._turns.acquire(blocking=False):
            raise QueueFullError(f"inspect: {1 + MAX_WAITING} are being done or wait; try again later")
        try:
            with self._running:
                return inspect(self._model(folder), prompt, top=top)
        finally:
            self._turns.release()

    def _model(self, folder: Path) -> Model:
        state = folder.stat()
        key = (folder, state.st_ino, state.st_mtime_ns)  # changes when another folder takes the name
        if self._open is None or self._open[0] != key:
            size = checkpoints.describe(folder, quick=True).config.num_parameters
            if size > MAX_PARAMETERS:
                raise ConfigError(f"model: expected at most {MAX_PARAMETERS:,} parameters to look into, got {size:,}")
            self._open = None  # its memory is needed
            self._open = (key, load_model(folder))
        return self._open[1]
