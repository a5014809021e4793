"""Saving: killed, out of space or refused, what was there before is still there, whole."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import oracle
from gpt2 import checkpoints
from gpt2.atomic import atomic_file, atomic_folder
from gpt2.config import GPT2Config
from gpt2.errors import CheckpointError

CONFIG = GPT2Config(n_vocab=300, n_ctx=16, n_embd=32, n_head=2, n_layer=2)


def constant(value: float) -> oracle.Arrays:
    return {name: np.full_like(array, value) for name, array in oracle.random_tensors(CONFIG).items()}


def held(path: Path) -> float:
    """The value that every number of a saved model has."""
    values = {float(v) for _, array in checkpoints.read(path)[1] for v in (array.min(), array.max())}
    assert len(values) == 1
    return values.pop()


SAVER = """
import itertools, sys
sys.path[:0] = sys.argv[2:]
from pathlib import Path
from test_atomic import CONFIG, constant
from gpt2 import checkpoints
for value in itertools.count(1):
    checkpoints.write(Path(sys.argv[1]), CONFIG, constant(value).items())
    print(value, flush=True)
"""


def kill_rounds(path: Path, rounds: int) -> None:
    rng = random.Random(1)
    checkpoints.write(path, CONFIG, constant(0).items())
    for _ in range(rounds):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVER, str(path), str(Path(__file__).parent), *filter(None, sys.path)],
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"1\n"
        time.sleep(rng.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        acknowledged = [1, *map(int, process.stdout.read().split())][-1]
        process.wait()
        assert held(path) in (acknowledged, acknowledged + 1)
    checkpoints.write(path, CONFIG, constant(-1).items())
    assert held(path) == -1
    assert [entry.name for entry in path.parent.iterdir()] == [path.name], "what killed savers left is cleaned up"


def test_killed_at_any_moment_it_is_the_old_or_the_new(tmp_path: Path) -> None:
    kill_rounds(tmp_path / "model", 8)


@pytest.mark.slow
def test_killed_two_hundred_times(tmp_path: Path) -> None:
    kill_rounds(tmp_path / "model", 200)


CALLS = ("fsync", "rename", "replace", "open", "mkdir")


@contextlib.contextmanager
def failing_call(monkeypatch: pytest.MonkeyPatch, number: int, code: int) -> Iterator[list[int]]:
    """The numberth call to the system through `os` fails once; the list tells how many there were."""
    count = [0]
    with monkeypatch.context() as patch:
        for name in CALLS:
            original = getattr(os, name)

            def call(*args: object, _original: object = original, **options: object) -> object:
                count[0] += 1
                if count[0] == number:
                    raise OSError(code, os.strerror(code))
                return _original(*args, **options)  # type: ignore[operator]

            patch.setattr(os, name, call)
        yield count


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_each_call_failing_in_turn_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    path = tmp_path / "model"
    checkpoints.write(path, CONFIG, constant(1).items())
    failures = 0
    for number in range(1, 100):
        with failing_call(monkeypatch, number, code) as count:
            try:
                checkpoints.write(path, CONFIG, constant(2).items())
            except CheckpointError as error:
                assert os.strerror(code) in str(error)
                failures += 1
        assert held(path) in ((1, 2) if count[0] >= number else (2,))
        assert [entry.name for entry in tmp_path.iterdir()] == ["model"]
        if count[0] < number:
            break
    assert failures >= 5
    assert held(path) == 2


@pytest.mark.parametrize(("format", "reason"), [("native", "File too large"), ("openai", "model.ckpt")])
def test_full_disk_while_the_numbers_are_written(tmp_path: Path, format: str, reason: str) -> None:
    """A real limit: the process may not write files longer than 20 kB. TensorFlow has errors of its own for that."""
    path = tmp_path / "model"
    checkpoints.write(path, CONFIG, constant(1).items())
    code = f"""
