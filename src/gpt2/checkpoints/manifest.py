"""`manifest.json`: the size and the SHA-256 of every file in a model's folder, so that a flipped bit is found."""

from __future__ import annotations

import json
from pathlib import Path

from gpt2.checkpoints.json_file import read_object
from gpt2.errors import CheckpointFormatError
from gpt2.hashing import sha256_of

NAME = "manifest.json"


def write(folder: Path) -> None:
    """List every file of a folder that is finished but for this."""
    files = {
        entry.name: {"bytes": entry.stat().st_size, "sha256": sha256_of(entry)}
        for entry in sorted(folder.iterdir())
        if entry.is_file() and entry.name != NAME
    }
    (folder / NAME).write_text(json.dumps({"files": files}, indent=2) + "\n", encoding="utf-8")


def verify(folder: Path) -> bool:
    """Compare every file with the manifest; False where there is none, as in what others have written.

    Raises:
        CheckpointFormatError: a file is missing, or is not what it was when it was written.
    """
    if not (folder / NAME).is_file():
        return False
    files = read_object(folder / NAME).get("files")
    if not isinstance(files, dict) or not all(isinstance(entry, dict) for entry in files.values()):
        raise CheckpointFormatError(f"{folder / NAME}: expected an object of files, got {files!r:.80}")
    for name, entry in files.items():
        path = folder / name
        if path.name != name or not path.is_file():
            raise CheckpointFormatError(f"{path}: named in {NAME}, but not there")
        size = path.stat().st_size
        if size != entry.get("bytes"):
            raise CheckpointFormatError(f"{path}: expected {entry.get('bytes')} bytes, found {size}; it is damaged")
        found = sha256_of(path)
        if found != entry.get("sha256"):
            raise CheckpointFormatError(f"{path}: expected SHA-256 {entry.get('sha256')}, found {found}; it is damaged")
    return True
