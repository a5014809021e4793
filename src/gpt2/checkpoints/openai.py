"""OpenAI's format: a TensorFlow checkpoint (`model.ckpt.*`) with `hparams.json`, `encoder.json` and `vocab.bpe`.

TensorFlow reads and writes it, as raw tensors by name; the graph in `model.ckpt.meta` is never looked at, and not
written, since restoring does not need it. A damaged index can end the whole process that reads it (TensorFlow issue
86916), so a checkpoint is first read from end to end in a child process, one tensor at a time; that costs one more
start of TensorFlow and one more pass over the file.

The file `checkpoint` may name another prefix than `model.ckpt`, as those who went on training the released models do:
gpt-2-simple's run folders have `model-1000.*`. The state of an optimizer beside the weights is left out.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gpt2.checkpoints import child
from gpt2.checkpoints.contents import Contents
from gpt2.checkpoints.json_file import read_object
from gpt2.checkpoints.names import Tensors, check_shapes, expected_shapes
from gpt2.codec import Codec
from gpt2.config import GPT2Config
from gpt2.errors import CheckpointFormatError

PREFIX = "model.ckpt"
FILES = (
    *("checkpoint", "hparams.json", "encoder.json", "vocab.bpe"),
    *(f"{PREFIX}.{end}" for end in ("index", "meta", "data-00000-of-00001")),
)
_CONVOLUTIONS = ("attn/c_attn/w", "attn/c_proj/w", "mlp/c_fc/w", "mlp/c_proj/w")
MAX_SHARD_BYTES = 1_000_000_000
"""Of a data file that is written; the 124M model has one, as it was released."""
# What those leave in a checkpoint who go on training and save all their variables: the state of the optimizer.
_TRAINING = re.compile(
    r"(.*/)?(Adam(_\d+)?|Momentum|RMSProp(_\d+)?|beta[12]_power|global_step|Variable(_\d+)?)|optimizer/.*|save_counter|"
    r"_CHECKPOINTABLE_OBJECT_GRAPH"
)
PROBE_BYTES = 2 * 1024**3
"""What the child may allocate besides the size of the checkpoint itself."""


def matches(folder: Path) -> bool:
    """Whether a folder is meant to be in this format."""
    return (folder / "hparams.json").is_file() or (folder / f"{PREFIX}.index").is_file()


def open_checkpoint(folder: Path, *, quick: bool = False) -> Contents:
    """Read the checkpoint in a child process, the numbers too unless `quick`, and compare it with the config."""
    path = folder / "hparams.json"
    if not path.is_file():
        raise CheckpointFormatError(f"{folder}: expected hparams.json beside the checkpoint, found none")
    config = GPT2Config.from_dict(read_object(path), source=str(path))
    prefix = _prefix(folder)
    found = _probe(prefix, quick=quick)
    names = {name.removeprefix("model/"): name for name in found}
    if len(names) != len(found):
        raise CheckpointFormatError(f"{prefix}: expected every name to begin with model/, got one with and without")
    shapes = {}
    for canonical, name in names.items():
        shape = tuple(found[name])
        is_convolution = canonical.endswith(_CONVOLUTIONS) and len(shape) == 3 and shape[0] == 1
        shapes[canonical] = shape[1:] if is_convolution else shape
    check_shapes(config, shapes, source=str(folder))
    return Contents(config, "float32", lambda: _stream(prefix, names, expected_shapes(config)))


def write(
    folder: Path,
    config: GPT2Config,
    tensors: Tensors,
    codec: Codec | None,
    dtype: str,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Fill an empty folder; weights beyond `max_shard_bytes` are cut into data files that TensorFlow reads as one.

    TensorFlow wants all tensors of a file at once, so those of one file are in memory together.

    Raises:
        OSError: the disk is full or has failed.
    """
    if dtype != "float32":
        raise CheckpointFormatError(f"dtype: expected float32, which this format always has, got {dtype}")
    import tensorflow as tf

    parts: list[str] = []

    def save(held: dict[str, Any]) -> None:
        parts.append(str(folder / f"{PREFIX}.part-{len(parts)}"))
        names = [f"model/{name}" for name in held]
        tf.raw_ops.SaveV2(
            prefix=parts[-1], tensor_names=names, shape_and_slices=[""] * len(names), tensors=list(held.values())
        )

    held: dict[str, Any] = {}
    filled = 0
    try:
        for name, array in tensors:
            if held and filled + array.nbytes > max_shard_bytes:
                save(held)
                held, filled = {}, 0
            held[name] = tf.constant(array[None] if name.endswith(_CONVOLUTIONS) else array)
            filled += array.nbytes
        save(held)
        # It gives the data files their names, and makes one index of all; no number is copied.
        tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=parts, destination_prefix=str(folder / PREFIX))
    except tf.errors.OpError as error:  # a full disk, for one
        raise OSError(_in_one_line(error.message)) from None
    state = f'model_checkpoint_path: "{PREFIX}"\nall_model_checkpoint_paths: "{PREFIX}"\n'
    (folder / "checkpoint").write_text(state, encoding="utf-8")
    (folder / "hparams.json").write_text(json.dumps(config.to_dict(), indent=2) + "\n", encoding="utf-8")
    if codec is not None:
        for name, data in codec.files("openai").items():
            (folder / name).write_bytes(data)


