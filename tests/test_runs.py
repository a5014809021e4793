"""Runs on disk: stopped anywhere they go on exactly, damaged checkpoints are skipped, every checkpoint is a model."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

from gpt2 import store
from gpt2.checkpoints import manifest
from gpt2.config import GPT2Config, TrainingConfig
from gpt2.errors import CheckpointError, CheckpointNotFoundError, TrainingError
from gpt2.gpt import Model, load_model, new_model, read_data, resume_training, train_model
from gpt2.runs import Run

SHAPE = GPT2Config(n_vocab=300, n_ctx=8, n_embd=8, n_head=2, n_layer=1)
TOKENS = np.random.default_rng(0).integers(0, 300, 700).astype(np.uint16)
VALID = TOKENS[:100]


def settings(**changes: object) -> TrainingConfig:
    values = {"steps": 12, "batch_size": 2, "accumulation_steps": 2, "dropout": 0.2, "warmup_steps": 2}
    return TrainingConfig(**values | {"eval_every": 4, "save_every": 3, "keep_last": 9, "eval_batches": 2} | changes)


def start(folder: Path, notes: list[str] | None = None, tokens: np.ndarray = TOKENS, **changes: object) -> Model:
    note = None if notes is None else notes.append
    return train_model(tokens, config=SHAPE, valid_data=VALID, training=settings(**changes), run=folder, note=note)


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> tuple[Path, dict[str, np.ndarray]]:
    """A run without a stop, and its weights at the end."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    return folder, start(folder).parameters()


def stopped(run: Path, folder: Path, step: int) -> Path:
    """A copy of a run as if it had been killed a moment after the checkpoint of a step."""
    shutil.copytree(run, folder)
    for later in store.checkpoint_steps(folder):
        if later > step:
            shutil.rmtree(store.checkpoint_folder(folder, later))
    return folder


def assert_same(ours: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    for name, array in expected.items():
        np.testing.assert_array_equal(ours[name], array, err_msg=name)


def without_times(path: Path) -> list[dict]:
    times = {"seconds", "seconds_left", "tokens_per_second", "ceiling_share"}
    lines = path.read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in times} for line in lines]


