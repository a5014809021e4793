"""Low-rank adapters in the layout of Hugging Face's PEFT: `adapter_config.json` and `adapter_model.safetensors`.

Read to be merged into a base model, and written from a checkpoint of a run that trained adapters. For a matrix
(in, out) PEFT stores A (r, in) and B (out, r), ours are their transposes; what is added is (B A).T * scale, the scale
being lora_alpha / r, or lora_alpha / sqrt(r) for `use_rslora`. Kinds that do something else are refused by name.
Source: peft `tuners/lora` and `utils/save_and_load.py`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpt2.atomic import atomic_folder
from gpt2.checkpoints import tensor_file
from gpt2.checkpoints.contents import shown
from gpt2.checkpoints.huggingface import hf_name
from gpt2.checkpoints.json_file import read_object
from gpt2.checkpoints.names import Tensors, checked_values, expected_shapes
from gpt2.checkpoints.tensor_file import Entry
from gpt2.config import LORA_TARGETS, GPT2Config, TrainingConfig
from gpt2.errors import CheckpointFormatError, CheckpointNotFoundError, TensorMismatchError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model.transformer."
# Settings that change what is added, with the values under which it is the product of A and B alone.
_FIXED: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "use_dora": (False, None),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "megatron_config": (None,),
    "trainable_token_indices": (None,),
    "layer_replication": (None,),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None,),
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva"),  # others change the base model too
}


@dataclass(frozen=True)
class Adapters:
    """Adapters on disk that fit a network."""

    scale: float
    pairs: dict[str, tuple[Entry, Entry]]
    """Canonical name of the matrix -> A (r, in), B (out, r)."""

    def merged(self, tensors: Tensors) -> Iterator[tuple[str, np.ndarray]]:
        """The base model's tensors with the adapters added, one at a time."""
        for name, array in tensors:
            if name in self.pairs:
                a, b = (part for _, part in checked_values(self._arrays(name), source=f"adapter of {name}"))
                product = a.T.astype(np.float64) @ b.T * self.scale
                yield name, array + product.astype(np.float32)
            else:
                yield name, array

    def _arrays(self, name: str) -> Iterator[tuple[str, np.ndarray]]:
        for part, entry in zip("AB", self.pairs[name], strict=True):
            yield f"lora_{part}", entry.load()


def read(folder: Path, config: GPT2Config) -> Adapters:
    """Open adapters for a base model of this shape.

    Raises:
        CheckpointNotFoundError: there are none.
        CheckpointFormatError: another kind of adapter, or one that is pickled.
        TensorMismatchError: they do not fit the model; the message lists what does not.
    """
    path, weights = folder / CONFIG, folder / WEIGHTS
    if not path.is_file():
        raise CheckpointNotFoundError(f"{folder}: expected a folder of PEFT's with {CONFIG}, found none")
    if not weights.is_file():
        raise CheckpointFormatError(
            f"{folder}: expected {WEIGHTS}, found none; adapter_model.bin is a pickle and is refused: save it anew "
            "with save_pretrained(folder, safe_serialization=True)"
        )
    settings = read_object(path)
    for key, allowed in _FIXED.items():
        value = settings.get(key)
        if not any(type(value) is type(option) and value == option for option in allowed):
            raise CheckpointFormatError(f"{path}: {key}: expected {allowed[0]!r}, got {shown(value)}")
    rank, alpha, root = settings.get("r"), settings.get("lora_alpha"), settings.get("use_rslora", False)
    is_number = isinstance(alpha, (int, float)) and not isinstance(alpha, bool) and abs(alpha) < 1e6
    if type(rank) is not int or rank < 1 or not is_number:
        raise CheckpointFormatError(f"{path}: expected r and lora_alpha as numbers, got {shown(rank)}, {shown(alpha)}")
    if type(root) is not bool:
        raise CheckpointFormatError(f"{path}: use_rslora: expected true or false, got {shown(root)}")
    scale = float(alpha or 0) / (math.sqrt(rank) if root else rank)
    return Adapters(scale, _pairs(tensor_file.read_header(weights), config, rank, weights))


