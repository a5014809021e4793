"""GGUF, the format of llama.cpp: one file with hyperparameters, vocabulary and tensors, often quantized.

Read alone, and here: `gpt2.exports` writes it. The parser is ours because it has to be safe against files that somebody
built: every length is compared with what is left of the file before anything of that length is made, and numbers are
read a piece at a time. The `gguf` package has neither bound, and makes an object of every token.

The matrices are (out, in) there, so they are turned around; nothing else differs from Hugging Face's model. Source: the
GGUF specification (ggml `docs/gguf.md`), `GPT2Model` in llama.cpp's `convert_hf_to_gguf.py` for names and orientation,
and `ggml-quants.c` for the blocks.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from gpt2.checkpoints.contents import Contents, shown
from gpt2.checkpoints.names import Tensors, check_shapes, expected_shapes
from gpt2.checkpoints.single_file import begins_with, only_file
from gpt2.codec import Codec
from gpt2.config import LAYER_NORM_EPSILON, GPT2Config
from gpt2.errors import CheckpointFormatError, CodecError, TensorMismatchError

MAGIC = b"GGUF"
SUFFIXES = (".gguf",)
MAX_KEYS, MAX_TENSORS, MAX_STRING = 10_000, 100_000, 16 * 1024 * 1024
_MAX_ARRAY = 20_000_000
_PIECE = 1 << 20
"""Numbers that are made of blocks at a time."""

_CONFIG_KEYS = {
    **{"n_ctx": "gpt2.context_length", "n_embd": "gpt2.embedding_length"},
    **{"n_head": "gpt2.attention.head_count", "n_layer": "gpt2.block_count"},
}
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9

_TOP = {
    **{"wte": "token_embd.weight", "wpe": "position_embd.weight"},
    **{"ln_f/g": "output_norm.weight", "ln_f/b": "output_norm.bias"},
}
_PARTS = {
    **{
        f"{norm}/{ours}": f"{theirs}.{kind}"
        for norm, theirs in (("ln_1", "attn_norm"), ("ln_2", "ffn_norm"))
        for ours, kind in (("g", "weight"), ("b", "bias"))
    },
    **{
        f"{layer}/{ours}": f"{theirs}.{kind}"
        for layer, theirs in (
            ("attn/c_attn", "attn_qkv"),
            ("attn/c_proj", "attn_output"),
            ("mlp/c_fc", "ffn_up"),
            ("mlp/c_proj", "ffn_down"),
        )
        for ours, kind in (("w", "weight"), ("b", "bias"))
    },
}
HEAD = "output.weight"
_HEAD_TOLERANCE = 0.15
"""How far two quantizations of one matrix may be apart, as a share of its size; 4 bits are 7 to 9 % off."""


@dataclass(frozen=True)
class _Type:
    """How numbers of one ggml type are stored."""

    name: str
    block: int
    """Numbers in a block."""
    bytes: int
    """Of a block."""
    decode: Callable[[np.ndarray], np.ndarray]
    """Blocks (N, bytes) uint8 to numbers (N, block) float32."""


@dataclass(frozen=True)
class _Tensor:
    path: Path
    name: str
    type: _Type
    shape: tuple[int, ...]
    """Rows first, as NumPy has it; the file has the reverse."""
    offset: int
    """Bytes from the file's beginning."""

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) // self.type.block * self.type.bytes

    def load(self) -> np.ndarray:
        """All numbers, float32."""
        result = np.empty(math.prod(self.shape), np.float32)
        step = _PIECE // self.type.block
        blocks = result.size // self.type.block
        for first in range(0, blocks, step):
            count = min(step, blocks - first)
            place = self.offset + first * self.type.bytes
            raw = np.fromfile(self.path, np.uint8, count * self.type.bytes, offset=place)
            if raw.size != count * self.type.bytes:
                raise CheckpointFormatError(f"{self.path}: {self.name} is cut short")
            numbers = self.type.decode(raw.reshape(count, self.type.bytes))
            result[first * self.type.block : (first + count) * self.type.block] = numbers.reshape(-1)
        return result.reshape(self.shape)


