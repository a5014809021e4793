"""llm.c's format: one file, a header of 256 int32 and then all tensors in a fixed order, float32 or bfloat16.

Read alone. Files are like `gpt2_124M.bin`, `gpt2_124M_bf16.bin` or a run's `model_00019560.bin`; matrices are stored as
(out, in), each kind for all layers in a row, and `wte` with rows of padding that are left out here. The files that go
with a training (`state_*.bin`) and the tokenizer's are not models. Source: `train_gpt2.py` and `train_gpt2.cu` of
karpathy/llm.c.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from gpt2.checkpoints.contents import Contents
from gpt2.checkpoints.names import Tensors, expected_shapes
from gpt2.checkpoints.single_file import begins_with, only_file
from gpt2.checkpoints.tensor_file import Entry
from gpt2.config import GPT2Config
from gpt2.errors import CheckpointFormatError

MAGIC = 20240326
VERSIONS = {3: "F32", 5: "BF16"}
"""Version -> how the numbers are stored."""
SUFFIXES = (".bin",)
_HEADER = 256 * 4
_LAYER_KINDS = (
    *("ln_1/g", "ln_1/b", "attn/c_attn/w", "attn/c_attn/b", "attn/c_proj/w", "attn/c_proj/b"),
    *("ln_2/g", "ln_2/b", "mlp/c_fc/w", "mlp/c_fc/b", "mlp/c_proj/w", "mlp/c_proj/b"),
)
"""In the file's order; each of them for all layers before the next."""


def matches(path: Path) -> bool:
    """Whether a file, or one in a folder, begins as llm.c's models do."""
    return begins_with(path, SUFFIXES, MAGIC.to_bytes(4, "little"))


def open_checkpoint(path: Path, *, quick: bool = True) -> Contents:
    """Read the header and compare it with the file's size, which is always quick."""
    path = only_file(path, SUFFIXES, MAGIC.to_bytes(4, "little"))
    with path.open("rb") as file:
        raw = file.read(_HEADER)
    if len(raw) < _HEADER:
        raise CheckpointFormatError(f"{path}: expected a header of {_HEADER} bytes, got {len(raw)}")
    _, version, n_ctx, n_vocab, n_layer, n_head, n_embd, padded = np.frombuffer(raw, "<i4")[:8].tolist()
    if version not in VERSIONS:
        raise CheckpointFormatError(
            f"{path}: expected version 3 (float32) or 5 (bfloat16) of llm.c's format, got {version}; write it again "
            "with a newer train_gpt2.py of llm.c"
        )
    values = {"n_vocab": n_vocab, "n_ctx": n_ctx, "n_embd": n_embd, "n_head": n_head, "n_layer": n_layer}
    config = GPT2Config.from_dict(values, source=f"{path}: header")
    if padded < n_vocab:
        raise CheckpointFormatError(f"{path}: expected a padded vocabulary of at least {n_vocab}, got {padded}")
    entries, end = _entries(path, config, padded, VERSIONS[version])
    if path.stat().st_size != end:
        raise CheckpointFormatError(
            f"{path}: expected {end:,} bytes for a model of this shape, found {path.stat().st_size:,}"
        )

    def tensors() -> Tensors:
        for name in expected_shapes(config):
            array = entries[name].load()
            yield name, array.T if name.endswith("/w") else array

    return Contents(config, "float32" if version == 3 else "bfloat16", tensors)


def _entries(path: Path, config: GPT2Config, padded: int, dtype: str) -> tuple[dict[str, Entry], int]:
    """Where every tensor is, with its shape in the file, and where the file has to end."""
    width, offset = (4 if dtype == "F32" else 2), _HEADER
    shapes = expected_shapes(config)
    layers = [f"h{n}/{kind}" for kind in _LAYER_KINDS for n in range(config.n_layer)]
    entries = {}
    for name in ("wte", "wpe", *layers, "ln_f/g", "ln_f/b"):
        shape = shapes[name][::-1] if name.endswith("/w") else shapes[name]
        entries[name] = Entry(path, dtype, shape, offset)
        offset += width * (padded * config.n_embd if name == "wte" else math.prod(shape))
    return entries, offset
