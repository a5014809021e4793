"""Models that stay open for many requests, each with a scheduler; the one that was longest unused is closed first.

It knows nothing about HTTP. Models are named as in the store, never by a path, since names come from strangers.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path

from gpt2 import store
from gpt2.batch import MAX_ROWS
from gpt2.errors import CancelledError, CheckpointNotFoundError, ModelInUseError, QueueFullError
from gpt2.language_model import LanguageModel, open_model
from gpt2.scheduler import MAX_WAITING, Scheduler

_Key = tuple[str, int, int]


class Hosted:
    """A model that is open. `users` of it keep it from being closed."""

    def __init__(self, model: LanguageModel, scheduler: Scheduler) -> None:
        self.model, self.scheduler = model, scheduler
        self.users = 0
        engine = model.engine
        self.fingerprint = f"fp_{engine.weights_sha256[:10]}_{engine.name}_{engine.precision}"
        """Weights, engine and precision: with the same seed, the same fingerprint means the same text."""


class Host:
    """Opens models when they are asked for.

    Args:
        default: the model that is meant where none is named; None for the bundled one.
        engine: as for `open_model`.
        precision: as for `open_model`.
        max_open: models that are open at once.
        max_rows: texts that each of them writes at once.
        max_waiting: texts that wait for each of them; more are refused.
        note: told what a person might want to know.
    """

    def __init__(
        self,
        default: str | None = None,
        *,
        engine: str = "auto",
        precision: str = "float32",
        max_open: int = 2,
        max_rows: int = MAX_ROWS,
        max_waiting: int = MAX_WAITING,
        note: Callable[[str], None] | None = None,
    ) -> None:
        self.default = store.BUNDLED if default is None else default
        self.engine, self.precision, self.max_open = engine, precision, max_open
        self.max_rows, self.max_waiting, self.note = max_rows, max_waiting, note
        self._open: OrderedDict[_Key, Hosted] = OrderedDict()
        self._changing = threading.Lock()  # held for moments
        self._opening = threading.Lock()  # held while a model is read
        self._closed = False

    @contextlib.contextmanager
    def lease(self, name: str | None = None) -> Iterator[Hosted]:
        """An open model, which stays open in the block. Opening one takes seconds, or longer.

        Args:
            name: see `store.resolve_name`; None for the default.

        Raises:
            ModelNameError: there is none of that name.
            CheckpointError: it cannot be read.
            QueueFullError: as many as can be open are in use.
        """
        hosted = self.take(name) or self._opened(name)
        try:
            yield hosted
        finally:
            self.give_back(hosted)

    def take(self, name: str | None = None) -> Hosted | None:
        """As `lease`, but at once: None if the model is not open. To be followed by `give_back`."""
        key = self._key(name)
        with self._changing:
            hosted = self._open.get(key)
            if hosted is None or not hosted.scheduler.alive:
                self._open.pop(key, None)  # one whose thread has ended is opened anew
                return None
            self._open.move_to_end(key)
            hosted.users += 1
            return hosted

    def give_back(self, hosted: Hosted) -> None:
        """What was taken is no longer used."""
        with self._changing:
            hosted.users -= 1

    def open_and_take(self, name: str | None = None) -> Hosted:
        """As `take`, but the model is opened if need be."""
        return self.take(name) or self._opened(name)

    @property
    def open_models(self) -> list[Hosted]:
        """Those that are open now."""
        with self._changing:
            return list(self._open.values())

    def close_model(self, name: str) -> bool:
        """Close a model that nobody uses; whether it was open.

        Raises:
            ModelNameError: there is none of that name.
            ModelInUseError: somebody uses it.
        """
        key = self._key(name)
        with self._changing:
            hosted = self._open.get(key)
            if hosted is None:
                return False
            if hosted.users:
                raise ModelInUseError(f"model: {name} is being used by {hosted.users} requests; try again later")
            del self._open[key]
        hosted.scheduler.close()
        return True

    def revive(self) -> bool:
        """Open models anew whose threads have ended, and the default one where none is open; whether there were such.

        Raises:
            GPT2Error: a model cannot be opened; those whose threads have ended are closed nevertheless.
        """
        with self._changing:
            dead = [key for key, hosted in self._open.items() if not hosted.scheduler.alive]
            names = [self._open.pop(key).model.name for key in dead]
            wanted = names if self._open or names else [self.default]
            if self._closed:
                return False
        for name in wanted:
            self.give_back(self.open_and_take(name))
        return bool(wanted)

    def close(self) -> None:
        """Give up all requests and close all models."""
        with self._changing:
            self._closed = True
            left = list(self._open.values())
            self._open.clear()
        for hosted in left:
            hosted.scheduler.close()

    def _key(self, name: str | None) -> _Key:
        """What changes when another folder takes a name."""
        name = self.default if name is None else name
        path: Path = store.resolve_name(name)
        try:
            state = path.stat()
        except FileNotFoundError:
            raise CheckpointNotFoundError(f"model: {name} was removed meanwhile") from None
        return (str(path), state.st_ino, state.st_mtime_ns)

    def _opened(self, name: str | None) -> Hosted:
        with self._opening:
            hosted = self.take(name)  # another thread has opened it meanwhile
            if hosted is not None:
                return hosted
            key = self._key(name)
            self._make_room()
            model = open_model(Path(key[0]), engine=self.engine, precision=self.precision, note=self.note)
            model.name = self.default if name is None else name
            hosted = Hosted(
                model,
                Scheduler(
                    model.engine,
                    model.codec,
                    drafter=model.drafter,
                    max_rows=self.max_rows,
                    max_waiting=self.max_waiting,
                ),
            )
            hosted.users = 1
            with self._changing:
                if not self._closed:
                    self._open[key] = hosted
                    return hosted
            hosted.scheduler.close()
            raise CancelledError("model: the host is closed")

    def _make_room(self) -> None:
        with self._changing:
            if len(self._open) < self.max_open:
                return
            idle = next((key for key, hosted in self._open.items() if not hosted.users), None)
            if idle is None:
                raise QueueFullError(f"model: {self.max_open} others are in use, and no more can be open at once")
            doomed = self._open.pop(idle)
        doomed.scheduler.close()
