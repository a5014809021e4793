"""Every format: read what others wrote, write what others read, and round trips bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import oracle
from gpt2 import checkpoints
from gpt2.checkpoints import huggingface
from gpt2.checkpoints.names import expected_shapes
from gpt2.codec import Codec
from gpt2.config import GPT2Config
from gpt2.gpt import load_model, new_model, save_model

CONFIG = GPT2Config(n_vocab=61, n_ctx=16, n_embd=12, n_head=3, n_layer=2)
TENSORS = oracle.random_tensors(CONFIG)
IDS = np.random.default_rng(0).integers(0, CONFIG.n_vocab, 14)


def write(path: Path, format: str = "native", **options: object) -> Path:
    checkpoints.write(path, CONFIG, TENSORS.items(), format=format, **options)  # type: ignore[arg-type]
    return path


def assert_holds_exactly(path: Path) -> None:
    config, tensors = checkpoints.read(path)
    found = dict(tensors)
    assert config == CONFIG
    assert list(found) == list(expected_shapes(CONFIG))
    for name, array in found.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, TENSORS[name], err_msg=name)


def assert_logits_are_the_oracles(path: Path) -> None:
    expected = oracle.logits(CONFIG, TENSORS, IDS)
    np.testing.assert_allclose(load_model(path).logits(IDS[None])[0], expected, atol=1e-4)


def saver_checkpoint(folder: Path, tensors: oracle.Arrays = TENSORS) -> Path:
    """A checkpoint as OpenAI's release has it, by TensorFlow's own Saver and nothing of ours."""
    import tensorflow as tf

    folder.mkdir(exist_ok=True)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        with tf.compat.v1.variable_scope("model"):
            for name, array in tensors.items():
                value = array[None] if array.ndim == 2 and name.endswith("/w") else array
                tf.compat.v1.get_variable(name, initializer=tf.constant(value), use_resource=False)
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.train.Saver().save(session, str(folder / "model.ckpt"))
    (folder / "hparams.json").write_text(json.dumps(CONFIG.to_dict()))
    return folder


def test_openai_checkpoint_by_tensorflows_saver(tmp_path: Path) -> None:
    folder = saver_checkpoint(tmp_path / "124M")
    assert (folder / "model.ckpt.meta").is_file()
    assert checkpoints.detect(folder) == "openai"
    assert_holds_exactly(folder)
    assert_logits_are_the_oracles(folder)


def test_tensorflows_saver_restores_what_we_write(tmp_path: Path) -> None:
    import tensorflow as tf

    folder = write(tmp_path / "model", "openai")
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        with tf.compat.v1.variable_scope("model"):
            variables = {
                name: tf.compat.v1.get_variable(
                    name, [1, *shape] if len(shape) == 2 and name.endswith("/w") else shape, use_resource=False
                )
                for name, shape in expected_shapes(CONFIG).items()
            }
        tf.compat.v1.train.Saver().restore(session, tf.train.latest_checkpoint(str(folder)))
        for name, variable in variables.items():
            np.testing.assert_array_equal(session.run(variable).reshape(TENSORS[name].shape), TENSORS[name])


@pytest.mark.parametrize("format", ["native", "huggingface", "openai"])
def test_each_format_gives_the_oracles_logits(tmp_path: Path, format: str) -> None:
    folder = write(tmp_path / "model", format)
    assert checkpoints.detect(folder) == format
    described = checkpoints.describe(folder)
    assert (described.format, described.config, described.dtype) == (format, CONFIG, "float32")
    assert described.bytes >= 4 * CONFIG.num_parameters
    assert_logits_are_the_oracles(folder)


def test_round_trip_through_every_format_is_exact(tmp_path: Path) -> None:
    """native -> huggingface -> openai -> native, through models in memory, vocabulary included."""
    codec = Codec.from_merges("#version: 0.2\na b\nab c")
    config = GPT2Config(n_vocab=codec.n_vocab, n_ctx=16, n_embd=12, n_head=3, n_layer=2)
    first = new_model(config, codec=codec)
    first.set_parameters(oracle.random_tensors(config))
    save_model(first, tmp_path / "0", "native")
    for n, format in enumerate(("huggingface", "openai", "native")):
        save_model(load_model(tmp_path / str(n)), tmp_path / str(n + 1), format)
    for name in ("model.safetensors", "config.json", "vocab.bpe", "encoder.json"):
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "3" / name).read_bytes(), name
    assert load_model(tmp_path / "2").codec.encode("abcab") == codec.encode("abcab")  # type: ignore[union-attr]


def test_greedy_text_is_the_oracles(tmp_path: Path) -> None:
    model = load_model(write(tmp_path / "model"))
    tokens = IDS[:4].tolist()
    for _ in range(8):
        tokens.append(int(oracle.logits(CONFIG, TENSORS, np.array(tokens))[-1].argmax()))
    assert model.generate(IDS[:4], max_tokens=8, temperature=0)[0].tokens == tokens[4:]


def test_safetensors_files_are_what_the_library_reads(tmp_path: Path) -> None:
    ours = load_file(write(tmp_path / "native") / "model.safetensors")
    theirs = load_file(write(tmp_path / "hf", "huggingface") / "model.safetensors")
    assert set(theirs) == {f"transformer.{huggingface.hf_name(name)}" for name in TENSORS}
    for name, array in TENSORS.items():
        np.testing.assert_array_equal(ours[name], array)
        np.testing.assert_array_equal(theirs[f"transformer.{huggingface.hf_name(name)}"], array)


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_huggingface_with_and_without_prefix_masks_and_head(tmp_path: Path, prefix: str) -> None:
    folder = write(tmp_path / "hf", "huggingface")
    arrays = {
        name.replace("transformer.", prefix): array for name, array in load_file(folder / "model.safetensors").items()
    }
    for n in range(CONFIG.n_layer):
        arrays[f"{prefix}h.{n}.attn.bias"] = np.tril(np.ones((1, 1, 16, 16), np.float32))
        arrays[f"{prefix}h.{n}.attn.masked_bias"] = np.array(-1e4, np.float32)
    arrays["lm_head.weight"] = TENSORS["wte"]
    save_file(arrays, folder / "model.safetensors")
    assert_holds_exactly(folder)


def test_huggingface_shards(tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    folder.mkdir()
    huggingface.write(folder, CONFIG, TENSORS.items(), None, "float32", max_shard_bytes=3000)
    shards = sorted(path.name for path in folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert shards[0] == f"model-00001-of-{len(shards):05}.safetensors"
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4 * CONFIG.num_parameters
    assert set(index["weight_map"].values()) == set(shards)
    assert_holds_exactly(folder)


def test_float16_halves_the_file_and_rounds_once(tmp_path: Path) -> None:
    folder = write(tmp_path / "half", dtype="float16")
    assert checkpoints.describe(folder).dtype == "float16"
    for name, array in checkpoints.read(folder)[1]:
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, TENSORS[name].astype(np.float16).astype(np.float32))


def test_bfloat16_is_read(tmp_path: Path) -> None:
    import ml_dtypes

    folder = write(tmp_path / "hf", "huggingface")
    raw = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    data, end = b"", 0
    for name, entry in header.items():
        if name != "__metadata__":
            begin, stop = (8 + length + offset for offset in entry["data_offsets"])
            data += np.frombuffer(raw[begin:stop], "<f4").astype(ml_dtypes.bfloat16).tobytes()
            entry |= {"dtype": "BF16", "data_offsets": [end, len(data)]}
            end = len(data)
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    for name, array in checkpoints.read(folder)[1]:
        np.testing.assert_array_equal(array, TENSORS[name].astype(ml_dtypes.bfloat16).astype(np.float32))


def test_tensors_may_come_in_any_order(tmp_path: Path) -> None:
    checkpoints.write(tmp_path / "m", CONFIG, reversed(TENSORS.items()))
    assert_holds_exactly(tmp_path / "m")
