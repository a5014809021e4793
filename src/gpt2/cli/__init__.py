"""The command line, `gpt2`: one module a command group; whatever is heavy is imported when the command runs.

Exit status: 0 done, 1 it could not be done, 2 misuse, 130 stopped by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP; stopped, it
leaves no unfinished files and no process behind. Errors are one line on stderr; `--debug` before the command shows
where they come from.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from gpt2.cli import (
    codec,
    compress,
    convert,
    doctor,
    download,
    eval,
    generate,
    inspect,
    models,
    overlap,
    plan,
    prepare,
    replay,
    serve,
    train,
)
from gpt2.errors import ConfigError, GPT2Error, PromptError

# The parser's errors, which typer has in one place or another, by what it shows of them.
UsageError: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "UsageError")

GRACE_SECONDS = 2.0
"""What a command has to tidy up after Ctrl-C."""
END_SECONDS = 8.0
"""The same after SIGTERM and SIGHUP; some who send these kill after ten seconds."""
_ENDS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))

app = typer.Typer(
    name="gpt2",
    help="GPT-2 on TensorFlow 2.17: write text, train, encode, convert, download and serve models.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command("generate")(generate.generate)
app.command("replay")(replay.replay)
app.command("encode")(codec.encode)
app.command("decode")(codec.decode)
app.command("compress")(compress.compress)
app.command("decompress")(compress.decompress)
app.command("convert")(convert.convert)
app.command("download")(download.download)
app.add_typer(models.models_app, name="models")
app.command("prepare")(prepare.prepare)
app.command("train")(train.train)
app.command("overlap")(overlap.overlap)
app.command("memorized")(overlap.memorized)
app.command("plan")(plan.plan)
app.command("eval")(eval.evaluate)
app.command("inspect")(inspect.inspect)
app.command("serve")(serve.serve)
app.add_typer(serve.keys_app, name="keys")
app.command("doctor")(doctor.doctor)


def _version(value: bool) -> None:
    if value:
        from gpt2 import __version__

        typer.echo(f"gpt2 {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="On an error, show the whole traceback.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    """What stands before the command; `main` looks at --debug itself."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave the process with its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, _interrupt)
        _handle_ends()
        sys.unraisablehook = _unraisable
    try:
        status = app(given, prog_name="gpt2", standalone_mode=False)
    except UsageError as error:
        _complain(error.format_message())
        status = 2
    except (KeyboardInterrupt, typer.Abort):
        status = 130
    except BrokenPipeError:  # `gpt2 ... | head`: whoever read has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except GPT2Error as error:
        if "--debug" in given:
            raise
        _complain(str(error))
        status = 2 if isinstance(error, (ConfigError, PromptError)) else 1
    except OSError as error:
        if "--debug" in given:
            raise
        _complain(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        status = 1
    except Exception as error:
        if "--debug" in given:
            raise
        _complain(f"{type(error).__name__}: {error} (this is a bug; `gpt2 --debug` before the command shows where)")
        status = 1
    if status == 130:
        sys.stderr.write("\n")  # the shell's prompt begins a line
    sys.exit(status if isinstance(status, int) else 0)


def _interrupt(*_: object) -> None:
    """Ctrl-C: stop as Python does, and without ceremony where native code has swallowed that (TensorFlow at times)."""
    _after(GRACE_SECONDS, os._exit, 130)
    raise KeyboardInterrupt


class _Ended(SystemExit):
    """By a signal; raised so that whatever has unfinished files or processes of its own tidies up."""


def _handle_ends() -> None:
    for number in _ENDS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as `nohup` leaves SIGHUP
            signal.signal(number, _end)


def _end(number: int, _: object) -> None:
    """SIGTERM, or the terminal is gone."""
    for each in _ENDS:
        signal.signal(each, signal.SIG_IGN)  # a second one would disturb the tidying up
    _after(END_SECONDS, os._exit, 128 + number)
    raise _Ended(128 + number)


def _after(seconds: float, call: Callable[..., object], *arguments: object) -> None:
    timer = threading.Timer(seconds, call, arguments)
    timer.daemon = True
    timer.start()


def _unraisable(error: sys.UnraisableHookArgs) -> None:
    """A signal in a place that cannot pass it on, such as a callback of the garbage collector.

    After Ctrl-C leave at once; the others come once more, in a better place.
    """
    if issubclass(error.exc_type, KeyboardInterrupt):
        sys.stderr.write("\n")
        os._exit(130)
    if isinstance(error.exc_value, _Ended):
        number = int(str(error.exc_value.code)) - 128
        signal.signal(number, _end)
        _after(0.05, os.kill, os.getpid(), number)
        return
    sys.__unraisablehook__(error)


def _complain(message: str) -> None:
    sys.stderr.write("gpt2: " + " ".join(message.split()) + "\n")
