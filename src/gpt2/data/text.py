"""Text files -> one row of tokens, `<|endoftext|>` after each document. It knows nothing about batches."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from gpt2.codec import Codec
from gpt2.errors import TrainingError


def read_tokens(paths: Iterable[str | Path], codec: Codec) -> np.ndarray:
    """The tokens (N,) of some UTF-8 text files, each file a document; folders stand for the `.txt` files in them.

    Text that spells `<|endoftext|>` is encoded as ordinary text, so a file cannot forge the end of a document.

    Raises:
        TrainingError: a file is missing, is not UTF-8 or holds NUL, or there is no file at all.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        files += sorted(path.rglob("*.txt")) if path.is_dir() else [path]
    if not files:
        raise TrainingError("training data: expected at least one text file, got none")
    end = [] if codec.end_of_text is None else [codec.end_of_text]
    rows: list[np.ndarray] = []
    for file in files:
        row = codec.encode_array(_read(file))
        rows += [row, np.array(end, row.dtype)]
    return np.concatenate(rows)


def _read(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TrainingError(f"{path}: expected a text file: {error.strerror}") from None
    if b"\0" in data:
        raise TrainingError(f"{path}: expected text, got a NUL byte at {data.index(0)}; is it binary, or UTF-16?")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TrainingError(
            f"{path}: expected UTF-8, got the byte {data[error.start]:#04x} at {error.start}; convert it first"
        ) from None
