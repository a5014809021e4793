"""What a run has done so far, on disk: one line of JSON for each unit, so that a killed run goes on where it was.

FOLDER/journal.jsonl       the key of the run, then {"n": unit, ...} for each unit that is done
FOLDER/result.json         the result, once there is one
FOLDER/documents.parquet   the table of documents; documents.jsonl where pyarrow is not installed
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gpt2.atomic import atomic_file, locked
from gpt2.errors import EvaluationError
from gpt2.hashing import sha256_of

JOURNAL, RESULT = "journal.jsonl", "result.json"
_PARTS = {"task": str, "metrics": dict, "data": list, "options": dict, "model": dict, "protocol": dict}
DOCUMENTS = ("documents.parquet", "documents.jsonl")


class Journal:
    """The units that are done.

    Args:
        folder: where it is kept; None keeps it in memory.
        key: what the run is; a journal with another key is begun anew.
    """

    def __init__(self, folder: Path | None, key: Mapping[str, Any]) -> None:
        self.records: dict[int, dict[str, Any]] = {}
        self._folder, self._key = folder, dict(key)
        self._file: Any = None

    @contextlib.contextmanager
    def open(self, *, again: bool = False) -> Iterator[None]:
        """Have the folder for oneself, with what is in it read, or forgotten with `again`.

        A folder is removed again if nothing could be evaluated.

        Raises:
            EvaluationError: another process is at it, or it cannot be written.
        """
        if self._folder is None:
            yield
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with locked(self._folder / ".lock", wait=False):
                path = self._folder / JOURNAL
                if again:
                    path.unlink(missing_ok=True)
                self._read(path)
                with path.open("ab") as self._file:
                    if not self._file.tell():
                        self._write([self._key])
                    try:
                        yield
                    except EvaluationError:  # of the data or the model, which is the same the next time
                        if not (self._folder / RESULT).is_file():
                            shutil.rmtree(self._folder, ignore_errors=True)
                        raise
        except BlockingIOError:
            raise EvaluationError(f"{self._folder}: another process is at this evaluation") from None
        except OSError as error:
            raise EvaluationError(f"{self._folder}: cannot be written: {error.strerror or error}") from error

    def add(self, records: Iterable[tuple[int, dict[str, Any]]]) -> None:
        """Note some units as done."""
        new = list(records)
        self.records.update(new)
        if self._file is not None:
            self._write([{"n": number, **record} for number, record in new])

    def _write(self, entries: Iterable[Mapping[str, Any]]) -> None:
        self._file.write("".join(json.dumps(entry) + "\n" for entry in entries).encode())
        self._file.flush()

    def _read(self, path: Path) -> None:
        """Take over whole lines; a half one, which a kill leaves, and whatever follows it are cut off."""
        if not path.is_file():
            return
        good = 0
        with path.open("rb") as file:
            for number, line in enumerate(file):
                try:
                    entry = json.loads(line) if line.endswith(b"\n") else None
                except ValueError:
                    entry = None
                if not isinstance(entry, dict) or (number == 0 and entry != self._key) or (number and "n" not in entry):
                    break
                if number:
                    self.records[entry.pop("n")] = entry
                good += len(line)
        with path.open("r+b") as file:
            file.truncate(good)


def write_documents(folder: Path, documents: Mapping[str, Any]) -> dict[str, str]:
    """Write the table of documents in place of one that is there; the file's name and SHA-256."""
    path = folder / DOCUMENTS[0 if importlib.util.find_spec("pyarrow") is not None else 1]
    if path.name == DOCUMENTS[0]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.table({name: pa.array(_plain(values)) for name, values in documents.items()})
        with atomic_file(path) as new:
            pq.write_table(table, new, compression="zstd")
    else:
        names, columns = list(documents), [_plain(values) for values in documents.values()]
        with atomic_file(path) as new, new.open("w", encoding="utf-8") as file:
            for row in zip(*columns, strict=True):
                file.write(json.dumps(dict(zip(names, row, strict=True))) + "\n")
    return {"name": path.name, "sha256": sha256_of(path)}


def write_result(folder: Path, result: Mapping[str, Any]) -> None:
    """Write the result, once its table is there."""
    with atomic_file(folder / RESULT) as new:
        new.write_text(json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def read_result(folder: Path) -> dict[str, Any]:
    """The result in a folder.

    Raises:
        EvaluationError: there is none, or it is broken.
    """
    try:
        found = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        if not all(isinstance(found[name], kind) for name, kind in _PARTS.items()):
            raise ValueError(f"{RESULT} is damaged")
    except FileNotFoundError:
        raise EvaluationError(f"{folder}: expected the folder of a finished evaluation: it has no {RESULT}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvaluationError(f"{folder}: expected the folder of a finished evaluation: {error}") from None
    return dict(found)


def read_documents(folder: Path) -> dict[str, Any]:
    """The table of documents in a folder: arrays, and lists where a document has several values.

    Raises:
        EvaluationError: there is none, or not the one of the result beside it.
    """
    parquet, plain = (folder / name for name in DOCUMENTS)
    written = read_result(folder).get("documents")
    if written and (folder / written["name"]).is_file() and sha256_of(folder / written["name"]) != written["sha256"]:
        raise EvaluationError(f"{folder / written['name']}: expected the table that {RESULT} tells of, got another one")
    try:
        if parquet.is_file():
            try:
                import pyarrow.parquet as pq
            except ImportError:
                raise EvaluationError(f"{parquet}: needs the package pyarrow: pip install 'gpt2[data]'") from None
            columns = pq.read_table(parquet).to_pydict()
        else:
            rows = [json.loads(line) for line in plain.read_text(encoding="utf-8").splitlines()]
            columns = {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}
    except (OSError, ValueError, KeyError) as error:
        raise EvaluationError(f"{folder}: expected a table of documents: {error}") from None
    return {name: values if _is_nested(values) else np.array(values) for name, values in columns.items()}


def _plain(values: Any) -> list[Any]:
    return values.tolist() if isinstance(values, np.ndarray) else list(values)


def _is_nested(values: list[Any]) -> bool:
    return bool(values) and isinstance(values[0], list)
