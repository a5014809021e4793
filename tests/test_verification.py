"""`gpt2 models verify`: what is whole passes, and each thing that is wrong ends with status 1 and says what."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

import foreign
import model_server as faulty
import oracle
from gpt2 import checkpoints, store
from gpt2.checkpoints.download import Spec, download
from gpt2.checkpoints.names import weights_sha256
from gpt2.cli import app
from gpt2.codec import default_codec
from gpt2.config import GPT2Config
from test_checkpoints import CONFIG, TENSORS, write
from test_foreign import write as write_foreign


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["models", "verify", *map(str, arguments)])


@pytest.mark.parametrize("format", ["native", "huggingface", "gguf", "llmc", "nanogpt"])
def test_a_whole_model_in_any_format(tmp_path: Path, format: str) -> None:
    own = format in ("native", "huggingface")
    path = write(tmp_path / "model", format) if own else write_foreign(tmp_path, format)
    found = json.loads(run(path, "--json").stdout)
    assert (found["format"], found["parameters"], found["manifest"]) == (
        format,
        CONFIG.num_parameters,
        format == "native",
    )
    assert found["weights_sha256"] == weights_sha256(TENSORS.items())
    assert (found["holds"], found["codec"], found["largest_difference"]) == (True, False, None)


def test_the_same_model_in_two_formats(tmp_path: Path) -> None:
    result = run(write(tmp_path / "a"), "--reference", write_foreign(tmp_path, "gguf"))
    assert result.exit_code == 0, result.output
    assert "files: as their manifest says" in result.stdout
    assert "logits: agree, by 0 at most (allowed 0.001) at 32 positions; the weights are the same" in result.stdout


def test_another_model_as_a_reference(tmp_path: Path) -> None:
    """The difference is the oracle's."""
    others = {**TENSORS, "ln_f/b": TENSORS["ln_f/b"] + np.float32(0.01)}
    path = foreign.write_gguf(tmp_path / "other.gguf", CONFIG, others)
    result = run(path, "--reference", write(tmp_path / "a"))
    assert result.exit_code == 1
    assert "logits: DIFFER" in result.stdout
    assert "the weights are others" in result.stdout
    ids = np.random.default_rng(0).integers(0, CONFIG.n_vocab, (2, 16))
    expected = max(
        np.abs(oracle.logits(CONFIG, others, row) - oracle.logits(CONFIG, TENSORS, row)).max() for row in ids
    )
    found = json.loads(run(path, "--reference", tmp_path / "a", "--tolerance", "1", "--json").stdout)
    assert found["holds"]
    assert found["largest_difference"] == pytest.approx(expected, abs=1e-4)


def test_a_reference_of_another_shape(tmp_path: Path) -> None:
    config = GPT2Config(n_vocab=61, n_ctx=8, n_embd=12, n_head=3, n_layer=2)
    path = foreign.write_gguf(tmp_path / "other.gguf", config, oracle.random_tensors(config))
    result = run(path, "--reference", write(tmp_path / "a"))
    assert result.exit_code != 0
    assert "reference: expected a model of the shape" in str(result.exception)


def test_a_flipped_bit_a_nan_and_a_missing_tensor(tmp_path: Path) -> None:
    folder = write(tmp_path / "a")
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-100] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    for path, message in (
        (folder, "model.safetensors: expected SHA-256"),
        (
            foreign.write_gguf(tmp_path / "nan.gguf", CONFIG, {**TENSORS, "wpe": TENSORS["wpe"] * np.float32("nan")}),
            "wpe holds 192 numbers that are NaN",
        ),
        (
            foreign.write_gguf(tmp_path / "less.gguf", CONFIG, {n: a for n, a in TENSORS.items() if n != "h1/ln_1/g"}),
            "missing h1/ln_1/g",
        ),
    ):
        result = run(path)
        assert result.exit_code == 1
        assert message in str(result.exception)


def test_a_download_is_compared_with_the_hashes_it_came_with() -> None:
    with faulty.serving() as server:
        config = GPT2Config(n_vocab=default_codec().n_vocab, n_ctx=8, n_embd=4, n_head=2, n_layer=1)
        made = store.home() / "made"
        checkpoints.write(
            made, config, oracle.random_tensors(config).items(), format="huggingface", codec=default_codec()
        )
        server.files = {path.name: path.read_bytes() for path in made.iterdir()}
        path = download(Spec("tiny", config, "huggingface", server.url))
    assert "files: as their manifest says" in run("tiny").stdout
    assert "files: no manifest to compare with" in run(made).stdout
    weights = path / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1  # still a number
    weights.write_bytes(data)
    result = run("tiny")
    assert result.exit_code == 1
    assert "expected SHA-256" in str(result.exception)
    (path / "merges.txt").unlink()
    assert "merges.txt: named in manifest.json, but not there" in str(run("tiny").exception)


@pytest.mark.parametrize("format", ["huggingface", "keras_hub", "gguf"])
def test_a_model_that_was_added_is_compared_with_the_hashes_of_then(tmp_path: Path, format: str) -> None:
    source = write(tmp_path / "m", format) if format == "huggingface" else write_foreign(tmp_path, format)
    assert CliRunner().invoke(app, ["models", "add", str(source), "--name", "mine"]).exit_code == 0
    assert json.loads(run("mine", "--json").stdout)["manifest"]
    weights = max(store.resolve("mine").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    result = run("mine")
    assert result.exit_code == 1
    assert "expected SHA-256" in str(result.exception)


def test_another_model_under_the_name_of_a_download_raises_no_alarm() -> None:
    """It was compared with the hashes of the download that had been removed."""
    (store.home()).mkdir(parents=True, exist_ok=True)
    (store.home() / "sha256.json").write_text('{"tiny/huggingface": {"config.json": "' + "0" * 64 + '"}}')
    CliRunner().invoke(app, ["models", "add", str(write(store.home() / "m", "huggingface")), "--name", "tiny"])
    assert run("tiny").exit_code == 0


def test_a_manifest_does_not_reach_out_of_its_folder(tmp_path: Path) -> None:
    path = write(tmp_path / "m")
    (tmp_path / "other").write_text("x")
    found = json.loads((path / "manifest.json").read_text())
    for name in ("../other", str(tmp_path / "other"), "a/../../other"):
        entry = {"bytes": 1, "sha256": hashlib.sha256(b"x").hexdigest()}
        (path / "manifest.json").write_text(json.dumps({"files": {**found["files"], name: entry}}))
        assert "named in manifest.json, but not there" in str(run(path).exception)
