"""Models on disk: arrays in, arrays out, one module a format.

What formats exchange is a `GPT2Config` and a stream of (canonical name, float32 array), one at a time, so that reading,
writing and converting never hold a model twice. A module of a format has `matches(path)`, `open_checkpoint(path)` and
`write(folder, ...)`, and stands in `FORMATS`, or in `READ_ONLY` without the last; where the vocabulary is not in the
folder's own files, it has `codec(path)` too. It is imported when it is used (only `openai` needs TensorFlow).
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpt2.atomic import atomic_folder
from gpt2.checkpoints.contents import Contents
from gpt2.checkpoints.json_file import read_object
from gpt2.checkpoints.names import Tensors, check_shapes, checked_values, expected_shapes
from gpt2.codec import Codec, fitting
from gpt2.config import GPT2Config
from gpt2.errors import CheckpointFormatError, CheckpointNotFoundError, ConfigError, GPT2Error

FORMATS = {
    "native": "gpt2.checkpoints.native",
    "huggingface": "gpt2.checkpoints.huggingface",
    "openai": "gpt2.checkpoints.openai",
}
"""Name -> module of what is read and written, in the order in which a folder is asked."""

READ_ONLY = {
    "keras_hub": "gpt2.checkpoints.keras_hub",
    "gguf": "gpt2.checkpoints.gguf",
    "llmc": "gpt2.checkpoints.llmc",
    "nanogpt": "gpt2.checkpoints.nanogpt",
}
"""The same of what is read alone; all but the first are single files, or folders with one."""

_ALL = FORMATS | READ_ONLY

BUILT_FORMAT = "gpt2-litert"
"""Stands in the `config.json` of what is built for the litert engine."""

DTYPES = ("float32", "float16")

_WEIGHTS = re.compile(
    r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json|model\.ckpt\.(index|data-\d{5}-of-\d{5})"
)


@dataclass(frozen=True)
class Description:
    """What can be told of a model without reading its numbers."""

    format: str
    config: GPT2Config
    dtype: str
    """How the numbers are stored."""
    bytes: int
    """Of all files in the folder."""
    notes: tuple[str, ...] = ()
    """What a person should know who takes it for what it was where it comes from."""


def detect(path: str | Path) -> str:
    """The format of a folder, or of a file.

    Raises:
        CheckpointNotFoundError: there is nothing.
        CheckpointFormatError: it is in none of the formats.
    """
    path = Path(path)
    with _reading(path):
        if not os.path.exists(path):
            raise CheckpointNotFoundError(f"{path}: expected a model's folder or file, found nothing")
        for name in _ALL:
            if _module(name).matches(path):
                return name
        if is_built(path):
            raise CheckpointFormatError(
                f"{path}: expected a model's weights, found what was built from them for the litert engine; it can "
                "be asked for text, but not read, trained or converted"
            )
        if not path.is_dir():
            raise CheckpointFormatError(
                f"{path}: expected a model's folder, or a file of GGUF (.gguf), llm.c (.bin) or nanoGPT (.pt), found "
                "another file"
            )
        found = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
    raise CheckpointFormatError(
        f"{path}: expected a model (config.json and model.safetensors, or hparams.json and model.ckpt.*), found {found}"
    )


def is_built(path: str | Path) -> bool:
    """Whether a folder is no checkpoint but what `gpt2.engines.litert_build` made of one."""
    config = Path(path) / "config.json"
    try:
        return config.is_file() and read_object(config).get("format") == BUILT_FORMAT
    except (CheckpointFormatError, OSError):
        return False


def read(path: str | Path) -> tuple[GPT2Config, Iterator[tuple[str, np.ndarray]]]:
    """Open a model in any format.

    Returns:
        The config, and all tensors in turn as float32 under their canonical names. Names and shapes have been checked;
        whether numbers are finite is checked as they come.

    Raises:
        CheckpointError: see `gpt2.errors`; also while the tensors are read.
    """
    folder, format = Path(path), detect(path)
    with _reading(folder):
        contents: Contents = _module(format).open_checkpoint(folder)
    return contents.config, _guarded(checked_values(contents.tensors(), source=str(folder)), folder)


def describe(path: str | Path, *, quick: bool = False) -> Description:
    """What a model is, from its headers, which are checked against its config as in `read`.

    Args:
        path: the folder.
        quick: the openai format is otherwise read whole, in a child process, since it has check sums of its numbers;
            this has the child read the index alone.

    Raises:
        CheckpointError: as `read`.
    """
    folder, format = Path(path), detect(path)
    with _reading(folder):
        contents: Contents = _module(format).open_checkpoint(folder, quick=quick)
        files = folder.rglob("*") if folder.is_dir() else [folder]
        size = sum(entry.stat().st_size for entry in files if entry.is_file())
    return Description(format, contents.config, contents.dtype, size, contents.notes)


def own_codec(path: str | Path) -> Codec | None:
    """The vocabulary that a model brings along, or None if it has none.

    Raises:
        CheckpointError: the model's file that holds it cannot be read.
        CodecError: it is broken, or no byte-level BPE as in GPT-2.
    """
    path = Path(path)
    module = None if is_built(path) else _module(detect(path))
    if hasattr(module, "codec"):
        with _reading(path):
            found: Codec | None = module.codec(path)  # type: ignore[union-attr]
        return found
    return Codec.from_folder(path) if path.is_dir() else None


def codec_of(path: str | Path, n_vocab: int) -> Codec | None:
    """The vocabulary for a model: its own, else GPT-2's where it fits, else None.

    Args:
        path: a model in any format, or what was built from one.
        n_vocab: how many tokens the network has.

    Raises:
        CodecError: the model's vocabulary is broken, or has ids that the network does not.
    """
    return fitting(own_codec(path), n_vocab, source=str(path))


def folders_of(format: str) -> tuple[str, ...]:
    """The folders within a model's folder that belong to it."""
    return tuple(getattr(_module(format), "FOLDERS", ()))


