"""A receipt is enough to write the same text again, and tells when it is not the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gpt2 import receipts
from gpt2.checkpoints.names import weights_sha256
from gpt2.codec import Codec
from gpt2.config import GenerationConfig, GPT2Config
from gpt2.errors import ConfigError
from gpt2.gpt import Model, load_model, new_model, save_model
from gpt2.language_model import LanguageModel, open_model
from test_cli import gpt2, out

CODEC = Codec.from_merges("#version: 0.2\nt h\nth e\n")
OPTIONS: list[dict[str, Any]] = [
    {"max_tokens": 20, "seed": 3, "num_samples": 2, "stop": ["e"]},
    {"max_tokens": 9, "temperature": 0, "repetition_penalty": 1.3},
    {"max_tokens": 9, "seed": 1, "logit_bias": {5: 2.0, 7: -100}, "echo": True, "logprobs": 1, "top_p": 0.9},
    {"max_tokens": 5, "num_beams": 3, "num_samples": 2},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = GPT2Config(n_vocab=CODEC.n_vocab, n_ctx=32, n_embd=16, n_head=2, n_layer=1)
    return save_model(new_model(config, codec=CODEC, seed=1), tmp_path / "tiny")


def receipt_of(model: LanguageModel, options: dict[str, Any]) -> dict[str, Any]:
    prompts = model.prompt_tokens("the thing")
    config = GenerationConfig.from_options(**options)
    receipt = receipts.make(model, prompts, config, model.generate("the thing", **options))
    return json.loads(json.dumps(receipt))  # type: ignore[no-any-return]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("engine", "precision"), [("keras", "float32"), ("litert", "float32"), ("litert", "int8")])
def test_the_same_again(folder: Path, engine: str, precision: str, options: dict[str, Any]) -> None:
    receipt = receipt_of(open_model(folder, engine=engine, precision=precision), options)
    assert (receipt["engine"], receipt["precision"]) == (engine, precision)
    assert receipts.replay(receipt, open_model(folder, engine=engine, precision=precision)) == []


def test_weights_are_the_same_in_every_format_and_precision(folder: Path, tmp_path: Path) -> None:
    model = load_model(folder)
    wanted = weights_sha256(model.network.arrays())
    for format in ("native", "huggingface", "openai"):
        path = save_model(model, tmp_path / format, format=format)
        for engine, precision in (("keras", "float32"), ("litert", "int8"), ("litert", "int4")):
            assert open_model(path, engine=engine, precision=precision).engine.weights_sha256 == wanted


def test_what_differs_is_told(folder: Path) -> None:
    model = open_model(folder)
    receipt = receipt_of(model, OPTIONS[1])
    receipt["completions"][0]["tokens"][4] ^= 1
    assert receipts.replay(receipt, model) == ["text 1: another token at place 5 of 9"]
    receipt = receipt_of(model, OPTIONS[1])
    receipt["completions"][0]["text"] += "!"
    assert receipts.replay(receipt, model) == ["text 1: the same tokens, but another text"]
    receipt["completions"] = []
    assert receipts.replay(receipt, model) == ["expected 0 texts, got 1"]
    network = load_model(folder)
    network.set_parameters({"ln_f/b": network.parameters()["ln_f/b"] + 1})
    with pytest.raises(ConfigError, match="expected weights with the SHA-256"):
        receipts.replay(receipt, Model(network.network, CODEC, name="other"))


@pytest.mark.parametrize(
    "broken",
    [{}, [], {"receipt": 2}, {"receipt": 1}, {"receipt": 1, "settings": {"sampling": {"logit_bias": [[1]]}}}],
)
def test_what_is_no_receipt(broken: Any) -> None:
    with pytest.raises(ConfigError, match="receipt: expected"):
        receipts.settings_of(broken)


def test_without_a_seed_there_is_none(folder: Path) -> None:
    model = open_model(folder)
    with pytest.raises(ConfigError, match="seed: expected one"):
        receipts.make(model, [[1]], GenerationConfig(), [])


def test_commands(folder: Path, tmp_path: Path) -> None:
    receipt, model = str(tmp_path / "r.json"), str(folder)
    text = out("generate", "the", "-m", model, "-n", "12", "--precision", "int8", "--receipt", receipt, "--seed", "3")
    assert out("replay", receipt) == "the same: 1 texts, 13 tokens\n"  # with the prompt, which is shown too
    assert out("replay", receipt, "--show", "--model", model).startswith(text)
    out("generate", "-m", model, "-n", "5", "--num-samples", "2", "--receipt", receipt, "--json")
    assert out("replay", receipt).startswith("the same: 2 texts")
    told = json.loads(Path(receipt).read_text())
    assert told["synthetic"] is True
    told["completions"][1]["tokens"][-1] ^= 1
    told["versions"]["numpy"] = "1.0"
    Path(receipt).write_text(json.dumps(told))
    done = gpt2("replay", receipt)
    assert done.returncode == 1
    assert b"text 2: another token" in done.stdout
    assert b"note: numpy 1.0 then" in done.stderr
    Path(receipt).write_text("no")
    assert gpt2("replay", receipt).returncode == 2


def test_build_as_a_folder(folder: Path, tmp_path: Path) -> None:
    built = str(tmp_path / "built")
    assert "litert format, int8," in out(
        "convert", str(folder), built, "--to", "litert", "--precision", "int8", "--no-check"
    )
    wanted = out("generate", "the", "-m", str(folder), "--precision", "int8", "--seed", "1", "-n", "9")
    assert out("generate", "the", "-m", built, "--seed", "1", "-n", "9") == wanted
    done = gpt2("generate", "the", "-m", str(folder), "--seed", "1", "-n", "3", "-v", "--precision", "int8")
    assert b"engine: litert, int8" in done.stderr
    assert "1 builds removed" in out("models", "clean")
    for arguments, message in (
        (("convert", str(folder), built, "--to", "native", "--precision", "int8"), "float32 or float16 for the native"),
        (("convert", str(folder), built, "--to", "litert", "--dtype", "float16"), "float32 or int8 or int4 for the"),
        (("generate", "the", "-m", str(folder), "--engine", "keras", "--precision", "int8"), "float32 with the keras"),
        (("generate", "-i", "--receipt", "x"), "none in a conversation"),
    ):
        done = gpt2(*arguments)
        assert done.returncode == 2
        assert message in done.stderr.decode()
    assert gpt2("convert", built, str(tmp_path / "x"), "--to", "native").returncode == 1
