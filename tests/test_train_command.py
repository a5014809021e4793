"""Text to a trained model as a user does it: `gpt2 prepare`, `gpt2 train`, `gpt2 generate`; and what losses do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from gpt2.config import GPT2Config, TrainingConfig
from gpt2.gpt import load_model, train_model
from gpt2.training import LogEntry
from test_cli import gpt2, out

STORY = (
    "The robot of the harbour counted the boats every morning. One boat was red, and the robot counted it twice, "
    "because it liked red boats. The captain of the red boat laughed and gave the robot a drop of oil. "
)
VARIED = " ".join(
    f"The robot of the harbour counted {n} boats on day {n * 7 % 31}. One boat was red, and the robot counted it twice."
    for n in range(2, 60)
)
SHAPE = ("--n-layer", "1", "--n-embd", "16", "--n-head", "2", "--n-ctx", "16")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for n in range(6):
        (folder / f"{n}.txt").write_text(f"Number {n}. {STORY * 4}")
    return folder


def test_prepare_train_resume_generate(texts: Path, tmp_path: Path) -> None:
    data, run = str(tmp_path / "data"), str(tmp_path / "run")
    assert "documents to train on" in out("prepare", str(texts), "-o", data, "--valid", "0.3")
    options = ("--steps", "8", "--batch-size", "2", "--eval-every", "4", "--warmup", "2", "--sample", "The robot")
    done = gpt2("train", data, "-o", run, *SHAPE, *options)
    assert done.returncode == 0, done.stderr.decode()
    lines = done.stderr.decode().splitlines()
    assert lines[0].startswith("step 4/8  loss 10.")
    assert "valid_loss" in lines[0]
    assert lines[-1] == "checkpoint step-00000008 saved"
    assert len(lines) == 4, lines  # no chatter of TensorFlow or XLA
    assert b"report.html" in done.stdout
    for name in ("report.html", "loss.png", "metrics.jsonl", "samples.jsonl", "run.json", "tensorboard"):
        assert (tmp_path / "run" / name).exists(), name
    assert out("generate", "The", "--model", f"{run}@4", "--max-tokens", "3")
    assert "a run" not in out("train", "--resume", run)
    refused = gpt2("train", data, "-o", run, *SHAPE, *options)
    assert refused.returncode == 1
    assert b"to go on with it: gpt2 train --resume" in refused.stderr


def test_epochs_and_text_files(texts: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = gpt2("train", str(texts), "-o", str(run), *SHAPE, "--epochs", "1", "--batch-size", "4", "--eval-every", "50")
    assert done.returncode == 0, done.stderr.decode()
    assert b"9 tokens held out do not fill a sequence of 16" in done.stderr
    facts = json.loads((run / "run.json").read_text())
    windows = (facts["data"]["train_tokens"] - 16) // 16
    assert facts["training"]["steps"] == windows // 4
    # The text was prepared into the run, which needs nothing from outside, wherever it is moved.
    assert facts["data"]["train_files"] == ["data"]
    assert facts["data"]["valid_tokens"] == 0  # the 9 held out fill no sequence, which was said
    shutil.rmtree(texts)
    moved = run.rename(tmp_path / "moved")
    assert "report.html" in out("train", "--resume", str(moved))


def test_a_table_with_its_own_column(tmp_path: Path) -> None:
    table = tmp_path / "stories.csv"
    table.write_text("title,story\n" + "".join(f'"{n}","{STORY} {n}"\n' for n in range(9)))
    options = ("--column", "story", "--steps", "2", "--batch-size", "1", "--eval-every", "2")
    done = gpt2("train", str(table), "-o", str(tmp_path / "run"), *SHAPE, *options, "--valid", str(table))
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().count("of 9 documents to train on") == 2  # the text, and the text held out
    assert b"valid_loss" in done.stderr
    missing = gpt2("train", str(table), "-o", str(tmp_path / "two"), *SHAPE, *options[2:])
    assert missing.returncode == 1
    assert b"expected a column 'text', found title, story" in missing.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "DATA: expected text files"),
        (("x",), "--out: expected a new folder"),
        (("x", "-o", "y", "--from", "z", "--n-layer", "2"), "--from: expected no shape beside it"),
        (("x", "-o", "y", "--steps", "1", "--epochs", "1"), "--steps, --epochs: expected one of them"),
        (("x", "-o", "y", "--schedule", "step"), "schedule: expected one of cosine, linear"),
        (("x", "-o", "y", "--size", "9B"), "size"),
        (("x", "--resume", "y"), "--resume: expected nothing else"),
    ],
)
def test_misuse(arguments: tuple[str, ...], message: str) -> None:
    done = gpt2("train", *arguments)
    assert done.returncode == 2
    assert message in done.stderr.decode()
    assert len(done.stderr.decode().splitlines()) == 1


# What training does


def test_a_tiny_model_learns_a_kilobyte_by_heart() -> None:
    """Byte by byte and in one window: what begins in the midst of a text cannot be known."""
    text = "".join(f"{n}: {word}, " for n, word in enumerate(STORY.split() * 3))[:1025]
    log: list[LogEntry] = []
    training = TrainingConfig(steps=300, batch_size=1, learning_rate=1e-2, weight_decay=0.0, eval_every=30)
    shape = GPT2Config(n_vocab=256, n_ctx=1024, n_embd=48, n_head=2, n_layer=2)
    train_model(np.frombuffer(text.encode(), np.uint8), config=shape, training=training, on_log=log.append)
    assert log[0].loss > 1
    assert log[-1].loss < 0.05


@pytest.mark.parametrize("rank", [None, 4])
def test_fine_tuning_the_bundled_model_lowers_the_held_out_loss(tmp_path: Path, rank: int | None) -> None:
    """Whole, and by adapters of under 2 % of the parameters."""
    (tmp_path / "train.txt").write_text(VARIED[: len(VARIED) * 3 // 4])
    (tmp_path / "valid.txt").write_text(VARIED[len(VARIED) * 3 // 4 :])
    training = TrainingConfig(
        steps=12, batch_size=2, sequence_length=64, lora_rank=rank, eval_every=3, learning_rate=None if rank else 3e-4
    )
    options = {"model": load_model(), "training": training, "valid_data": tmp_path / "valid.txt"}
    log: list[LogEntry] = []
    train_model(tmp_path / "train.txt", on_log=log.append, run=tmp_path / "run", **options)
    assert log[-1].valid_loss < log[0].valid_loss - 0.3
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    if rank:
        assert facts["trainable_parameters"] < 0.02 * facts["parameters"]
    losses = [json.loads(line)["valid_loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    np.testing.assert_array_equal(losses, [entry.valid_loss for entry in log])
