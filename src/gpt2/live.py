"""What a person sees in the terminal while a model trains: the last measurements, and how far the run has come.

In anything but a terminal (a file, a pipe, a notebook) it writes one plain line for each measurement. It knows
nothing of training; it is told.
"""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, NamedTuple, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

_ROWS = 8
_REFRESH_SECONDS = 0.25
_GAP = 2


class _Column(NamedTuple):
    name: str
    width: int
    text: Callable[[Mapping[str, Any]], str]


class LiveTable:
    """A table of a run's last measurements over a bar of its steps, to be used in a `with` block.

    Args:
        total_steps: the step at which the run ends.
        first_step: the step that a resumed run goes on from.
        stream: where to write; standard error if None.
    """

    def __init__(self, total_steps: int, first_step: int = 0, stream: TextIO | None = None) -> None:
        self._total = total_steps
        self._first = self._step = first_step
        self._stream = sys.stderr if stream is None else stream
        self._console = Console(file=self._stream, force_jupyter=False, highlight=False)
        self._entries: deque[Mapping[str, Any]] = deque(maxlen=_ROWS)
        self._began = self._refreshed = time.monotonic()
        # Rich takes FORCE_COLOR in the environment for a terminal, but a file cannot be written over.
        terminal = self._stream.isatty() and self._console.is_terminal and not self._console.is_dumb_terminal
        self._live = (
            Live(console=self._console, auto_refresh=False, get_renderable=self._renderable) if terminal else None
        )

    def __enter__(self) -> LiveTable:
        self._began = time.monotonic()
        if self._live:
            self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()  # draws a last time; the table stays where it is

    def update(self, entry: Mapping[str, Any]) -> None:
        """Show a measurement: a line of the run's metrics, of which any but the step may be missing or None."""
        self._entries.append(entry)
        self._step = entry["step"]
        if self._live:
            self._refresh()
        else:
            self._write(_plain_line(entry, self._total))

    def step(self, step: int) -> None:
        """Say that a step is done. Made to be called at each: it draws at most four times a second."""
        self._step = step
        if self._live and time.monotonic() - self._refreshed >= _REFRESH_SECONDS:
            self._refresh()

    def note(self, text: str) -> None:
        """Print a message, in a terminal above the table; it stays there."""
        if self._live:
            self._console.print(Text(text), soft_wrap=True)
        else:
            self._write(text)

    def _refresh(self) -> None:
        assert self._live is not None
        self._live.refresh()
        self._refreshed = time.monotonic()

    def _write(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()

    def _renderable(self) -> Group:
        return Group(self._table(), self._progress())

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="dim")
        columns = _fitting(self._console.width)
        for column in columns:
            table.add_column(column.name, justify="right", min_width=column.width, no_wrap=True)
        last = len(self._entries) - 1
        for index, entry in enumerate(self._entries):
            bad = not math.isfinite(_number(entry, "loss"))
            style = "bold red" if bad else "bold" if index == last else "dim"
            table.add_row(*(column.text(entry) for column in columns), style=style)
        return table

    def _progress(self) -> Table:
        done = min(max(self._step, 0), self._total)
        share = done / self._total if self._total > 0 else 1.0
        seconds = time.monotonic() - self._began
        rate = (self._step - self._first) / seconds if seconds > 0 else 0.0
        grid = Table.grid(padding=(0, _GAP, 0, 0))
        for justify in ("left", "left", "right", "right"):
            grid.add_column(justify=justify, no_wrap=True)  # type: ignore[arg-type]
        bar = ProgressBar(total=max(self._total, 1), completed=done, width=max(min(self._console.width - 50, 40), 5))
        grid.add_row(f"step {self._step:,} of {self._total:,}", bar, f"{share:.0%}", f"{rate:.3g} steps/s")
        return grid


def _number(entry: Mapping[str, Any], name: str) -> float:
    """A value of a measurement, NaN if it is missing."""
    value = entry.get(name)
    return math.nan if value is None else float(value)


def _shown(name: str, pattern: str) -> Callable[[Mapping[str, Any]], str]:
    """A cell of a column: the value in that form, or a dash where nothing was measured."""
    return lambda entry: "-" if entry.get(name) is None else pattern.format(float(entry[name]))


def _perplexity(entry: Mapping[str, Any]) -> str:
    loss = entry.get("valid_loss")
    if loss is None:
        return "-"
    if math.isnan(loss) or loss > 700:  # exp(710) is beyond any float
        return "nan" if math.isnan(loss) else "inf"
    perplexity = math.exp(loss)
    return f"{perplexity:,.2f}" if perplexity < 10_000 else f"{perplexity:.1e}"


def _time(name: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda entry: _clock(_number(entry, name))


def _clock(seconds: float) -> str:
    """Seconds as 0:42, 12:05, 3:20:00 or 2d 04:10."""
    if not math.isfinite(seconds):
        return "-"
    minutes, second = divmod(round(max(seconds, 0)), 60)
    hours, minute = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24}d {hours % 24:02}:{minute:02}"
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


_COLUMNS = (
    _Column("step", 7, _shown("step", "{:,.0f}")),
    _Column("loss", 7, _shown("loss", "{:.4f}")),
    _Column("val loss", 8, _shown("valid_loss", "{:.4f}")),
    _Column("ppl", 8, _perplexity),
    _Column("lr", 7, _shown("learning_rate", "{:.1e}")),
    _Column("tok/s", 7, _shown("tokens_per_second", "{:,.0f}")),
    _Column("ceiling", 7, _shown("ceiling_share", "{:.0%}")),
    _Column("elapsed", 8, _time("seconds")),
    _Column("left", 8, _time("seconds_left")),
)
# What a narrow terminal goes without, the first first.
_DISPENSABLE = ("ceiling", "lr", "ppl", "elapsed", "tok/s", "left")


def _fitting(width: int) -> list[_Column]:
    """The columns that there is room for."""
    columns = list(_COLUMNS)
    for name in _DISPENSABLE:
        if sum(column.width + _GAP for column in columns) <= width + _GAP:
            break
        columns = [column for column in columns if column.name != name]
    return columns


def _plain_line(entry: Mapping[str, Any], total: int) -> str:
    """A measurement as one line; what was not measured is left out."""
    parts = [f"step {entry['step']}/{total}", f"loss {_number(entry, 'loss'):.4f}"]
    if entry.get("valid_loss") is not None:
        parts += [f"valid_loss {entry['valid_loss']:.4f}", f"perplexity {_perplexity(entry)}"]
    for name, pattern in (
        ("learning_rate", "learning_rate {:.2e}"),
        ("gradient_norm", "gradient_norm {:.3f}"),
        ("tokens_per_second", "{:.0f} tokens/s"),
        ("ceiling_share", "{:.0%} of ceiling"),
    ):
        if entry.get(name) is not None:
            parts.append(pattern.format(entry[name]))
    for name, word in (("seconds", "elapsed"), ("seconds_left", "left")):
        if math.isfinite(_number(entry, name)):
            parts.append(f"{word} {_clock(_number(entry, name))}")
    return "  ".join(parts)
