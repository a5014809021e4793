"""Files -> documents. It knows nothing about tokens.

A `.txt` or `.md` file is one document, given in pieces so that its size does not matter. A line of `.jsonl`, a row of
`.csv`, `.tsv` or `.parquet` is one. Any but `.parquet` may also be compressed: `.gz`, `.zst`.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import glob
import gzip
import importlib
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from gpt2.errors import TrainingError

SUFFIXES = (".txt", ".md", ".jsonl", ".csv", ".tsv", ".parquet")
COMPRESSED = (".gz", ".zst")
MAX_FIELD = 64 << 20
"""Characters of a line of `.jsonl`, or of a field of a table."""
_PIECE = 1 << 20
STDIN = "-"


@dataclass(frozen=True)
class Document:
    """One text."""

    source: str
    """The file, and the row where it is one of many."""
    pieces: Iterator[str]
    """The text in order; to be read before the next document."""


class Meter:
    """How many bytes of some files have been read; of compressed ones those of the file, not of the text."""

    def __init__(self, files: Sequence[str]) -> None:
        self._sizes = {file: 0 if file == STDIN else os.path.getsize(file) for file in files}
        self.total: int | None = None if STDIN in files else sum(self._sizes.values())
        """Of all files; None where one is standard input."""
        self._before = 0
        self._stream: BinaryIO | None = None

    @property
    def done(self) -> int:
        """So far."""
        return self._before + (self._stream.tell() if self._stream is not None and not self._stream.closed else 0)

    def opened(self, stream: BinaryIO) -> None:
        """A file is read from now on."""
        self._stream = stream

    def finished(self, file: str) -> None:
        """A file has been read."""
        self._before += self._sizes[file]
        self._stream = None


def find_files(inputs: Iterable[str | os.PathLike[str]]) -> list[str]:
    """The files that inputs stand for: files, folders (all known suffixes in them), patterns, `-` for standard input.

    Raises:
        TrainingError: an input stands for nothing.
    """
    files: list[str] = []
    for given in (os.fspath(item) for item in inputs):
        path = Path(given)
        if given == STDIN or path.is_file():
            found = [given]
        elif path.is_dir():
            found = sorted(str(file) for file in path.rglob("*") if file.is_file() and _kind(str(file)))
            if not found:
                raise TrainingError(f"{given}: expected files that end in {', '.join(SUFFIXES)}, found none")
        else:
            found = sorted(file for file in glob.glob(given, recursive=True) if os.path.isfile(file))
            if not found:
                raise TrainingError(f"{given}: expected a file, a folder or a pattern that fits some, found nothing")
        files += found
    if not files:
        raise TrainingError("inputs: expected at least one file or folder, got none")
    return files


def read_documents(
    files: Iterable[str], *, column: str | None = None, encoding: str = "utf-8", meter: Meter | None = None
) -> Iterator[Document]:
    """The documents in some files, in order.

    Args:
        files: from `find_files`.
        column: the field or column with the text; None for `text`, or in `.jsonl` also `prompt` and `completion`
            together.
        encoding: of text; a byte order mark of UTF-8 is skipped.
        meter: of these files; it is kept up to date.

    Raises:
        TrainingError: a file that cannot be read as what it says it is; the message has file and row or byte.
    """
    try:
        codecs.lookup(encoding)
    except LookupError:
        raise TrainingError(f"encoding: expected a name such as utf-8 or latin-1, got {encoding!r}") from None
    encoding = "utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding
    for file in files:
        kind = ".txt" if file == STDIN else _kind(file) or ".txt"
        with _reading(file):
            yield from _READERS[kind](file, column, encoding, meter)
        if meter is not None:
            meter.finished(file)


@contextlib.contextmanager
def _reading(file: str) -> Iterator[None]:
    """What the system or a decompressor has against a file, as an error of ours."""
    try:
        yield
    except OSError as error:
        raise TrainingError(f"{file}: cannot be read: {error.strerror or error}") from None
    except EOFError:
        raise TrainingError(f"{file}: expected a whole compressed file, got its beginning") from None


def _kind(file: str) -> str | None:
    """The suffix that says how to read a file."""
    name = file.lower()
    for compressed in COMPRESSED:
        name = name.removesuffix(compressed)
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


@contextlib.contextmanager
def _open(file: str, meter: Meter | None) -> Iterator[BinaryIO]:
    """A file's bytes, decompressed."""
    if file == STDIN:
        yield sys.stdin.buffer
        return
    with open(file, "rb") as stream:
        if meter is not None:
            meter.opened(stream)
        if file.lower().endswith(".gz"):
            with gzip.open(stream, "rb") as plain:
                yield plain  # type: ignore[misc]
        elif file.lower().endswith(".zst"):
            with _extra("zstandard").open(stream, "rb") as plain:
                yield plain
        else:
            yield stream


