"""Models for others: what other programs run, written and then checked by these programs themselves.

`export` writes any format, also those of `gpt2.checkpoints`. The others (`savedmodel`, `gguf`, `onnx`, `litert`) are
for running; each is a module that is imported when it is used, since it needs a library of its own. A model is checked
before it takes the place of what was there, so a wrong one never does.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2 import checkpoints
from gpt2.atomic import atomic_file, atomic_folder
from gpt2.checkpoints import peft
from gpt2.checkpoints.names import Tensors, checked_values
from gpt2.codec import Codec
from gpt2.config import GPT2Config
from gpt2.engines import Engine
from gpt2.errors import CheckpointError, ConfigError
from gpt2.exports import parity, runtimes
from gpt2.exports.parity import Parity

PRECISIONS = {
    "native": ("float32", "float16"),
    "huggingface": ("float32", "float16"),
    "openai": ("float32",),
    "savedmodel": ("float32",),
    "gguf": ("float32", "float16", "q8_0", "q4_0"),
    "onnx": ("float32", "float16", "int8"),
    "litert": ("float32", "int8", "int4"),
}
"""Every format, and how it can store the matrices."""

_ALIASES = {"f32": "float32", "f16": "float16"}  # as llama.cpp has them
_LIBRARIES = {"gguf": ("gguf", "gguf"), "onnx": ("onnx", "onnx")}
"""Format -> the library that writes it, and our extra that brings it."""


@dataclass(frozen=True)
class Source:
    """A model, as an export needs it: nothing is in memory before it is asked for."""

    config: GPT2Config
    codec: Codec | None
    tensors: Callable[[], Tensors]
    """All of them under canonical names, each time anew."""
    engine: Callable[[], Engine]
    """The reference engine on these weights."""
    network: Any = None
    """The network, where it is in memory anyway."""


@dataclass(frozen=True)
class Report:
    """What was written, and what its own runtime says of it."""

    path: str
    format: str
    precision: str
    """How the matrices are stored."""
    num_parameters: int
    bytes: int
    """Of all its files."""
    parity: Parity | None
    """None where it was not checked."""
    not_checked: str | None
    """Why it was not."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**vars(self), "parity": None if self.parity is None else self.parity.to_dict()}


@dataclass(frozen=True)
class AdapterReport:
    """What `export_adapters` wrote, and what PEFT says of it."""

    path: str
    adapters: int
    """How many matrices have one."""
    parity: Parity | None
    """None where it was not checked."""
    not_checked: str | None
    """Why it was not."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**vars(self), "parity": None if self.parity is None else self.parity.to_dict()}


def from_folder(path: Path, adapter: Path | None = None) -> Source:
    """A model on disk.

    Args:
        path: its folder or file.
        adapter: a folder with low-rank adapters of PEFT's, which are merged into it; or None.

    Raises:
        CheckpointError: it cannot be read; also while its tensors are read.
    """
    config, first = checkpoints.read(path)
    once = [first]
    adapters = None if adapter is None else peft.read(adapter, config)

    def tensors() -> Tensors:
        read = once.pop() if once else checkpoints.read(path)[1]
        return read if adapters is None else adapters.merged(read)

    def engine() -> Engine:
        from gpt2.engines.registry import open_engine

        if adapters is None:
            return open_engine(path, "keras")
        from gpt2.engines.keras import KerasEngine
        from gpt2.model import GPT2

        network = GPT2(config, initialize=False)
        network.set_tensors(adapters.merged(checkpoints.read(path)[1]))
        return KerasEngine(network)

    return Source(config, checkpoints.codec_of(path, config.n_vocab), tensors, engine)


def export(
    target: Path,
    source: Source,
    format: str,
    precision: str = "float32",
    *,
    check: bool | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Write a model in a format, atomically, and have the format's own runtime compute with it.

    Args:
        target: the folder, or for gguf the file, whose name ends in `.gguf`. A model of the same kind that is there is
            replaced, anything else refused.
        source: the model.
        format: one of `PRECISIONS`.
        precision: one of those of the format.
        check: True demands the check, None makes it where the runtime is installed, False leaves it out.
        progress: for litert, told how many of how many parameters are done.

    Raises:
        ConfigError: no such format or precision, or a library is not installed.
        CheckpointError: the model cannot be read or written, or what was written computes something else. Whatever the
            error, what was there before is untouched.
    """
    precision = check_options(format, precision)
    if format == "gguf":
        _check_gguf_target(target)
    not_checked = _why_not_checked(format, check)
    reference = None if not_checked else _reference(source)
    found: list[Parity] = []

    def compare(path: Path) -> None:
        if reference is not None:
            found.append(parity.check(path, format, precision, reference))

    _write(target, source, format, precision, compare, progress)
    files = [target] if target.is_file() else [entry for entry in target.rglob("*") if entry.is_file()]
    return Report(
        path=str(target),
        format=format,
        precision=precision,
        num_parameters=source.config.num_parameters,
        bytes=sum(entry.stat().st_size for entry in files),
        parity=found[0] if found else None,
        not_checked=not_checked,
    )


