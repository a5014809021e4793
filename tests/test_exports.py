"""What is written for other programs: their own runtimes compute the oracle's numbers from it."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import oracle
from gpt2 import checkpoints, exports
from gpt2.checkpoints import huggingface, openai
from gpt2.checkpoints.names import expected_shapes
from gpt2.codec import Codec, default_codec
from gpt2.config import GPT2Config
from gpt2.errors import CheckpointError, ConfigError
from gpt2.exports import Source, parity
from gpt2.gpt import load_model, new_model, save_model

CODEC = Codec.from_merges("#version: 0.2\nt h\nth e\nĠ the\ni n\ne r\n' s")
CONFIG = GPT2Config(n_vocab=CODEC.n_vocab + 3, n_ctx=40, n_embd=32, n_head=4, n_layer=2)  # a padded vocabulary
TENSORS = oracle.random_tensors(CONFIG)
TEXT = "the other's thing in there"
IDS = CODEC.encode(TEXT)
LOGITS = oracle.logits(CONFIG, TENSORS, np.array(IDS))
TOLERANCE = 2e-4
"""Between float32 and float64; the logits are of the order of 10."""


def greedy(ids: list[int], steps: int) -> list[int]:
    tokens = list(ids)
    for _ in range(steps):
        tokens.append(int(oracle.logits(CONFIG, TENSORS, np.array(tokens))[-1].argmax()))
    return tokens[len(ids) :]


def write(path: Path, format: str, precision: str = "float32", codec: Codec | None = CODEC) -> Path:
    exports.export(path, source(codec), format, precision, check=False)
    return path


def source(codec: Codec | None = CODEC, tensors: oracle.Arrays = TENSORS, config: GPT2Config = CONFIG) -> Source:
    def engine() -> Any:
        model = new_model(config, codec=codec)
        model.set_parameters(TENSORS)
        return model.engine

    return Source(config, codec, tensors.items, engine)


def spread(difference: np.ndarray) -> float:
    return float(np.sqrt(np.square(difference).mean()) / LOGITS.std())


# GGUF


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    gguf = pytest.importorskip("gguf")
    reader = gguf.GGUFReader(path)
    return {name: field.contents() for name, field in reader.fields.items()}, {t.name: t for t in reader.tensors}


@pytest.mark.parametrize("precision", exports.PRECISIONS["gguf"])
def test_gguf_holds_the_weights(tmp_path: Path, precision: str) -> None:
    """By the library's own reader: bit for bit, or within half a step of each block of 32."""
    fields, tensors = read_gguf(write(tmp_path / "m.gguf", "gguf", precision))
    gguf = pytest.importorskip("gguf")
    assert len(tensors) == 12 * CONFIG.n_layer + 4
    for name, (theirs, shape) in {
        "wte": ("token_embd.weight", (CONFIG.n_vocab, 32)),
        "wpe": ("position_embd.weight", (40, 32)),
        "h1/attn/c_attn/w": ("blk.1.attn_qkv.weight", (96, 32)),
        "h0/attn/c_proj/w": ("blk.0.attn_output.weight", (32, 32)),
        "h0/mlp/c_fc/w": ("blk.0.ffn_up.weight", (128, 32)),
        "h1/mlp/c_proj/w": ("blk.1.ffn_down.weight", (32, 128)),
        "h1/mlp/c_proj/b": ("blk.1.ffn_down.bias", (32,)),
        "h0/ln_2/g": ("blk.0.ffn_norm.weight", (32,)),
        "ln_f/b": ("output_norm.bias", (32,)),
    }.items():
        tensor = tensors[theirs]
        wanted = TENSORS[name].T if name.endswith("/w") else TENSORS[name]
        is_rounded = precision != "float32" and wanted.ndim == 2 and name != "wpe"
        assert tensor.tensor_type.name == (
            {"float16": "F16"}.get(precision, precision.upper()) if is_rounded else "F32"
        )
        found = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert found.shape == wanted.shape == shape
        if not is_rounded:
            np.testing.assert_array_equal(found, wanted)
        elif precision == "float16":
            np.testing.assert_array_equal(found, wanted.astype(np.float16).astype(np.float32))
        else:
            blocks = wanted.reshape(-1, 32)
            step = np.abs(blocks).max(axis=1, keepdims=True) / (127 if precision == "q8_0" else 8)
            # The step itself is rounded to float16. Of q4_0 the largest number of the other sign is cut: -8..7.
            assert (np.abs(found.reshape(-1, 32) - blocks) <= step * (0.57 if precision == "q8_0" else 1.01)).all()
    assert fields["general.architecture"] == "gpt2"
    assert fields["general.file_type"] == {"float32": 0, "float16": 1, "q8_0": 7, "q4_0": 2}[precision]
    keys = ("context_length", "embedding_length", "feed_forward_length", "block_count", "attention.head_count")
    assert [fields[f"gpt2.{key}"] for key in keys] == [40, 32, 128, 2, 4]
    assert fields["gpt2.attention.layer_norm_epsilon"] == pytest.approx(1e-5)
    assert fields["tokenizer.ggml.pre"] == "gpt-2"
    assert fields["tokenizer.ggml.tokens"][-5:] == ["'s", "<|endoftext|>", "[PAD263]", "[PAD264]", "[PAD265]"]
    assert fields["tokenizer.ggml.token_type"][-5:] == [1, 3, 5, 5, 5]
    assert fields["tokenizer.ggml.merges"] == ["t h", "th e", "Ġ the", "i n", "e r", "' s"]
    assert fields["tokenizer.ggml.eos_token_id"] == CODEC.end_of_text


