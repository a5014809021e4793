"""SHA-256 of files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

_CHUNK = 1 << 20


def digest_of(path: Path) -> Any:
    """The state of `hashlib.sha256` after a file, which more can be added to."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest


def sha256_of(path: Path) -> str:
    """The hash of a file, as hexadecimal digits."""
    return str(digest_of(path).hexdigest())
