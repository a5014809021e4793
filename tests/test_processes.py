"""Processes of our own find the libraries that this one finds, and nothing in the current folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import foreign
from gpt2 import checkpoints, processes
from gpt2.checkpoints import child
from test_checkpoints import CONFIG, TENSORS

SOURCE = Path(processes.__file__).parents[1]
NAMES = ("gpt2/__init__", "h5py", "json", "numpy", "onnx", "peft/__init__", "site", "tensorflow/__init__", "typing")
"""Modules that a process of ours, or one of its libraries, imports, or asks for."""


def plant(folder: Path, marker: Path) -> None:
    """Put modules that make the file `marker` into a folder."""
    for name in NAMES:
        path = folder / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"open({str(marker)!r}, 'w').close()\nraise ImportError('planted')\n")


@pytest.mark.parametrize("format", ["keras_hub", "openai"])
def test_code_beside_a_model_does_not_run(tmp_path: Path, format: str) -> None:
    """`python -c` has the current folder first on its path: `cd preset && gpt2 models show .` ran its h5py.py."""
    model, marker, script = tmp_path / "model", tmp_path / "marker", tmp_path / "bin" / "gpt2-command"
    if format == "keras_hub":
        foreign.write_keras_hub(model, CONFIG, foreign.keras_hub_arrays(CONFIG, TENSORS))
    else:
        checkpoints.write(model, CONFIG, TENSORS.items(), format=format)
    plant(model, marker)
    script.parent.mkdir()
    script.write_text("from gpt2.cli import main\nmain()\n")
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run(
        [sys.executable, str(script), "models", "show", "."],
        cwd=model,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not marker.exists()
    assert done.returncode == 0, done.stderr
    assert f"format      {format}" in done.stdout


def test_the_path_is_this_process_own_without_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), "/elsewhere", str(SOURCE), "/libraries"])
    assert processes.search_path() == ["/elsewhere", str(SOURCE), "/libraries"]
    monkeypatch.setattr(sys, "path", ["/elsewhere"])  # whatever has become of it, this package is found
    assert processes.search_path() == ["/elsewhere", str(SOURCE)]


def test_a_package_in_the_current_folder_is_found_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(SOURCE)
    monkeypatch.setattr(sys, "path", ["", "/libraries"])
    assert processes.search_path() == [str(SOURCE), "/libraries"]


def test_a_current_folder_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    monkeypatch.setattr(sys, "path", ["", "/libraries"])
    assert processes.search_path() == ["/libraries", str(SOURCE)]


def test_every_process_is_started_so() -> None:
    starters = [path for path in (SOURCE / "gpt2").rglob("*.py") if "sys.executable" in path.read_text("utf-8")]
    assert [path.name for path in starters] == ["processes.py"]


def test_arguments_and_exit_status() -> None:
    done = child.run("gpt2.checkpoints.child", "no.such.module", "path", "word", seconds=60)
    assert done.returncode == 0, done.stderr
    assert b"No module named 'no'" in done.stdout
    assert child.run("gpt2.checkpoints.child", seconds=60).returncode == 1
