"""One line on stderr that tells how far something is; nothing where stderr is no terminal."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

_EVERY_SECONDS = 0.1
_SHOWN_FROM = 0.3
_LONG = 1.5


class Status:
    """A line that is written over and over.

    Args:
        title: what is being done.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self._started = time.monotonic()
        self._last = 0.0
        self._shown = False

    @contextlib.contextmanager
    def waiting(self, text: str) -> Iterator[None]:
        """Show a text while this block lasts, if it lasts longer than one expects, and nothing else is shown."""

        def show() -> None:
            if sys.stderr.isatty() and not self._shown:
                self._shown = True
                sys.stderr.write(f"\r\x1b[K{text}")
                sys.stderr.flush()

        timer = threading.Timer(_LONG, show)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            self.clear()

    def progress(self, done: int, total: int) -> None:
        """Show how many of how many are done."""
        now = time.monotonic()
        if not sys.stderr.isatty() or now - self._started < _SHOWN_FROM or now - self._last < _EVERY_SECONDS:
            return
        self._last, self._shown = now, True
        sys.stderr.write(f"\r\x1b[K{self.title}: {100 * done // total} %")
        sys.stderr.flush()

    def say(self, text: str) -> None:
        """A line that stays."""
        self.clear()
        sys.stderr.write(text + "\n")

    def clear(self) -> None:
        """Remove what is shown."""
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._shown = False