import resource, signal, sys
sys.path[:0] = {[str(Path(__file__).parent), *filter(None, sys.path)]!r}
from pathlib import Path
from test_atomic import CONFIG, constant
from gpt2 import checkpoints
from gpt2.errors import CheckpointError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    checkpoints.write(Path({str(path)!r}), CONFIG, constant(2).items(), format={format!r})
except CheckpointError as error:
    print("refused:", error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"refused: {path}: cannot be written: " in done.stdout
    assert reason in done.stdout
    assert held(path) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(("limit", "part"), [(20_000, "variables/"), (200_000, "saved_model.pb")])
def test_full_disk_while_a_savedmodel_is_written(tmp_path: Path, limit: int, part: str) -> None:
    """As above. TensorFlow's error used to pass for a bug of ours."""
    path = tmp_path / "model"
    path.mkdir()
    (path / "saved_model.pb").write_text("old")
    code = f"""
import resource, signal, sys
sys.path[:0] = {[str(Path(__file__).parent), *filter(None, sys.path)]!r}
from pathlib import Path
from test_atomic import CONFIG, constant
from gpt2 import exports
from gpt2.errors import CheckpointError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
source = exports.Source(CONFIG, None, constant(2).items, None)
try:
    exports.export(Path({str(path)!r}), source, "savedmodel", check=False)
except CheckpointError as error:
    print("refused:", error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"refused: {path}: cannot be written: " in done.stdout
    assert part in done.stdout
    assert "File too large" in done.stdout
    assert (path / "saved_model.pb").read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_a_folder_with_other_files_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "home"
    checkpoints.write(path, CONFIG, constant(1).items())
    (path / "thesis.txt").write_text("irreplaceable")
    with pytest.raises(CheckpointError, match=r"expected no folder, an empty one or a model.*thesis.txt"):
        checkpoints.write(path, CONFIG, constant(2).items())
    assert (path / "thesis.txt").read_text() == "irreplaceable"
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(CheckpointError, match="found a file"):
        checkpoints.write(file, CONFIG, constant(2).items())


def test_a_folder_that_only_looks_like_a_model_is_not_replaced(tmp_path: Path) -> None:
    """Names that models use, on something else: a folder `checkpoint` of runs, the config.json of another project."""
    (tmp_path / "runs" / "checkpoint").mkdir(parents=True)
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "config.json").write_text("{}")
    for name in ("runs", "project"):
        with pytest.raises(CheckpointError, match="expected no folder, an empty one or a model to replace"):
            checkpoints.write(tmp_path / name, CONFIG, constant(1).items())
    assert (tmp_path / "runs" / "checkpoint").is_dir()


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path: Path) -> None:
    checkpoints.write(tmp_path / "disk" / "model", CONFIG, constant(1).items())
    link = tmp_path / "model"
    link.symlink_to(tmp_path / "disk" / "model")
    checkpoints.write(link, CONFIG, constant(2).items())
    assert link.is_symlink()
    assert held(tmp_path / "disk" / "model") == 2
    assert sorted(entry.name for entry in tmp_path.rglob("*") if "tmp" in entry.name) == []


DEAD = 4_000_000_000  # no process has this number


def test_leftovers_of_dead_processes_are_removed_and_those_of_living_ones_kept(tmp_path: Path) -> None:
    """The second has this process's number but is of an earlier one, as after the restart of a container."""
    path = tmp_path / "model[1]*"
    gone = [f".{path.name}.gpt2-tmp-{DEAD}-1-x", f".{path.name}.gpt2-tmp-{os.getpid()}-1-x"]
    kept = [f".{path.name}.gpt2-tmp-{os.getppid()}-1-x", f".other.gpt2-tmp-{DEAD}-1-x", f".{path.name}.gpt2-tmp-mine"]
    for name in (*gone, *kept):
        (tmp_path / name).mkdir()
    file = tmp_path / f".{path.name}.gpt2-tmp-{DEAD}-2-x"
    file.write_text("half")
    with atomic_folder(path, replaceable=lambda _: True) as new:
        (new / "x").write_text("whole")
    assert {entry.name for entry in tmp_path.iterdir()} == {path.name, *kept}


@pytest.fixture
def _without_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt2.atomic.sys.platform", "darwin")


@pytest.mark.usefixtures("_without_exchange")
def test_without_exchange_each_call_failing_in_turn_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old folder used to stay aside, under a hidden name, when only the second rename failed."""
    test_each_call_failing_in_turn_leaves_the_old_one(tmp_path, monkeypatch, errno.EIO)


@pytest.mark.usefixtures("_without_exchange")
def test_without_exchange_a_kill_between_the_renames_loses_nothing(tmp_path: Path) -> None:
    """The next save puts the old one back before anything else, even if it then fails."""
    path = tmp_path / "model"
    checkpoints.write(path, CONFIG, constant(1).items())
    path.rename(tmp_path / f".model.gpt2-tmp-{DEAD}-1-x-old")
    (tmp_path / f".model.gpt2-tmp-{DEAD}-1-x").mkdir()
    with pytest.raises(ZeroDivisionError), atomic_folder(path, replaceable=lambda _: True):
        raise ZeroDivisionError
    assert held(path) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_an_empty_folder_and_missing_parents(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "a" / "b" / "c"):
        checkpoints.write(path, CONFIG, constant(3).items())
        assert held(path) == 3


def test_one_format_replaces_another(tmp_path: Path) -> None:
    path = tmp_path / "model"
    checkpoints.write(path, CONFIG, constant(1).items(), format="huggingface")
    checkpoints.write(path, CONFIG, constant(2).items())
    assert checkpoints.detect(path) == "native"
    assert not (path / "generation_config.json").exists()


def test_an_exception_in_the_block_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "m", replaceable=lambda _: True) as new:
        (new / "x").write_text("half")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_atomic_file(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    with atomic_file(path) as new:
        new.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_file(path) as new:
        new.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["f.json"]
