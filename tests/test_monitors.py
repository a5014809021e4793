"""Evaluations at the checkpoints of a training: right, made once, and never in the way of the training."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

from gpt2 import store
from gpt2.cli import app
from gpt2.codec import Codec
from gpt2.config import GPT2Config, TrainingConfig
from gpt2.errors import ConfigError, EvaluationError
from gpt2.evaluation import TASKS, Options, evaluate
from gpt2.gpt import Model, load_model, new_model, resume_training, train_model
from gpt2.monitors import Monitor

CODEC = Codec.from_merges("#version: 0.2\nt h\nth e\n")
SHAPE = GPT2Config(n_vocab=CODEC.n_vocab, n_ctx=64, n_embd=8, n_head=2, n_layer=1)
TOKENS = np.array(CODEC.encode("the cat sat on the mat and the dog sat on the cat. " * 20))
TRAINING = TrainingConfig(
    steps=4, batch_size=2, sequence_length=16, warmup_steps=2, eval_every=3, save_every=2, keep_last=9, dropout=0.2
)
TEXT = "Another text altogether, of which the model learns nothing: 12345.\n" * 130


def train(folder: Path, monitors: list[Monitor], notes: list[str] | None = None) -> Model:
    base = new_model(SHAPE, codec=CODEC, seed=1)
    note = None if notes is None else notes.append
    return train_model(TOKENS, model=base, training=TRAINING, run=folder, monitors=monitors, note=note)


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]


def without_times(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name != "seconds"} for line in found]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Model, list[str]]:
    """A run with a monitor, its data, what came out, and what was told."""
    folder = tmp_path_factory.mktemp("monitored")
    data = folder / "other.txt"
    data.write_text(TEXT)
    notes: list[str] = []
    model = train(folder / "run", [Monitor("perplexity", str(data), limit=2)], notes)
    return folder / "run", data, model, notes


def test_each_checkpoint_has_the_figures_of_its_own_evaluation(straight: tuple[Path, Path, Model, list[str]]) -> None:
    run, data, _, notes = straight
    found = lines(run)
    assert sorted({line["step"] for line in found}) == [0, 2, 4]
    for step in (0, 2, 4):
        model = load_model(run / "base" if step == 0 else f"{run}@{step}")
        wanted = evaluate(model, "perplexity", data, options=Options(limit=2))
        mine = [line for line in found if line["step"] == step]
        assert [line["metric"] for line in mine] == list(wanted.metrics)
        for line, estimate in zip(mine, wanted.metrics.values(), strict=True):
            assert line["name"] == "perplexity other.txt"
            assert (line["value"], line["low"], line["high"]) == (estimate.value, estimate.low, estimate.high)
            assert line["weights_sha256"] == wanted.facts["weights_sha256"]
            assert line["data_sha256"] == wanted.facts["data"][0]["sha256"]
            for fact in ("version", "protocol", "options", "detokeniser", "engine", "precision", "vocabulary_sha256"):
                assert line[fact] == wanted.facts[fact]
    told = [note for note in notes if "at step" in note]
    assert re.fullmatch(r"perplexity other.txt at step 0: perplexity, per token [0-9.e+]+", told[0])
    assert re.fullmatch(r"perplexity other.txt at step 4: .*, [+-][0-9.e+-]+ since step 0", told[-1])


def test_the_weights_are_those_of_a_training_without(
    straight: tuple[Path, Path, Model, list[str]], tmp_path: Path
) -> None:
    plain = train(tmp_path / "plain", []).parameters()
    for name, array in straight[2].parameters().items():
        np.testing.assert_array_equal(array, plain[name], err_msg=name)
    assert not (tmp_path / "plain" / "evaluations.jsonl").exists()


@pytest.mark.parametrize("evaluated", [True, False])
def test_a_run_that_goes_on_has_the_same_figures(
    straight: tuple[Path, Path, Model, list[str]], tmp_path: Path, evaluated: bool
) -> None:
    """Killed after the checkpoint of step 2: before it was evaluated, or later."""
    folder = tmp_path / "run"
    shutil.copytree(straight[0], folder)
    shutil.rmtree(store.checkpoint_folder(folder, 4))
    kept = [line for line in lines(folder) if line["step"] < 2 or evaluated]
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept) + '{"step": 2, "na')
    resume_training(folder, data=TOKENS)
    assert without_times(lines(folder)) == without_times(lines(straight[0]))
    board = EventAccumulator(str(folder / "tensorboard"))
    board.Reload()
    scalars = board.Tensors("evaluations/perplexity other.txt/token_perplexity")
    assert [event.step for event in scalars] == [0, 2, 4]


def test_data_that_changes_or_goes_is_told_and_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = {name: tmp_path / f"{name}.txt" for name in ("changes", "goes")}
    for path in data.values():
        path.write_text(TEXT)
    notes: list[str] = []
    save = gpt2_run_save()

    def saved(self: Any, *arguments: Any) -> Path:
        data["changes"].write_text(TEXT + "more")
        data["goes"].unlink(missing_ok=True)
        return save(self, *arguments)

    monkeypatch.setattr("gpt2.runs.Run.save", saved)
    train(tmp_path / "run", [Monitor("perplexity", str(path)) for path in data.values()], notes)
    assert {line["step"] for line in lines(tmp_path / "run")} == {0}
    assert "perplexity changes.txt: its data is not what it was at step 0; left out" in notes
    assert any(note.startswith("perplexity goes.txt was not evaluated at step 4: ") for note in notes)
    assert store.checkpoint_steps(tmp_path / "run") == [2, 4]


def test_a_disk_that_fails_is_told_and_the_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other.txt").write_text(TEXT)
    notes: list[str] = []

    def broken(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("gpt2.evaluation.run.sha256_of", broken)
    train(tmp_path / "run", [Monitor("perplexity", str(tmp_path / "other.txt"))], notes)
    assert any("was not evaluated at step 4: [Errno 13] Permission denied" in note for note in notes)
    assert store.checkpoint_steps(tmp_path / "run") == [2, 4]


def gpt2_run_save() -> Any:
    from gpt2.runs import Run

    return Run.save


def test_the_report_shows_them(straight: tuple[Path, Path, Model, list[str]]) -> None:
    from test_report import Page

    page = Page(straight[0] / "report.html")
    assert all(load.startswith("#") for load in page.loads)
    assert "Evaluations at the checkpoints" in page.text
    headline = [line for line in lines(straight[0]) if line["metric"] == "token_perplexity"]
    for line in headline:
        assert f"{line['value']:.4g} ({line['low']:.4g} to {line['high']:.4g})" in page.text
    assert f"{headline[-1]['value'] - headline[0]['value']:+.4g}" in page.text
    assert f"perplexity, version {TASKS['perplexity'].version}" in page.text
    assert "window 64, stride 64" in page.text
    for line in headline:
        for fact in (
            *line["protocol"].values(),
            line["data_sha256"],
            line["weights_sha256"],
            line["vocabulary_sha256"],
        ):
            assert fact in page.text


def test_what_cannot_be_monitored_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text(TEXT)
    good = Monitor("perplexity", str(tmp_path / "other.txt"))
    with pytest.raises(ConfigError, match="monitors: expected a run beside them"):
        train_model(TOKENS, config=SHAPE, monitors=[good])
    with pytest.raises(EvaluationError, match="monitors: expected a model with a vocabulary"):
        train_model(TOKENS, config=SHAPE, monitors=[good], run=tmp_path / "run")
    with pytest.raises(ConfigError, match="expected each of them once, got 'perplexity other.txt' twice"):
        train(tmp_path / "run", [good, good])
    with pytest.raises(EvaluationError, match="found nothing"):
        train(tmp_path / "run", [Monitor("wikitext2", str(tmp_path / "nowhere"))])
    with pytest.raises(ConfigError, match="limit: expected a whole number of at least 1, got 0"):
        Monitor("perplexity", "x", limit=0)
    arguments = ["train", str(tmp_path / "other.txt"), "-o", str(tmp_path / "run"), "--monitor"]
    with pytest.raises(ConfigError, match="monitor: expected TASK=PATH, such as wikitext2=wiki.test.raw, got 'nope'"):
        app([*arguments, "nope"], standalone_mode=False)
    with pytest.raises(ConfigError, match="nope"):
        app([*arguments, "nope=x"], standalone_mode=False)
    assert not (tmp_path / "run").exists()
