"""One line on stderr that tells how far something is; nothing where stderr is no terminal."""

from __future__ import annotations

import sys
import time

_EVERY_SECONDS = 0.1
_SHOWN_FROM = 0.3


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
