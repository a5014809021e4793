"""Asking a child process to read what could end the process that reads it.

The child calls the function `answer` of a format's module, with the path and one word, and prints what it returns as
JSON. Whatever happens to it, the parent gets an answer or one clear error.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from gpt2 import processes
from gpt2.checkpoints.json_file import parse_object
from gpt2.errors import CheckpointFormatError

SECONDS = 1800.0
"""After so long the child is ended."""


def ask(module: str, path: Path, word: str) -> Any:
    """What `answer(path, word)` of a module returns in a process of its own.

    Raises:
        CheckpointFormatError: it raised something, or died.
    """
    try:
        done = run("gpt2.checkpoints.child", module, str(path), word, seconds=SECONDS)
    except subprocess.TimeoutExpired:
        raise CheckpointFormatError(f"{path}: cannot be read: no end after {SECONDS:.0f} s") from None
    if done.returncode < 0:
        raise CheckpointFormatError(f"{path}: damaged: the process that read it died (signal {-done.returncode})")
    said = parse_object(done.stdout.splitlines()[-1] if done.stdout else b"{}", f"{path}: probe")
    if done.returncode or "answer" not in said:
        reason = said.get("error") or done.stderr.decode("utf-8", "replace").strip()[-300:]
        raise CheckpointFormatError(f"{path}: cannot be read: {reason}")
    return said["answer"]


def run(module: str, *arguments: str, seconds: float, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """Call `main` of a module in a process of its own (see `gpt2.processes`), without a GPU.

    The module's `main` begins by `end_with_parent`, since a signal can end this process before it knows of it.

    Raises:
        subprocess.TimeoutExpired: it took longer.
    """
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1", **variables}
    command = processes.command(module, *arguments)
    line, kept = os.pipe()
    try:
        return subprocess.run(command, capture_output=True, check=False, env=environment, timeout=seconds, stdin=line)
    finally:
        os.close(line)
        os.close(kept)


def end_with_parent() -> None:
    """In the child: end when the parent has, however it ended; standard input is a line to it."""

    def watch() -> None:
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """In the child: answer on the last line of standard output."""
    end_with_parent()
    module, path, word = sys.argv[1:4]
    try:
        said = {"answer": importlib.import_module(module).answer(Path(path), word)}
    except Exception as error:
        said = {"error": " ".join(str(error).split())[:500]}
    sys.stdout.write("\n" + json.dumps(said) + "\n")


def limit_memory(size: int) -> None:
    """Let this process allocate so many bytes more than it has already; only Linux counts them."""
    with contextlib.suppress(ImportError, OSError, ValueError, AttributeError):
        import resource

        status = Path("/proc/self/status").read_text(encoding="ascii")
        used = re.search(r"^VmData:\s+(\d+) kB", status, re.MULTILINE)
        if used:
            _, hard = resource.getrlimit(resource.RLIMIT_DATA)
            resource.setrlimit(resource.RLIMIT_DATA, (int(used[1]) * 1024 + size, hard))
