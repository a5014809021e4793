"""Hugging Face's format: `config.json`, `model.safetensors` (or shards of it) and the tokenizer's files.

Names differ from the canonical ones, nothing else: the orientation of the matrices is the same. Files that run code
when they are loaded (`pytorch_model.bin` is a pickle) are refused.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gpt2.checkpoints import tensor_file
from gpt2.checkpoints.contents import Contents
from gpt2.checkpoints.json_file import read_object
from gpt2.checkpoints.names import Tensors, check_shapes, expected_shapes
from gpt2.checkpoints.tensor_file import Entry
from gpt2.codec import END_OF_TEXT, Codec
from gpt2.config import LAYER_NORM_EPSILON, GPT2Config
from gpt2.errors import CheckpointFormatError, TensorMismatchError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_SHARD_BYTES = 5_000_000_000
SIDE_FILES = (
    *("config.json", "generation_config.json", "vocab.json", "merges.txt"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
)
"""What stands beside the weights, whatever format these are in."""
FILES = (WEIGHTS, INDEX, *SIDE_FILES)

_REFUSED = ("pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack", "rust_model.ot")
_CONFIG_KEYS = {
    "n_vocab": "vocab_size",
    "n_ctx": "n_positions",
    "n_embd": "n_embd",
    "n_head": "n_head",
    "n_layer": "n_layer",
}
# Settings that change what the network computes, with the values under which it is a GPT-2; None is their default.
_FIXED: dict[str, tuple[Any, ...]] = {
    "activation_function": (None, "gelu_new", "gelu_pytorch_tanh"),
    "layer_norm_epsilon": (None, LAYER_NORM_EPSILON),
    "scale_attn_weights": (None, True),
    "scale_attn_by_inverse_layer_idx": (None, False),
    "add_cross_attention": (None, False),
    "tie_word_embeddings": (None, True),
}
_PARTS = {
    **{
        f"{norm}/{ours}": f"{norm}.{theirs}"
        for norm in ("ln_1", "ln_2")
        for ours, theirs in (("g", "weight"), ("b", "bias"))
    },
    **{
        f"{layer}/{ours}": f"{layer.replace('/', '.')}.{theirs}"
        for layer in ("attn/c_attn", "attn/c_proj", "mlp/c_fc", "mlp/c_proj")
        for ours, theirs in (("w", "weight"), ("b", "bias"))
    },
}
_TOP = {"wte": "wte.weight", "wpe": "wpe.weight", "ln_f/g": "ln_f.weight", "ln_f/b": "ln_f.bias"}
_SKIPPED = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")  # the causal mask, which older versions stored


def matches(folder: Path) -> bool:
    """Whether a folder is meant to be in this format."""
    path = folder / "config.json"
    if path.is_file():
        settings = read_object(path)
        return "model_type" in settings or "architectures" in settings or "vocab_size" in settings
    return any((folder / name).is_file() for name in _REFUSED)


def open_checkpoint(folder: Path, *, quick: bool = True) -> Contents:
    """Read the headers and compare them with the config, which is always quick."""
    refused = [name for name in _REFUSED if (folder / name).is_file()]
    if refused and not any((folder / name).is_file() for name in (WEIGHTS, INDEX)):
        raise CheckpointFormatError(
            f"{folder / refused[0]}: expected {WEIGHTS}; this kind of file is refused because loading one can run code "
            "that is hidden in it. Convert it where you trust it, with transformers: "
            "GPT2LMHeadModel.from_pretrained(folder).save_pretrained(folder, safe_serialization=True)"
        )
    config = read_config(folder / "config.json")
    entries = _canonical(_entries(folder), folder)
    head = entries.pop("lm_head", None)
    check_shapes(config, {name: entry.shape for name, entry in entries.items()}, source=str(folder))
    if head is not None:
        _check_tied(head, entries["wte"], folder)
    entries = {name: entries[name] for name in expected_shapes(config)}
    return Contents(config, tensor_file.dtype_of(entries), lambda: tensor_file.stream(entries))


def hf_name(name: str) -> str:
    """The name that Hugging Face gives a tensor.

    >>> hf_name("h0/attn/c_attn/w")
    'h.0.attn.c_attn.weight'
    """
    if name in _TOP:
        return _TOP[name]
    layer, _, part = name.partition("/")
    return f"h.{layer[1:]}.{_PARTS[part]}"


def write(
    folder: Path,
    config: GPT2Config,
    tensors: Tensors,
    codec: Codec | None,
    dtype: str,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Fill an empty folder; weights beyond `max_shard_bytes` are cut into shards between tensors."""
    write_side_files(folder, config, codec, dtype)
    shapes = {f"transformer.{hf_name(name)}": shape for name, shape in expected_shapes(config).items()}
    named = ((f"transformer.{hf_name(name)}", array) for name, array in tensors)
    _write_shards(folder, named, shapes, dtype, max_shard_bytes)


