"""Finding a format that is one file: the file itself, or the only one of its kind in a folder."""

from __future__ import annotations

from pathlib import Path

from gpt2.errors import CheckpointFormatError


def begins_with(path: Path, suffixes: tuple[str, ...], magic: bytes) -> bool:
    """Whether a file has one of these suffixes and begins with `magic`, or a folder holds such a file."""
    return bool(_found(path, suffixes, magic))


def only_file(path: Path, suffixes: tuple[str, ...], magic: bytes) -> Path:
    """The file that `begins_with` speaks of.

    Raises:
        CheckpointFormatError: a folder holds several.
    """
    found = _found(path, suffixes, magic)
    if len(found) != 1:
        names = ", ".join(entry.name for entry in found[:8])
        raise CheckpointFormatError(
            f"{path}: expected one {' or '.join(suffixes)} file, found {len(found)} ({names}); name the file itself"
        )
    return found[0]


def _found(path: Path, suffixes: tuple[str, ...], magic: bytes) -> list[Path]:
    entries = sorted(path.iterdir()) if path.is_dir() else [path]
    return [entry for entry in entries if entry.suffix in suffixes and entry.is_file() and _head(entry, magic)]


def _head(path: Path, magic: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(magic)) == magic
