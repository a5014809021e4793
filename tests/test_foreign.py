"""What other programs write, read without running any of it: exact values, and clear refusals."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import pytest
from typer.testing import CliRunner

import foreign
import oracle
from gpt2 import checkpoints, store
from gpt2.checkpoints import gguf as gguf_format
from gpt2.checkpoints import openai
from gpt2.checkpoints.names import expected_shapes
from gpt2.cli import app
from gpt2.codec import Codec, default_codec
from gpt2.config import GPT2Config
from gpt2.errors import CheckpointFormatError, CodecError, ConfigError, PromptError, TensorMismatchError
from gpt2.gpt import load_model
from gpt2.language_model import open_model
from test_checkpoints import CONFIG, IDS, TENSORS, assert_holds_exactly, assert_logits_are_the_oracles, saver_checkpoint
from test_checkpoints_bad import read_all

BFLOAT16 = {name: array.astype(ml_dtypes.bfloat16).astype(np.float32) for name, array in TENSORS.items()}


def write(folder: Path, format: str) -> Path:
    """A model in a format of others; the path that is read."""
    folder.mkdir(exist_ok=True)
    if format == "gguf":
        return foreign.write_gguf(folder / "tiny.gguf", CONFIG, TENSORS)
    if format == "llmc":
        (folder / "model.bin").write_bytes(foreign.llmc_bytes(CONFIG, TENSORS))
        return folder / "model.bin"
    if format == "nanogpt":
        return foreign.write_nano(folder / "ckpt.pt", CONFIG, TENSORS, prefix="_orig_mod.")
    return foreign.write_keras_hub(folder / "preset", CONFIG, foreign.keras_hub_arrays(CONFIG, TENSORS))


FILES = ("gguf", "llmc", "nanogpt")
ALL = (*FILES, "keras_hub")


@pytest.mark.parametrize("format", ALL)
def test_exact_values_and_the_oracles_logits(tmp_path: Path, format: str) -> None:
    path = write(tmp_path, format)
    described = checkpoints.describe(path)
    assert (described.format, described.config, described.dtype) == (format, CONFIG, "float32")
    assert described.bytes >= 4 * CONFIG.num_parameters
    assert_holds_exactly(path)
    assert_logits_are_the_oracles(path)


@pytest.mark.parametrize("format", FILES)
def test_a_folder_with_the_file_is_the_model(tmp_path: Path, format: str) -> None:
    path = write(tmp_path / "folder", format)
    assert_holds_exactly(path.parent)
    path.with_name(f"second{path.suffix}").write_bytes(path.read_bytes())
    with pytest.raises(CheckpointFormatError, match=r"expected one .* file, found 2 \(.*\); name the file itself"):
        checkpoints.read(path.parent)


@pytest.mark.parametrize("format", ALL)
def test_the_store_and_the_commands_take_them(tmp_path: Path, format: str) -> None:
    path = write(tmp_path, format)
    runner = CliRunner()
    added = runner.invoke(app, ["models", "add", str(path), "--name", "mine"])
    assert added.exit_code == 0, added.output
    assert_holds_exactly(store.resolve("mine"))
    converted = runner.invoke(app, ["convert", str(path), str(tmp_path / "native"), "--to", "native", "--no-check"])
    assert converted.exit_code == 0, converted.output
    assert_holds_exactly(tmp_path / "native")
    shown = json.loads(runner.invoke(app, ["models", "show", "mine", "--json"]).stdout)
    assert (shown["format"], shown["n_embd"], bool(shown["notes"])) == (format, 12, format == "nanogpt")
    if format == "gguf":  # one is enough: what is built comes from the tensors
        tokens = open_model(path, engine="litert").generate(IDS[:4], max_tokens=4, temperature=0)[0].tokens
        assert tokens == load_model("mine").generate(IDS[:4], max_tokens=4, temperature=0)[0].tokens


@pytest.mark.parametrize("format", checkpoints.READ_ONLY)
def test_they_are_not_written(tmp_path: Path, format: str) -> None:
    with pytest.raises(ConfigError, match=f"{format} is read, not written; expected one of native, huggingface"):
        checkpoints.write(tmp_path / "x", CONFIG, TENSORS.items(), format=format)


def test_another_file_is_no_model(tmp_path: Path) -> None:
    for name in ("story.txt", "model.bin", "model.gguf", "weights.safetensors"):
        (tmp_path / name).write_bytes(b"Once upon a time")
        with pytest.raises(CheckpointFormatError, match=r"expected a model's folder, or a file of GGUF \(.gguf\)"):
            checkpoints.read(tmp_path / name)


# GGUF


def with_codec(tmp_path: Path, **keys: Any) -> tuple[Path, Codec]:
    """A GGUF file whose vocabulary is padded by three tokens."""
    codec = Codec.from_merges("#version: 0.2\na b\nab c")
    files = codec.files("openai")
    ids = json.loads(files["encoder.json"])
    tokens = [*ids, "[PAD259]", "[PAD260]", "[PAD261]"]
    config = GPT2Config(n_vocab=len(tokens), n_ctx=16, n_embd=12, n_head=3, n_layer=1)
    settings = {
        **{"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.tokens": tokens},
        **{"tokenizer.ggml.token_type": [1] * (len(ids) - 1) + [3, 5, 5, 5]},
        **{"tokenizer.ggml.merges": files["vocab.bpe"].decode().splitlines()[1:], **keys},
    }
    tensors = oracle.random_tensors(config)
    settings = {name: value for name, value in settings.items() if value is not None}
    return foreign.write_gguf(tmp_path / "tiny.gguf", config, tensors, **settings), codec


def test_gguf_vocabulary(tmp_path: Path) -> None:
    path, codec = with_codec(tmp_path)
    model = load_model(path)
    assert model.codec is not None
    assert model.codec.encode("abcab <|endoftext|>") == codec.encode("abcab <|endoftext|>")
    assert (model.codec.ranks, model.codec.special_tokens) == (codec.ranks, codec.special_tokens)
    result = CliRunner().invoke(app, ["encode", "abcab", "--model", str(path)])
    assert result.stdout.split() == [str(token) for token in codec.encode("abcab")]
    text = CliRunner().invoke(app, ["generate", "abc", "--model", str(path), "--max-tokens", "3", "--seed", "1"])
    assert text.exit_code == 0, text.output


def test_gguf_without_a_vocabulary(tmp_path: Path) -> None:
    model = load_model(foreign.write_gguf(tmp_path / "tiny.gguf", CONFIG, TENSORS))
    with pytest.raises(PromptError, match="expected token ids"):
        model.generate("text")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"tokenizer.ggml.model": "llama"}, "tokenizer.ggml.model: expected gpt2, got 'llama'"),
        ({"tokenizer.ggml.pre": "llama-bpe"}, "tokenizer.ggml.pre: expected gpt-2"),
        ({"tokenizer.ggml.merges": None}, "expected tokens, merges"),
        ({"tokenizer.ggml.tokens": [1, 2]}, "expected tokens, merges"),
        ({"tokenizer.ggml.token_type": [1, 2]}, "as many token_types as tokens"),
        ({"tokenizer.ggml.tokens": ["a"] * 262}, "a different text for each id"),
    ],
)
def test_gguf_vocabularies_that_are_refused(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    path, _ = with_codec(tmp_path, **keys)
    with pytest.raises(CodecError, match=message):
        load_model(path)


def test_gguf_versions_and_integer_widths(tmp_path: Path) -> None:
    """Version 2 differs in nothing that is read; some programs write counts as 64 bits."""
    arrays = foreign.gguf_f32(foreign.gguf_arrays(TENSORS))
    data = foreign.gguf_bytes(foreign.gguf_keys(CONFIG), arrays, version=2)
    name = b"gpt2.block_count"
    wide = data.replace(name + struct.pack("<II", 4, 2), name + struct.pack("<IQ", 10, 2))
    cut = len(wide) - sum(len(raw) + -len(raw) % 32 for _, _, raw in arrays.values())
    aligned = wide[:cut].rstrip(b"\0")
    assert wide != data
    (tmp_path / "two.gguf").write_bytes(data)
    assert_holds_exactly(tmp_path / "two.gguf")
    (tmp_path / "wide.gguf").write_bytes(aligned + b"\0" * (-len(aligned) % 32) + wide[cut:])
    assert checkpoints.describe(tmp_path / "wide.gguf").config == CONFIG
    (tmp_path / "one.gguf").write_bytes(foreign.gguf_bytes(foreign.gguf_keys(CONFIG), arrays, version=1))
    with pytest.raises(CheckpointFormatError, match="expected version 2 or 3, little-endian, got 1"):
        checkpoints.read(tmp_path / "one.gguf")


def test_gguf_head(tmp_path: Path) -> None:
    """Some converters write the tied head a second time."""
    arrays = {**foreign.gguf_arrays(TENSORS), "output.weight": TENSORS["wte"]}
    path = tmp_path / "tiny.gguf"
    path.write_bytes(foreign.gguf_bytes(foreign.gguf_keys(CONFIG), foreign.gguf_f32(arrays)))
    assert_holds_exactly(path)
    arrays["output.weight"] = TENSORS["wte"] + 1e-3
    path.write_bytes(foreign.gguf_bytes(foreign.gguf_keys(CONFIG), foreign.gguf_f32(arrays)))
    with pytest.raises(TensorMismatchError, match=r"expected output.weight to equal token_embd.weight"):
        checkpoints.read(path)


def test_gguf_head_of_more_bits_than_the_embedding(tmp_path: Path) -> None:
    """As quantizing programs leave it; the better of the two is taken."""
    rough = TENSORS["wte"].astype(np.float16)
    kinds = foreign.gguf_f32({**foreign.gguf_arrays(TENSORS), "output.weight": TENSORS["wte"]})
    kinds["token_embd.weight"] = (1, rough.shape, rough.tobytes())
    path = tmp_path / "tiny.gguf"
    path.write_bytes(foreign.gguf_bytes(foreign.gguf_keys(CONFIG), kinds))
    assert_holds_exactly(path)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"general.architecture": "llama"}, "general.architecture: expected gpt2, got 'llama'"),
        ({"gpt2.context_length": "16"}, "gpt2.context_length: expected an integer, got '16'"),
        ({"gpt2.block_count": [2, 2]}, "gpt2.block_count: expected an integer, got a list"),
        ({"gpt2.feed_forward_length": 100}, "gpt2.feed_forward_length: expected 48, got 100"),
        ({"gpt2.attention.layer_norm_epsilon": 1e-6}, "layer_norm_epsilon: expected 1e-05"),
        ({"split.count": 3}, "expected a whole model, got one of 3 parts"),
        ({"general.alignment": 7}, "general.alignment: expected a multiple of 8"),
    ],
)
def test_gguf_keys_that_are_refused(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointFormatError, match=message):
        checkpoints.read(foreign.write_gguf(tmp_path / "tiny.gguf", CONFIG, TENSORS, **keys))


def test_gguf_types_that_are_refused(tmp_path: Path) -> None:
    arrays = foreign.gguf_f32(foreign.gguf_arrays(TENSORS))
    arrays["token_embd.weight"] = (10, *arrays["token_embd.weight"][1:])
    (tmp_path / "q2.gguf").write_bytes(foreign.gguf_bytes(foreign.gguf_keys(CONFIG), arrays))
    with pytest.raises(CheckpointFormatError, match="'token_embd.weight': expected one of the types F32.*, got Q2_K"):
        checkpoints.read(tmp_path / "q2.gguf")


def test_gguf_types_by_the_gguf_package(tmp_path: Path) -> None:
    """Every type that is read, against the package's own numbers, in files that its writer made."""
    gguf = pytest.importorskip("gguf")
    config = GPT2Config(n_vocab=37, n_ctx=16, n_embd=256, n_head=4, n_layer=1)
    tensors = oracle.random_tensors(config)
    rng = np.random.default_rng(0)
    for kind in gguf_format._TYPES.values():
        path = tmp_path / f"{kind.name}.gguf"
        writer, expected = gguf.GGUFWriter(path, "gpt2"), {}
        writer.add_context_length(16)
        writer.add_embedding_length(256)
        writer.add_block_count(1)
        writer.add_feed_forward_length(1024)
        writer.add_head_count(4)
        writer.add_layer_norm_eps(1e-5)
        ours = {foreign.gguf_name(name): name for name in tensors}
        for name, array in foreign.gguf_arrays(tensors).items():
            code = gguf.GGMLQuantizationType[kind.name]
            if array.ndim == 1 or kind.name == "F32":
                writer.add_tensor(name, np.ascontiguousarray(array))
                numbers = array
            else:
                try:
                    raw = gguf.quants.quantize(np.ascontiguousarray(array), code)
                except NotImplementedError:  # the package decodes K types only; any bytes with finite scales are blocks
                    raw = rng.integers(0, 256, (array.size // 256, kind.bytes), np.uint8)
                    for place in (208,) if kind.name == "Q6_K" else (0, 2):
                        scales = rng.uniform(-0.1, 0.1, len(raw)).astype(np.float16)
                        raw[:, place : place + 2] = scales.view(np.uint8).reshape(-1, 2)
                    raw = raw.reshape(array.shape[0], -1)
                numbers = gguf.quants.dequantize(raw, code)
                writer.add_tensor(name, raw, raw_shape=raw.shape, raw_dtype=code)
            expected[ours[name]] = numbers.T if ours[name].endswith("/w") else numbers
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        found = read_all(path)
        assert list(found) == list(expected_shapes(config))
        for name, array in found.items():
            np.testing.assert_array_equal(array, expected[name], err_msg=f"{kind.name} {name}")


# llm.c


def test_llmc_bfloat16(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(foreign.llmc_bytes(CONFIG, TENSORS, version=5))
    assert checkpoints.describe(tmp_path / "model.bin").dtype == "bfloat16"
    for name, array in read_all(tmp_path / "model.bin").items():
        np.testing.assert_array_equal(array, BFLOAT16[name], err_msg=name)


def test_llmc_has_gpt2s_vocabulary(tmp_path: Path) -> None:
    config = GPT2Config(n_ctx=8, n_embd=4, n_head=2, n_layer=1)
    (tmp_path / "model.bin").write_bytes(foreign.llmc_bytes(config, oracle.random_tensors(config), padding=47))
    model = load_model(tmp_path / "model.bin")
    assert (model.config, model.codec) == (config, default_codec())


LLMC_FAULTS: list[tuple[Callable[[bytes], bytes], str]] = [
    (lambda data: data[:4] + struct.pack("<i", 1) + data[8:], r"expected version 3 \(float32\) or 5 .*, got 1; write"),
    (lambda data: data[:-4], r"expected [\d,]+ bytes for a model of this shape, found"),
    (lambda data: data + b"more", r"expected [\d,]+ bytes for a model of this shape, found"),
    (lambda data: data[:1000], "expected a header of 1024 bytes, got 1000"),
    (lambda data: data[:28] + struct.pack("<i", 60) + data[32:], "expected a padded vocabulary of at least 61, got 60"),
    (lambda data: data[:20] + struct.pack("<i", 5) + data[24:], "header: n_embd: expected a multiple of n_head"),
    (lambda data: data[:16] + struct.pack("<i", -1) + data[20:], "header: n_layer: expected an integer from 1"),
    (lambda data: data[:1028] + struct.pack("<f", np.nan) + data[1032:], "wte holds 1 numbers that are NaN"),
]


@pytest.mark.parametrize(("fault", "message"), LLMC_FAULTS)
def test_llmc_faults(tmp_path: Path, fault: Callable[[bytes], bytes], message: str) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(fault(foreign.llmc_bytes(CONFIG, TENSORS)))
    with pytest.raises((CheckpointFormatError, ConfigError, TensorMismatchError), match=message):
        read_all(path)


# nanoGPT


def test_nanogpt_without_biases(tmp_path: Path) -> None:
    tensors = {name: array * 0 if name.endswith("/b") else array for name, array in TENSORS.items()}
    kept = {name: array for name, array in tensors.items() if not name.endswith("/b")}
    path = foreign.write_nano(tmp_path / "ckpt.pt", CONFIG, kept, bias=False)
    for name, array in read_all(path).items():
        np.testing.assert_array_equal(array, tensors[name], err_msg=name)
    with pytest.raises(TensorMismatchError, match="missing h0/ln_1/b"):
        read_all(foreign.write_nano(tmp_path / "other.pt", CONFIG, kept, bias=True))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_nanogpt_in_half_precision(tmp_path: Path, dtype: Any) -> None:
    halves = {name: array.astype(dtype) for name, array in TENSORS.items()}
    path = foreign.write_nano(tmp_path / "ckpt.pt", CONFIG, halves)
    assert checkpoints.describe(path).dtype == np.dtype(dtype).name
    for name, array in read_all(path).items():
        np.testing.assert_array_equal(array, halves[name].astype(np.float32), err_msg=name)


def test_nanogpt_masks_are_left_out_and_the_head_must_be_tied(tmp_path: Path) -> None:
    arrays = foreign.nano_arrays(TENSORS)
    arrays["transformer.h.0.attn.bias"] = np.tril(np.ones((1, 1, 16, 16), np.float32))
    arrays["lm_head.weight"] = TENSORS["wte"].copy()
    saved = {"model": arrays, "model_args": foreign.nano_args(CONFIG)}
    assert_holds_exactly(foreign.torch_file(tmp_path / "ckpt.pt", saved))
    arrays["lm_head.weight"] = TENSORS["wte"] + 1
    with pytest.raises(TensorMismatchError, match=r"expected lm_head.weight to equal wte.weight"):
        checkpoints.read(foreign.torch_file(tmp_path / "ckpt.pt", saved))


def test_nanogpts_characters_are_not_read(tmp_path: Path) -> None:
    path = foreign.write_nano(tmp_path / "ckpt.pt", CONFIG, TENSORS)
    assert any("meta.pkl" in note for note in checkpoints.describe(path).notes)
    model = load_model(path)
    assert model.codec is None
    assert model.generate(IDS[:4], max_tokens=2)[0].tokens
    with pytest.raises(PromptError, match="expected token ids"):
        model.generate("Once")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, 2], "expected the entries model and model_args"),
        ({"model": {}}, "expected the entries model and model_args"),
        ({"model": {}, "model_args": {"n_layer": 1, "rotary": True}}, "expected a GPT-2's settings, got 'rotary'"),
        ({"model": {}, "model_args": {"n_layer": 1}}, "missing n_vocab, n_ctx, n_embd, n_head"),
        ({"model": {}, "model_args": foreign.nano_args(CONFIG, n_head="3")}, "n_head: expected an integer, got '3'"),
        ({"model": {}, "model_args": foreign.nano_args(CONFIG, bias=1)}, "bias: expected true or false, got 1"),
        ({"model": {}, "model_args": foreign.nano_args(CONFIG)}, "missing wte"),
        ({"model": {"wte": 1}, "model_args": foreign.nano_args(CONFIG)}, "model: expected tensors by name, got 'wte'"),
    ],
)
def test_nanogpt_faults(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises((CheckpointFormatError, TensorMismatchError, ConfigError), match=message):
        read_all(foreign.torch_file(tmp_path / "ckpt.pt", value))


def test_nanogpt_numbers_of_another_type(tmp_path: Path) -> None:
    doubles = {**TENSORS, "wpe": TENSORS["wpe"].astype(np.float64)}
    with pytest.raises(CheckpointFormatError, match=r"'wpe': expected float32, float16 or bfloat16, got a Double"):
        read_all(foreign.write_nano(tmp_path / "ckpt.pt", CONFIG, doubles))


# Keras Hub


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.replace("layers/", "_backbone/_layer_checkpoint_dependencies/"),
        lambda name: name.replace("transformer_decoder", "transformer_layer").replace("_dense", "_dense"),
        lambda name: name.replace("/query_dense", "/_query_dense").replace("layer_normalization", "layer_norm"),
        lambda name: name.replace("reversible_embedding", "token_embedding"),
    ],
)
def test_keras_hubs_names_differ_between_versions(tmp_path: Path, rename: Callable[[str], str]) -> None:
    arrays = {rename(name): array for name, array in foreign.keras_hub_arrays(CONFIG, TENSORS).items()}
    assert_holds_exactly(foreign.write_keras_hub(tmp_path / "preset", CONFIG, arrays))


