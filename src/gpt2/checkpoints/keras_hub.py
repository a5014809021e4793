"""Keras Hub's presets: `config.json` of a GPT2Backbone, `model.weights.h5`, and the vocabulary in `assets/tokenizer`.

Read alone, and without Keras Hub: the config is JSON, of which only numbers are taken, so no class is made and no code
of the preset's runs. HDF5 is read by h5py in a child process, since a damaged file can end the process that reads it;
the child tells where each array lies in the file, and the numbers are then read from there by plain reads. Links,
filters and arrays in pieces are refused; Keras writes none.

Queries, keys and values are three matrices of (C, H, D) there. Names of layers differ between versions of Keras; those
of keras-hub 0.18 and 0.31 have been read, with and without leading underscores. Source: keras_hub `gpt2_backbone.py`,
`transformer_decoder.py`, and keras `saving_lib.py`.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from gpt2.checkpoints import child
from gpt2.checkpoints.contents import Contents, shown
from gpt2.checkpoints.json_file import read_object
from gpt2.checkpoints.names import Tensors, check_shapes, expected_shapes
from gpt2.checkpoints.tensor_file import Entry
from gpt2.codec import Codec
from gpt2.config import GPT2Config
from gpt2.errors import CheckpointFormatError, TensorMismatchError

WEIGHTS = "model.weights.h5"
SHARDS = "model.weights.json"
VOCABULARY = "assets/tokenizer"
FOLDERS = (VOCABULARY,)
"""Below a preset's own folder, what belongs to it."""
_CONFIG_KEYS = {
    **{"n_vocab": "vocabulary_size", "n_ctx": "max_sequence_length", "n_embd": "hidden_dim", "n_head": "num_heads"},
    **{"n_layer": "num_layers"},
}
_CODES = {"<f4": "F32", "<f2": "F16"}
_MAX_OBJECTS, _MAX_DEPTH = 100_000, 12
_PROBE_BYTES = 1024**3
_TOP = {
    **{"token_embedding/0": "wte", "reversible_embedding/0": "wte", "embedding/0": "wte"},
    **{"position_embedding/0": "wpe", "layer_norm/0": "ln_f/g", "layer_norm/1": "ln_f/b"},
    **{"layer_normalization/0": "ln_f/g", "layer_normalization/1": "ln_f/b"},
}
_BLOCK = re.compile(r"transformer_(?:decoder|layer)(?:_(\d{1,4}))?/(.+)")
_NORMS_AND_MLP = {
    **{"self_attention_layer_norm/0": "ln_1/g", "self_attention_layer_norm/1": "ln_1/b"},
    **{"feedforward_layer_norm/0": "ln_2/g", "feedforward_layer_norm/1": "ln_2/b"},
    **{"feedforward_intermediate_dense/0": "mlp/c_fc/w", "feedforward_intermediate_dense/1": "mlp/c_fc/b"},
    **{"feedforward_output_dense/0": "mlp/c_proj/w", "feedforward_output_dense/1": "mlp/c_proj/b"},
    **{"self_attention_layer/output_dense/0": "attn/c_proj/w", "self_attention_layer/output_dense/1": "attn/c_proj/b"},
}
_THIRDS = {
    f"self_attention_layer/{part}_dense/{number}": f"attn/c_attn/{end}/{n}"
    for n, part in enumerate(("query", "key", "value"))
    for number, end in enumerate("wb")
}
"""Of each block; the parts of one matrix have a number behind its name."""
_PARTS = {**_NORMS_AND_MLP, **_THIRDS}


def matches(path: Path) -> bool:
    """Whether a folder is a preset of Keras Hub, of GPT-2 or of anything else."""
    config = path / "config.json"
    return config.is_file() and {"class_name", "config", "registered_name"} <= set(read_object(config))


def open_checkpoint(path: Path, *, quick: bool = True) -> Contents:
    """Read the config and, in a child process, the structure of the weights; which is always quick."""
    config = _config(path / "config.json")
    weights = path / WEIGHTS
    if not weights.is_file():
        several = "; a preset in several files is not read: save it anew with a larger max_shard_size"
        raise CheckpointFormatError(
            f"{path}: expected {WEIGHTS}, found none{several if (path / SHARDS).is_file() else ''}"
        )
    entries = _canonical(child.ask(__name__, weights, "structure"), weights)
    shapes, wholes = _shapes(entries, config)
    check_shapes(config, shapes, source=str(weights))

    def stream() -> Tensors:
        for name, shape in expected_shapes(config).items():
            parts = [entries[part].load() for part in wholes[name]]
            if len(parts) > 1:  # (C, H, D) each, or (H, D): side by side they are what GPT-2 has
                parts = [np.concatenate([part.reshape(*shape[:-1], -1) for part in parts], axis=-1)]
            yield name, parts[0].reshape(shape)

    names = {"F32": "float32", "F16": "float16"}
    return Contents(config, ", ".join(sorted({names[entry.dtype] for entry in entries.values()})), stream)


