"""The table of a run in a terminal, and its lines elsewhere."""

from __future__ import annotations

import io
import math
import re
from typing import Any

import pytest
from rich.console import Console

from gpt2.live import LiveTable

ENTRY: dict[str, Any] = {
    "step": 100,
    "tokens": 51200,
    "loss": 3.21,
    "valid_loss": 3.0,
    "learning_rate": 3e-4,
    "gradient_norm": 0.512,
    "tokens_per_second": 12345.6,
    "ceiling_share": 0.41,
    "seconds": 62.0,
    "seconds_left": 7322.0,
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "30")


def plain(output: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output)


def shown(table: LiveTable, width: int = 100) -> str:
    """What stands in the terminal now."""
    console = Console(file=io.StringIO(), force_terminal=True, width=width)
    table._console = console
    with console.capture() as capture:
        console.print(table._renderable())
    return capture.get()


def test_plain_lines_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    stream = io.StringIO()
    with LiveTable(1000, stream=stream) as table:
        table.step(1)
        table.update({**ENTRY, "valid_loss": None, "ceiling_share": None})
        table.note("checkpoint [bold]step-100[/] saved")
        table.update({**ENTRY, "step": 200})
    assert stream.getvalue().split("\n") == [
        "step 100/1000  loss 3.2100  learning_rate 3.00e-04  gradient_norm 0.512  12346 tokens/s"
        "  elapsed 1:02  left 2:02:02",
        "checkpoint [bold]step-100[/] saved",
        "step 200/1000  loss 3.2100  valid_loss 3.0000  perplexity 20.09  learning_rate 3.00e-04  gradient_norm 0.512"
        "  12346 tokens/s  41% of ceiling  elapsed 1:02  left 2:02:02",
        "",
    ]


def test_a_terminal_that_can_do_nothing_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    with LiveTable(1000, stream=stream) as table:
        table.update(ENTRY)
    assert stream.getvalue().startswith("step 100/1000  loss")
    assert "\x1b" not in stream.getvalue()


def test_standard_error_unless_told(capsys: pytest.CaptureFixture[str]) -> None:
    with LiveTable(10) as table:
        table.note("here")
    assert capsys.readouterr() == ("", "here\n")


def test_the_table_in_a_terminal() -> None:
    stream = Terminal()
    with LiveTable(1000, stream=stream) as table:
        table.update(ENTRY)
        table.note("checkpoint [bold]step-100[/] saved")
        table.update({**ENTRY, "step": 1000, "valid_loss": None})
    output = stream.getvalue()
    assert output.startswith("\x1b[?25l")  # the cursor is hidden,
    assert output.rstrip().endswith("\x1b[?25h")  # and comes back
    assert "checkpoint [bold]step-100[/] saved\n" in plain(output).replace("\r", "")
    last = plain(output)[plain(output).rindex("step ", 0, plain(output).rindex("step 1,000 of")) :]
    assert "100%" in last
    for text in ("3.2100", "3.0000", "20.09", "3.0e-04", "12,346", "41%", "1:02", "2:02:02"):
        assert text in plain(output)


def test_the_cursor_comes_back_after_an_error() -> None:
    stream = Terminal()
    with pytest.raises(KeyboardInterrupt), LiveTable(1000, stream=stream) as table:
        table.update(ENTRY)
        raise KeyboardInterrupt
    assert stream.getvalue().rstrip().endswith("\x1b[?25h")


def test_the_last_rows_alone() -> None:
    table = LiveTable(1000, first_step=50, stream=io.StringIO())
    for step in range(100, 1000, 50):
        table.update({**ENTRY, "step": step})
    rows = plain(shown(table)).splitlines()
    assert len(rows) == 1 + 8 + 1
    assert [row.split()[0] for row in rows[1:-1]] == [str(step) for step in range(600, 1000, 50)]
    assert rows[-1].startswith("step 950 of 1,000")
    assert "95%" in rows[-1]


@pytest.mark.parametrize("width", [30, 40, 60, 80, 120])
def test_it_fits_the_terminal(width: int) -> None:
    """Of a narrow terminal's columns those that matter stay, whole."""
    table = LiveTable(100_000, stream=io.StringIO())
    table.update({**ENTRY, "step": 99_999, "valid_loss": 8.9, "seconds": 360_000.0})
    output = plain(shown(table, width))
    assert all(len(line.rstrip()) <= width for line in output.splitlines())
    assert "99,999" in output
    assert "3.2100" in output
    assert "8.9000" in output
    assert "…" not in output.splitlines()[1]
    assert ("4d 04:00" in output) == (width >= 60)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e9, None])
def test_numbers_that_are_none(bad: float | None) -> None:
    for stream in (io.StringIO(), Terminal()):
        with LiveTable(1000, stream=stream) as table:
            table.update({**dict.fromkeys(ENTRY, bad), "step": 1})
            table.update({"step": 2})
        assert "Traceback" not in stream.getvalue()
    assert plain(shown(table)).splitlines()[2].split()[:3] == ["2", "-", "-"]


def test_steps_draw_four_times_a_second_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("gpt2.live.time.monotonic", lambda: now)
    stream = Terminal()
    drawn = 0
    with LiveTable(1000, stream=stream) as table:
        for step in range(1, 1001):  # ten seconds
            now += 0.01
            before = len(stream.getvalue())
            table.step(step)
            drawn += len(stream.getvalue()) > before
    assert 30 <= drawn <= 40


@pytest.mark.parametrize(("total", "step"), [(0, 0), (10, 20), (10, -1)])
def test_steps_beyond_the_run(total: int, step: int) -> None:
    with LiveTable(total, stream=Terminal()) as table:
        table.step(step)
        assert "%" in plain(shown(table))
