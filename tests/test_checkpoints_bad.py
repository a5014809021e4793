"""Broken, foreign and hostile checkpoints: one clear error each, and never random weights in place of what failed."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import oracle
from gpt2 import checkpoints
from gpt2.checkpoints.names import expected_shapes
from gpt2.errors import (
    CheckpointError,
    CheckpointFormatError,
    CheckpointNotFoundError,
    ConfigError,
    GPT2Error,
    TensorMismatchError,
)
from gpt2.gpt import load_model
from test_checkpoints import CONFIG, TENSORS, saver_checkpoint
from test_checkpoints import write as write_whole


def read_all(path: Path) -> dict[str, np.ndarray]:
    return dict(checkpoints.read(path)[1])


def write(folder: Path, *arguments: str, **options: str) -> Path:
    """A checkpoint without its manifest, whose hashes would find every change before it is read (`test_runs.py`)."""
    write_whole(folder, *arguments, **options)
    (folder / "manifest.json").unlink(missing_ok=True)
    return folder


def edit_tensors(folder: Path, edit: Callable[[dict[str, np.ndarray]], object]) -> Path:
    arrays = {name: array.copy() for name, array in load_file(folder / "model.safetensors").items()}
    edit(arrays)
    save_file(arrays, folder / "model.safetensors")
    return folder


def edit_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


TENSOR_FAULTS: list[tuple[Callable[[dict[str, np.ndarray]], object], str]] = [
    (lambda a: a.pop("h1/mlp/c_fc/w"), r"missing h1/mlp/c_fc/w \[12, 48\]"),
    (lambda a: a.update({"h2/ln_1/g": np.ones(12, np.float32)}), r"unexpected h2/ln_1/g \[12\]"),
    (lambda a: a.update({"wpe": a["wpe"][:15]}), r"wpe: expected shape \[16, 12\], got \[15, 12\]"),
    (lambda a: a.update({"wte": a["wte"].T.copy()}), r"wte: expected shape \[61, 12\], got \[12, 61\]"),
    (lambda a: a["h0/attn/c_attn/w"].__setitem__((3, 4), np.nan), "h0/attn/c_attn/w holds 1 numbers that are NaN"),
    (lambda a: a["ln_f/b"].__setitem__(slice(None), np.inf), "ln_f/b holds 12 numbers that are NaN or infinite"),
]


@pytest.mark.parametrize(("edit", "message"), TENSOR_FAULTS)
def test_tensor_faults_are_named(tmp_path: Path, edit: Callable[[dict[str, np.ndarray]], object], message: str) -> None:
    folder = edit_tensors(write(tmp_path / "model"), edit)
    with pytest.raises(TensorMismatchError, match=message):
        read_all(folder)
    with pytest.raises(TensorMismatchError, match=message):
        load_model(folder)


def test_all_faults_stand_in_one_message(tmp_path: Path) -> None:
    def edit(arrays: dict[str, np.ndarray]) -> None:
        del arrays["wpe"], arrays["h0/ln_1/g"]
        arrays["extra"] = np.ones(1, np.float32)

    with pytest.raises(TensorMismatchError, match=r"missing wpe.*missing h0/ln_1/g.*unexpected extra"):
        read_all(edit_tensors(write(tmp_path / "model"), edit))


def test_opposite_infinities_are_found(tmp_path: Path) -> None:
    """The quick check sums a tensor: +inf and -inf give NaN, which is not finite either."""
    folder = edit_tensors(write(tmp_path / "m"), lambda a: a["wpe"].__setitem__((0, slice(2)), [np.inf, -np.inf]))
    with pytest.raises(TensorMismatchError, match="wpe holds 2"):
        read_all(folder)


def test_tensors_of_another_type(tmp_path: Path) -> None:
    folder = edit_tensors(write(tmp_path / "m"), lambda a: a.update({"wpe": a["wpe"].astype(np.float64)}))
    with pytest.raises(CheckpointFormatError, match="expected tensors of type F32, F16 or BF16, got F64"):
        read_all(folder)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"n_head": 5}, ConfigError, "n_embd: expected a multiple of n_head"),
        ({"n_layer": 3}, TensorMismatchError, "missing h2/ln_1/g"),
        ({"n_layer": 1}, TensorMismatchError, "unexpected h1/ln_1/g"),
        ({"n_embd": "12"}, ConfigError, "n_embd: expected an integer"),
        ({"n_ctx": True}, ConfigError, "n_ctx: expected an integer"),
        ({"n_vocab": -1}, ConfigError, "n_vocab: expected an integer from 1"),
        ({"n_vocab": 10**30}, ConfigError, "n_vocab: expected an integer from 1"),
        ({"n_embd": float("nan")}, ConfigError, "n_embd"),
    ],
)
@pytest.mark.parametrize("format", ["native", "openai"])
def test_wrong_hparams(
    tmp_path: Path, format: str, values: dict[str, object], error: type[GPT2Error], message: str
) -> None:
    folder = write(tmp_path / "model", format)
    edit_json(folder / ("config.json" if format == "native" else "hparams.json"), **values)
    with pytest.raises(error, match=message):
        read_all(folder)


def test_hparams_without_a_key(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", "openai")
    (folder / "hparams.json").write_text('{"n_vocab": 61}')
    with pytest.raises(ConfigError, match="missing n_ctx, n_embd, n_head, n_layer"):
        read_all(folder)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "nul", '{"format": "gpt2-native", "format": "x"}', "[" * 100_000, '{"a":' * 50_000, "\xff"]
)
def test_broken_json(tmp_path: Path, text: str) -> None:
    folder = write(tmp_path / "model")
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointFormatError, match="config.json: expected a JSON object"):
        read_all(folder)


def test_newer_native_version(tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    edit_json(folder / "config.json", version=2)
    with pytest.raises(CheckpointFormatError, match="expected version 1, got 2"):
        read_all(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "llama"}, "expected model_type gpt2, got 'llama'"),
        ({"activation_function": "relu"}, "activation_function: expected 'gelu_new'"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon: expected 1e-05"),
        ({"n_inner": 100}, "n_inner: expected null or 48, got 100"),
        ({"add_cross_attention": True}, "add_cross_attention"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings"),
    ],
)
def test_huggingface_settings_that_are_no_gpt2(tmp_path: Path, values: dict[str, object], message: str) -> None:
    folder = write(tmp_path / "model", "huggingface")
    edit_json(folder / "config.json", **values)
    with pytest.raises(CheckpointFormatError, match=message):
        read_all(folder)


def test_untied_head_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", "huggingface")
    edit_tensors(folder, lambda a: a.update({"lm_head.weight": TENSORS["wte"] + 1}))
    with pytest.raises(TensorMismatchError, match="expected lm_head.weight to equal wte.weight"):
        read_all(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "tf_model.h5", "flax_model.msgpack"])
def test_files_that_run_code_are_refused(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "model", "huggingface")
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(b"\x80\x04canary")
    with pytest.raises(CheckpointFormatError, match="can run code.*safe_serialization=True"):
        read_all(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointFormatError, match="can run code"):
        read_all(folder)


@pytest.mark.parametrize("place", ["../outside.safetensors", "/etc/passwd", "a/b.safetensors", "..", "x.bin", ""])
def test_an_index_does_not_reach_out_of_its_folder(tmp_path: Path, place: str) -> None:
    folder = write(tmp_path / "model", "huggingface")
    shutil.move(folder / "model.safetensors", tmp_path / "outside.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"wte.weight": place}}))
    with pytest.raises(CheckpointFormatError, match="expected names of .safetensors files"):
        read_all(folder)


def test_missing_shard_and_missing_weights(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", "huggingface")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointFormatError, match="expected model.safetensors or model.safetensors.index.json"):
        read_all(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"wte.weight": "gone.safetensors"}}')
    with pytest.raises(CheckpointFormatError, match="gone.safetensors"):
        read_all(folder)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="found nothing"):
        checkpoints.read(tmp_path / "none")
    with pytest.raises(CheckpointFormatError, match=r"expected a model .*found nothing"):
        checkpoints.read(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(CheckpointFormatError, match=r"expected a model .*found notes.txt"):
        checkpoints.read(tmp_path)
    with pytest.raises(CheckpointFormatError, match="found another file"):
        checkpoints.read(tmp_path / "notes.txt")


def test_a_folder_where_a_file_belongs(tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()
    with pytest.raises(CheckpointFormatError, match="model.safetensors"):
        read_all(folder)


def test_float16_overflow_is_an_error_not_an_infinity(tmp_path: Path) -> None:
    tensors = {**TENSORS, "wpe": TENSORS["wpe"] * 1e6}
    with pytest.raises(CheckpointFormatError, match="wpe holds numbers beyond float16"):
        checkpoints.write(tmp_path / "m", CONFIG, tensors.items(), dtype="float16")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("options", "message"), [({"format": "gguf"}, "format"), ({"dtype": "int8"}, "dtype")])
def test_unknown_format_and_dtype(tmp_path: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        write(tmp_path / "m", **options)


def test_writing_checks_what_it_is_given(tmp_path: Path) -> None:
    missing = {name: array for name, array in TENSORS.items() if name != "h1/ln_2/b"}
    wrong = {**TENSORS, "wpe": TENSORS["wpe"][:3]}
    for tensors, message in ((missing, "missing h1/ln_2/b"), (wrong, r"wpe: expected shape \[16, 12\], got \[3, 12\]")):
        with pytest.raises(TensorMismatchError, match=message):
            checkpoints.write(tmp_path / "m", CONFIG, tensors.items())
    assert list(tmp_path.iterdir()) == []


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Truncated, lengthened, bits flipped, a stretch overwritten, or two parts swapped; often in the header."""
    changed = bytearray(data)
    limit = len(changed) if rng.random() < 0.4 else min(len(changed), 1500)
    kind = rng.randrange(5)
    at = rng.randrange(limit)
    if kind == 0:
        return bytes(changed[:at])
    if kind == 1:
        return bytes(changed) + rng.randbytes(rng.randrange(1, 100))
    if kind == 2:
        for _ in range(rng.randrange(1, 6)):
            changed[rng.randrange(limit)] ^= 1 << rng.randrange(8)
    elif kind == 3:
        changed[at : at + rng.randrange(1, 40)] = rng.randbytes(rng.randrange(1, 40))
    else:
        changed[at : at + 20], changed[:20] = changed[:20], changed[at : at + 20]
    return bytes(changed)


