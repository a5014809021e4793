"""How processes of our own are started: with the libraries that this one finds, and nothing of the current folder.

`python -c` and `python -m` put the current folder before all libraries. It may be a stranger's model, with an `h5py.py`
in it that would then be run; `PYTHONSAFEPATH` is known from Python 3.11 on alone.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path


def command(module: str, *arguments: str, function: str = "main") -> list[str]:
    """The command that calls a function of a module and exits with what it returns.

    Args:
        module: its full name.
        arguments: what it finds in `sys.argv[1:]`.
        function: its name.
    """
    # In ASCII, for names of folders that are no text; only `sys`, which is in Python itself, is imported before.
    path = f"import sys; sys.path[:] = {search_path()!a}"
    return [sys.executable, "-c", f"{path}; from {module} import {function}; sys.exit({function}())", *arguments]


def search_path() -> list[str]:
    """This process' `sys.path` without the current folder, unless this package lies there."""
    home = os.path.realpath(Path(__file__).parents[1])
    current = None
    with contextlib.suppress(FileNotFoundError):  # it may have been removed
        current = os.path.realpath(os.getcwd())
    found = []
    for entry in sys.path:
        if not isinstance(entry, str) or (current is None and not os.path.isabs(entry)):
            continue
        place = os.path.realpath(entry)  # of "" the current folder
        if place == home:
            found.append(home)
        elif place != current:
            found.append(entry)
    return found if home in found else [*found, home]