def test_keras_hub_vocabulary(tmp_path: Path) -> None:
    codec = Codec.from_merges("a b\nab c")
    config = GPT2Config(n_vocab=codec.n_vocab, n_ctx=16, n_embd=12, n_head=3, n_layer=1)
    arrays = foreign.keras_hub_arrays(config, oracle.random_tensors(config))
    folder = foreign.write_keras_hub(tmp_path / "preset", config, arrays)
    (folder / "assets/tokenizer").mkdir(parents=True)
    files = codec.files("huggingface")
    (folder / "assets/tokenizer/merges.txt").write_bytes(files["merges.txt"])
    (folder / "assets/tokenizer/vocabulary.json").write_bytes(files["vocab.json"])
    result = CliRunner().invoke(app, ["models", "add", str(folder), "--name", "mine"])
    assert result.exit_code == 0, result.output
    assert load_model("mine").codec.encode("abcab") == codec.encode("abcab")  # type: ignore[union-attr]


def test_keras_hub_of_another_model(tmp_path: Path) -> None:
    folder = foreign.write_keras_hub(tmp_path / "preset", CONFIG, {})
    config = foreign.keras_hub_config(CONFIG)
    (folder / "config.json").write_text(json.dumps({**config, "class_name": "GemmaBackbone"}))
    with pytest.raises(CheckpointFormatError, match="expected class_name GPT2Backbone, got 'GemmaBackbone'"):
        checkpoints.read(folder)
    (folder / "config.json").write_text(json.dumps(foreign.keras_hub_config(CONFIG, intermediate_dim=50)))
    with pytest.raises(CheckpointFormatError, match="intermediate_dim: expected 48, got 50"):
        checkpoints.read(folder)
    (folder / "config.json").write_text(json.dumps({**config, "config": [1]}))
    with pytest.raises(CheckpointFormatError, match="config: expected an object, got a list"):
        checkpoints.read(folder)


