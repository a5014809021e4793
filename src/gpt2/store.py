"""The one place where models live, and what their names mean.

Models are folders `HOME/models/NAME`, where HOME is `$GPT2_HOME`, or else the platform's folder for application data.
It knows nothing of what is in a model's folder.
"""

from __future__ import annotations

import difflib
import os
import re
import shutil
from importlib import resources
from pathlib import Path

import platformdirs

from gpt2.atomic import atomic_folder
from gpt2.config import SIZE_ALIASES, SIZES
from gpt2.errors import CheckpointNotFoundError, ModelNameError

BUNDLED = "bundled"
"""The name of the model that the package brings along."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# Names that Windows keeps for devices, whatever follows their first dot.
_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}


def home() -> Path:
    """Where everything lives: `$GPT2_HOME`, else the platform's folder for application data."""
    given = os.environ.get("GPT2_HOME")
    return Path(given).expanduser() if given else Path(platformdirs.user_data_path("gpt2"))


def models_folder() -> Path:
    """Where models live; it may not exist yet."""
    return home() / "models"


def bundled_path() -> Path:
    """The folder of the model that the package brings along."""
    return Path(str(resources.files("gpt2").joinpath("assets").joinpath("bundled")))


def folder_of(name: str) -> Path:
    """The folder that a name has in the store, whether it exists or not; never outside the store.

    Raises:
        ModelNameError: not a name: letters, digits, `.`, `_` and `-`, up to 64, the first a letter or a digit.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name.endswith("."):
        raise ModelNameError(
            f"name: expected up to 64 letters, digits, '.', '_' or '-', the first a letter or digit, got {name!r:.80}"
        )
    if name.lower() == BUNDLED or name.split(".")[0].lower() in _DEVICES:
        raise ModelNameError(f"name: {name!r} is reserved; choose another")
    folder = models_folder() / name
    if folder.is_symlink():
        raise ModelNameError(f"name: {folder} is a link; the store holds folders alone")
    return folder


def resolve(name_or_path: str | os.PathLike[str] | None) -> Path:
    """The folder of a model.

    Args:
        name_or_path: None or "bundled" for the bundled model; a name in the store; or the path of a folder, which
            contains a separator, begins with `.` or `~`, or is no name in the store but exists.

    Raises:
        ModelNameError: the store has no model of that name.
        CheckpointNotFoundError: there is nothing at that path.
    """
    if name_or_path is None or name_or_path == BUNDLED:
        return bundled_path()
    text = os.fspath(name_or_path)
    is_path = not isinstance(name_or_path, str) or text.startswith((".", "~")) or "/" in text or os.sep in text
    if not is_path:
        name = SIZE_ALIASES.get(text, text)
        if _NAME.fullmatch(name) and folder_of(name).is_dir():
            return folder_of(name)
    path = Path(text).expanduser()
    if path.exists():
        return path
    if is_path:
        raise CheckpointNotFoundError(f"{path}: expected a model's folder, found nothing")
    raise ModelNameError(_unknown(text))


def list_models() -> list[str]:
    """The names in the store, in order; the bundled model is not among them."""
    folder = models_folder()
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and _NAME.fullmatch(entry.name))


def add(path: str | os.PathLike[str], name: str) -> Path:
    """Copy a folder into the store, atomically.

    Raises:
        ModelNameError: not a name, or it is taken.
        CheckpointError: there is nothing to copy, or it cannot be written.
    """
    source, target = Path(path).expanduser(), folder_of(name)
    if not source.is_dir():
        raise CheckpointNotFoundError(
            f"{source}: expected a model's folder, found {'a file' if source.exists() else 'nothing'}"
        )
    if target.exists():
        raise ModelNameError(f"name: {name} is taken; remove it first (gpt2 models remove {name}) or choose another")
    with atomic_folder(target, replaceable=lambda _: False) as new:
        for entry in source.iterdir():
            if entry.is_file():
                shutil.copy2(entry, new / entry.name)
    return target


def remove(name: str) -> None:
    """Remove a model from the store.

    Raises:
        ModelNameError: the store has none of that name.
    """
    target = folder_of(name)
    if not target.is_dir():
        raise ModelNameError(_unknown(name))
    # Renamed first: a name whose folder is half removed must not be found.
    doomed = target.with_name(f".{name}.removed-{os.getpid()}")
    target.rename(doomed)
    shutil.rmtree(doomed)


def _unknown(name: str) -> str:
    size = SIZE_ALIASES.get(name, name)
    if size in SIZES:
        return f"model: {size} is not here yet; get it with: gpt2 download {size}"
    known = [BUNDLED, *list_models()]
    close = difflib.get_close_matches(name, [*known, *SIZES], n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"model: expected a folder or one of {', '.join(known)}, got {name!r}{hint}"