@dataclass(frozen=True)
class _File:
    path: Path
    keys: dict[str, Any]
    tensors: dict[str, _Tensor]


def matches(path: Path) -> bool:
    """Whether it is a GGUF file, or a folder that holds one."""
    return begins_with(path, SUFFIXES, MAGIC)


def open_checkpoint(path: Path, *, quick: bool = True) -> Contents:
    """Read the header and compare tensors with hyperparameters, which is always quick."""
    found = _read(only_file(path, SUFFIXES, MAGIC))
    path = found.path
    tensors = _canonical(found.tensors)
    config = _config(found, tensors)
    head = tensors.pop(HEAD, None)
    shapes = {name: t.shape[::-1] if name.endswith("/w") else t.shape for name, t in tensors.items()}
    check_shapes(config, shapes, source=str(path))
    if head is not None:
        tensors["wte"] = _tied(tensors["wte"], head)

    def stream() -> Tensors:
        for name in expected_shapes(config):
            array = tensors[name].load()
            yield name, array.T if name.endswith("/w") else array

    types = sorted({tensor.type.name for tensor in tensors.values()})
    names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    return Contents(config, ", ".join(names.get(name, name) for name in types), stream)


def codec(path: Path) -> Codec | None:
    """The vocabulary in the file, or None if it has none.

    Raises:
        CodecError: it is no byte-level BPE that cuts text as GPT-2 does.
    """
    found = _read(only_file(path, SUFFIXES, MAGIC))
    keys, where = found.keys, f"{found.path}: tokenizer.ggml"
    if "tokenizer.ggml.model" not in keys or keys["tokenizer.ggml.model"] in ("none", "no_vocab"):
        return None
    if keys["tokenizer.ggml.model"] != "gpt2":
        raise CodecError(f"{where}.model: expected gpt2, got {shown(keys['tokenizer.ggml.model'])}")
    cut = keys.get("tokenizer.ggml.pre", "gpt-2")
    if cut not in ("gpt-2", "default"):
        raise CodecError(f"{where}.pre: expected gpt-2, which cuts text before merging, got {shown(cut)}")
    tokens: Any = keys.get("tokenizer.ggml.tokens")
    merges: Any = keys.get("tokenizer.ggml.merges")
    kinds = keys.get("tokenizer.ggml.token_type") or [1] * len(tokens or ())
    if not _are_strings(tokens) or not _are_strings(merges) or not isinstance(kinds, list) or len(kinds) != len(tokens):
        raise CodecError(f"{where}: expected tokens, merges and as many token_types as tokens")
    ids = {token: n for n, (token, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind != _UNUSED}
    if len(ids) != sum(kind != _UNUSED for kind in kinds):
        raise CodecError(f"{where}.tokens: expected a different text for each id, got one twice")
    return Codec.from_merges("\n".join(merges), ids, name=str(found.path))


_UNUSED = 5
"""The token type of what pads a vocabulary."""


def _are_strings(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)


def _canonical(tensors: dict[str, _Tensor]) -> dict[str, _Tensor]:
    """Canonical names; those that are no GPT-2's stay as they are, for the message that will list them."""
    ours = {theirs: name for name, theirs in _TOP.items()}
    parts = {theirs: name for name, theirs in _PARTS.items()}
    renamed = {}
    for name, tensor in tensors.items():
        block, _, rest = name.removeprefix("blk.").partition(".")
        is_part = name.startswith("blk.") and re.fullmatch(r"0|[1-9]\d{0,5}", block) and rest in parts
        renamed[f"h{block}/{parts[rest]}" if is_part else ours.get(name, name)] = tensor
    return renamed


def _config(found: _File, tensors: dict[str, _Tensor]) -> GPT2Config:
    keys, path = found.keys, found.path
    architecture = keys.get("general.architecture")
    if architecture != "gpt2":
        raise CheckpointFormatError(f"{path}: general.architecture: expected gpt2, got {shown(architecture)}")
    if keys.get("split.count", 1) not in (0, 1):
        raise CheckpointFormatError(f"{path}: expected a whole model, got one of {shown(keys['split.count'])} parts")
    wte = tensors.get("wte")
    if wte is None or len(wte.shape) != 2:
        raise TensorMismatchError(f"{path}: missing wte (token_embd.weight), or not of two axes")
    values = {"n_vocab": wte.shape[0]}
    for ours, theirs in _CONFIG_KEYS.items():
        if type(keys.get(theirs)) is not int:
            raise CheckpointFormatError(f"{path}: {theirs}: expected an integer, got {shown(keys.get(theirs))}")
        values[ours] = keys[theirs]
    config = GPT2Config.from_dict(values, source=f"{path}: gpt2.*")
    inner = keys.get("gpt2.feed_forward_length", 4 * config.n_embd)
    if inner != 4 * config.n_embd:
        raise CheckpointFormatError(
            f"{path}: gpt2.feed_forward_length: expected {4 * config.n_embd}, got {shown(inner)}"
        )
    epsilon = keys.get("gpt2.attention.layer_norm_epsilon", LAYER_NORM_EPSILON)
    if not isinstance(epsilon, float) or not math.isclose(epsilon, LAYER_NORM_EPSILON, rel_tol=1e-6):
        raise CheckpointFormatError(
            f"{path}: gpt2.attention.layer_norm_epsilon: expected {LAYER_NORM_EPSILON}, got {shown(epsilon)}"
        )
    return config


def _tied(wte: _Tensor, head: _Tensor) -> _Tensor:
    """The better of two that hold one matrix: quantizing programs give the head more bits than the embedding.

    Raises:
        TensorMismatchError: they hold different ones, and in a GPT-2 the head is tied.
    """
    if head.shape != wte.shape:
        raise TensorMismatchError(f"{head.path}: {HEAD}: expected shape {list(wte.shape)}, got {list(head.shape)}")
    a, b = wte.load(), head.load()
    b -= a
    size, apart = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    allowed = 0.0 if head.type is wte.type else _HEAD_TOLERANCE * size
    if not apart <= allowed:
        raise TensorMismatchError(
            f"{head.path}: expected {HEAD} to equal token_embd.weight (the head is tied), got another"
        )
    bits = [tensor.type.bytes / tensor.type.block for tensor in (wte, head)]
    return head if bits[1] > bits[0] else wte


# The header


class _Reader:
    """Reads a file from its beginning, never past its end."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file = path, file
        self.left = path.stat().st_size

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise self.broken(f"expected {count:,} bytes more, got {self.left:,}")
        self.left -= count
        data = self.file.read(count)
        if len(data) != count:
            raise self.broken("it became shorter")
        return data

    def number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def string(self, limit: int = MAX_STRING) -> str:
        length = self.number("Q")
        if length > limit:
            raise self.broken(f"expected strings of up to {limit:,} bytes, got {length:,}")
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError:
            raise self.broken("expected UTF-8 strings") from None

    def value(self) -> Any:
        kind = self.number("I")
        if kind == _STRING:
            return self.string()
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind != _ARRAY:
            raise self.broken(f"expected a type of metadata from 0 to 12, got {kind}")
        kind, count = self.number("I"), self.number("Q")
        width = 8 if kind == _STRING else struct.calcsize(f"<{_SCALARS[kind]}") if kind in _SCALARS else 0
        if not width or count > min(_MAX_ARRAY, self.left // width):
            raise self.broken(f"expected an array of numbers or strings that fits, got {count:,} of type {kind}")
        if kind == _STRING:
            return [self.string() for _ in range(count)]
        return np.frombuffer(self.take(count * width), f"<{_SCALARS[kind]}").tolist()

    def broken(self, message: str) -> CheckpointFormatError:
        return CheckpointFormatError(f"{self.path}: header: {message}")


def _read(path: Path) -> _File:
    """Everything but the numbers.

    Raises:
        CheckpointFormatError: not a sound GGUF file, or a type of tensor that is not read.
    """
    with path.open("rb") as file:
        reader = _Reader(path, file)
        size = reader.left
        reader.take(len(MAGIC))
        version = reader.number("I")
        if version not in (2, 3):
            raise reader.broken(f"expected version 2 or 3, little-endian, got {version}")
        tensor_count, key_count = reader.number("Q"), reader.number("Q")
        if tensor_count > MAX_TENSORS or key_count > MAX_KEYS:
            raise reader.broken(f"expected up to {MAX_TENSORS:,} tensors and {MAX_KEYS:,} keys")
        keys: dict[str, Any] = {}
        for _ in range(key_count):
            name = reader.string(65535)
            if name in keys:
                raise reader.broken(f"{shown(name)} stands twice")
            keys[name] = reader.value()
        places = []
        for _ in range(tensor_count):
            name, axes = reader.string(65535), reader.number("I")
            if not 1 <= axes <= 4:
                raise reader.broken(f"{shown(name)}: expected 1 to 4 axes, got {axes}")
            shape = tuple(reader.number("Q") for _ in range(axes))[::-1]
            places.append((name, shape, reader.number("I"), reader.number("Q")))
        alignment = keys.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 1 <= alignment <= 65536 or alignment % 8:
            raise reader.broken(f"general.alignment: expected a multiple of 8 up to 65,536, got {shown(alignment)}")
        begin = -(-(size - reader.left) // alignment) * alignment
    tensors: dict[str, _Tensor] = {}
    for name, shape, code, offset in places:
        if name in tensors:
            raise reader.broken(f"{shown(name)} stands twice")
        if code not in _TYPES:
            known = ", ".join(kind.name for kind in _TYPES.values())
            raise CheckpointFormatError(
                f"{path}: {shown(name)}: expected one of the types {known}, got {_OTHER_TYPES.get(code, code)}; "
                "quantize the model again as one of these"
            )
        kind = _TYPES[code]
        if 0 in shape or shape[-1] % kind.block:
            raise reader.broken(f"{shown(name)}: expected rows of a multiple of {kind.block}, got {list(shape)}")
        tensor = _Tensor(path, name, kind, shape, begin + offset)
        if offset % alignment or tensor.offset + tensor.bytes > size:
            raise reader.broken(f"{shown(name)}: expected numbers within the file, got {tensor.bytes:,} at {offset:,}")
        tensors[name] = tensor
    # One range of numbers for many tensors would make much of a small file.
    if sum(tensor.bytes for tensor in tensors.values()) > size:
        raise reader.broken("expected tensors that do not overlap")
    return _File(path, keys, tensors)


# The blocks: (N, bytes) uint8 -> (N, block) float32


def _halves(blocks: np.ndarray, first: int) -> np.ndarray:
    """A float16 from each block, (N, 1) float32."""
    return np.ascontiguousarray(blocks[:, first : first + 2]).view("<f2").astype(np.float32)


def _nibbles(quants: np.ndarray) -> np.ndarray:
    """(N, K) bytes to (N, 2 K) numbers of 4 bits: first all low ones, then all high ones."""
    return np.concatenate([quants & 15, quants >> 4], axis=1)


def _q4_0(blocks: np.ndarray) -> np.ndarray:
    return (_nibbles(blocks[:, 2:]).astype(np.int8) - 8).astype(np.float32) * _halves(blocks, 0)


def _q4_1(blocks: np.ndarray) -> np.ndarray:
    return _nibbles(blocks[:, 4:]).astype(np.float32) * _halves(blocks, 0) + _halves(blocks, 2)


def _fifth_bits(packed: np.ndarray) -> np.ndarray:
    """4 bytes to 32 numbers, each 0 or 16."""
    return np.unpackbits(packed, axis=1, bitorder="little") << 4


def _q5_0(blocks: np.ndarray) -> np.ndarray:
    quants = (_nibbles(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6])).astype(np.int8)
    return (quants - 16).astype(np.float32) * _halves(blocks, 0)


def _q5_1(blocks: np.ndarray) -> np.ndarray:
    quants = _nibbles(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8])
    return quants.astype(np.float32) * _halves(blocks, 0) + _halves(blocks, 2)


def _q8_0(blocks: np.ndarray) -> np.ndarray:
    return blocks[:, 2:].view(np.int8).astype(np.float32) * _halves(blocks, 0)


def _scales_of_k(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """12 bytes to 8 scales and 8 minima of 6 bits each."""
    low, middle, high = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([low & 63, (high & 15) | ((low >> 6) << 4)], axis=1)
    minima = np.concatenate([middle & 63, (high >> 4) | ((middle >> 6) << 4)], axis=1)
    return scales.astype(np.float32), minima.astype(np.float32)


def _k_blocks(blocks: np.ndarray, quants: np.ndarray) -> np.ndarray:
    """Quants (N, 8, 32) with the scales at the front of their blocks."""
    scales, minima = _scales_of_k(blocks[:, 4:16])
    steps, floors = _halves(blocks, 0) * scales, _halves(blocks, 2) * minima
    return (steps[:, :, None] * quants.astype(np.float32) - floors[:, :, None]).reshape(len(blocks), 256)


def _by_nibble(quants: np.ndarray) -> np.ndarray:
    """128 bytes to (N, 8, 32): of every 32 bytes first the low halves, then the high ones."""
    quants = quants.reshape(-1, 4, 1, 32)
    return np.concatenate([quants & 15, quants >> 4], axis=2).reshape(-1, 8, 32)


def _q4_k(blocks: np.ndarray) -> np.ndarray:
    return _k_blocks(blocks, _by_nibble(blocks[:, 16:]))


def _q5_k(blocks: np.ndarray) -> np.ndarray:
    shifts = np.arange(8, dtype=np.uint8)[None, :, None]
    fifth = ((blocks[:, None, 16:48] >> shifts) & 1) << 4
    return _k_blocks(blocks, _by_nibble(blocks[:, 48:]) | fifth)


def _q6_k(blocks: np.ndarray) -> np.ndarray:
    low, high = blocks[:, :128].reshape(-1, 2, 1, 64), blocks[:, 128:192].reshape(-1, 2, 1, 32)
    low = np.concatenate([low & 15, low >> 4], axis=2).reshape(-1, 2, 4, 32)
    high = (high >> np.array([0, 2, 4, 6], np.uint8)[None, None, :, None]) & 3
    quants = (low | (high << 4)).astype(np.int8) - np.int8(32)
    scales = blocks[:, 192:208].view(np.int8).astype(np.float32) * _halves(blocks, 208)
    return (scales[:, :, None] * quants.reshape(-1, 16, 16).astype(np.float32)).reshape(-1, 256)


_TYPES = {
    0: _Type("F32", 1, 4, lambda blocks: blocks.view("<f4")),
    1: _Type("F16", 1, 2, lambda blocks: blocks.view("<f2").astype(np.float32)),
    30: _Type("BF16", 1, 2, lambda blocks: blocks.view(ml_dtypes.bfloat16).astype(np.float32)),
    2: _Type("Q4_0", 32, 18, _q4_0),
    3: _Type("Q4_1", 32, 20, _q4_1),
    6: _Type("Q5_0", 32, 22, _q5_0),
    7: _Type("Q5_1", 32, 24, _q5_1),
    8: _Type("Q8_0", 32, 34, _q8_0),
    12: _Type("Q4_K", 256, 144, _q4_k),
    13: _Type("Q5_K", 256, 176, _q5_k),
    14: _Type("Q6_K", 256, 210, _q6_k),
}
"""ggml's number of a type -> how it is read."""
_OTHER_TYPES = {
    **{9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S"},
    **{20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64"},
    **{29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4"},
}