@pytest.mark.parametrize("step", [3, 6, 9])
def test_a_run_that_goes_on_ends_at_the_same_bits(straight, tmp_path, step):
    """With dropout, accumulation, in mid-epoch and between two entries of the log."""
    run, expected = straight
    folder = stopped(run, tmp_path / "run", step)
    assert_same(resume_training(folder, data=TOKENS, valid_data=VALID).parameters(), expected)
    assert without_times(folder / "metrics.jsonl") == without_times(run / "metrics.jsonl")
    assert store.checkpoint_steps(folder) == [3, 6, 9, 12]
    board = EventAccumulator(str(folder / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Tensors("loss")] == [4, 8, 12]


def test_a_run_stopped_before_its_first_checkpoint_begins_again(straight, tmp_path):
    run, expected = straight
    folder = stopped(run, tmp_path / "run", 0)
    assert_same(resume_training(folder, data=TOKENS, valid_data=VALID).parameters(), expected)


def test_going_on_after_the_end_changes_nothing(straight):
    run, expected = straight
    assert_same(resume_training(run, data=TOKENS, valid_data=VALID).parameters(), expected)


def test_adapters_go_on_at_the_same_bits_and_are_saved_merged(tmp_path):
    options = {"lora_rank": 2, "learning_rate": 1e-2}
    base = new_model(SHAPE, seed=3)
    trained = train_model(TOKENS, model=base, training=settings(**options), run=tmp_path / "run")
    folder = stopped(tmp_path / "run", tmp_path / "again", 6)
    assert_same(resume_training(folder, data=TOKENS).parameters(), trained.parameters())
    assert_same(load_model(f"{tmp_path / 'run'}@12").parameters(), trained.parameters())
    facts = json.loads((folder / "run.json").read_text())
    assert facts["trainable_parameters"] == 2 * (8 + 24 + 8 + 8 + 8 + 32 + 32 + 8)
    assert facts["base"] == "new"


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "truncated":
        path.write_bytes(bytes(data[: len(data) // 2]))
    elif how == "gone":
        path.unlink()
    else:
        data[len(data) * 3 // 4] ^= 16
        path.write_bytes(bytes(data))


@pytest.mark.parametrize("how", ["truncated", "bit flipped", "gone"])
@pytest.mark.parametrize("name", ["model.safetensors", "training.safetensors", "training.json", "config.json"])
def test_a_damaged_newest_checkpoint_is_skipped_and_said_so(straight, tmp_path, name, how):
    run, expected = straight
    folder = stopped(run, tmp_path / "run", 9)
    damage(store.checkpoint_folder(folder, 9) / name, how)
    notes: list[str] = []
    resumed = resume_training(folder, data=TOKENS, valid_data=VALID, note=notes.append)
    assert_same(resumed.parameters(), expected)
    assert notes[0].startswith("step-00000009 is damaged and is skipped: ")
    assert name in notes[0]


def test_no_whole_checkpoint_is_an_error(straight, tmp_path):
    folder = stopped(straight[0], tmp_path / "run", 6)
    for step in (3, 6):
        damage(store.checkpoint_folder(folder, step) / "model.safetensors", "bit flipped")
    with pytest.raises(TrainingError, match="none of its 2 checkpoints is whole"):
        resume_training(folder, data=TOKENS, valid_data=VALID)


def test_a_damaged_checkpoint_that_is_named_is_an_error(straight, tmp_path):
    folder = stopped(straight[0], tmp_path / "run", 6)
    damage(store.checkpoint_folder(folder, 6) / "model.safetensors", "bit flipped")
    with pytest.raises(CheckpointError, match="it is damaged"):
        load_model(f"{folder}@6")


def test_a_saved_model_with_a_flipped_bit_does_not_load(tmp_path):
    from gpt2.gpt import save_model

    save_model(new_model(SHAPE), tmp_path / "m")
    assert manifest.verify(tmp_path / "m")
    damage(tmp_path / "m" / "model.safetensors", "bit flipped")
    with pytest.raises(CheckpointError, match=r"model.safetensors: expected SHA-256 .* it is damaged"):
        load_model(tmp_path / "m")


@pytest.mark.parametrize(
    "text", ['{"files": []}', '{"files": {"x": 1}}', "{", '{"files": {"../secret": {"bytes": 1, "sha256": ""}}}']
)
def test_a_bad_manifest_is_an_error(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError):
        manifest.verify(tmp_path)


# Names


def test_every_checkpoint_is_a_model_under_its_name(straight):
    run, expected = straight
    assert_same(load_model(f"{run}@12").parameters(), expected)
    assert_same(load_model(f"{run}@last").parameters(), expected)
    best = store.best_step(run)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert best == min(lines, key=lambda line: line["valid_loss"])["step"]
    with pytest.raises(CheckpointNotFoundError, match=r"@7: expected best, last or one of the steps 3, 6, 9, 12"):
        load_model(f"{run}@7")


def test_a_run_stands_for_its_best_checkpoint_or_its_last(tmp_path):
    start(tmp_path / "a", steps=8, save_every=4)
    step = store.best_step(tmp_path / "a")
    assert store.resolve(tmp_path / "a") == store.resolve(f"{tmp_path / 'a'}@best")
    assert store.resolve(tmp_path / "a").name == f"step-{step:08d}"
    train_model(TOKENS, config=SHAPE, training=settings(steps=3), run=tmp_path / "b")
    assert store.resolve(tmp_path / "b").name == "step-00000003"
    with pytest.raises(CheckpointNotFoundError, match="@best: expected a run with held-out text"):
        store.resolve(f"{tmp_path / 'b'}@best")


def test_old_checkpoints_go_but_the_best_stays(tmp_path):
    start(tmp_path / "run", steps=24, save_every=2, eval_every=2, keep_last=2, learning_rate=0.3)
    best, steps = store.best_step(tmp_path / "run"), store.checkpoint_steps(tmp_path / "run")
    assert steps == sorted({best, 22, 24})
    assert not [p for p in (tmp_path / "run" / "checkpoints").iterdir() if p.name.startswith(".")]


# Refusals


def test_a_folder_with_something_in_it(straight, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(TrainingError, match="expected an empty folder or none for a new run, found something$"):
        start(tmp_path)
    with pytest.raises(TrainingError, match="to go on with it: gpt2 train --resume"):
        start(straight[0])


def test_a_run_killed_while_it_was_made_is_made_again(tmp_path):
    """`run.json` comes last, when all that a run needs is there."""
    start(tmp_path / "run", steps=3)
    for name in os.listdir(tmp_path / "run"):
        if name not in ("base", "checkpoints", ".lock"):
            path = tmp_path / "run" / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(store.checkpoint_folder(tmp_path / "run", 3))
    assert not store.is_run(tmp_path / "run")
    assert_same(start(tmp_path / "run", steps=3).parameters(), start(tmp_path / "other", steps=3).parameters())


def test_other_tokens_than_before(straight):
    with pytest.raises(TrainingError, match="^data: expected the text that the run was begun with, got other tokens"):
        resume_training(straight[0], data=TOKENS[::-1].copy(), valid_data=VALID)
    with pytest.raises(TrainingError, match="^data: expected the tokens that the run was begun with"):
        resume_training(straight[0])


def test_no_run(tmp_path):
    with pytest.raises(TrainingError, match="expected the folder of a training run, with run.json; found none"):
        resume_training(tmp_path)


def test_two_processes_do_not_train_in_one_folder(straight):
    pytest.importorskip("fcntl")
    run = Run.open(straight[0], print)
    with run.locked(), pytest.raises(TrainingError, match="another process is training in it"):
        resume_training(straight[0], data=TOKENS, valid_data=VALID)


def test_who_is_refused_changes_nothing(straight, tmp_path):
    """Lines of the log were dropped before the lock was asked for."""
    pytest.importorskip("fcntl")
    folder = stopped(straight[0], tmp_path / "run", 3)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with Run.open(folder, print).locked(), pytest.raises(TrainingError, match="another process"):
        resume_training(folder, data=TOKENS, valid_data=VALID)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_disk_that_is_full_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    """The save of step 6 fails halfway: step 3 stays, and the run goes on from it later."""
    from gpt2.checkpoints import tensor_file

    write, calls = tensor_file.write_file, []

    def failing(path: Path, *arguments: object) -> None:
        calls.append(path)
        if len(calls) == 5:  # the base, two files of step 3, then the second one of step 6
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        write(path, *arguments)

    monkeypatch.setattr(tensor_file, "write_file", failing)
    with pytest.raises(CheckpointError, match="No space left on device"):
        start(tmp_path / "run")
    assert os.listdir(tmp_path / "run" / "checkpoints") == ["step-00000003"]
    monkeypatch.undo()
    assert_same(
        resume_training(tmp_path / "run", data=TOKENS, valid_data=VALID).parameters(),
        start(tmp_path / "b").parameters(),
    )


# Killed


PROGRAM = """
import sys
import numpy as np
from gpt2.config import GPT2Config, TrainingConfig
from gpt2.gpt import resume_training, train_model
from pathlib import Path
folder = Path(sys.argv[1])
tokens = np.random.default_rng(0).integers(0, 300, 700).astype(np.uint16)
say = lambda text: print(text, flush=True)
if (folder / "run.json").exists():
    resume_training(folder, data=tokens, note=say, on_step=say)
else:
    shape = GPT2Config(n_vocab=300, n_ctx=8, n_embd=8, n_head=2, n_layer=1)
    training = TrainingConfig(steps=int(sys.argv[2]), batch_size=2, accumulation_steps=2, dropout=0.2, warmup_steps=2,
                              eval_every=50, save_every=5, keep_last=2)
    train_model(tokens, config=shape, training=training, run=folder, note=say, on_step=say)
print("done")
"""


def kill_and_resume(folder: Path, cycles: int, steps: int) -> None:
    """Kill -9 again and again, at a step drawn at random; the end is that of a run that was left alone."""
    draw = random.Random(0)
    acknowledged = killed = 0
    command = [sys.executable, "-c", PROGRAM, str(folder), str(steps)]
    while True:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        left, done, seen = draw.randint(1, 2 * steps // cycles), False, 0
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("checkpoint step-"):
                acknowledged = int(line.split("-")[1].split()[0])
            elif line.strip() == "done":
                done = True
            elif line.strip().isdecimal():
                # Nothing is lost beyond the last acknowledged checkpoint; a later one may have been whole too.
                assert seen or int(line) > acknowledged
                seen += 1
            if killed < cycles and seen >= left:
                time.sleep(draw.random() * 0.02)  # in the midst of a step or of a save
                process.send_signal(signal.SIGKILL)
                killed += 1
                break
        process.stdout.read()
        assert process.stderr is not None
        errors = process.stderr.read()
        process.wait()
        if done:
            assert process.returncode == 0
            break
        assert process.returncode == -signal.SIGKILL, errors
    tokens = np.random.default_rng(0).integers(0, 300, 700).astype(np.uint16)
    training = TrainingConfig(
        **json.loads((folder / "run.json").read_text())["training"]
        | {"trainable": (), "sample_prompts": (), "lora_targets": ("attn/c_attn",)}
    )
    expected = train_model(tokens, config=SHAPE, training=training).parameters()
    assert_same(load_model(f"{folder}@last").parameters(), expected)
    assert killed > 1


@pytest.mark.skipif(os.name == "nt", reason="there is no kill -9")
@pytest.mark.timeout(900)
def test_killed_and_resumed_again_and_again(tmp_path):
    kill_and_resume(tmp_path / "run", cycles=4, steps=60)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="there is no kill -9")
@pytest.mark.timeout(3600)
def test_killed_and_resumed_two_hundred_times(tmp_path):
    kill_and_resume(tmp_path / "run", cycles=200, steps=1500)


# Text


def test_text_files_are_found_again(tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("The cat sat on the mat. " * 40)
    shape = GPT2Config(n_ctx=8, n_embd=8, n_head=2, n_layer=1)
    tokens, valid = read_data(str(tmp_path / "texts"), None, None, shape)
    assert valid is None
    options = {"config": shape, "training": settings(sample_prompts=("The",), sample_tokens=3)}
    trained = train_model(tokens, run=tmp_path / "run", **options)
    folder = stopped(tmp_path / "run", tmp_path / "again", 6)
    assert_same(resume_training(folder).parameters(), trained.parameters())
    assert (folder / "samples.jsonl").read_text() == (tmp_path / "run" / "samples.jsonl").read_text()
    assert (folder / "report.html").stat().st_size > 1000
    (tmp_path / "texts" / "b.txt").write_text("Another.")
    with pytest.raises(TrainingError, match="got other tokens"):
        resume_training(folder)