def test_gguf_rows_that_fill_no_block_are_float16(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    config = GPT2Config(n_vocab=11, n_ctx=8, n_embd=8, n_head=2, n_layer=1)
    exports.export(
        tmp_path / "m.gguf", source(None, oracle.random_tensors(config), config), "gguf", "q8_0", check=False
    )
    fields, tensors = read_gguf(tmp_path / "m.gguf")
    kinds = {name: tensor.tensor_type.name for name, tensor in tensors.items()}
    assert kinds["blk.0.attn_qkv.weight"] == kinds["token_embd.weight"] == "F16"  # rows of 8
    assert kinds["blk.0.ffn_down.weight"] == "Q8_0"  # rows of 32
    assert (fields["tokenizer.ggml.model"], fields["gpt2.vocab_size"]) == ("no_vocab", 11)


def llama(path: Path) -> Any:
    llama_cpp = pytest.importorskip("llama_cpp")
    options = {"n_ctx": 40, "n_batch": 40, "n_threads": 1, "logits_all": True, "verbose": False}
    return llama_cpp.Llama(str(path), **options, type_k=0, type_v=0)


def test_llama_cpp_gives_the_same_text(tmp_path: Path) -> None:
    """Its GELU is a table in float16, so the oracle is asked with such a one too: there float32 is within 1e-3."""
    model = llama(write(tmp_path / "m.gguf", "gguf"))
    assert model.tokenize(TEXT.encode(), add_bos=False, special=False) == IDS
    assert model.detokenize(IDS).decode() == TEXT
    model.eval(IDS)
    found = np.array(model.scores[: len(IDS)])
    assert np.abs(found - LOGITS).max() < 0.05
    assert np.abs(found - logits_with_gelu_in_float16(np.array(IDS))).max() < 1e-3 * max(1, np.abs(LOGITS).max() / 10)
    model.reset()
    tokens = [token for token, _ in zip(model.generate(IDS, temp=0.0, repeat_penalty=1.0), range(12), strict=False)]
    assert tokens == greedy(IDS, 12)


def logits_with_gelu_in_float16(ids: np.ndarray) -> np.ndarray:
    """As the oracle, but GELU by llama.cpp's table: argument and value in float16 between -10 and 10."""
    return oracle.logits(CONFIG, TENSORS, ids, gelu=gelu_in_float16)


def gelu_in_float16(x: np.ndarray) -> np.ndarray:
    half = x.astype(np.float16).astype(np.float32)
    table = oracle.gelu(half).astype(np.float16).astype(np.float64)
    return np.where(x <= -10, 0, np.where(x >= 10, x, table))


@pytest.mark.parametrize(("precision", "limit"), [("float16", 0.01), ("q8_0", 0.05), ("q4_0", 0.5)])
def test_llama_cpp_with_rounded_weights(tmp_path: Path, precision: str, limit: float) -> None:
    model = llama(write(tmp_path / "m.gguf", "gguf", precision))
    model.eval(IDS)
    assert 0 < spread(np.array(model.scores[: len(IDS)]) - LOGITS) < limit


def test_llama_cpp_without_a_vocabulary(tmp_path: Path) -> None:
    model = llama(write(tmp_path / "m.gguf", "gguf", codec=None))
    model.eval(IDS)
    assert spread(np.array(model.scores[: len(IDS)]) - LOGITS) < 0.01


# ONNX


def onnx_session(path: Path, file: str = "model.onnx") -> Any:
    onnxruntime = pytest.importorskip("onnxruntime")
    return onnxruntime.InferenceSession(str(path / file))


def cached(session: Any, ids: np.ndarray, cuts: list[int], mask: np.ndarray | None = None) -> np.ndarray:
    """Logits (B, T, V) of ids (B, T), fed in pieces."""
    B, T = ids.shape
    mask = np.ones((B, T), np.int64) if mask is None else mask
    positions = np.maximum(mask.cumsum(axis=1) - 1, 0)
    past = {
        f"past_key_values.{n}.{part}": np.zeros((B, 4, 0, 8), np.float32) for n in range(2) for part in ("key", "value")
    }
    out = []
    for begin, end in zip([0, *cuts], [*cuts, T], strict=True):
        piece = {"input_ids": ids[:, begin:end], "position_ids": positions[:, begin:end]}
        logits, *present = session.run(None, {**piece, "attention_mask": mask[:, :end], **past})
        past = dict(zip(past, present, strict=True))
        out.append(logits)
    return np.concatenate(out, axis=1)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_onnx_with_and_without_a_cache(tmp_path: Path, precision: str) -> None:
    onnx = pytest.importorskip("onnx")
    folder = write(tmp_path / "m", "onnx", precision)
    for file in ("model.onnx", "model_no_cache.onnx"):
        onnx.checker.check_model(str(folder / file), full_check=True)
    ids = np.array([IDS])
    plain = onnx_session(folder, "model_no_cache.onnx").run(None, {"input_ids": ids})[0]
    rounded = {
        name: array.astype(np.float16).astype(np.float32) if precision == "float16" and array.ndim == 2 else array
        for name, array in TENSORS.items()
    }
    wanted = oracle.logits(CONFIG, rounded, np.array(IDS))
    np.testing.assert_allclose(plain[0], wanted, atol=TOLERANCE)
    session = onnx_session(folder)
    for cuts in ([], [1], [5, 6, 9]):
        np.testing.assert_allclose(cached(session, ids, cuts)[0], wanted, atol=TOLERANCE)


def test_onnx_of_rows_padded_on_the_left(tmp_path: Path) -> None:
    """Rows of unequal length in one batch, as Optimum feeds them: padding is masked, positions begin behind it."""
    session = onnx_session(write(tmp_path / "m", "onnx"))
    short = IDS[:7]
    pads = len(IDS) - len(short)
    ids = np.array([IDS, [0] * pads + short])
    mask = np.array([[1] * len(IDS), [0] * pads + [1] * len(short)])
    found = cached(session, ids, [pads + 2], mask)
    np.testing.assert_allclose(found[0], LOGITS, atol=TOLERANCE)
    np.testing.assert_allclose(found[1, pads:], LOGITS[: len(short)], atol=TOLERANCE)


def test_onnx_names_and_files(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", "onnx")
    session = onnx_session(folder)
    cache = [f"{n}.{part}" for n in range(2) for part in ("key", "value")]
    assert [each.name for each in session.get_inputs()] == [
        *("input_ids", "attention_mask", "position_ids"),
        *(f"past_key_values.{name}" for name in cache),
    ]
    assert [each.name for each in session.get_outputs()] == ["logits", *(f"present.{name}" for name in cache)]
    plain = onnx_session(folder, "model_no_cache.onnx")
    assert [each.name for each in (*plain.get_inputs(), *plain.get_outputs())] == ["input_ids", "logits"]
    assert (folder / "model.onnx").stat().st_size < 100_000  # the numbers are in the file beside it, once
    weights = (folder / "model.onnx_data").stat().st_size
    assert 4 * CONFIG.num_parameters <= weights < 4 * CONFIG.num_parameters + 4096 * len(TENSORS)
    assert huggingface.read_config(folder / "config.json") == CONFIG
    assert Codec.from_folder(folder).encode(TEXT) == IDS  # type: ignore[union-attr]


def test_onnx_in_int8(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", "onnx", "int8")
    session = onnx_session(folder)
    ids = np.array([IDS])
    found = cached(session, ids, [])
    assert 0 < spread(found[0] - LOGITS) < 0.06
    # A row's numbers are rounded by its own scale: neighbours change nothing.
    both = cached(session, np.array([IDS, IDS[::-1]]), [])
    np.testing.assert_allclose(both[0], found[0], atol=TOLERANCE)
    weights = {name: shape for name, shape in expected_shapes(CONFIG).items() if len(shape) == 2 and name != "wpe"}
    assert (folder / "model.onnx_data").stat().st_size < sum(
        int(np.prod(shape)) for shape in weights.values()
    ) + 4 * sum(array.size for name, array in TENSORS.items() if name not in weights) + 4096 * 2 * len(TENSORS)


# SavedModel


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = new_model(CONFIG, codec=CODEC)
    model.set_parameters(TENSORS)
    return save_model(model, tmp_path_factory.mktemp("saved") / "1", "savedmodel", check=False)


@pytest.fixture(scope="module")
def signatures(saved: Path) -> Any:
    import tensorflow as tf

    return tf.saved_model.load(str(saved)).signatures


def ask(signature: Any, **inputs: Any) -> dict[str, np.ndarray]:
    """Give a signature what TensorFlow Serving would make of JSON: each input as its type says."""
    import tensorflow as tf

    _, specs = signature.structured_input_signature
    given = {name: tf.constant(value, specs[name].dtype) for name, value in inputs.items()}
    return {name: tensor.numpy() for name, tensor in signature(**given).items()}


OPTIONS = {"max_tokens": 12, "temperature": 0.0, "top_k": 0, "top_p": 1.0, "seed": 0}


def padded(*rows: list[int]) -> dict[str, Any]:
    width = max(map(len, rows))
    return {"ids": [[*row, *[9] * (width - len(row))] for row in rows], "lengths": [len(row) for row in rows]}


def test_savedmodel_logits_and_score(signatures: Any) -> None:
    found = ask(signatures["logits"], ids=[IDS, IDS[::-1]])["logits"]
    np.testing.assert_allclose(found[0], LOGITS, atol=TOLERANCE)
    np.testing.assert_allclose(found[1], oracle.logits(CONFIG, TENSORS, np.array(IDS[::-1])), atol=TOLERANCE)

    shifted = LOGITS[:-1] - LOGITS[:-1].max(axis=1, keepdims=True)
    wanted = (shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))[np.arange(len(IDS) - 1), IDS[1:]]
    score = ask(signatures["score"], **padded(IDS, IDS[:5]))
    np.testing.assert_allclose(score["log_probabilities"][0], wanted, atol=TOLERANCE)
    np.testing.assert_allclose(score["log_probabilities"][1], [*wanted[:4], *[0] * (len(wanted) - 4)], atol=TOLERANCE)
    np.testing.assert_allclose(score["totals"], [wanted.sum(), wanted[:4].sum()], rtol=1e-5)


def test_savedmodel_generates_from_ids_and_from_text(signatures: Any) -> None:
    """Rows of unequal length in one call, each the oracle's greedy text."""
    rows = [IDS, IDS[:3], IDS[4:9]]
    found = ask(signatures["generate_ids"], **padded(*rows), **OPTIONS)
    assert found["lengths"].tolist() == [12, 12, 12]
    assert found["ids"].tolist() == [greedy(row, 12) for row in rows]
    text = ask(signatures["generate"], prompts=[TEXT, "the"], **OPTIONS)
    # An id of the padding has no text.
    wanted = [b"".join(CODEC.token_bytes(t) for t in greedy(row, 12) if t < CODEC.n_vocab) for row in (IDS, IDS[:1])]
    assert text["texts"].tolist() == wanted
    assert ask(signatures["generate_ids"], **padded(IDS), **{**OPTIONS, "max_tokens": 0})["ids"].shape == (1, 0)


def test_savedmodel_samples(signatures: Any) -> None:
    def sample(rows: list[list[int]], **options: Any) -> list[list[int]]:
        given = {**OPTIONS, "temperature": 1.5, "seed": 7, **options}
        return ask(signatures["generate_ids"], **padded(*rows), **given)["ids"].tolist()

    first = sample([IDS, IDS])
    assert first == sample([IDS, IDS])
    assert first[0] != first[1]  # each row draws for itself
    assert first[0] == sample([IDS])[0]  # whatever the others are
    assert first != sample([IDS, IDS], seed=8)
    assert sample([IDS], top_k=1) == sample([IDS], top_p=1e-6) == [greedy(IDS, 12)]
    # Shares of many draws of one token are the probabilities among the four kept.
    rows = [IDS] * 4000
    draws = np.array(sample(rows, max_tokens=1, top_k=4))[:, 0]
    scaled = np.sort(LOGITS[-1] / 1.5)[::-1][:4]
    shares = np.exp(scaled - scaled.max()) / np.exp(scaled - scaled.max()).sum()
    for token, share in zip(np.argsort(-LOGITS[-1])[:4], shares, strict=True):
        assert abs((draws == token).mean() - share) < 4 * np.sqrt(share * (1 - share) / len(rows)) + 1e-3


@pytest.mark.parametrize("temperature", [1e-8, 1e-38])
@pytest.mark.parametrize("filters", [{}, {"top_k": 1}, {"top_p": 0.5}])
def test_savedmodel_near_temperature_0_is_greedy(temperature: float, filters: dict[str, float]) -> None:
    """Negative logits, as GPT-2's are: divided by so little, what was kept used to fall below what was not."""
    import tensorflow as tf

    from gpt2.exports.saved_model import _choose

    options = {name: tf.constant(value) for name, value in {**OPTIONS, "temperature": temperature, **filters}.items()}
    logits = tf.constant(LOGITS - 200, tf.float32)
    np.testing.assert_array_equal(_choose(logits, tf.constant(0), options), LOGITS.argmax(axis=1))


def test_savedmodel_stops_at_the_end_of_text() -> None:
    """A model that knows nothing but <|endoftext|> writes it once; the text is what was before."""
    import tensorflow as tf

    from gpt2.exports.saved_model import Graphs

    tensors = {name: np.zeros_like(array) for name, array in TENSORS.items()}
    tensors["ln_f/b"][0] = 1
    tensors["wte"][CODEC.end_of_text, 0] = 1
    model = new_model(CONFIG)
    model.set_parameters(tensors)
    given = [tf.constant(value) for value in (["the"], *OPTIONS.values())]
    found = {name: t.numpy() for name, t in Graphs(model.network, CODEC).functions["generate"](*given).items()}
    assert found["texts"].tolist() == [b""]
    assert found["lengths"].tolist() == [1]
    assert found["ids"].tolist() == [[CODEC.end_of_text] * 12]


def test_savedmodel_refuses(signatures: Any) -> None:
    """What `SamplingConfig` refuses too: `top_p` 0 used to write token 0 for ever, and say nothing."""
    import tensorflow as tf

    for signature, inputs, message in (
        ("logits", {"ids": [[CONFIG.n_vocab]]}, "ids: expected 0 to 265"),
        ("logits", {"ids": [[1] * 41]}, "at most 40 tokens in all"),
        ("generate_ids", {**padded(IDS), **OPTIONS, "max_tokens": 40}, "at most 40 tokens in all"),
        ("generate_ids", {**padded(IDS), **OPTIONS, "max_tokens": -1}, "max_tokens: expected 0 or more"),
        *(
            ("generate_ids", {**padded(IDS), **OPTIONS, name: value}, f"{name}: expected {wanted}, got.*{value}")
            for name, wanted, values in (
                ("temperature", "a number from 0 to 100", (-0.5, 101, float("nan"))),
                ("top_k", "0 or more", (-1,)),
                ("top_p", "a number above 0, up to 1", (0, -0.5, 1.5, float("nan"))),
            )
            for value in values
        ),
        ("generate", {"prompts": ["the"], **OPTIONS, "temperature": 1.0, "top_p": 0}, "top_p: expected a number above"),
        ("score", {"ids": [IDS], "lengths": [0]}, "lengths: expected from 1"),
        ("generate", {"prompts": [""], **OPTIONS}, "lengths: expected from 1"),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            ask(signatures[signature], **inputs)


def test_savedmodel_needs_nothing_of_ours(saved: Path) -> None:
    """A process in which neither this package nor Keras can be imported uses TensorFlow's loader alone."""
    code = """
import sys
sys.modules["gpt2"] = sys.modules["keras"] = None
import tensorflow as tf
s = tf.saved_model.load(sys.argv[1]).signatures
options = {"max_tokens": 12, "temperature": 0.0, "top_k": 0, "top_p": 1.0, "seed": 0}
found = s["generate"](prompts=tf.constant(["the"]), **{name: tf.constant(value) for name, value in options.items()})
print(found["ids"][0].numpy().tolist())
"""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-c", code, str(saved)]
    done = subprocess.run(command, capture_output=True, check=False, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    assert json.loads(done.stdout) == greedy(IDS[:1], 12)


DOCUMENT = (Path(__file__).parent.parent / "docs" / "interchange.md").read_text(encoding="utf-8")


def test_the_documents_rest_request(signatures: Any) -> None:
    """Its JSON, with each input made a tensor of the signature's type, as TensorFlow Serving does."""
    [block] = re.findall(r"```json\n(.*?)```", DOCUMENT, re.DOTALL)
    request = json.loads(block)
    found = ask(signatures[request["signature_name"]], **request["inputs"])
    assert found["ids"].shape == (2, 20)
    assert sorted(found) == ["ids", "lengths", "texts"]


def test_the_documents_grpc_request(signatures: Any) -> None:
    """Its Python up to the connection: the message has just the inputs and types that the signature takes."""
    import tensorflow as tf

    predict_pb2 = pytest.importorskip("tensorflow_serving.apis.predict_pb2")
    [block] = [block for block in DOCUMENT.split("```") if "PredictRequest" in block]
    values: dict[str, Any] = {}
    exec(compile(block.split("stub =")[0], "block", "exec"), values)
    request = predict_pb2.PredictRequest.FromString(values["request"].SerializeToString())
    _, specs = signatures[request.model_spec.signature_name].structured_input_signature
    assert set(request.inputs) == set(specs)
    assert all(request.inputs[name].dtype == spec.dtype.as_datatype_enum for name, spec in specs.items())
    given = {name: tf.constant(tf.make_ndarray(tensor)) for name, tensor in request.inputs.items()}
    assert signatures["generate"](**given)["ids"].shape == (1, 20)


@pytest.fixture(scope="module")
def string_codec() -> Any:
    """GPT-2's whole vocabulary in TensorFlow's operations."""
    import tensorflow as tf

    from gpt2.exports.string_codec import StringCodec

    codec = StringCodec(default_codec())
    encode = tf.function(codec.encode, input_signature=[tf.TensorSpec((None,), tf.string)], autograph=False)
    return codec, encode


def assert_same_ids(string_codec: Any, texts: list[str]) -> None:
    import tensorflow as tf

    codec, encode = string_codec
    ids, lengths = encode(tf.constant(texts))
    for text, row, length in zip(texts, ids.numpy(), lengths.numpy(), strict=True):
        assert row[:length].tolist() == default_codec().encode(text), repr(text)
    assert [text.decode() for text in codec.decode(ids, lengths).numpy()] == texts


def test_strings_in_tensorflow_are_the_codecs(string_codec: Any) -> None:
    assert_same_ids(
        string_codec,
        [
            *(
                "Hello world",
                "",
                " ",
                "  ",
                "\n",
                "a",
                "'",
                "''",
                "'s",
                " 's",
                "\n's",
                "x's",
                "x''s",
                "!'s",
                "'sx",
                "'s's",
            ),
            *("'ll", "'LL", "'l", "don't've'", "1's 2'", "it's 9 o'clock  \n\n he'd", "a\u00a0b", "a\u2028 b", "\x85x"),
            *("日本語 🙂", "naïve café", "\ufeffBOM", "x" * 70, "a1!b2?  c", "<|endoftext|>", "\x00\x01", "Ⅻ½²x٣"),
            *("  leading", "trailing  ", "tab\t\ttab", "a \n b", "\r\n\r\n", "'\u00e9", "e\u0301"),
        ],
    )


@settings(max_examples=60, deadline=None)
@given(st.text(st.sampled_from(list("ab'sdmtlvre 1!\n\t\u00a0é日")), max_size=24))
def test_strings_of_what_the_pattern_looks_at(string_codec: Any, text: str) -> None:
    assert_same_ids(string_codec, [text])


NONCHARACTERS = [
    *map(chr, range(0xFDD0, 0xFDF0)),
    *(chr(plane + n) for plane in range(0, 0x110000, 0x10000) for n in (0xFFFE, 0xFFFF)),
]


def test_strings_of_noncharacters(string_codec: Any) -> None:
    """Those of four bytes used to fail: TensorFlow splits them into U+FFFD, which has three."""
    assert_same_ids(string_codec, [*NONCHARACTERS, *(f"a {c}b 's{c}{c} 1" for c in NONCHARACTERS)])


# Characters that Unicode has not assigned yet, for this Python, may be letters for one side alone.
@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs", "Cn"]) | st.sampled_from(NONCHARACTERS), max_size=24))
def test_strings_of_any_unicode(string_codec: Any, text: str) -> None:
    assert_same_ids(string_codec, [text])


def test_bytes_that_are_no_text_become_replacement_characters(string_codec: Any) -> None:
    import tensorflow as tf

    ids, _ = string_codec[1](tf.constant([b"a\xff b"]))
    assert ids.numpy()[0].tolist() == default_codec().encode("a\ufffd b")


# Checkpoints


def test_openai_in_several_data_files(tmp_path: Path) -> None:
    """TensorFlow's Saver restores from all of them by the one name."""
    import tensorflow as tf

    openai.write(tmp_path, CONFIG, TENSORS.items(), CODEC, "float32", max_shard_bytes=40_000)
    files = sorted(path.name for path in tmp_path.glob("model.ckpt*"))
    assert len(files) > 3
    assert files == [
        *(f"model.ckpt.data-{n:05}-of-{len(files) - 1:05}" for n in range(len(files) - 1)),
        "model.ckpt.index",
    ]
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        with tf.compat.v1.variable_scope("model"):
            variable = tf.compat.v1.get_variable("h1/mlp/c_proj/w", (1, 128, 32), use_resource=False)
        tf.compat.v1.train.Saver().restore(session, tf.train.latest_checkpoint(str(tmp_path)))
        np.testing.assert_array_equal(session.run(variable)[0], TENSORS["h1/mlp/c_proj/w"])
    config, tensors = checkpoints.read(tmp_path)
    assert config == CONFIG
    for name, array in tensors:
        np.testing.assert_array_equal(array, TENSORS[name], err_msg=name)
    checkpoints.write(tmp_path, CONFIG, TENSORS.items(), format="openai")  # it is known as a model, and replaced
    assert len(list(tmp_path.glob("model.ckpt*"))) == 2


def test_huggingface_has_the_fast_tokenizer_too(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", "huggingface")
    assert json.loads((folder / "special_tokens_map.json").read_text())["eos_token"] == "<|endoftext|>"
    for name in ("merges.txt", "vocab.json"):
        (folder / name).unlink()
    codec = Codec.from_folder(folder)
    assert codec is not None
    assert codec.encode(TEXT) == IDS
    assert codec.end_of_text == CODEC.end_of_text


# The check, and what happens when something goes wrong


def test_saving_checks_and_reports(tmp_path: Path) -> None:
    found: list[exports.Report] = []
    model = new_model(CONFIG, codec=CODEC)
    for format, check in (("openai", None), ("openai", False), ("native", None), ("native", True)):
        path = save_model(model, tmp_path / f"{format}-{check}", format, check=check, on_report=found.append)
        assert found[-1].path == str(path)
    told = [(report.parity and report.parity.largest_difference, report.not_checked) for report in found]
    assert told == [(0, None), (None, "as was asked"), (None, "nobody asked for it"), (0, None)]


def test_the_report(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    report = exports.export(tmp_path / "m", source(), "onnx", check=True)
    assert report.parity is not None
    found = report.to_dict()
    assert found["parity"]["runtime"].startswith("onnxruntime ")
    assert found["parity"]["largest_difference"] < 1e-3
    assert found["parity"]["positions"] == 20
    assert (found["parity"]["greedy_equal"], found["parity"]["greedy_tokens"]) == (16, 16)
    assert found["bytes"] == sum(path.stat().st_size for path in (tmp_path / "m").iterdir())
    assert "logits at 20 positions" in str(report.parity)
    assert "16 of 16 greedy tokens the same" in str(report.parity)


@pytest.mark.parametrize("precision", ["float32", "q8_0"])
def test_ggufs_own_check(tmp_path: Path, precision: str) -> None:
    pytest.importorskip("llama_cpp")
    path = tmp_path / "m.gguf"
    report = exports.export(path, source(), "gguf", precision, check=True)
    assert (report.format, report.precision, report.bytes) == ("gguf", precision, path.stat().st_size)
    assert report.not_checked is None
    found = report.parity
    assert found is not None
    assert found.runtime.startswith("llama-cpp-python ")
    assert (found.positions, found.greedy_tokens) == (20, 16)
    assert found.ids_equal is True
    if precision == "float32":
        assert 0 < found.largest_difference < 1e-2
        assert found.greedy_equal == found.greedy_tokens
    else:
        assert 0.001 < found.relative_difference < 0.05


def test_a_model_that_computes_something_else_is_not_put_in_place(tmp_path: Path) -> None:
    """As if a matrix had been transposed by mistake: the old one stays, and nothing is left beside it."""
    pytest.importorskip("onnxruntime")
    folder = write(tmp_path / "m", "onnx")
    before = (folder / "model.onnx_data").read_bytes()
    name = "h1/attn/c_proj/w"
    wrong = {**TENSORS, name: TENSORS[name].T}
    with pytest.raises(CheckpointError, match="expected logits within .* nothing was written; onnxruntime"):
        exports.export(folder, source(tensors=wrong), "onnx", check=True)
    with pytest.raises(CheckpointError, match="of their spread, so nothing was written"):
        exports.export(folder, source(tensors=wrong), "onnx", "int8", check=True)
    assert (folder / "model.onnx_data").read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["m"]


def test_a_file_that_the_runtime_cannot_read(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    path = write(tmp_path / "m.gguf", "gguf")
    path.write_bytes(path.read_bytes()[:1000])
    reference = parity.make_reference(source().engine(), CODEC)
    with pytest.raises(CheckpointError, match=r"gguf: the runtime (could not run it|died of it)"):
        parity.check(path, "gguf", "float32", reference)


@pytest.mark.parametrize("format", ["gguf", "onnx", "savedmodel"])
def test_an_error_on_the_way_leaves_what_was_there(tmp_path: Path, format: str) -> None:
    pytest.importorskip({"savedmodel": "tensorflow"}.get(format, format))
    path = tmp_path / "m.gguf"
    if format == "gguf":
        path.write_bytes(b"GGUF old")
    else:
        write(path, "onnx") if format == "onnx" else path.mkdir()
    before = {entry.name for entry in path.iterdir()} if path.is_dir() else path.read_bytes()

    def broken() -> Iterator[tuple[str, np.ndarray]]:
        for number, (name, array) in enumerate(TENSORS.items()):
            yield name, array * np.nan if number == 9 else array

    with pytest.raises(CheckpointError, match="NaN or infinite"):
        exports.export(path, Source(CONFIG, CODEC, broken, source().engine), format, check=False)
    assert ({entry.name for entry in path.iterdir()} if path.is_dir() else path.read_bytes()) == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.gguf"]


def test_nothing_else_is_overwritten(tmp_path: Path) -> None:
    """A LiteRT model used to be replaced with all that was put beside it."""
    (tmp_path / "notes.gguf").write_text("my notes")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "saved_model.pb").write_text("x")
    (tmp_path / "d" / "thesis.txt").write_text("x")
    write(write(tmp_path / "built", "litert"), "litert")
    (tmp_path / "built" / "thesis.txt").write_text("x")
    for path, format in (
        ("notes.gguf", "gguf"),
        ("d", "savedmodel"),
        ("d", "onnx"),
        ("notes.gguf", "onnx"),
        ("built", "litert"),
    ):
        with pytest.raises(CheckpointError, match=r"expected (nothing|no folder)"):
            write(tmp_path / path, format)
    with pytest.raises(ConfigError, match=r"path: expected a file whose name ends in \.gguf"):
        write(tmp_path / "model", "gguf")
    assert (tmp_path / "notes.gguf").read_text() == "my notes"
    assert (tmp_path / "d" / "thesis.txt").exists()
    assert (tmp_path / "built" / "thesis.txt").exists()


def test_what_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for format, precision, message in (
        ("pickle", "float32", "format: expected one of native, huggingface, openai, savedmodel, gguf, onnx, litert"),
        ("gguf", "int8", "precision: expected float32 or float16 or q8_0 or q4_0 for the gguf format, got 'int8'"),
        ("openai", "float16", "precision: expected float32 for the openai format"),
    ):
        with pytest.raises(ConfigError, match=message):
            exports.check_options(format, precision)
    assert exports.check_options("gguf", "F16") == "float16"
    find = exports.importlib.util.find_spec
    absent = {"onnx", "onnxruntime", "llama_cpp"}
    monkeypatch.setattr(exports.importlib.util, "find_spec", lambda name: None if name in absent else find(name))
    with pytest.raises(ConfigError, match=r"onnx is written by the package onnx.*pip install 'gpt2\[onnx\]'"):
        exports.check_options("onnx", "float32")
    with pytest.raises(ConfigError, match=r"checked by llama-cpp-python \(pip install 'gpt2\[llama\]'\)"):
        exports.export(tmp_path / "m.gguf", source(), "gguf", check=True)
    pytest.importorskip("gguf")
    report = exports.export(tmp_path / "m.gguf", source(), "gguf")
    assert report.parity is None
    assert report.not_checked == "it takes llama-cpp-python (pip install 'gpt2[llama]')"


def test_save_model(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    model = new_model(CONFIG, codec=CODEC)
    model.set_parameters(TENSORS)
    path = save_model(model, tmp_path / "m.gguf", "gguf", dtype="q8_0", check=False)
    assert read_gguf(path)[0]["general.file_type"] == 7
    with pytest.raises(ConfigError, match="precision: expected float32"):
        save_model(model, tmp_path / "x", "savedmodel", dtype="int8")


KILLED = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import oracle
from gpt2 import exports
from gpt2.codec import Codec
from gpt2.config import GPT2Config
config, codec = GPT2Config(**eval(sys.argv[3])), Codec.from_merges("t h")
source = exports.Source(config, codec, oracle.random_tensors(config).items, None)
print("ready", flush=True)
while True:
    exports.export(Path(sys.argv[2]) / "m.gguf", source, "gguf", "q8_0", check=False)
    exports.export(Path(sys.argv[2]) / "onnx", source, "onnx", check=False)
"""


def test_killed_at_any_moment_it_is_whole(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("gguf")
    rng = random.Random(0)
    shape = {"n_vocab": 300, "n_ctx": 16, "n_embd": 64, "n_head": 2, "n_layer": 4}
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(tmp_path), json.dumps(shape)]
    for _ in range(3):
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(rng.uniform(0.1, 0.6))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        if (tmp_path / "m.gguf").exists():
            _, tensors = read_gguf(tmp_path / "m.gguf")
            assert len(tensors) == 52
        if (tmp_path / "onnx").exists():
            names = {"model.onnx", "model_no_cache.onnx", "model.onnx_data", "config.json", "tokenizer.json"}
            assert names <= set(os.listdir(tmp_path / "onnx"))
            onnx_session(tmp_path / "onnx")
    config = GPT2Config(**shape)
    for name, format in (("m.gguf", "gguf"), ("onnx", "onnx")):
        again = source(None, oracle.random_tensors(config), config)
        exports.export(tmp_path / name, again, format, check=False)
    assert sorted(os.listdir(tmp_path)) == ["m.gguf", "onnx"], "what killed ones left is cleaned up"


@pytest.mark.reference
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_transformers_runs_what_is_written(tmp_path: Path, precision: str) -> None:
    pytest.importorskip("transformers")
    report = exports.export(tmp_path / "m", source(), "huggingface", precision, check=True)
    assert report.parity is not None
    assert report.parity.ids_equal
    assert report.parity.largest_difference < (1e-3 if precision == "float32" else 1)
    assert load_model(tmp_path / "m").config == CONFIG


@pytest.mark.slow
def test_conversions_hold_one_tensor_at_a_time() -> None:
    """355M by the benchmark: far below the larger side. TensorFlow's own formats hold more; see benchmarks/LOG.md."""
    formats = ["native", "huggingface", "gguf", "onnx", "litert"]
    script = Path(__file__).parent.parent / "benchmarks" / "convert_memory.py"
    command = [sys.executable, str(script), "355M", "--formats", *formats]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    ratios = [float(ratio) for ratio in re.findall(r"ratio ([\d.]+)", done.stdout)]
    assert len(ratios) == sum(len(exports.PRECISIONS[format]) for format in formats), done.stdout
    assert max(ratios) < 0.9, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("format", "precision"), [(format, known[-1]) for format, known in exports.PRECISIONS.items()])
def test_each_format_is_checked_by_its_own_runtime(tmp_path: Path, format: str, precision: str) -> None:
    if exports.runtimes.missing(format):
        pytest.skip(f"needs {exports.runtimes.missing(format)}")
    report = exports.export(tmp_path / "m.gguf", source(), format, precision, check=True)
    assert report.parity is not None
    assert report.parity.ids_equal in (True, None)
