"""OpenAI's format: a TensorFlow checkpoint (`model.ckpt.*`) with `hparams.json`, `encoder.json` and `vocab.bpe`.

TensorFlow reads and writes it, as raw tensors by name; the graph in `model.ckpt.meta` is never looked at, and not
written, since restoring does not need it. A damaged index can end the whole process that reads it (TensorFlow issue
86916), so a checkpoint is first read from end to end in a child process, which costs one more start of TensorFlow.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gpt2.checkpoints.contents import Contents
from gpt2.checkpoints.json_file import parse_object, read_object
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
PROBE_SECONDS = 1800.0


def matches(folder: Path) -> bool:
    """Whether a folder is meant to be in this format."""
    return (folder / "hparams.json").is_file() or (folder / f"{PREFIX}.index").is_file()


def open_checkpoint(folder: Path) -> Contents:
    """Read the whole checkpoint in a child process, and compare what it holds with the config."""
    config = GPT2Config.from_dict(read_object(folder / "hparams.json"), source=str(folder / "hparams.json"))
    prefix = folder / PREFIX
    for end in ("index", "data-00000-of-00001"):
        if not (folder / f"{PREFIX}.{end}").is_file():
            raise CheckpointFormatError(f"{folder}: expected {PREFIX}.{end}, found none")
    found = _probe(prefix)
    shapes = {}
    for name, shape in found.items():
        canonical = name.removeprefix("model/")
        squeezed = shape[1:] if canonical.endswith(_CONVOLUTIONS) and shape[:1] == [1] else shape
        shapes[canonical] = tuple(squeezed)
    check_shapes(config, shapes, source=str(folder))
    names = {name.removeprefix("model/"): name for name in found}
    return Contents(config, "float32", lambda: _stream(prefix, names, expected_shapes(config)))


def write(folder: Path, config: GPT2Config, tensors: Tensors, codec: Codec | None, dtype: str) -> None:
    """Fill an empty folder. TensorFlow wants all tensors at once, so this needs them in memory."""
    if dtype != "float32":
        raise CheckpointFormatError(f"dtype: expected float32, which this format always has, got {dtype}")
    import tensorflow as tf

    names, values = [], []
    for name, array in tensors:
        names.append(f"model/{name}")
        values.append(tf.constant(array[None] if name.endswith(_CONVOLUTIONS) else array))
    tf.raw_ops.SaveV2(
        prefix=str(folder / PREFIX), tensor_names=names, shape_and_slices=[""] * len(names), tensors=values
    )
    state = f'model_checkpoint_path: "{PREFIX}"\nall_model_checkpoint_paths: "{PREFIX}"\n'
    (folder / "checkpoint").write_text(state, encoding="utf-8")
    (folder / "hparams.json").write_text(json.dumps(config.to_dict(), indent=2) + "\n", encoding="utf-8")
    if codec is not None:
        for name, data in codec.files("openai").items():
            (folder / name).write_bytes(data)


def _stream(
    prefix: Path, names: dict[str, str], shapes: dict[str, tuple[int, ...]]
) -> Iterator[tuple[str, np.ndarray]]:
    import tensorflow as tf

    reader = tf.train.load_checkpoint(str(prefix))
    for canonical, shape in shapes.items():
        yield canonical, reader.get_tensor(names[canonical]).reshape(shape)


def _probe(prefix: Path) -> dict[str, list[int]]:
    """Names and shapes in a checkpoint that a child process has read from end to end.

    Raises:
        CheckpointFormatError: the child could not read it, or did not live to tell.
    """
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    command = [sys.executable, "-c", "from gpt2.checkpoints.openai import probe_main; probe_main()", str(prefix)]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    try:
        done = subprocess.run(
            command, capture_output=True, check=False, env=environment, timeout=PROBE_SECONDS, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise CheckpointFormatError(f"{prefix}: cannot be read: no end after {PROBE_SECONDS:.0f} s") from None
    if done.returncode < 0:
        raise CheckpointFormatError(f"{prefix}: damaged: TensorFlow died of it (signal {-done.returncode})")
    answer = parse_object(done.stdout.splitlines()[-1] if done.stdout else b"{}", f"{prefix}: probe")
    if done.returncode or "shapes" not in answer:
        reason = answer.get("error") or done.stderr.decode("utf-8", "replace").strip()[-300:]
        raise CheckpointFormatError(f"{prefix}: cannot be read: {reason}")
    shapes: dict[str, list[int]] = answer["shapes"]
    return shapes


def probe_main() -> None:
    """In the child: read every tensor, print the shapes as JSON, or what is wrong."""
    prefix = Path(sys.argv[1])
    try:
        import tensorflow as tf

        reader = tf.train.load_checkpoint(str(prefix))
        types = reader.get_variable_to_dtype_map()
        shapes: dict[str, list[int]] = reader.get_variable_to_shape_map()
        wrong = next((name for name, dtype in types.items() if dtype != tf.float32), None)
        if wrong is not None:
            raise ValueError(f"expected float32 tensors, got {types[wrong].name} in {wrong}")
        # What an index claims is not believed before the data file is large enough to hold it.
        claimed = 4 * sum(math.prod(shape) for shape in shapes.values())
        held = prefix.with_name(f"{prefix.name}.data-00000-of-00001").stat().st_size
        if claimed > held:
            raise ValueError(f"the index speaks of {claimed:,} bytes, the data file has {held:,}")
        for name in shapes:
            reader.get_tensor(name)
        answer: dict[str, object] = {"shapes": shapes}
    except Exception as error:
        answer = {"error": " ".join(str(error).split())[:500]}
    sys.stdout.write("\n" + json.dumps(answer) + "\n")