def write(
    path: str | Path,
    config: GPT2Config,
    tensors: Tensors,
    *,
    format: str = "native",
    codec: Codec | None = None,
    dtype: str = "float32",
    check: Callable[[Path], None] | None = None,
) -> None:
    """Write a model as a folder, atomically.

    Args:
        path: the folder; a model that is there is replaced, a folder with other files in it is refused.
        config: the shape.
        tensors: all of them under canonical names; in the order of `names.expected_shapes` none waits in memory.
        format: one of `FORMATS`.
        codec: the vocabulary to write beside the weights, or None.
        dtype: `float32` or `float16`.
        check: called with the new folder before it takes its place, which an error from it prevents.

    Raises:
        TensorMismatchError: a tensor is missing, too many, misshapen or not finite.
        CheckpointError: it cannot be written. Whatever the error, what was there before is untouched.
    """
    if format in READ_ONLY:
        raise ConfigError(f"format: {format} is read, not written; expected one of {', '.join(FORMATS)}")
    if format not in FORMATS:
        raise ConfigError(f"format: expected one of {', '.join(FORMATS)}, got {format!r}")
    if dtype not in DTYPES:
        raise ConfigError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    module = _module(format)
    finite = checked_values(tensors, source=f"writing {path}")
    with atomic_folder(Path(path), replaceable=_is_model) as folder:
        module.write(folder, config, in_order(config, finite), codec, dtype)
        if check is not None:
            check(folder)


def _module(name: str) -> Any:
    return importlib.import_module(_ALL[name])


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """What the system has against reading, as an error of ours."""
    try:
        yield
    except OSError as error:
        if isinstance(error, GPT2Error):
            raise
        raise CheckpointFormatError(f"{folder}: cannot be read: {error.strerror or error}") from None


def _guarded(tensors: Iterator[tuple[str, np.ndarray]], folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    while True:
        with _reading(folder):  # around each step alone: what the consumer raises is not about reading
            pair = next(tensors, None)
        if pair is None:
            return
        yield pair


def _is_model(folder: Path) -> bool:
    """Whether a folder holds a model's files and nothing else, so that it may be replaced."""
    known = {file for format in FORMATS for file in _module(format).FILES}
    entries = list(folder.iterdir())
    return any(_WEIGHTS.fullmatch(entry.name) for entry in entries) and all(
        entry.is_file() and (entry.name in known or _WEIGHTS.fullmatch(entry.name)) for entry in entries
    )


def in_order(config: GPT2Config, tensors: Tensors) -> Iterator[tuple[str, np.ndarray]]:
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