def write_side_files(folder: Path, config: GPT2Config, codec: Codec | None, dtype: str) -> None:
    """Write what tools of Hugging Face look for beside weights: the configs, and the tokenizer in its two forms.

    Args:
        folder: where.
        config: the shape.
        codec: the vocabulary, or None.
        dtype: how the numbers are stored, for those who keep them so.
    """
    _write_json(folder / "config.json", _hf_config(config, codec, dtype))
    end = None if codec is None else codec.end_of_text
    _write_json(
        folder / "generation_config.json", {"bos_token_id": end, "eos_token_id": end, "_from_model_config": True}
    )
    if codec is None:
        return
    files = codec.files("huggingface")
    for name, data in files.items():
        (folder / name).write_bytes(data)
    special = END_OF_TEXT if END_OF_TEXT in codec.special_tokens else next(iter(codec.special_tokens), None)
    tokens = {"bos_token": special, "eos_token": special, "unk_token": special} if special else {}
    settings = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": config.n_ctx, "add_prefix_space": False}
    _write_json(folder / "tokenizer_config.json", {**settings, **tokens})
    _write_json(folder / "special_tokens_map.json", tokens)
    _write_json(folder / "tokenizer.json", _fast_tokenizer(codec, files))


def read_config(path: Path) -> GPT2Config:
    """The shape in a `config.json`, if it is that of a GPT-2 and nothing else.

    Raises:
        CheckpointFormatError: another kind of model, or a setting that no GPT-2 has.
    """
    if not path.is_file():
        raise CheckpointFormatError(f"{path}: expected the config of a Hugging Face model, found none")
    settings = read_object(path)
    if settings.get("model_type", "gpt2") != "gpt2":
        raise CheckpointFormatError(f"{path}: expected model_type gpt2, got {settings['model_type']!r}")
    for key, allowed in _FIXED.items():
        value = settings.get(key)
        if not any(value is option or (type(value) is type(option) and value == option) for option in allowed):
            raise CheckpointFormatError(f"{path}: {key}: expected {allowed[1]!r} as in GPT-2, got {value!r}")
    values = {ours: settings[theirs] for ours, theirs in _CONFIG_KEYS.items() if theirs in settings}
    if "n_ctx" not in values and "n_ctx" in settings:
        values["n_ctx"] = settings["n_ctx"]
    config = GPT2Config.from_dict(values, source=f"{path} (vocab_size is n_vocab, n_positions is n_ctx)")
    inner = settings.get("n_inner")
    if inner is not None and inner != 4 * config.n_embd:
        raise CheckpointFormatError(f"{path}: n_inner: expected null or {4 * config.n_embd}, got {inner!r}")
    return config