def codec(path: Path) -> Codec | None:
    """The vocabulary in the preset, or None if it has none.

    Raises:
        CodecError: a file of it is broken.
    """
    return Codec.from_files(path / VOCABULARY / "merges.txt", path / VOCABULARY / "vocabulary.json")


def _config(path: Path) -> GPT2Config:
    settings = read_object(path)
    if settings["class_name"] != "GPT2Backbone":
        raise CheckpointFormatError(f"{path}: expected class_name GPT2Backbone, got {shown(settings['class_name'])}")
    inner = settings["config"]
    if not isinstance(inner, dict):
        raise CheckpointFormatError(f"{path}: config: expected an object, got {shown(inner)}")
    values: dict[str, Any] = {ours: inner[theirs] for ours, theirs in _CONFIG_KEYS.items() if theirs in inner}
    names = ", ".join(f"{theirs} is {ours}" for ours, theirs in _CONFIG_KEYS.items())
    config = GPT2Config.from_dict(values, source=f"{path} ({names})")
    width = inner.get("intermediate_dim")
    if width != 4 * config.n_embd:
        raise CheckpointFormatError(f"{path}: intermediate_dim: expected {4 * config.n_embd}, got {shown(width)}")
    return config


def _canonical(found: list[list[Any]], path: Path) -> dict[str, Entry]:
    """Canonical names, with a number behind those of parts; what is no GPT-2's stays as it is, for the message."""
    size = path.stat().st_size
    entries: dict[str, Entry] = {}
    for place, dtype, shape, offset in found:
        if dtype not in _CODES:
            raise CheckpointFormatError(f"{path}: {shown(place)}: expected float32 or float16, got {shown(dtype)}")
        if offset + math.prod(shape) * int(dtype[2]) > size:
            raise CheckpointFormatError(f"{path}: {shown(place)}: expected an array within the file")
        name = _name(place)
        if name in entries:
            raise TensorMismatchError(f"{path}: {shown(name)} stands twice")
        entries[name] = Entry(path, _CODES[dtype], tuple(shape), offset)
    if sum(math.prod(entry.shape) for entry in entries.values()) * 2 > size:
        raise CheckpointFormatError(f"{path}: expected arrays that do not overlap")
    return entries


def _name(place: str) -> str:
    parts = [part.lstrip("_") for part in place.split("/") if part != "vars"]
    while parts and parts[0] in ("backbone", "layers", "layer_checkpoint_dependencies"):
        parts = parts[1:]
    name = "/".join(parts)
    block = _BLOCK.fullmatch(name)
    if block and block[2] in _PARTS:
        return f"h{int(block[1] or 0)}/{_PARTS[block[2]]}"
    return _TOP.get(name, place)


def _shapes(entries: dict[str, Entry], config: GPT2Config) -> tuple[dict[str, tuple[int, ...]], dict[str, list[str]]]:
    """Shapes as GPT-2 has them where the arrays allow it, and the entries that each tensor is made of."""
    heads = (config.n_head, config.head_size)
    expected = expected_shapes(config)
    shapes = {name: entry.shape for name, entry in entries.items()}
    wholes = {name: [name] for name in expected}
    for name in expected:
        if name.endswith(("attn/c_attn/w", "attn/c_attn/b")):
            wholes[name] = [f"{name}/{n}" for n in range(3)]
            wanted = (*expected[name][:-1], *heads)
            if all(shapes.get(part) == wanted for part in wholes[name]):
                for part in wholes[name]:
                    del shapes[part]
                shapes[name] = expected[name]
        elif name.endswith("attn/c_proj/w") and shapes.get(name) == (*heads, config.n_embd):
            shapes[name] = expected[name]
    return shapes, wholes


def answer(path: Path, word: str) -> list[list[Any]]:
    """In the child: the name, type, shape and place of every array in an HDF5 file.

    Raises:
        ValueError: it holds what Keras does not write.
    """
    import h5py

    child.limit_memory(_PROBE_BYTES)
    found: list[list[Any]] = []
    seen = 0

    def walk(group: Any, above: str, depth: int) -> None:
        nonlocal seen
        for key in group:
            seen += 1
            place = f"{above}/{key}".lstrip("/")
            if seen > _MAX_OBJECTS or depth > _MAX_DEPTH:
                raise ValueError("expected fewer and flatter groups")
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                raise ValueError(f"{place[:80]!r}: links are refused, since they lead elsewhere")
            item = group[key]
            if isinstance(item, h5py.Group):
                walk(item, place, depth + 1)
                continue
            if not isinstance(item, h5py.Dataset):
                raise ValueError(f"{place[:80]!r}: expected groups and arrays alone")
            layout = item.id.get_create_plist()
            if layout.get_layout() != h5py.h5d.CONTIGUOUS or layout.get_nfilters() or layout.get_external_count():
                raise ValueError(f"{place[:80]!r}: expected an array in one piece, in this file and not compressed")
            offset = item.id.get_offset()
            if offset is None:
                raise ValueError(f"{place[:80]!r}: expected numbers, got an array without any")
            found.append([place, item.dtype.str, [int(n) for n in item.shape], int(offset)])

    with h5py.File(path, "r") as file:
        walk(file, "", 0)
    return found
