"""safetensors files, one tensor at a time.

The `safetensors` library checks a file's header; the numbers are then read at their offsets by plain reads, and
written one after another. Its own reader maps the file, and every mapped page that was touched counts as memory until
it is closed; its own writer wants all tensors at once. Either would double what a large model needs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from gpt2.checkpoints.json_file import MAX_BYTES, parse_object
from gpt2.checkpoints.names import Tensors
from gpt2.errors import CheckpointFormatError

DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
DTYPE_CODES = {"float32": "F32", "float16": "F16"}
"""What can be written."""


@dataclass(frozen=True)
class Entry:
    """Where one tensor is."""

    path: Path
    dtype: str
    """The header's code, such as F32."""
    shape: tuple[int, ...]
    offset: int
    """Bytes from the file's beginning."""

    def load(self) -> np.ndarray:
        """Read the numbers, as they are stored.

        Raises:
            CheckpointFormatError: a type that a GPT-2 does not have, or a file that was cut short meanwhile.
        """
        if self.dtype not in DTYPES:
            raise CheckpointFormatError(f"{self.path}: expected tensors of type F32, F16 or BF16, got {self.dtype}")
        count = math.prod(self.shape)
        array = np.fromfile(self.path, DTYPES[self.dtype], count, offset=self.offset)
        if array.size != count:
            raise CheckpointFormatError(f"{self.path}: expected {count:,} numbers at {self.offset}, got {array.size:,}")
        return array.reshape(self.shape)


def read_header(path: Path) -> dict[str, Entry]:
    """Every tensor of a file, by the name it has there.

    Raises:
        CheckpointFormatError: not a sound safetensors file.
    """
    try:
        if not path.is_file():  # a pipe would never end
            raise CheckpointFormatError(f"{path}: expected a safetensors file, found {_kind(path)}")
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > MAX_BYTES:
                raise CheckpointFormatError(f"{path}: expected a header of up to {MAX_BYTES:,} bytes, got {length:,}")
            with safe_open(path, framework="np"):  # the library's checks: lengths, overlaps, types, holes
                pass
            header = parse_object(file.read(length), f"{path}: header")
    except SafetensorError as error:
        raise CheckpointFormatError(f"{path}: expected a safetensors file: {str(error)[:200]}") from None
    except OSError as error:
        raise CheckpointFormatError(f"{path}: cannot be read: {error.strerror or error}") from None
    header.pop("__metadata__", None)
    return {
        name: Entry(path, entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
        for name, entry in header.items()
    }


def _kind(path: Path) -> str:
    return "a folder" if path.is_dir() else "no file" if path.exists() else "nothing"


def stream(entries: Mapping[str, Entry]) -> Iterator[tuple[str, np.ndarray]]:
    """Names and arrays, one at a time."""
    for name, entry in entries.items():
        yield name, entry.load()


def dtype_of(entries: Mapping[str, Entry]) -> str:
    """How the numbers are stored: `float32`, `float16`, `bfloat16`, or several."""
    names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    return ", ".join(sorted({names.get(entry.dtype, entry.dtype) for entry in entries.values()}))


def write_file(
    path: Path, tensors: Tensors, shapes: Mapping[str, tuple[int, ...]], dtype: str, metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file from a stream of tensors.

    Args:
        path: the file.
        tensors: exactly the tensors of `shapes`, in that order.
        shapes: name -> shape.
        dtype: `float32` or `float16`.
        metadata: strings for the header.

    Raises:
        CheckpointFormatError: a number that float16 cannot hold.
    """
    code = DTYPE_CODES[dtype]
    width = DTYPES[code].itemsize
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + width * math.prod(shape)
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)  # the numbers begin at a multiple of 8
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for (name, array), (expected, shape) in zip(tensors, shapes.items(), strict=True):
            assert (name, array.shape) == (expected, shape)
            with np.errstate(over="ignore"):
                stored = np.ascontiguousarray(array, dtype=DTYPES[code])
            if dtype == "float16" and not np.isfinite(stored).all():
                message = f"{name} holds numbers beyond float16 (65504); save it as float32"
                raise CheckpointFormatError(f"{path.name}: {message}")
            file.write(stored.data.cast("B"))