def test_keras_hub_in_several_files(tmp_path: Path) -> None:
    folder = foreign.write_keras_hub(tmp_path / "preset", CONFIG, {})
    (folder / "model.weights.h5").rename(folder / "model_00000.weights.h5")
    (folder / "model.weights.json").write_text("{}")
    with pytest.raises(CheckpointFormatError, match="expected model.weights.h5, found none; a preset in several files"):
        checkpoints.read(folder)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda file: file.pop("layers/position_embedding/vars/0"), "missing wpe"),
        (
            lambda file: file.create_dataset("layers/extra/vars/0", data=np.ones(3, np.float32)),
            "unexpected layers/extra",
        ),
        (lambda file: file.__setitem__("more", h5py.SoftLink("/layers")), "'more': links are refused"),
        (lambda file: file.__setitem__("more", h5py.ExternalLink("/etc/passwd", "/")), "'more': links are refused"),
        (lambda file: file.__setitem__("layers/again", file["layers"]), "expected fewer and flatter groups"),
        (
            lambda file: file.create_dataset("x", data=np.ones(300, np.float32), compression="gzip"),
            "'x': expected an array",
        ),
        (lambda file: file.create_dataset("x", data=np.ones(300, np.float32), chunks=(10,)), "in one piece"),
        (lambda file: file.create_dataset("x", (3,), "<f4", external=[("/etc/passwd", 0, 12)]), "in this file"),
        (lambda file: file.create_dataset("x", data=np.ones(3)), "'x': expected float32 or float16, got '<f8'"),
        (lambda file: file.create_dataset("x", (10**9,), "<f4"), "'x': expected numbers, got an array without any"),
    ],
)
def test_keras_hub_files_that_are_refused(tmp_path: Path, fault: Callable[[Any], object], message: str) -> None:
    folder = foreign.write_keras_hub(tmp_path / "preset", CONFIG, foreign.keras_hub_arrays(CONFIG, TENSORS))
    with h5py.File(folder / "model.weights.h5", "r+") as file:
        fault(file)
    with pytest.raises((CheckpointFormatError, TensorMismatchError), match=message):
        checkpoints.read(folder)


