"""The one place where models live, and what their names mean.

Models are folders `HOME/models/NAME`, where HOME is `$GPT2_HOME`, or else the platform's folder for application data.
It knows nothing of what is in a model's folder.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from pathlib import Path

import platformdirs

from gpt2.atomic import atomic_folder, locked
from gpt2.config import SIZE_ALIASES, SIZES
from gpt2.errors import CheckpointError, CheckpointNotFoundError, ModelLockedError, ModelNameError

BUNDLED = "bundled"
"""The name of the model that the package brings along."""

_STEP = re.compile(r"step-(\d{8,})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# Names that Windows keeps for devices, whatever follows their first dot.
_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}


def home() -> Path:
    """Where everything lives: `$GPT2_HOME`, else the platform's folder for application data."""
    given = os.environ.get("GPT2_HOME")
    return Path(os.path.abspath(os.path.expanduser(given))) if given else Path(platformdirs.user_data_path("gpt2"))


def models_folder() -> Path:
    """Where models live; it may not exist yet."""
    return home() / "models"


def runs_folder() -> Path:
    """Where the training runs of jobs lie, by name; it may not exist yet."""
    return home() / "runs"


def builds_folder() -> Path:
    """Where models lie that were built for a fast engine; they can be built again from the models."""
    return home() / "builds"


def build_folder(path: Path, precision: str) -> Path:
    """Where the build of a model's folder lies, whether it exists or not."""
    return builds_folder() / f"{_build_prefix(path)}-{precision}"


def remove_builds(path: Path | None = None) -> int:
    """Remove what was built from a model's folder, or everything that was built; how many there were."""
    folder, prefix = builds_folder(), "" if path is None else _build_prefix(path) + "-"
    found = [entry for entry in folder.iterdir() if entry.is_dir()] if folder.is_dir() else []
    chosen = [entry for entry in found if entry.name.startswith(prefix)]
    for entry in chosen:
        shutil.rmtree(entry, ignore_errors=True)
    return len(chosen)