def export_adapters(target: Path, checkpoint: Path, *, check: bool | None = None) -> AdapterReport:
    """Write the adapters that a run trained in PEFT's layout, and have PEFT compute with them on the run's base.

    Args:
        target: a new folder, or one with adapters, which is replaced.
        checkpoint: one of a run with `--lora-rank`.
        check: as for `export`.

    Raises:
        ConfigError: PEFT is demanded and not installed.
        CheckpointError: the run trained no adapters, or PEFT computes something else than the checkpoint.
    """
    not_checked = _why_not_checked("peft", check)
    found: list[Parity] = []

    def compare(folder: Path) -> None:
        if not_checked:
            return
        reference = _reference(from_folder(checkpoint))
        config, tensors = checkpoints.read(checkpoint.parent.parent / "base")
        with tempfile.TemporaryDirectory() as temporary:
            base = Path(temporary, "base")
            checkpoints.write(base, config, tensors, format="huggingface")
            found.append(parity.check(folder, "peft", "float32", reference, base=base))

    count = peft.write_from_run(target, checkpoint, check=compare)
    return AdapterReport(str(target), count, found[0] if found else None, not_checked)


def _why_not_checked(format: str, check: bool | None) -> str | None:
    """None where it is to be checked.

    Raises:
        ConfigError: a check is demanded that is not possible here.
    """
    if check is False:
        return "as was asked"
    missing = runtimes.missing(format)
    if check and missing:
        raise ConfigError(f"check: the {format} format is checked by {missing}, which is not installed here")
    return f"it takes {missing}" if missing else None


def _reference(source: Source) -> parity.Reference:
    """What a format's runtime is compared with."""
    engine = source.engine()
    reference = parity.make_reference(engine, source.codec)
    del engine
    gc.collect()  # Keras' networks hold themselves; the next one to be in memory is the target's
    return reference


def check_options(format: str, precision: str) -> str:
    """The precision under its own name, if the format has it and can be written here.

    Raises:
        ConfigError: no such format or precision, or the library that writes it is not installed.
    """
    if format not in PRECISIONS:
        raise ConfigError(f"format: expected one of {', '.join(PRECISIONS)}, got {format!r}")
    precision = _ALIASES.get(precision.lower(), precision.lower())
    if precision not in PRECISIONS[format]:
        known = " or ".join(PRECISIONS[format])
        raise ConfigError(f"precision: expected {known} for the {format} format, got {precision!r}")
    library, extra = _LIBRARIES.get(format, ("", ""))
    if library and importlib.util.find_spec(library) is None:
        raise ConfigError(
            f"format: {format} is written by the package {library}, which is not installed: pip install 'gpt2[{extra}]'"
        )
    return precision


def _write(
    target: Path,
    source: Source,
    format: str,
    precision: str,
    compare: Callable[[Path], None],
    progress: Callable[[int, int], None] | None,
) -> None:
    config, codec = source.config, source.codec
    if format in checkpoints.FORMATS:
        checkpoints.write(target, config, source.tensors(), format=format, codec=codec, dtype=precision, check=compare)
    elif format == "litert":
        from gpt2.engines import litert_build

        litert_build.build(target, config, source.tensors(), precision, codec=codec, progress=progress, check=compare)
    elif format == "gguf":
        from gpt2.exports import gguf_file

        with atomic_file(target) as file:
            gguf_file.write(file, config, _checked(source, target), codec, precision)
            compare(file)
    else:
        module = importlib.import_module(f"gpt2.exports.{_FOLDERS[format]}")
        with atomic_folder(target, replaceable=lambda folder: _holds(folder, module.FILES, module.MARK)) as folder:
            if format == "savedmodel" and source.network is not None:
                module.write_network(folder, source.network, codec)
            else:
                module.write(folder, config, _checked(source, target), codec, precision)
            compare(folder)


_FOLDERS = {"savedmodel": "saved_model", "onnx": "onnx_graph"}


def _checked(source: Source, target: Path) -> Tensors:
    return checkpoints.in_order(source.config, checked_values(source.tensors(), source=f"writing {target}"))


def _holds(folder: Path, known: tuple[str, ...], mark: str) -> bool:
    """Whether a folder holds a model's files and nothing else, so that it may be replaced."""
    names = {entry.name for entry in folder.iterdir()}
    return mark in names and names <= set(known)


def _check_gguf_target(target: Path) -> None:
    from gpt2.exports.gguf_file import is_gguf

    if target.suffix != ".gguf":
        raise ConfigError(f"path: expected a file whose name ends in .gguf, got {str(target)!r}")
    if target.is_dir() or (target.exists() and target.stat().st_size and not is_gguf(target)):
        held = "a folder" if target.is_dir() else "another file"
        raise CheckpointError(f"{target}: expected nothing or a GGUF file to replace, found {held}")
