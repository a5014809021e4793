"""Adapters in PEFT's layout: the oracle's sums, what is refused, and what a run trained, written and merged again."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

import oracle
from gpt2 import checkpoints, exports, store
from gpt2.checkpoints import peft
from gpt2.cli import app
from gpt2.config import GPT2Config, TrainingConfig
from gpt2.errors import CheckpointError, CheckpointFormatError, CheckpointNotFoundError, TensorMismatchError
from gpt2.gpt import load_model, train_model
from test_checkpoints import CONFIG, TENSORS, write

TARGETS = {"attn.c_attn": (12, 36), "attn.c_proj": (12, 12), "mlp.c_fc": (12, 48), "mlp.c_proj": (48, 12)}


def adapter(folder: Path, rank: int = 2, **settings: Any) -> dict[str, np.ndarray]:
    """As PEFT writes it; A (r, in) and B (out, r)."""
    rng = np.random.default_rng(rank)
    arrays = {}
    for n in range(CONFIG.n_layer):
        for target, (n_in, n_out) in TARGETS.items():
            name = f"base_model.model.transformer.h.{n}.{target}"
            arrays[f"{name}.lora_A.weight"] = rng.normal(0, 0.3, (rank, n_in)).astype(np.float32)
            arrays[f"{name}.lora_B.weight"] = rng.normal(0, 0.3, (n_out, rank)).astype(np.float32)
    folder.mkdir(exist_ok=True)
    save_file(arrays, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 6, "bias": "none", "fan_in_fan_out": True, **settings}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return arrays


@pytest.mark.parametrize(("settings", "scale"), [({}, 3.0), ({"use_rslora": True}, 6 / np.sqrt(2))])
def test_merging(tmp_path: Path, settings: dict[str, Any], scale: float) -> None:
    arrays = adapter(tmp_path / "adapter", **settings)
    base = write(tmp_path / "base")
    result = CliRunner().invoke(
        app,
        [
            "convert",
            str(base),
            str(tmp_path / "out"),
            "--to",
            "native",
            "--adapter",
            str(tmp_path / "adapter"),
            "--check",
        ],
    )
    assert result.exit_code == 0, result.output
    for name, array in checkpoints.read(tmp_path / "out")[1]:
        expected = TENSORS[name].astype(np.float64)
        layer, _, part = name.partition("/")
        theirs = f"base_model.model.transformer.h.{layer[1:]}.{part.removesuffix('/w').replace('/', '.')}"
        if f"{theirs}.lora_A.weight" in arrays and name.endswith("/w"):
            a, b = arrays[f"{theirs}.lora_A.weight"], arrays[f"{theirs}.lora_B.weight"]
            expected = expected + scale * (b.astype(np.float64) @ a).T
            assert np.abs(expected - TENSORS[name]).max() > 0.1
        np.testing.assert_allclose(array, expected, rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "PROMPT_TUNING"}, "peft_type: expected 'LORA', got 'PROMPT_TUNING'"),
        ({"use_dora": True}, "use_dora: expected False, got True"),
        ({"bias": "all"}, "bias: expected 'none', got 'all'"),
        ({"modules_to_save": ["wte"]}, "modules_to_save: expected None, got a list"),
        ({"rank_pattern": {"c_fc": 4}}, "rank_pattern: expected None, got a dict"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights: expected True, got 'pissa'"),
        ({"r": 0}, "expected r and lora_alpha as numbers, got 0, 6"),
        ({"lora_alpha": "6"}, "expected r and lora_alpha as numbers, got 2, '6'"),
        ({"use_rslora": 1}, "use_rslora: expected true or false, got 1"),
        ({"r": 3}, r"lora_A.weight': expected shape \[3, 12\], got \[2, 12\]"),
    ],
)
def test_settings_that_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    adapter(tmp_path / "adapter", **settings)
    with pytest.raises((CheckpointFormatError, TensorMismatchError), match=message):
        peft.read(tmp_path / "adapter", CONFIG)


def test_tensors_that_do_not_fit(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    with pytest.raises(CheckpointNotFoundError, match=r"expected a folder of PEFT's with adapter_config.json"):
        peft.read(folder, CONFIG)
    arrays = adapter(folder)
    name = "base_model.model.transformer.h.0.attn.c_attn"
    others = {n: a for n, a in arrays.items() if n != f"{name}.lora_B.weight"}
    others["base_model.model.transformer.wte.lora_embedding_A"] = np.ones((2, 61), np.float32)
    others["base_model.model.transformer.h.7.attn.c_attn.lora_A.weight"] = np.ones((2, 12), np.float32)
    save_file(others, folder / "adapter_model.safetensors")
    with pytest.raises(TensorMismatchError, match=r"unexpected .*h.7.*unexpected .*wte.*expected lora_A and lora_B"):
        peft.read(folder, CONFIG)
    arrays[f"{name}.lora_A.weight"][0, 0] = np.nan
    save_file(arrays, folder / "adapter_model.safetensors")
    with pytest.raises(TensorMismatchError, match="adapter of h0/attn/c_attn/w: lora_A holds 1 numbers that are NaN"):
        dict(peft.read(folder, CONFIG).merged(TENSORS.items()))
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(CheckpointFormatError, match=r"adapter_model.bin is a pickle and is refused"):
        peft.read(folder, CONFIG)


def test_what_a_run_trained_written_and_merged_again(tmp_path: Path) -> None:
    """The merged base is the checkpoint, whose adapters were merged when it was saved.

    A folder with a README alone is no adapters' and was replaced nevertheless.
    """
    config = GPT2Config(n_vocab=61, n_ctx=16, n_embd=12, n_head=3, n_layer=2)
    base = write(tmp_path / "base")
    settings = TrainingConfig(
        steps=2, batch_size=2, sequence_length=8, lora_rank=3, lora_alpha=9, lora_targets=("attn/c_attn", "mlp/c_proj")
    )
    tokens = np.random.default_rng(0).integers(0, 61, 200)
    train_model(tokens, model=str(base), training=settings, run=tmp_path / "run")
    runner = CliRunner()
    command = ["convert", str(tmp_path / "run"), str(tmp_path / "adapter"), "--to", "peft", "--no-check"]
    result = runner.invoke(app, command)
    said = [f"{tmp_path / 'adapter'}: 4 adapters", "not checked: as was asked"]
    assert (result.exit_code, result.stdout.splitlines()) == (0, said), result.output
    arrays = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert arrays["base_model.model.transformer.h.1.mlp.c_proj.lora_A.weight"].shape == (3, 48)
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["lora_alpha"] == 9
    merged = dict(peft.read(tmp_path / "adapter", config).merged(checkpoints.read(base)[1]))
    trained = load_model(tmp_path / "run").parameters()
    for name, array in trained.items():
        np.testing.assert_array_equal(merged[name], array, err_msg=name)
    assert any((trained[name] != TENSORS[name]).any() for name in trained)
    (tmp_path / "adapter" / "README.md").write_text("as PEFT writes it")
    assert runner.invoke(app, command).exit_code == 0
    assert sorted(os.listdir(tmp_path / "adapter")) == ["adapter_config.json", "adapter_model.safetensors"]
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "README.md").write_text("a project's")
    result = runner.invoke(app, ["convert", str(tmp_path / "run"), str(docs), "--to", "peft", "--no-check"])
    assert "expected no folder, an empty one or a model to replace, found README.md" in str(result.exception)
    assert (docs / "README.md").read_text() == "a project's"
    result = runner.invoke(app, ["convert", str(base), str(tmp_path / "other"), "--to", "peft"])
    assert "expected a checkpoint of a run with --lora-rank, found no adapters" in str(result.exception)


@pytest.mark.reference
def test_with_peft_itself(tmp_path: Path) -> None:
    """Equal logits: what PEFT trained and saved, merged here; and what we wrote, loaded by PEFT."""
    torch, library = pytest.importorskip("torch"), pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    checkpoints.write(tmp_path / "hf", CONFIG, TENSORS.items(), format="huggingface")
    ids = np.random.default_rng(0).integers(0, CONFIG.n_vocab, (2, 16))

    def logits(model: Any) -> np.ndarray:
        with torch.no_grad():
            return model.eval()(torch.tensor(ids)).logits.numpy()

    base = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "hf")
    settings = library.LoraConfig(
        r=4, lora_alpha=12, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True, task_type="CAUSAL_LM"
    )
    tuned = library.get_peft_model(base, settings)
    torch.manual_seed(0)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    tuned.save_pretrained(tmp_path / "theirs")
    expected = logits(tuned)
    merged = dict(peft.read(tmp_path / "theirs", CONFIG).merged(TENSORS.items()))
    ours = np.stack([oracle.logits(CONFIG, merged, row) for row in ids])
    np.testing.assert_allclose(ours, expected, atol=1e-4)
    assert np.abs(expected - np.stack([oracle.logits(CONFIG, TENSORS, row) for row in ids])).max() > 0.1

    settings_here = TrainingConfig(steps=2, batch_size=2, sequence_length=8, lora_rank=3)
    tokens = np.random.default_rng(0).integers(0, 61, 200)
    train_model(tokens, model=str(tmp_path / "hf"), training=settings_here, run=tmp_path / "run")
    command = ["convert", str(tmp_path / "run"), str(tmp_path / "ours"), "--to", "peft", "--check"]
    result = CliRunner().invoke(app, command)
    assert re.search(r"checked by peft .*: logits at 8 positions, .* 8 of 8 greedy tokens the same$", result.stdout)
    fresh = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "hf")
    loaded = library.PeftModel.from_pretrained(fresh, tmp_path / "ours")
    np.testing.assert_allclose(load_model(tmp_path / "run").logits(ids), logits(loaded), atol=1e-4)


@pytest.mark.reference
def test_wrong_adapters_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("torch", "transformers", "peft"):
        pytest.importorskip(library)
    base = write(tmp_path / "base", format="huggingface")
    settings = TrainingConfig(steps=3, batch_size=2, sequence_length=8, lora_rank=3, learning_rate=0.1, warmup_steps=0)
    tokens = np.random.default_rng(0).integers(0, 61, 200)
    train_model(tokens, model=str(base), training=settings, run=tmp_path / "run")
    adapter(tmp_path / "out")
    before = (tmp_path / "out" / "adapter_model.safetensors").read_bytes()
    name = peft._their_name
    monkeypatch.setattr(
        peft, "_their_name", lambda each: name(each).replace(".h.0.", ".h.9.").replace(".h.1.", ".h.0.")
    )
    with pytest.raises(CheckpointError, match="expected logits within"):
        exports.export_adapters(tmp_path / "out", store.resolve(str(tmp_path / "run")), check=True)
    assert (tmp_path / "out" / "adapter_model.safetensors").read_bytes() == before
