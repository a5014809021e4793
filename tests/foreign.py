"""Files of other programs, written as these programs write them and with nothing of ours: for tests of reading them."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from gpt2.config import GPT2Config
from oracle import Arrays

# GGUF

GGUF_NAMES = {
    "ln_1": "attn_norm",
    "ln_2": "ffn_norm",
    "attn/c_attn": "attn_qkv",
    "attn/c_proj": "attn_output",
    "mlp/c_fc": "ffn_up",
    "mlp/c_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    top = {"wte": "token_embd.weight", "wpe": "position_embd.weight", "ln_f/g": "output_norm.weight"}
    if name in top:
        return top[name]
    if name == "ln_f/b":
        return "output_norm.bias"
    layer, _, part = name.partition("/")
    kind, _, end = part.rpartition("/")
    return f"blk.{layer[1:]}.{GGUF_NAMES[kind]}.{'bias' if end == 'b' else 'weight'}"


def gguf_arrays(tensors: Arrays) -> Arrays:
    """Names and orientation as llama.cpp's converter gives them."""
    return {gguf_name(name): array.T if name.endswith("/w") else array for name, array in tensors.items()}


def gguf_keys(config: GPT2Config) -> dict[str, Any]:
    return {
        "general.architecture": "gpt2",
        "gpt2.context_length": config.n_ctx,
        "gpt2.embedding_length": config.n_embd,
        "gpt2.block_count": config.n_layer,
        "gpt2.feed_forward_length": 4 * config.n_embd,
        "gpt2.attention.head_count": config.n_head,
        "gpt2.attention.layer_norm_epsilon": 1e-5,
    }


def gguf_bytes(keys: dict[str, Any], tensors: dict[str, tuple[int, tuple[int, ...], bytes]], version: int = 3) -> bytes:
    """A file from keys and tensors: name -> (type, shape with rows first, bytes)."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    def value(item: Any) -> bytes:
        if isinstance(item, str):
            return struct.pack("<I", 8) + text(item)
        if isinstance(item, bool):
            return struct.pack("<I?", 7, item)
        if isinstance(item, int):
            return struct.pack("<II", 4, item)
        if isinstance(item, float):
            return struct.pack("<If", 6, item)
        kind = 8 if isinstance(item[0], str) else 5
        parts = [text(part) if kind == 8 else struct.pack("<i", part) for part in item]
        return struct.pack("<IIQ", 9, kind, len(item)) + b"".join(parts)

    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys))
    head += b"".join(text(name) + value(item) for name, item in keys.items())
    data = b""
    for name, (kind, shape, raw) in tensors.items():
        head += text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *reversed(shape))
        head += struct.pack("<IQ", kind, len(data))
        data += raw + b"\0" * (-len(raw) % 32)
    return head + b"\0" * (-len(head) % 32) + data


def gguf_f32(arrays: Arrays) -> dict[str, tuple[int, tuple[int, ...], bytes]]:
    return {name: (0, array.shape, np.ascontiguousarray(array, "<f4").tobytes()) for name, array in arrays.items()}


def write_gguf(path: Path, config: GPT2Config, tensors: Arrays, **keys: Any) -> Path:
    path.write_bytes(gguf_bytes({**gguf_keys(config), **keys}, gguf_f32(gguf_arrays(tensors))))
    return path


# llm.c


def llmc_bytes(config: GPT2Config, tensors: Arrays, version: int = 3, padding: int = 3) -> bytes:
    header = np.zeros(256, "<i4")
    header[:8] = [
        *(20240326, version, config.n_ctx, config.n_vocab, config.n_layer, config.n_head, config.n_embd),
        config.n_vocab + padding,
    ]
    parts = [np.pad(tensors["wte"], ((0, padding), (0, 0))), tensors["wpe"]]
    for kind in (
        *("ln_1/g", "ln_1/b", "attn/c_attn/w", "attn/c_attn/b", "attn/c_proj/w", "attn/c_proj/b"),
        *("ln_2/g", "ln_2/b", "mlp/c_fc/w", "mlp/c_fc/b", "mlp/c_proj/w", "mlp/c_proj/b"),
    ):
        for n in range(config.n_layer):
            array = tensors[f"h{n}/{kind}"]
            parts.append(array.T if kind.endswith("/w") else array)
    parts += [tensors["ln_f/g"], tensors["ln_f/b"]]
    dtype = np.dtype("<f4") if version == 3 else np.dtype(ml_dtypes.bfloat16)
    return header.tobytes() + b"".join(np.ascontiguousarray(part, dtype).tobytes() for part in parts)


# nanoGPT


def nano_name(name: str) -> str:
    top = {"wte": "wte.weight", "wpe": "wpe.weight", "ln_f/g": "ln_f.weight", "ln_f/b": "ln_f.bias"}
    if name in top:
        return f"transformer.{top[name]}"
    layer, _, part = name.partition("/")
    kind, _, end = part.rpartition("/")
    return f"transformer.h.{layer[1:]}.{kind.replace('/', '.')}.{'bias' if end == 'b' else 'weight'}"


def nano_args(config: GPT2Config, **changes: Any) -> dict[str, Any]:
    return {
        **{"n_layer": config.n_layer, "n_head": config.n_head, "n_embd": config.n_embd},
        **{"block_size": config.n_ctx, "bias": True, "vocab_size": config.n_vocab, "dropout": 0.0, **changes},
    }


def nano_arrays(tensors: Arrays) -> Arrays:
    """Names and orientation as nanoGPT's state dict has them."""
    named = {nano_name(name): array.T if name.endswith("/w") else array for name, array in tensors.items()}
    return {**named, "lm_head.weight": tensors["wte"]}