def _entries(folder: Path) -> dict[str, Entry]:
    """All tensors under the names that they have on disk."""
    if (folder / WEIGHTS).is_file():
        return tensor_file.read_header(folder / WEIGHTS)
    index = folder / INDEX
    if not index.is_file():
        raise CheckpointFormatError(f"{folder}: expected {WEIGHTS} or {INDEX}, found neither")
    places = read_object(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
        raise CheckpointFormatError(f"{index}: expected a weight_map from tensor to file")
    shards: dict[str, dict[str, Entry]] = {}
    for name in sorted(set(places.values())):
        # A name, not a path: an index must not reach out of its folder.
        if not re.fullmatch(r"[A-Za-z0-9._-]+\.safetensors", name):
            raise CheckpointFormatError(f"{index}: expected names of .safetensors files beside it, got {name[:80]!r}")
        shards[name] = tensor_file.read_header(folder / name)
    missing = [name for name, place in places.items() if name not in shards[place]]
    if missing:
        raise TensorMismatchError(
            f"{index}: {missing[0][:80]!r} is not in {places[missing[0]]}, nor are {len(missing) - 1} more"
        )
    return {name: shards[place][name] for name, place in places.items()}


def _canonical(entries: dict[str, Entry], folder: Path) -> dict[str, Entry]:
    """Canonical names; those that are no GPT-2's stay as they are, for the message that will list them."""
    ours_of = {theirs: ours for ours, theirs in _TOP.items()}
    part_of = {theirs: ours for ours, theirs in _PARTS.items()}
    renamed: dict[str, Entry] = {}
    for name, entry in entries.items():
        theirs = name.removeprefix("transformer.")
        if _SKIPPED.fullmatch(theirs):
            continue
        layer = re.fullmatch(r"h\.(0|[1-9]\d{0,5})\.(.+)", theirs)
        ours = "lm_head" if theirs == "lm_head.weight" else ours_of.get(theirs, name)
        if layer and layer[2] in part_of:
            ours = f"h{layer[1]}/{part_of[layer[2]]}"
        if ours in renamed:
            raise TensorMismatchError(f"{folder}: {ours} stands twice, with and without the prefix transformer.")
        renamed[ours] = entry
    return renamed


def _check_tied(head: Entry, wte: Entry, folder: Path) -> None:
    if head.shape != wte.shape or not np.array_equal(head.load(), wte.load()):
        raise TensorMismatchError(
            f"{folder}: expected lm_head.weight to equal wte.weight (the head is tied), got another"
        )


def _hf_config(config: GPT2Config, codec: Codec | None, dtype: str) -> dict[str, Any]:
    end = None if codec is None else codec.end_of_text
    return {
        **{"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "torch_dtype": dtype},
        **{theirs: getattr(config, ours) for ours, theirs in _CONFIG_KEYS.items()},
        **{
            "n_ctx": config.n_ctx,
            "n_inner": None,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": LAYER_NORM_EPSILON,
        },
        **{"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1, "initializer_range": 0.02},
        **{"bos_token_id": end, "eos_token_id": end, "tie_word_embeddings": True, "use_cache": True},
    }


def _fast_tokenizer(codec: Codec, files: dict[str, bytes]) -> dict[str, Any]:
    """The `tokenizer.json` that Hugging Face's `tokenizers` reads: the same vocabulary once more.

    Args:
        codec: the vocabulary.
        files: its `vocab.json` and `merges.txt`.
    """
    ids: dict[str, int] = json.loads(files["vocab.json"])
    merges = files["merges.txt"].decode("utf-8").split("\n")[1:]  # without the line of the version
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
    return {
        **{"version": "1.0", "truncation": None, "padding": None},
        "added_tokens": [{"id": id, "content": token, **flags} for token, id in codec.special_tokens.items()],
        **{"normalizer": None, "pre_tokenizer": byte_level, "post_processor": byte_level, "decoder": byte_level},
        "model": {
            **{"type": "BPE", "dropout": None, "unk_token": None, "fuse_unk": False, "byte_fallback": False},
            **{"continuing_subword_prefix": "", "end_of_word_suffix": ""},
            "vocab": {token: id for token, id in ids.items() if token not in codec.special_tokens},
            "merges": [merge for merge in merges if merge],
        },
    }


def _write_shards(
    folder: Path, tensors: Tensors, shapes: dict[str, tuple[int, ...]], dtype: str, max_shard_bytes: int
) -> None:
    width = 4 if dtype == "float32" else 2
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    filled = 0
    for name, shape in shapes.items():
        size = width * math.prod(shape)
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = shape
        filled += size
    if len(shards) == 1:
        tensor_file.write_file(folder / WEIGHTS, tensors, shapes, dtype, {"format": "pt"})
        return
    source: Iterator[tuple[str, np.ndarray]] = iter(tensors)
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        # zip in write_file asks its first argument first, so no shard may take one tensor more than it holds.
        part = (next(source) for _ in shard)
        tensor_file.write_file(folder / name, part, shard, dtype, {"format": "pt"})
        places |= dict.fromkeys(shard, name)
    total = sum(width * math.prod(shape) for shape in shapes.values())
    _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