def assert_sound_or_refused(folder: Path) -> bool:
    """A mutated model loads with finite numbers of the right shapes, or raises one of our errors: nothing else."""
    try:
        config, tensors = checkpoints.read(folder)
        found = dict(tensors)
    except GPT2Error:
        return False
    assert {name: array.shape for name, array in found.items()} == expected_shapes(config)
    assert all(np.isfinite(array).all() for array in found.values())
    return True


@pytest.mark.parametrize(
    ("format", "files"),
    [("native", ("config.json", "model.safetensors")), ("huggingface", ("config.json", "model.safetensors"))],
)
def test_mutations(tmp_path: Path, format: str, files: tuple[str, ...]) -> None:
    folder = write(tmp_path / "model", format)
    original = {name: (folder / name).read_bytes() for name in files}
    rng = random.Random(format)
    refused = 0
    for _ in range(500):
        name = rng.choice(files)
        (folder / name).write_bytes(mutate(original[name], rng))
        refused += not assert_sound_or_refused(folder)
        (folder / name).write_bytes(original[name])
    assert refused > 250
    assert assert_sound_or_refused(folder)


def openai_mutations(tmp_path: Path, count: int) -> int:
    folder = saver_checkpoint(tmp_path / "model")
    files = ("model.ckpt.index", "model.ckpt.data-00000-of-00001")
    original = {name: (folder / name).read_bytes() for name in files}
    rng = random.Random("openai")
    refused = 0
    for n in range(count):
        name = files[n % 3 == 2]
        (folder / name).write_bytes(mutate(original[name], rng))
        refused += not assert_sound_or_refused(folder)
        (folder / name).write_bytes(original[name])
    assert assert_sound_or_refused(folder)
    return refused