class Raw(bytes):
    """Opcodes that stand in a pickle as they are."""


def pickled(value: Any, storages: list[np.ndarray]) -> bytes:
    """The opcodes of protocol 2 for plain values and, as torch writes them, for arrays, which go to `storages`."""

    def put(item: Any) -> bytes:
        if isinstance(item, Raw):
            return bytes(item)
        if item is None or isinstance(item, bool):
            return {None: b"N", True: b"\x88", False: b"\x89"}[item]
        if isinstance(item, int):
            return b"J" + struct.pack("<i", item)
        if isinstance(item, float):
            return b"G" + struct.pack(">d", item)
        if isinstance(item, str):
            return b"X" + struct.pack("<I", len(item.encode())) + item.encode()
        if isinstance(item, tuple):
            return b"(" + b"".join(map(put, item)) + b"t"
        if isinstance(item, list):
            return b"](" + b"".join(map(put, item)) + b"e"
        if isinstance(item, dict):
            return b"}(" + b"".join(put(key) + put(entry) for key, entry in item.items()) + b"u"
        number = next((n for n, storage in enumerate(storages) if storage is item), len(storages))
        if number == len(storages):
            storages.append(item)
        kind = {"float32": b"Float", "float16": b"Half", "bfloat16": b"BFloat16", "float64": b"Double"}[str(item.dtype)]
        strides = tuple(int(np.prod(item.shape[n + 1 :], dtype=int)) for n in range(item.ndim))
        storage = b"(" + put("storage") + b"ctorch\n" + kind + b"Storage\n" + put(str(number)) + put("cpu")
        storage += put(item.size) + b"tQ"
        rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + put(0) + put(tuple(item.shape)) + put(strides)
        return rebuild + b"\x89ccollections\nOrderedDict\n)RtR"

    return b"\x80\x02" + put(value) + b"."


def torch_file(path: Path, value: Any, **options: Any) -> Path:
    """A file as `torch.save` writes it; or `data=` some bytes in place of the pickle, `compress=` the entries."""
    storages: list[np.ndarray] = []
    data = pickled(value, storages)
    data = options.get("data", data)
    kind = zipfile.ZIP_DEFLATED if options.get("compress") else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", kind) as file:
        file.writestr("ckpt/data.pkl", data)
        file.writestr("ckpt/byteorder", options.get("byteorder", "little"))
        for number, array in enumerate(storages):
            file.writestr(f"ckpt/data/{number}", np.ascontiguousarray(array).tobytes())
        file.writestr("ckpt/version", "3\n")
    return path


