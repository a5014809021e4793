"""`gpt2 compress` and `gpt2 decompress`: files made small with a model's probabilities, and back."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from gpt2.atomic import atomic_file
from gpt2.cli.status import Status
from gpt2.errors import CompressionError, ConfigError, ModelNameError

if TYPE_CHECKING:
    from gpt2.compression import Report
    from gpt2.compression.archive import Header
    from gpt2.language_model import LanguageModel

SUFFIX = ".gpt2z"
STDIO = "-"


def compress(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Any file, or - for standard input.")],
    out: Annotated[
        str | None, typer.Option("--out", "-o", help="What to write, or - for standard output. [default: FILE.gpt2z]")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="A name in the store or a folder. [default: the bundled model]")
    ] = None,
    engine: Annotated[str, typer.Option(help="litert, keras, or auto for the fastest that can be used.")] = "auto",
    precision: Annotated[
        str | None, typer.Option(help="Of the weights: int8, float32 or int4. [default: int8; keras has float32 alone]")
    ] = None,
    block: Annotated[int, typer.Option(help="Bytes coded by themselves. Larger: smaller files, slower back.")] = 1
    << 14,
    streams: Annotated[int, typer.Option(help="Blocks worked on together.")] = 32,
    verify: Annotated[bool, typer.Option("--verify", help="Expand it again, and write it only if that works.")] = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace a file that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Say how it went as JSON.")] = False,
) -> None:
    """Compress a file without loss, by arithmetic coding with a model's probabilities.

    Only the same weights, on the same kind of machine with the same versions, can expand it; the file says which ones.
    It is there to learn from, not for archives, and does some thousand bytes a second.

    Example: gpt2 compress book.txt && gpt2 decompress book.txt.gpt2z -o again.txt
    """
    from gpt2 import compression
    from gpt2.language_model import open_model

    if file != STDIO and not Path(file).is_file():
        raise ConfigError(f"FILE: expected a file, found none at {file}")
    target = _target(out, None if file == STDIO else file + SUFFIX, force)
    default = "float32" if engine == "keras" else "int8"
    opened = open_model(model, engine=engine, precision=precision or default)
    with _reading(file) as source, _writing(target) as written:
        total = None if file == STDIO else Path(file).stat().st_size
        with _telling("compressing", total) as progress, written.open("wb") as sink:
            began = time.monotonic()
            report = compression.compress(source, sink, opened, block=block, streams=streams, progress=progress)
            seconds = time.monotonic() - began
        if verify:
            _verify(written, opened, target, report.compressed)
    _say(file, report, seconds, as_json, target)


def decompress(
    file: Annotated[str, typer.Argument(metavar="FILE", help="From gpt2 compress, or - for standard input.")],
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", help="What to write, or - for standard output. [default: FILE without .gpt2z]"),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="The model it was made with. [default: what the file says]")
    ] = None,
    any_version: Annotated[
        bool, typer.Option("--any-version", help="Try it also with other versions or another processor.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace a file that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Say how it went as JSON.")] = False,
) -> None:
    """Expand what `gpt2 compress` made; what comes out is compared with a hash before it is put in its place."""
    from gpt2 import compression

    default = file[: -len(SUFFIX)] if file.endswith(SUFFIX) and file != SUFFIX else None
    if file != STDIO and not Path(file).is_file():
        raise ConfigError(f"FILE: expected a file, found none at {file}")
    target = _target(out, default, force)
    name = "standard input" if file == STDIO else file
    with _reading(file) as given, contextlib.ExitStack() as stack:
        source = given
        if not given.seekable():
            source = stack.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(given, source)
            source.seek(0)
        header = compression.read_header(source, name=name)
        opened = _open(model, header, name)
        total = source.seek(0, os.SEEK_END)
        source.seek(0)
        with _writing(target) as written, written.open("wb") as sink, _telling("expanding", total) as progress:
            began = time.monotonic()
            report = compression.decompress(source, sink, opened, name=name, any_version=any_version, progress=progress)
            seconds = time.monotonic() - began
    _say(name, report, seconds, as_json, target)


def _verify(written: Path, model: LanguageModel, target: str, size: int) -> None:
    """Expand what was written, which compares its hash."""
    from gpt2 import compression

    with written.open("rb") as source, open(os.devnull, "wb") as nowhere, _telling("verifying", size) as progress:
        compression.decompress(source, nowhere, model, name=target, progress=progress)


def _open(model: str | None, header: Header, name: str) -> LanguageModel:
    """The model that a file was made with, by its name if none is given."""
    from gpt2.language_model import open_model

    known = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", header.model)  # a path from a file would not be trusted
    if model is None and not known:
        raise CompressionError(f"{name}: made with weights {header.weights_sha256}; say with --model which they are")
    try:
        return open_model(model or header.model, engine=header.engine, precision=header.precision)
    except ModelNameError as error:
        raise CompressionError(f"{name}: made with {header.model}, weights {header.weights_sha256}: {error}") from None


def _target(out: str | None, default: str | None, force: bool) -> str:
    """Where to write."""
    target = out or default
    if target is None:
        raise ConfigError("--out: expected a file to write, or -; got none")
    if target != STDIO and Path(target).exists() and not force:
        raise ConfigError(f"--out: {target} is there already; --force replaces it")
    return target


@contextlib.contextmanager
def _reading(file: str) -> Iterator[BinaryIO]:
    if file == STDIO:
        yield sys.stdin.buffer
        return
    with open(file, "rb") as source:
        yield source


@contextlib.contextmanager
def _writing(target: str) -> Iterator[Path]:
    """A file to write, which becomes the target, or goes to standard output, when all went well."""
    if target != STDIO:
        with atomic_file(Path(target)) as path:
            yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "out"
        yield path
        with path.open("rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
        sys.stdout.buffer.flush()


@contextlib.contextmanager
def _telling(title: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """What to tell how many bytes are done."""
    status = Status(title)

    def progress(done: int) -> None:
        if total:
            status.progress(min(done, total), total)

    try:
        yield progress
    finally:
        status.clear()


def _say(file: str, report: Report, seconds: float, as_json: bool, target: str) -> None:
    facts = {
        "content": report.content,
        "compressed": report.compressed,
        "tokens": report.tokens,
        "bits_per_byte": report.bits_per_byte,
        "seconds": seconds,
    }
    text = (
        f"{file}: {report.content:,} bytes, compressed {report.compressed:,}, {report.bits_per_byte:.3f} bits a byte, "
        f"{report.content / max(seconds, 1e-9):,.0f} bytes a second"
    )
    typer.echo(json.dumps(facts) if as_json else text, err=target == STDIO)
