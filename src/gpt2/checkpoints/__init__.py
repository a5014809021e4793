"""Models on disk: arrays in, arrays out, one module a format.

What formats exchange is a `GPT2Config` and a stream of (canonical name, float32 array), one at a time, so that reading,
writing and converting never hold a model twice. A module of a format has `matches(folder)`, `open_checkpoint(folder)`
and `write(folder, ...)`, and stands in `FORMATS`; it is imported when it is used (only `openai` needs TensorFlow).
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpt2.atomic import atomic_folder
from gpt2.checkpoints.contents import Contents
from gpt2.checkpoints.names import Tensors, check_shapes, checked_values, expected_shapes
from gpt2.codec import Codec
from gpt2.config import GPT2Config
from gpt2.errors import CheckpointFormatError, CheckpointNotFoundError, ConfigError, GPT2Error

FORMATS = {
    "native": "gpt2.checkpoints.native",
    "huggingface": "gpt2.checkpoints.huggingface",
    "openai": "gpt2.checkpoints.openai",
}
"""Name -> module, in the order in which a folder is asked."""

DTYPES = ("float32", "float16")


@dataclass(frozen=True)
class Description:
    """What can be told of a model without reading its numbers."""

    format: str
    config: GPT2Config
    dtype: str
    """How the numbers are stored."""
    bytes: int
    """Of all files in the folder."""


def detect(path: str | Path) -> str:
    """The format of a folder.

    Raises:
        CheckpointNotFoundError: there is nothing.
        CheckpointFormatError: it is not a folder, or in none of the formats.
    """
    folder = Path(path)
    if not folder.exists():
        raise CheckpointNotFoundError(f"{folder}: expected a model's folder, found nothing")
    if not folder.is_dir():
        raise CheckpointFormatError(f"{folder}: expected a model's folder, found a file")
    for name in FORMATS:
        if _module(name).matches(folder):
            return name
    found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
    raise CheckpointFormatError(
        f"{folder}: expected a model (config.json and model.safetensors, or hparams.json and model.ckpt.*), "
        f"found {found}"
    )


def read(path: str | Path) -> tuple[GPT2Config, Iterator[tuple[str, np.ndarray]]]:
    """Open a model in any format.

    Returns:
        The config, and all tensors in turn as float32 under their canonical names. Names and shapes have been checked;
        whether numbers are finite is checked as they come.

    Raises:
        CheckpointError: see `gpt2.errors`; also while the tensors are read.
    """
    contents = _open(Path(path), detect(path))
    return contents.config, _guarded(checked_values(contents.tensors(), source=str(path)), Path(path))


def describe(path: str | Path) -> Description:
    """What a model is, from its headers. (The openai format is read whole, in a child process.)

    Raises:
        CheckpointError: as `read`.
    """
    folder = Path(path)
    format = detect(folder)
    contents = _open(folder, format)
    size = sum(entry.stat().st_size for entry in folder.rglob("*") if entry.is_file())
    return Description(format, contents.config, contents.dtype, size)


def write(
    path: str | Path,
    config: GPT2Config,
    tensors: Tensors,
    *,
    format: str = "native",
    codec: Codec | None = None,
    dtype: str = "float32",
) -> None:
    """Write a model as a folder, atomically.

    Args:
        path: the folder; a model that is there is replaced, a folder with other files in it is refused.
        config: the shape.
        tensors: all of them under canonical names; in the order of `names.expected_shapes` none waits in memory.
        format: one of `FORMATS`.
        codec: the vocabulary to write beside the weights, or None.
        dtype: `float32` or `float16`.

    Raises:
        CheckpointError: it cannot be written; what was there before is untouched.
    """
    if format not in FORMATS:
        raise ConfigError(f"format: expected one of {', '.join(FORMATS)}, got {format!r}")
    if dtype not in DTYPES:
        raise ConfigError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    module = _module(format)
    with atomic_folder(Path(path), replaceable=_is_model) as folder:
        module.write(folder, config, _in_order(config, tensors), codec, dtype)


def _module(name: str) -> Any:
    return importlib.import_module(FORMATS[name])


def _open(folder: Path, format: str) -> Contents:
    try:
        contents: Contents = _module(format).open_checkpoint(folder)
    except OSError as error:
        if isinstance(error, GPT2Error):
            raise
        raise CheckpointFormatError(f"{folder}: cannot be read: {error.strerror or error}") from None
    return contents


def _guarded(tensors: Iterator[tuple[str, np.ndarray]], folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    try:
        yield from tensors
    except OSError as error:
        raise CheckpointFormatError(f"{folder}: cannot be read: {error.strerror or error}") from None


def _is_model(folder: Path) -> bool:
    """Whether a folder holds a model and nothing else, so that it may be replaced."""
    known = {file for format in FORMATS for file in _module(format).FILES}
    names = {entry.name for entry in folder.iterdir()}
    return bool(names) and all(
        name in known or (name.startswith("model-") and name.endswith(".safetensors")) for name in names
    )


def _in_order(config: GPT2Config, tensors: Tensors) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors in the order of the release, and an error for what is missing or too many.

    Those that come early wait in memory; from a reader of ours, or from a network, hardly any do.
    """
    shapes = expected_shapes(config)
    order = iter(shapes)
    wanted = next(order, None)
    waiting: dict[str, np.ndarray] = {}
    seen: dict[str, tuple[int, ...]] = {}
    for name, array in tensors:
        seen[name] = array.shape
        if array.shape != shapes.get(name):
            check_shapes(config, {**shapes, name: array.shape}, source="write")
        waiting[name] = array
        while wanted in waiting:
            yield wanted, waiting.pop(wanted)
            wanted = next(order, None)
    check_shapes(config, seen, source="write")