def _prefix(folder: Path) -> Path:
    """What the checkpoint's files begin with: as the file `checkpoint` says, else `model.ckpt`.

    Raises:
        CheckpointFormatError: the index or the data is not there.
    """
    prefix = folder / PREFIX
    state = folder / "checkpoint"
    if state.is_file():
        with state.open("rb") as file:
            said = re.search(rb'^model_checkpoint_path: "([^"\n]*)"', file.read(4096), re.MULTILINE)
        # Its last part alone: the rest is the path that it had where it was made, or leads out of the folder.
        name = re.split(r"[/\\]", said[1].decode("utf-8", "replace"))[-1] if said else ""
        if re.fullmatch(r"[\w.-]+", name) and (folder / f"{name}.index").is_file():
            prefix = folder / name
    elif not (folder / f"{PREFIX}.index").is_file():  # the only one there is, where nothing says which
        found = [entry.name.removesuffix(".index") for entry in folder.glob("*.index") if entry.is_file()]
        prefix = folder / found[0] if len(found) == 1 else prefix
    if not (folder / f"{prefix.name}.index").is_file():
        raise CheckpointFormatError(f"{folder}: expected {prefix.name}.index, found none")
    if not _data_files(prefix):
        raise CheckpointFormatError(f"{folder}: expected {prefix.name}.data-00000-of-00001, found none")
    return prefix


def _data_files(prefix: Path) -> list[Path]:
    pattern = re.compile(re.escape(prefix.name) + r"\.data-\d{5}-of-\d{5}")
    return [entry for entry in prefix.parent.iterdir() if pattern.fullmatch(entry.name) and entry.is_file()]


def _stream(
    prefix: Path, names: dict[str, str], shapes: dict[str, tuple[int, ...]]
) -> Iterator[tuple[str, np.ndarray]]:
    import tensorflow as tf

    try:
        reader = tf.train.load_checkpoint(str(prefix))
    except (tf.errors.OpError, RuntimeError, ValueError) as error:
        raise CheckpointFormatError(f"{prefix}: cannot be read: {_in_one_line(str(error))}") from None
    for canonical, shape in shapes.items():
        try:
            array = reader.get_tensor(names[canonical]).reshape(shape)
        except (tf.errors.OpError, RuntimeError, ValueError) as error:  # it has changed since the child read it
            raise CheckpointFormatError(f"{prefix}: {canonical}: {_in_one_line(str(error))}") from None
        yield canonical, array


def _in_one_line(message: str) -> str:
    return " ".join(message.split())[:500]


def _probe(prefix: Path, *, quick: bool) -> dict[str, list[int]]:
    """Names and shapes in a checkpoint that a child process has read, its numbers too unless `quick`.

    Raises:
        CheckpointFormatError: the child could not read it, or did not live to tell.
    """
    shapes: dict[str, list[int]] = child.ask(__name__, prefix, "quick" if quick else "whole")
    return shapes


def answer(prefix: Path, extent: str) -> dict[str, list[int]]:
    """In the child: read the index, and every tensor if asked.

    Raises:
        ValueError: what is wrong.
    """
    import tensorflow as tf

    held = sum(path.stat().st_size for path in _data_files(prefix))
    child.limit_memory(held + PROBE_BYTES)
    reader = tf.train.load_checkpoint(str(prefix))
    types = reader.get_variable_to_dtype_map()
    shapes: dict[str, list[int]] = reader.get_variable_to_shape_map()
    shapes = {name: shape for name, shape in shapes.items() if not _TRAINING.fullmatch(name)}
    wrong = next((name for name in shapes if types[name] != tf.float32), None)
    if wrong is not None:
        raise ValueError(f"expected float32 tensors, got {types[wrong].name} in {wrong[:80]!r}")
    # What an index claims is not believed before the data files are large enough to hold it.
    claimed = 4 * sum(math.prod(shape) for shape in shapes.values())
    if claimed > held:
        raise ValueError(f"the index speaks of {claimed:,} bytes, the data has {held:,}")
    if extent == "whole":
        for name in shapes:
            reader.get_tensor(name)
    return shapes
