"""What this machine has."""

from __future__ import annotations

import os
import platform
from importlib import metadata

PACKAGES = ("gpt2", "numpy", "tensorflow", "keras", "ai-edge-litert", "numba")
"""Whose versions can change a bit of a logit."""


def versions() -> dict[str, str]:
    """Of everything that can change a bit of a logit, where it is installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory() -> int | None:
    """Bytes of memory of the whole machine, None where it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
