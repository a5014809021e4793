"""GGUF, the one file that llama.cpp and what stands on it (llama-cpp-python, Ollama, LM Studio) run; needs `gguf`.

Names, keys and what stays in float32 (vectors, and the position embedding) are those of llama.cpp's own
`convert_hf_to_gguf.py`; matrices are stored (out, in). The head is the token embedding, which stands in the file once.
One tensor at a time is in memory.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from gpt2.checkpoints.names import Tensors, expected_shapes
from gpt2.codec import Codec
from gpt2.config import LAYER_NORM_EPSILON, GPT2Config
from gpt2.errors import CheckpointFormatError

MAGIC = b"GGUF"
TYPES = {"float32": "F32", "float16": "F16", "q8_0": "Q8_0", "q4_0": "Q4_0"}
"""How matrices are stored -> ggml's name for it."""

_FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7}  # llama.cpp's LLAMA_FTYPE_*
_TOP = {
    "wte": "token_embd.weight",
    "wpe": "position_embd.weight",
    "ln_f/g": "output_norm.weight",
    "ln_f/b": "output_norm.bias",
}
_PARTS = {
    "ln_1": "attn_norm",
    "attn/c_attn": "attn_qkv",
    "attn/c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp/c_fc": "ffn_up",
    "mlp/c_proj": "ffn_down",
}
_NORMAL, _CONTROL, _UNUSED = 1, 3, 5  # llama.cpp's kinds of tokens


def gguf_name(name: str) -> str:
    """The name that llama.cpp gives a tensor.

    >>> gguf_name("h0/attn/c_attn/w")
    'blk.0.attn_qkv.weight'
    """
    if name in _TOP:
        return _TOP[name]
    layer, rest = name.split("/", 1)
    part, letter = rest.rsplit("/", 1)
    return f"blk.{layer[1:]}.{_PARTS[part]}.{'bias' if letter == 'b' else 'weight'}"


def is_gguf(path: Path) -> bool:
    """Whether a file begins as this format does."""
    with path.open("rb") as file:
        return file.read(4) == MAGIC


def write(path: Path, config: GPT2Config, tensors: Tensors, codec: Codec | None, dtype: str) -> None:
    """Write a file.

    Args:
        path: the file.
        config: the shape.
        tensors: all of them under canonical names, in the order of `names.expected_shapes`.
        codec: the vocabulary; without one, llama.cpp takes and gives token ids alone.
        dtype: of the matrices, one of `TYPES`. Where a row is no multiple of ggml's blocks of 32, q8_0 and q4_0 become
            float16 for that matrix, as llama.cpp does it.

    Raises:
        CheckpointFormatError: a number beyond float16.
    """
    import gguf

    shapes = expected_shapes(config)
    kinds = {name: _type(name, shape, TYPES[dtype]) for name, shape in shapes.items()}
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_name(f"GPT-2, {config.num_parameters:,} parameters")
    writer.add_file_type(_FILE_TYPES[TYPES[dtype]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(config.n_ctx)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(4 * config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(LAYER_NORM_EPSILON)
    writer.add_vocab_size(config.n_vocab)
    _add_vocabulary(writer, config, codec)
    for name, shape in shapes.items():
        rows = shape[::-1] if _is_matrix(name) else shape
        kind = gguf.GGMLQuantizationType[kinds[name]]
        block, size = gguf.GGML_QUANT_SIZES[kind]
        writer.add_tensor_info(
            gguf_name(name), rows, np.dtype(np.float32), math.prod(shape) // block * size, raw_dtype=kind
        )
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, array in tensors:
            stored = np.ascontiguousarray(array.T) if _is_matrix(name) else array
            with np.errstate(over="ignore"):
                packed = gguf.quants.quantize(stored, gguf.GGMLQuantizationType[kinds[name]])
            if kinds[name] == "F16" and not np.isfinite(packed).all():
                raise CheckpointFormatError(f"{path.name}: {name} holds numbers beyond float16 (65504)")
            writer.write_tensor_data(packed)
    finally:
        writer.close()


def _is_matrix(name: str) -> bool:
    """Whether a tensor is a linear layer's weight, (in, out) here."""
    return name.endswith("/w")


def _type(name: str, shape: tuple[int, ...], wanted: str) -> str:
    """How a tensor is stored."""
    if not (name == "wte" or _is_matrix(name)):
        return "F32"
    row = shape[0] if _is_matrix(name) else shape[1]
    return "F16" if wanted.startswith("Q") and row % 32 else wanted


def _add_vocabulary(writer: Any, config: GPT2Config, codec: Codec | None) -> None:
    if codec is None:
        writer.add_tokenizer_model("no_vocab")
        return
    files = codec.files("huggingface")
    spelled = {id: token for token, id in json.loads(files["vocab.json"]).items()}
    special = set(codec.special_tokens.values())
    ids = range(config.n_vocab)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([spelled.get(id, f"[PAD{id}]") for id in ids])  # as llama.cpp fills up a padded vocabulary
    writer.add_token_types([_CONTROL if id in special else _NORMAL if id in spelled else _UNUSED for id in ids])
    first, *lines = files["merges.txt"].decode("utf-8").split("\n")
    assert first.startswith("#version")
    writer.add_token_merges([line for line in lines if line])
    if codec.end_of_text is not None:
        writer.add_bos_token_id(codec.end_of_text)
        writer.add_eos_token_id(codec.end_of_text)
        writer.add_unk_token_id(codec.end_of_text)
    writer.add_add_bos_token(False)