def test_openai_mutations_do_not_end_this_process(tmp_path: Path) -> None:
    """TensorFlow checks sums, so nearly every mutation is refused; a few of them abort the child."""
    assert openai_mutations(tmp_path, 3) >= 2


@pytest.mark.slow
def test_many_openai_mutations(tmp_path: Path) -> None:
    assert openai_mutations(tmp_path, 100) >= 80


def test_openai_missing_parts(tmp_path: Path) -> None:
    folder = saver_checkpoint(tmp_path / "model")
    (folder / "model.ckpt.data-00000-of-00001").unlink()
    with pytest.raises(CheckpointFormatError, match="expected model.ckpt.data-00000-of-00001"):
        checkpoints.read(folder)


def test_openai_tensor_faults(tmp_path: Path) -> None:
    tensors = {name: array for name, array in TENSORS.items() if name != "h1/mlp/c_fc/b"}
    folder = saver_checkpoint(
        tmp_path / "model", {**tensors, "wpe": TENSORS["wpe"][:5], "step": np.zeros(1, np.float32)}
    )
    with pytest.raises(TensorMismatchError, match=r"missing h1/mlp/c_fc/b.*unexpected step.*wpe: expected shape"):
        checkpoints.read(folder)


def test_checkpoint_error_is_what_a_caller_catches() -> None:
    assert issubclass(TensorMismatchError, CheckpointError)
    assert oracle.random_tensors(CONFIG).keys() == TENSORS.keys()
