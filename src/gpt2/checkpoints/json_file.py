"""Reading small JSON files that may be hostile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gpt2.errors import CheckpointFormatError

MAX_BYTES = 16 * 1024 * 1024


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        CheckpointFormatError: it is missing, longer than 16 MiB, not UTF-8, not one JSON object, too deep, or names a
            key twice.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise CheckpointFormatError(f"{path}: expected at most {MAX_BYTES:,} bytes, got {path.stat().st_size:,}")
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointFormatError(f"{path}: expected a JSON file: {error.strerror}") from None
    return parse_object(data, str(path))


def parse_object(data: bytes, source: str) -> dict[str, Any]:
    """The JSON object in some bytes; `source` names it in errors. As `read_object`."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise CheckpointFormatError(f"{source}: expected a JSON object: {str(error)[:200]}") from None
    if not isinstance(value, dict):
        raise CheckpointFormatError(f"{source}: expected a JSON object, got {type(value).__name__}")
    return value


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key stands twice")
    return value
