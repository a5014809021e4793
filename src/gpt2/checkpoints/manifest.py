"""`manifest.json`: the size and the SHA-256 of every file in a model's folder, so that a flipped bit is found."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from gpt2.checkpoints.json_file import read_object
from gpt2.errors import CheckpointFormatError
from gpt2.hashing import sha256_of

NAME = "manifest.json"


def write(folder: Path, hashes: Mapping[str, str] | None = None) -> None:
    """List every file of a folder that is finished but for this, also those of folders within it.

    Args:
        folder: the folder.
        hashes: of files that have been hashed already.
    """
    found = [entry for entry in sorted(folder.rglob("*")) if entry.is_file() and entry != folder / NAME]
    names = {entry.relative_to(folder).as_posix(): entry for entry in found}
    files = {
        name: {"bytes": entry.stat().st_size, "sha256": (hashes or {}).get(name) or sha256_of(entry)}
        for name, entry in names.items()
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
        inside = not Path(name).is_absolute() and ".." not in Path(name).parts and "\\" not in name
        if not inside or not path.is_file():
            raise CheckpointFormatError(f"{path}: named in {NAME}, but not there")
        size = path.stat().st_size
        if size != entry.get("bytes"):
            raise CheckpointFormatError(f"{path}: expected {entry.get('bytes')} bytes, found {size}; it is damaged")
        found = sha256_of(path)
        if found != entry.get("sha256"):
            raise CheckpointFormatError(f"{path}: expected SHA-256 {entry.get('sha256')}, found {found}; it is damaged")
    return True
