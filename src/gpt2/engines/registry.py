"""Opening a model by an engine, with what has to be built for it kept in the store.

A build belongs to a model's folder: it is made anew when the folder's files, the precision or the versions change. One
process at a time builds; the others wait and use what it made.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpt2 import checkpoints, store
from gpt2.atomic import locked
from gpt2.engines import Engine
from gpt2.errors import CheckpointError, CheckpointFormatError, ConfigError

ENGINES = ("litert", "keras")
"""The fastest first."""
PRECISIONS = ("float32", "int8", "int4")
MAX_BUILDS = 8
"""That stay in the store; the one that was longest unused goes first."""

Progress = Callable[[int, int], None]


def open_engine(
    path: Path,
    engine: str = "auto",
    precision: str = "float32",
    *,
    note: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> Engine:
    """Open a model's folder.

    Args:
        path: from `store.resolve`.
        engine: one of `ENGINES`, or `auto` for the first that can be used.
        precision: one of `PRECISIONS`; keras has float32 alone.
        note: told which engine it is, and why where there was a choice.
        progress: told how many of how many parameters are done while a model is built.

    Raises:
        ConfigError: no such engine or precision, or not this precision with this engine.
        CheckpointError: the folder cannot be read, or nothing can be built in the store.
    """
    note = note or _ignore
    if engine not in (*ENGINES, "auto"):
        raise ConfigError(f"engine: expected auto or one of {', '.join(ENGINES)}, got {engine!r}")
    if precision not in PRECISIONS:
        raise ConfigError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
    if engine == "keras" and precision != "float32":
        raise ConfigError(f"precision: expected float32 with the keras engine, got {precision!r}; litert has all")
    missing = _missing()
    if checkpoints.is_built(path):
        if engine == "keras":
            raise ConfigError(f"engine: expected litert for {path}, which was built for it, got 'keras'")
        return _litert(path, note)
    if engine == "keras" or (engine == "auto" and precision == "float32" and missing):
        note(f"engine: keras, float32{f' (litert needs {missing})' if engine == 'auto' else ''}")
        return _keras(path)
    if missing:
        raise ConfigError(f"engine: litert needs the package {missing}, which is not installed")
    try:
        built = build_of(path, precision, note=note, progress=progress)
    except CheckpointError as error:
        if engine != "auto" or precision != "float32" or not isinstance(error.__cause__, OSError):
            raise
        note(f"engine: keras, float32 (nothing can be built for litert: {error})")
        return _keras(path)
    return _litert(built, note)


def build_of(
    path: Path, precision: str, *, note: Callable[[str], None] | None = None, progress: Progress | None = None
) -> Path:
    """The folder in the store with a model's build for litert, which is made if need be.

    Raises:
        CheckpointError: the model cannot be read, or the build cannot be written.
    """
    from gpt2.engines import litert_build

    target = store.build_folder(path, precision)
    source = _fingerprint(path)
    if _is_current(target, source):
        with contextlib.suppress(OSError):
            os.utime(target)  # it was used
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{target.parent}: cannot be written: {error.strerror or error}") from error
    with locked(target.with_name(f".{target.name}.lock")):
        if _is_current(target, source):  # another process has made it meanwhile
            return target
        started = time.perf_counter()
        config, tensors = checkpoints.read(path)
        codec = checkpoints.codec_of(path, config.n_vocab)
        litert_build.build(target, config, tensors, precision, codec=codec, source=source, progress=progress)
        store.keep_builds(MAX_BUILDS)
        (note or _ignore)(f"built for litert, {precision}, in {time.perf_counter() - started:.1f} s: {target}")
    return target


def _keras(path: Path) -> Engine:
    from gpt2.engines.keras import KerasEngine
    from gpt2.model import GPT2

    config, tensors = checkpoints.read(path)
    network = GPT2(config, initialize=False)
    network.set_tensors(tensors)
    return KerasEngine(network)


def _litert(folder: Path, note: Callable[[str], None]) -> Engine:
    from gpt2.engines.litert import LiteRTEngine

    engine = LiteRTEngine(folder)
    note(f"engine: litert, {engine.precision}, {engine.threads} threads")
    return engine


def _missing() -> str:
    """What litert needs and is not here, or nothing."""
    return next((name for name in ("ai_edge_litert", "numba") if importlib.util.find_spec(name) is None), "")


def _fingerprint(path: Path) -> dict[str, Any]:
    """What changes when a model's files do, without reading them."""
    files = sorted(entry for entry in path.iterdir() if entry.is_file()) if path.is_dir() else [path]
    states = [(entry.name, entry.stat()) for entry in files]
    return {"files": [[name, state.st_size, state.st_mtime_ns] for name, state in states]}


def _is_current(folder: Path, source: dict[str, Any]) -> bool:
    from gpt2.engines import litert_build

    try:
        settings = litert_build.read_settings(folder)
    except CheckpointFormatError:
        return False
    return settings["source"] == source and settings["versions"] == litert_build.versions()


def _ignore(_: str) -> None:
    pass