def keep_builds(count: int) -> None:
    """Remove all builds but the `count` last used."""
    folder = builds_folder()
    found = [entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    for entry in sorted(found, key=lambda entry: entry.stat().st_mtime_ns, reverse=True)[count:]:
        shutil.rmtree(entry, ignore_errors=True)


def _build_prefix(path: Path) -> str:
    """A name that can be recognised, and a hash that no other folder has."""
    place = os.path.realpath(path)
    name = re.sub("[^A-Za-z0-9._-]", "_", os.path.basename(place))[:40]
    return f"{name}-{hashlib.sha256(place.encode()).hexdigest()[:12]}"


def bundled_path() -> Path:
    """The folder of the model that the package brings along."""
    return Path(str(resources.files("gpt2").joinpath("assets").joinpath("bundled")))


def folder_of(name: str) -> Path:
    """The folder that a name has in the store, whether it exists or not; never outside the store.

    Another name of a released size, such as `small`, has the folder of `124M`.

    Raises:
        ModelNameError: not a name: letters, digits, `.`, `_` and `-`, up to 64, the first a letter or a digit.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name.endswith("."):
        raise ModelNameError(
            f"name: expected up to 64 letters, digits, '.', '_' or '-', the first a letter or digit, got {name!r:.80}"
        )
    if name.lower() == BUNDLED or name.split(".")[0].lower() in _DEVICES:
        raise ModelNameError(f"name: {name!r} is reserved; choose another")
    folder = models_folder() / SIZE_ALIASES.get(name, name)
    if folder.is_symlink():
        raise ModelNameError(f"name: {folder} is a link; the store holds folders alone")
    return folder


@contextlib.contextmanager
def writing(name: str, *, wait: bool = False) -> Iterator[Path]:
    """Keep other processes, and other threads of this one, from writing the model of that name; gives its folder.

    Args:
        name: see `folder_of`.
        wait: until nobody else writes it; else that is an error.

    Raises:
        ModelNameError: not a name.
        ModelLockedError: somebody else is writing it.
        CheckpointError: the lock cannot be made.
    """
    folder = folder_of(name)
    lock = home() / ".locks" / folder.name.lower()  # names that differ in case alone are one folder on some systems
    with contextlib.ExitStack() as stack:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(lock, wait=wait))
        except BlockingIOError:
            raise ModelLockedError(f"name: somebody else is writing {name} now; try again later") from None
        except OSError as error:
            raise CheckpointError(f"{lock}: cannot be written: {error.strerror or error}") from error
        yield folder


def resolve(name_or_path: str | os.PathLike[str] | None) -> Path:
    """The folder of a model.

    Args:
        name_or_path: None or "bundled" for the bundled model; a name in the store; or the path of a folder, which
            contains a separator, begins with `.` or `~`, or is no name in the store but exists. A training run's
            folder stands for its best checkpoint, or else its last; `RUN@100`, `RUN@best` and `RUN@last` for that one.

    Raises:
        ModelNameError: the store has no model of that name.
        CheckpointNotFoundError: there is nothing at that path.
    """
    if name_or_path is None or name_or_path == BUNDLED:
        return bundled_path()
    text = os.fspath(name_or_path)
    if not text:  # as a path it would be the current folder
        raise ModelNameError("model: expected a name or a folder, got an empty one")
    is_path = not isinstance(name_or_path, str) or text.startswith((".", "~")) or "/" in text or os.sep in text
    named = None if is_path else _named(text)
    if named is not None:
        return named
    path = Path(os.path.expanduser(text))
    if os.path.exists(path):  # unlike Path.exists, it raises nothing for names that no file can have
        return _checkpoint(path, None) if is_run(path) else path
    run, at, which = str(path).rpartition("@")
    if at and is_run(Path(run)):
        return _checkpoint(Path(run), which)
    if is_path:
        raise CheckpointNotFoundError(f"{text!r:.200}: expected a model's folder, found nothing")
    raise ModelNameError(_unknown(text))


def resolve_name(name: str | None) -> Path:
    """As `resolve`, but never a path: what a stranger may name.

    Args:
        name: None or "bundled", a model in the store, or a job's run (`RUN`, `RUN@100`, `RUN@best`, `RUN@last`).

    Raises:
        ModelNameError: there is no model of that name, or it is no name.
        CheckpointNotFoundError: the run has no such checkpoint.
    """
    if name is None or name == BUNDLED:
        return bundled_path()
    found = _named(name)
    if found is None:
        raise ModelNameError(_unknown(name[:200]))
    return found


def _named(name: str) -> Path | None:
    """The folder of a model, or of a checkpoint of a job's run, that a name means; None if it means none."""
    if _NAME.fullmatch(name) and folder_of(name).is_dir():
        return folder_of(name)
    run, at, which = name.partition("@")
    if _NAME.fullmatch(run) and is_run(runs_folder() / run):
        return _checkpoint(runs_folder() / run, which if at else None)
    return None


def is_run(path: Path) -> bool:
    """Whether a folder is that of a training run."""
    return os.path.isfile(path / "run.json") and os.path.isdir(path / "checkpoints")


def checkpoint_folder(run: Path, step: int) -> Path:
    """Where a run's checkpoint after some steps is."""
    return run / "checkpoints" / f"step-{step:08d}"


def checkpoint_steps(run: Path) -> list[int]:
    """The steps at which a run has checkpoints, in order."""
    folder = run / "checkpoints"
    names = [entry.name for entry in folder.iterdir() if entry.is_dir()] if folder.is_dir() else []
    return sorted(int(match[1]) for match in map(_STEP.fullmatch, names) if match)


def best_step(run: Path) -> int | None:
    """The step of a run's checkpoint with the lowest held-out loss, or None where that is not known."""
    try:
        step = json.loads((run / "best.json").read_text(encoding="utf-8"))["step"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return step if isinstance(step, int) and checkpoint_folder(run, step).is_dir() else None


def _checkpoint(run: Path, which: str | None) -> Path:
    steps, best = checkpoint_steps(run), best_step(run)
    if not steps:
        raise CheckpointNotFoundError(f"{run}: expected a training run with a checkpoint, found none yet")
    if which is None:
        return checkpoint_folder(run, steps[-1] if best is None else best)
    if which == "best" and best is None:
        raise CheckpointNotFoundError(f"{run}@best: expected a run with held-out text, found no best checkpoint")
    number = {"last": steps[-1], "best": best}.get(which, int(which) if which.isdecimal() and len(which) < 12 else None)
    if number not in steps:
        known = ", ".join(map(str, steps))
        raise CheckpointNotFoundError(f"{run}@{which}: expected best, last or one of the steps {known}")
    return checkpoint_folder(run, int(number))


def list_models() -> list[str]:
    """The names in the store, in order; the bundled model is not among them."""
    folder = models_folder()
    if not folder.is_dir():
        return []
    return sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.is_dir() and not entry.is_symlink() and _NAME.fullmatch(entry.name)
    )


def add(
    path: str | os.PathLike[str],
    name: str | None = None,
    *,
    replace: bool = False,
    folders: Sequence[str] = (),
    finish: Callable[[Path], None] | None = None,
) -> Path:
    """Copy a folder's files, or one file, into the store, atomically.

    Args:
        path: a folder or a file; whether it is a model is for the caller to check.
        name: what to call it; None takes the folder's name, or the file's without its suffix.
        replace: whether a model of that name may be replaced.
        folders: folders within it whose files are copied too; others are left out.
        finish: called with the copy before it becomes the model; if it raises, nothing does.

    Raises:
        ModelNameError: not a name, or it is taken.
        CheckpointError: there is nothing to copy, or it cannot be written.
    """
    source = Path(os.path.expanduser(path))
    if name is None:
        name = source.stem if source.is_file() else os.path.basename(os.path.abspath(source))
    folder_of(name)
    if name in SIZE_ALIASES:
        raise ModelNameError(f"name: {name!r} means the released size {SIZE_ALIASES[name]}; choose another")
    if not source.is_dir() and not source.is_file():
        raise CheckpointNotFoundError(f"{source}: expected a model's folder or file, found nothing")
    with writing(name) as target:
        # Names that differ in case alone are one folder on some systems.
        twin = next((other for other in list_models() if other.lower() == name.lower()), None)
        if twin is not None and not (replace and twin == name):
            raise ModelNameError(
                f"name: {twin} is taken; remove it first (gpt2 models remove {twin}) or choose another"
            )
        with atomic_folder(target, replaceable=lambda _: replace) as new:
            if source.is_file():
                shutil.copy2(source, new / source.name)
            for folder in filter(lambda folder: (source / folder).is_dir(), (".", *folders)):
                (new / folder).mkdir(parents=True, exist_ok=True)
                for entry in (source / folder).iterdir():
                    if entry.is_file():
                        shutil.copy2(entry, new / folder / entry.name)
            if finish is not None:
                finish(new)
    return target


def remove(name: str) -> None:
    """Remove a model from the store.

    Raises:
        ModelNameError: the store has none of that name.
        CheckpointError: it cannot be removed.
    """
    if not folder_of(name).is_dir():
        raise ModelNameError(_unknown(name))
    with writing(name) as target:
        # Renamed first: a name whose folder is half removed must not be found.
        doomed = target.with_name(f".{target.name}.removed-{os.getpid()}-{secrets.token_hex(4)}")
        try:
            target.rename(doomed)
            shutil.rmtree(doomed)
            remove_builds(target)
        except OSError as error:
            raise CheckpointError(f"{target}: cannot be removed: {error.strerror or error}") from error


def _unknown(name: str) -> str:
    size = SIZE_ALIASES.get(name, name)
    if size in SIZES:
        return f"model: {size} is not here yet; get it with: gpt2 download {size}"
    known = [BUNDLED, *list_models()]
    close = difflib.get_close_matches(name, [*known, *SIZES], n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"model: expected a folder or one of {', '.join(known)}, got {name!r}{hint}"