# gpt-2-simple


def test_gpt_2_simples_run_folder(tmp_path: Path) -> None:
    """`checkpoint/run1`: its own prefix, a counter, events, and with other savers the optimizer's state."""
    import tensorflow as tf

    folder = saver_checkpoint(tmp_path / "run1")
    for path in folder.glob("model.ckpt.*"):
        path.unlink()
    names = {f"model/{name}": array for name, array in TENSORS.items()}
    slots = {f"{name}/Adam": array for name, array in names.items()}
    slots |= {f"{name}/Adam_1": array for name, array in names.items()}
    slots |= {"beta1_power": np.float32(0.9), "beta2_power": np.float32(0.9), "global_step": np.int64(1000)}
    slots |= {"Variable": np.zeros(3, np.float32), "Variable_1": np.zeros(4, np.float32)}
    everything = names | slots
    tf.raw_ops.SaveV2(
        prefix=str(folder / "model-1000"),
        tensor_names=list(everything),
        shape_and_slices=[""] * len(everything),
        tensors=[tf.constant(array) for array in everything.values()],
    )
    (folder / "checkpoint").write_text('model_checkpoint_path: "model-1000"\n')
    (folder / "counter").write_text("1000\n")
    (folder / "events.out.tfevents.1").write_bytes(b"\0")
    assert_holds_exactly(folder)
    (folder / "checkpoint").unlink()  # some copy the folder without it
    assert openai._prefix(folder) == folder / "model-1000"