def write_nano(path: Path, config: GPT2Config, tensors: Arrays, prefix: str = "", **args: Any) -> Path:
    arrays = {prefix + name: array for name, array in nano_arrays(tensors).items()}
    settings: dict[str, Any] = {"iter_num": 5, "best_val_loss": np.float32([1.5])[0:1], "config": {"dataset": "x"}}
    optimizer = {"state": {0: {"step": np.ones(1, np.float32)}}, "param_groups": [{"lr": 1e-3, "params": [0, 1]}]}
    torch_file(path, {"model": arrays, "optimizer": optimizer, "model_args": nano_args(config, **args), **settings})
    return path


# Keras Hub


def keras_hub_arrays(config: GPT2Config, tensors: Arrays) -> Arrays:
    """Paths and shapes as keras-hub 0.18 to 0.31 write them with Keras 3.15."""
    heads = (config.n_head, config.head_size)
    arrays = {
        "layers/reversible_embedding/vars/0": tensors["wte"],
        "layers/position_embedding/vars/0": tensors["wpe"],
        "layers/layer_normalization/vars/0": tensors["ln_f/g"],
        "layers/layer_normalization/vars/1": tensors["ln_f/b"],
    }
    for n in range(config.n_layer):
        block = f"layers/transformer_decoder{f'_{n}' if n else ''}"
        for layer, kind, weight in (
            *(("_self_attention_layer_norm", "ln_1", "g"), ("_feedforward_layer_norm", "ln_2", "g")),
            *(("_feedforward_intermediate_dense", "mlp/c_fc", "w"), ("_feedforward_output_dense", "mlp/c_proj", "w")),
        ):
            arrays[f"{block}/{layer}/vars/0"] = tensors[f"h{n}/{kind}/{weight}"]
            arrays[f"{block}/{layer}/vars/1"] = tensors[f"h{n}/{kind}/b"]
        attention = f"{block}/_self_attention_layer"
        thirds_w = np.split(tensors[f"h{n}/attn/c_attn/w"], 3, axis=1)
        thirds_b = np.split(tensors[f"h{n}/attn/c_attn/b"], 3)
        for part, w, b in zip(("query", "key", "value"), thirds_w, thirds_b, strict=True):
            arrays[f"{attention}/{part}_dense/vars/0"] = w.reshape(config.n_embd, *heads)
            arrays[f"{attention}/{part}_dense/vars/1"] = b.reshape(heads)
        arrays[f"{attention}/output_dense/vars/0"] = tensors[f"h{n}/attn/c_proj/w"].reshape(*heads, config.n_embd)
        arrays[f"{attention}/output_dense/vars/1"] = tensors[f"h{n}/attn/c_proj/b"]
    return arrays


def keras_hub_config(config: GPT2Config, **changes: Any) -> dict[str, Any]:
    inner = {
        **{"name": "gpt2_backbone", "trainable": True, "vocabulary_size": config.n_vocab},
        **{"num_layers": config.n_layer, "num_heads": config.n_head, "hidden_dim": config.n_embd},
        **{"intermediate_dim": 4 * config.n_embd, "dropout": 0.1, "max_sequence_length": config.n_ctx, **changes},
    }
    names = {"module": "keras_hub.src.models.gpt2.gpt2_backbone", "class_name": "GPT2Backbone"}
    return {**names, "config": inner, "registered_name": "keras_hub>GPT2Backbone"}


def write_keras_hub(folder: Path, config: GPT2Config, arrays: Arrays, **options: Any) -> Path:
    import h5py

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(keras_hub_config(config)))
    with h5py.File(folder / "model.weights.h5", "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array, **options)
    return folder