def write_from_run(target: Path, checkpoint: Path, *, check: Callable[[Path], None] | None = None) -> int:
    """Write the adapters that a run trained, as they were at one of its checkpoints, atomically.

    Args:
        target: a new folder, or one with adapters, which is replaced.
        checkpoint: `RUN/checkpoints/step-...`, as `store.resolve` gives it for `RUN` or `RUN@100`.
        check: called with the finished folder, before it takes the target's place; if it raises, nothing is replaced.

    Returns:
        How many matrices have an adapter.

    Raises:
        CheckpointFormatError: it is no checkpoint of a run that trained adapters.
    """
    state, run = checkpoint / "training.safetensors", checkpoint.parent.parent / "run.json"
    entries = tensor_file.read_header(state) if state.is_file() and run.is_file() else {}
    found = {name.removeprefix("lora/"): entry for name, entry in entries.items() if name.startswith("lora/")}
    if not found:
        raise CheckpointFormatError(
            f"{checkpoint}: expected a checkpoint of a run with --lora-rank, found no adapters; a model whose adapters "
            "were merged has them no longer"
        )
    training = TrainingConfig.from_dict(read_object(run).get("training", {}))
    rank = training.lora_rank
    assert rank is not None
    settings = {
        **{"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": None, "inference_mode": True},
        **{"r": rank, "lora_alpha": 2 * rank if training.lora_alpha is None else training.lora_alpha},
        **{"target_modules": [target.replace("/", ".") for target in training.lora_targets]},
        **{"fan_in_fan_out": True, "bias": "none", "lora_dropout": 0.0, "use_rslora": False, "use_dora": False},
        **{"modules_to_save": None, "init_lora_weights": True},
    }
    names = {name: _their_name(name) for name in sorted(found)}
    arrays = ((names[name], np.ascontiguousarray(found[name].load().T)) for name in names)
    shapes = {names[name]: found[name].shape[::-1] for name in names}
    with atomic_folder(target, replaceable=_is_adapter) as folder:
        (folder / CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        tensor_file.write_file(folder / WEIGHTS, arrays, shapes, "float32", {"format": "pt"})
        if check is not None:
            check(folder)
    return len(found) // 2


def _their_name(name: str) -> str:
    """`h0/attn/c_attn/w/a` -> `base_model.model.transformer.h.0.attn.c_attn.lora_A.weight`."""
    matrix, _, part = name.rpartition("/")
    return f"{_PREFIX}{hf_name(matrix).removesuffix('.weight')}.lora_{part.upper()}.weight"


def _is_adapter(folder: Path) -> bool:
    """Whether a folder holds adapters and nothing else, so that it may be replaced; PEFT adds a README."""
    names = {entry.name for entry in folder.iterdir()}
    return CONFIG in names and names <= {CONFIG, WEIGHTS, "README.md"}


def _pairs(found: dict[str, Entry], config: GPT2Config, rank: int, path: Path) -> dict[str, tuple[Entry, Entry]]:
    shapes = expected_shapes(config)
    matrices = {f"h{n}/{target}/w" for n in range(config.n_layer) for target in LORA_TARGETS}
    problems: list[str] = []
    parts: dict[str, dict[str, Entry]] = {}
    for name, entry in found.items():
        match = re.fullmatch(r"h\.(0|[1-9]\d{0,5})\.([a-z_.]+)\.lora_([AB])(?:\.default)?\.weight", _bare(name))
        matrix = f"h{match[1]}/{match[2].replace('.', '/')}/w" if match else ""
        if match is None or matrix not in matrices:
            problems.append(f"unexpected {shown(name)}")
            continue
        n_in, n_out = shapes[matrix]
        wanted = (rank, n_in) if match[3] == "A" else (n_out, rank)
        if entry.shape != wanted:
            problems.append(f"{shown(name)}: expected shape {list(wanted)}, got {list(entry.shape)}")
        parts.setdefault(matrix, {})[match[3]] = entry
    problems += [f"{matrix}: expected lora_A and lora_B" for matrix, both in parts.items() if len(both) != 2]
    if problems or not parts:
        raise TensorMismatchError(f"{path}: the adapters do not fit the model: " + ("; ".join(problems[:20]) or "none"))
    return {matrix: (both["A"], both["B"]) for matrix, both in parts.items()}


def _bare(name: str) -> str:
    return name.removeprefix("base_model.model.").removeprefix("transformer.")