def _extra(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise TrainingError(f"{package}: needed for this file; install it with: pip install 'gpt2[data]'") from None


def _text(file: str, column: str | None, encoding: str, meter: Meter | None) -> Iterator[Document]:
    with _open(file, meter) as stream:
        yield Document(file, _pieces(stream, file, encoding))


def _pieces(stream: BinaryIO, file: str, encoding: str) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder(encoding)()
    offset = 0  # of the bytes that the decoder has not turned into text yet
    while True:
        with _reading(file):
            data = stream.read(_PIECE)
        kept = len(decoder.getstate()[0])
        try:
            text = decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            hint = "; is it UTF-16? --encoding utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
            raise TrainingError(
                f"{file}: expected {_plain(encoding)}, got the byte {error.object[error.start]:#04x} at "
                f"{offset - kept + error.start}{hint or '; --encoding latin-1, or whatever it is, reads it'}"
            ) from None
        _check_no_nul(text, file)
        if text:
            yield text
        if not data:
            return
        offset += len(data)


def _lines(file: str, column: str | None, encoding: str, meter: Meter | None) -> Iterator[Document]:
    with _open(file, meter) as stream:
        lines = io.TextIOWrapper(stream, encoding)
        row = 0
        while True:
            row += 1
            with _decoding(file, row, encoding):
                line = lines.readline(MAX_FIELD + 1)
            if not line:
                return
            if len(line) > MAX_FIELD:
                raise TrainingError(f"{file}: row {row}: expected a line of at most {MAX_FIELD:,} characters, got more")
            if line.strip():
                text = _field(line, file, row, column)
                _check_no_nul(text, f"{file}: row {row}")
                yield Document(f"{file}: row {row}", iter((text,)))


def _field(line: str, file: str, row: int, column: str | None) -> str:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise TrainingError(f"{file}: row {row}: expected JSON: {error}") from None
    if not isinstance(values, dict):
        raise TrainingError(f"{file}: row {row}: expected an object with a field {column or 'text'!r}, got {line:.60}")
    if column is None and "text" not in values and {"prompt", "completion"} <= values.keys():
        parts = [values["prompt"], values["completion"]]
    else:
        parts = [values.get(column or "text")]
    if not all(isinstance(part, str) for part in parts):
        raise TrainingError(
            f"{file}: row {row}: expected text in the field {column or 'text'!r}; the fields are "
            f"{', '.join(map(str, values))}; choose one with --column"
        )
    return "".join(parts)


def _table(delimiter: str) -> Any:
    def read(file: str, column: str | None, encoding: str, meter: Meter | None) -> Iterator[Document]:
        csv.field_size_limit(MAX_FIELD)
        name = column or "text"
        with _open(file, meter) as stream:
            rows = csv.reader(io.TextIOWrapper(stream, encoding, newline=""), delimiter=delimiter, strict=True)
            number, place = 1, -1
            while True:
                with _decoding(file, number, encoding):
                    try:
                        row = next(rows, None)
                    except csv.Error as error:
                        raise TrainingError(f"{file}: row {number}: {error}") from None
                if row is None:
                    return
                if number == 1:
                    if name not in row:
                        found = ", ".join(row)
                        raise TrainingError(f"{file}: expected a column {name!r}, found {found}; choose with --column")
                    place = row.index(name)
                elif row:
                    if len(row) <= place:
                        raise TrainingError(f"{file}: row {number}: expected a column {name!r}, got {len(row)} columns")
                    _check_no_nul(row[place], f"{file}: row {number}")
                    yield Document(f"{file}: row {number}", iter((row[place],)))
                number += 1

    return read


def _parquet(file: str, column: str | None, encoding: str, meter: Meter | None) -> Iterator[Document]:
    parquet = _extra("pyarrow.parquet")
    arrow = _extra("pyarrow")
    name = column or "text"
    try:
        table = parquet.ParquetFile(file)
        names = table.schema_arrow.names
        if name not in names:
            raise TrainingError(f"{file}: expected a column {name!r}, found {', '.join(names)}; choose with --column")
        row = 0
        for batch in table.iter_batches(batch_size=1000, columns=[name]):
            for value in batch.column(0).to_pylist():
                row += 1
                if value is None:
                    continue
                if not isinstance(value, str):
                    raise TrainingError(f"{file}: row {row}: expected text in {name!r}, got {type(value).__name__}")
                _check_no_nul(value, f"{file}: row {row}")
                yield Document(f"{file}: row {row}", iter((value,)))
    except arrow.ArrowException as error:
        raise TrainingError(f"{file}: expected a Parquet file: {error}") from None


_READERS: dict[str, Any] = {
    **{".txt": _text, ".md": _text, ".jsonl": _lines},
    **{".csv": _table(","), ".tsv": _table("\t"), ".parquet": _parquet},
}


@contextlib.contextmanager
def _decoding(file: str, row: int, encoding: str) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise TrainingError(
            f"{file}: row {row} or soon after: expected {_plain(encoding)}, got the byte "
            f"{error.object[error.start]:#04x}; --encoding latin-1, or whatever it is, reads it"
        ) from None


def _check_no_nul(text: str, place: str) -> None:
    if "\0" in text:
        raise TrainingError(
            f"{place}: expected text, got a NUL character; is it binary, or UTF-16 (--encoding utf-16)?"
        )


def _plain(encoding: str) -> str:
    return "UTF-8" if encoding == "utf-8-sig" else encoding
