"""Writing files and folders so that a kill or a power cut at any moment leaves the old one or the new one.

What is new is written beside its place, flushed to the disk, and then put there by one step of the file system. It
knows nothing of models.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from gpt2.errors import CheckpointError, GPT2Error

_MARK = ".gpt2-tmp-"
_ASIDE = "-old"
# Tells this process from an earlier one of the same number, as every first process of a container has.
_RUN = secrets.token_hex(4)
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Let one process at a time into the block, by a lock on a file that is made for it and stays.

    The lock is the system's: it goes when the process does, however it ends. Windows has none, so there it is no lock.

    Args:
        path: the file; its folder exists.
        wait: until no other process holds the lock; else that is an error.

    Raises:
        BlockingIOError: another process holds it.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


@contextlib.contextmanager
def atomic_folder(path: Path, *, replaceable: Callable[[Path], bool]) -> Iterator[Path]:
    """Give an empty folder to fill, which takes the place of `path` when the block ends well.

    Where the system can exchange two names at once (Linux), there is no moment without a folder at `path`. Elsewhere
    the old one is moved aside first; a kill in that instant leaves it beside the place, under a marked name, and the
    next `atomic_folder` for that path begins by putting it back.

    Args:
        path: where the folder shall be; its parents are made. Of a link, what it points to is replaced.
        replaceable: whether a folder that is already there may be replaced; an empty one always may.

    Raises:
        CheckpointError: `path` holds something else, or it cannot be written; what was there is untouched.
    """
    path = Path(os.path.realpath(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        if path.exists() and not (path.is_dir() and (not any(path.iterdir()) or replaceable(path))):
            held = "a file" if not path.is_dir() else ", ".join(sorted(entry.name for entry in path.iterdir())[:5])
            raise CheckpointError(f"{path}: expected no folder, an empty one or a model to replace, found {held}")
        new = Path(tempfile.mkdtemp(prefix=_own_prefix(path), dir=path.parent))
    except OSError as error:
        raise _cannot_write(path, error) from error
    try:
        yield new
        _sync_tree(new)
        new.chmod(0o777 & ~_umask())  # mkdtemp's folders are for their owner alone
        if path.exists():
            _replace(path, new)
        else:
            os.rename(new, path)
        _sync(path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        _remove(new)  # the unfinished new folder, or after an exchange the old one


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give the name of a file to write, which takes the place of `path` when the block ends well.

    Raises:
        CheckpointError: it cannot be written; what was there is untouched.
    """
    path = Path(os.path.realpath(path))
    new = path.with_name(_own_prefix(path) + secrets.token_hex(4))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        yield new
        _sync(new)
        os.replace(new, path)
        _sync(path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            new.unlink()


def _cannot_write(path: Path, error: OSError) -> GPT2Error:
    """The error to raise; one of ours that is an `OSError` too says already what is wrong."""
    if isinstance(error, GPT2Error):
        return error
    return CheckpointError(f"{path}: cannot be written: {error.strerror or error}")


def _remove_leftovers(path: Path) -> None:
    """Remove what killed processes left beside `path`; what living ones are writing stays."""
    mark = f".{path.name}{_MARK}"
    for entry in sorted(path.parent.iterdir(), reverse=True):  # so that NAME-old comes before NAME
        if not entry.name.startswith(mark) or _is_in_use(entry.name.removeprefix(mark)):
            continue
        if entry.name.endswith(_ASIDE) and not path.exists():
            os.rename(entry, path)  # killed between two renames: this is the only whole one
        elif entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                entry.unlink()


def _own_prefix(path: Path) -> str:
    return f".{path.name}{_MARK}{os.getpid()}-{_RUN}-"


def _is_in_use(owner: str) -> bool:
    """Whether the process of `NUMBER-RUN-...` is alive; where it cannot be told, yes."""
    number, _, rest = owner.partition("-")
    if not number.isdecimal() or os.name == "nt":  # os.kill would not ask there, but send Ctrl-C
        return True
    if int(number) == os.getpid():
        return rest.startswith(_RUN)
    try:
        os.kill(int(number), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def _remove(folder: Path) -> None:
    for _ in range(2):  # once more, if a passing fault kept some of it
        shutil.rmtree(folder, ignore_errors=True)


def _replace(old: Path, new: Path) -> None:
    """Give the new folder the old one's name; what then has the new one's, if anything, is the old one."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if hasattr(libc, "renameat2"):
            source, target = os.fsencode(new), os.fsencode(old)
            if libc.renameat2(_AT_FDCWD, source, _AT_FDCWD, target, _RENAME_EXCHANGE) == 0:
                return
            number = ctypes.get_errno()
            if number not in (errno.EINVAL, errno.ENOSYS, errno.EPERM):  # it cannot exchange: go on the slow way
                raise OSError(number, os.strerror(number), str(old))
    aside = new.with_name(new.name + _ASIDE)
    os.rename(old, aside)
    try:
        os.rename(new, old)
    except OSError:
        os.rename(aside, old)
        raise
    _remove(aside)


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
