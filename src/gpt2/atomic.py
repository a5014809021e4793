"""Writing files and folders so that a kill or a power cut at any moment leaves the old one or the new one.

What is new is written beside its place, flushed to the disk, and then put there by one step of the file system. It
knows nothing of models.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from gpt2.errors import CheckpointError

_MARK = ".gpt2-tmp-"
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextlib.contextmanager
def atomic_folder(path: Path, *, replaceable: Callable[[Path], bool]) -> Iterator[Path]:
    """Give an empty folder to fill, which takes the place of `path` when the block ends well.

    Where the system can exchange two names at once (Linux), there is no moment without a folder at `path`. Elsewhere
    the old one is moved aside first, and a kill in that instant leaves both beside the place, under marked names.

    Args:
        path: where the folder shall be; its parents are made.
        replaceable: whether a folder that is already there may be replaced; an empty one always may.

    Raises:
        CheckpointError: `path` holds something else, or it cannot be written; what was there is untouched.
    """
    path = Path(os.path.abspath(path))
    try:
        if path.exists() and not (path.is_dir() and (not any(path.iterdir()) or replaceable(path))):
            held = "a file" if not path.is_dir() else ", ".join(sorted(entry.name for entry in path.iterdir())[:5])
            raise CheckpointError(f"{path}: expected no folder, an empty one or a model to replace, found {held}")
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        new = Path(tempfile.mkdtemp(prefix=f".{path.name}{_MARK}{os.getpid()}-", dir=path.parent))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror}") from error
    try:
        yield new
        _sync_tree(new)
        new.chmod(0o777 & ~_umask())  # mkdtemp's folders are for their owner alone
        if path.exists():
            _exchange(new, path)
        else:
            os.rename(new, path)
        _sync(path.parent)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        # The unfinished new folder, or after the exchange the old one; once more if a passing fault kept some of it.
        for _ in range(2):
            shutil.rmtree(new, ignore_errors=True)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give the name of a file to write, which takes the place of `path` when the block ends well.

    Raises:
        CheckpointError: it cannot be written; what was there is untouched.
    """
    path = Path(os.path.abspath(path))
    new = path.with_name(f".{path.name}{_MARK}{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield new
        _sync(new)
        os.replace(new, path)
        _sync(path.parent)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            new.unlink()


def _remove_leftovers(path: Path) -> None:
    """Remove what killed processes left beside `path`; what living ones are writing stays."""
    for entry in path.parent.glob(f".{path.name}{_MARK}*"):
        owner = entry.name.rpartition(_MARK)[2].partition("-")[0]
        if owner.isdigit() and not _is_alive(int(owner)):
            shutil.rmtree(entry, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _exchange(new: Path, old: Path) -> None:
    """Swap two folders' names."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if hasattr(libc, "renameat2"):
            source, target = os.fsencode(new), os.fsencode(old)
            if libc.renameat2(_AT_FDCWD, source, _AT_FDCWD, target, _RENAME_EXCHANGE) == 0:
                return
            number = ctypes.get_errno()
            if number not in (errno.EINVAL, errno.ENOSYS):  # this file system cannot; go on the slow way
                raise OSError(number, os.strerror(number), str(old))
    aside = new.with_name(new.name + "-old")
    os.rename(old, aside)
    os.rename(new, old)
    os.rename(aside, new)


def _sync_tree(folder: Path) -> None:
    for root, _, files in os.walk(folder):
        for name in files:
            _sync(Path(root, name))
        _sync(Path(root))


def _sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    if path.is_dir() and os.name == "nt":  # Windows cannot open a folder
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
