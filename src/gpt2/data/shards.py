"""Tokens on disk: shards of plain numbers, mapped into memory, and a manifest that says what they are.

DIR/manifest.json     counts, hashes, the vocabulary, how it was made
DIR/train-00000.bin   token ids as little-endian uint16 (uint32 for a vocabulary above 65,536)
DIR/valid-00000.bin   those held out
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpt2.errors import TrainingError
from gpt2.hashing import sha256_of

MANIFEST = "manifest.json"
FORMAT = "gpt2-tokens"
VERSION = 1
SPLITS = ("train", "valid")
DTYPES: dict[str, np.dtype] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
_FILE = re.compile(r"(train|valid)-\d{5}\.bin")


class ShardTokens:
    """The tokens of one split, as `gpt2.data.batches.Tokens`."""

    def __init__(self, shards: Sequence[np.ndarray], digest: str) -> None:
        self.shards, self.digest = list(shards), digest
        self._ends = np.cumsum([len(shard) for shard in shards])

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def gather(self, starts: np.ndarray, length: int) -> np.ndarray:
        """The windows (B, length) int32 that begin at `starts` (B,)."""
        return np.stack([self._window(int(start), length) for start in starts])

    def _window(self, start: int, length: int) -> np.ndarray:
        if not 0 <= start <= len(self) - length:
            raise IndexError(f"start: expected 0 to {len(self) - length}, got {start}")
        window = np.empty(length, np.int32)
        done = 0
        shard = int(np.searchsorted(self._ends, start, side="right"))
        while done < length:
            array = self.shards[shard]
            first = start + done - (int(self._ends[shard]) - len(array))
            part = array[first : first + length - done]
            window[done : done + len(part)] = part
            done += len(part)
            shard += 1
        return window


class Prepared:
    """A folder that `prepare` made.

    Raises:
        TrainingError: it is none, or its files are not those of its manifest.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = _read_manifest(folder / MANIFEST)
        self.train = self._tokens("train")
        valid = self._tokens("valid")
        self.valid: ShardTokens | None = valid if len(valid) else None

    def _tokens(self, split: str) -> ShardTokens:
        dtype = DTYPES[self.manifest["dtype"]]
        entries = self.manifest["splits"][split]["shards"]
        arrays = []
        for entry in entries:
            path = self.folder / entry["file"]
            size = path.stat().st_size if path.is_file() else -1
            if size != entry["tokens"] * dtype.itemsize:
                expected = entry["tokens"] * dtype.itemsize
                raise TrainingError(f"{path}: expected {expected:,} bytes, found {'none' if size < 0 else f'{size:,}'}")
            arrays.append(np.memmap(path, dtype, mode="r"))
        hashes = "".join(entry["sha256"] for entry in entries)
        return ShardTokens(arrays, hashlib.sha256(hashes.encode()).hexdigest())

    def verify(self) -> None:
        """Read everything and compare it with the hashes.

        Raises:
            TrainingError: a shard is not what it was.
        """
        for split in SPLITS:
            for entry in self.manifest["splits"][split]["shards"]:
                found = sha256_of(self.folder / entry["file"])
                if found != entry["sha256"]:
                    raise TrainingError(
                        f"{self.folder / entry['file']}: expected SHA-256 {entry['sha256']}, found {found}"
                    )


def is_prepared(path: str | os.PathLike[str]) -> bool:
    """Whether a folder is meant to be one that `prepare` made."""
    try:
        return json.loads((Path(path) / MANIFEST).read_text(encoding="utf-8")).get("format") == FORMAT
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def _read_manifest(path: Path) -> Mapping[str, Any]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TrainingError(f"{path}: expected the manifest of prepared data: {error}") from None
    try:
        right = manifest["format"] == FORMAT and manifest["version"] == VERSION and manifest["dtype"] in DTYPES
        for split in SPLITS:
            for entry in manifest["splits"][split]["shards"]:
                right &= bool(_FILE.fullmatch(entry["file"])) and isinstance(entry["sha256"], str)
                right &= isinstance(entry["tokens"], int) and 0 < entry["tokens"] < 2**40
        right &= isinstance(manifest["codec"]["sha256"], str)
    except (KeyError, TypeError):
        right = False
    if not right:
        raise TrainingError(f"{path}: expected the manifest of prepared data, version {VERSION}; got something else")
    checked: Mapping[str, Any] = manifest
    return checked
