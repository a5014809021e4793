"""Our own format: `config.json`, `model.safetensors` (canonical names) and the codec's `vocab.bpe`, `encoder.json`.

`config.json` holds the five keys of `hparams.json`, `"format": "gpt2-native"` and a version; `manifest.json` the hash
of every file, which is checked before the numbers are read.
"""

from __future__ import annotations

import json
from pathlib import Path

from gpt2.checkpoints import manifest, tensor_file
from gpt2.checkpoints.contents import Contents
from gpt2.checkpoints.json_file import read_object
from gpt2.checkpoints.names import Tensors, check_shapes, expected_shapes
from gpt2.codec import Codec
from gpt2.config import GPT2Config
from gpt2.errors import CheckpointFormatError

FORMAT = "gpt2-native"
VERSION = 1
FILES = (
    *("config.json", "model.safetensors", "vocab.bpe", "encoder.json", manifest.NAME),
    *("training.safetensors", "training.json"),  # of a training run's checkpoint
)


def matches(folder: Path) -> bool:
    """Whether a folder is meant to be in this format."""
    path = folder / "config.json"
    return path.is_file() and read_object(path).get("format") == FORMAT


def open_checkpoint(folder: Path, *, quick: bool = True) -> Contents:
    """Read the headers and compare them with the config, which is always quick."""
    path = folder / "config.json"
    settings = read_object(path)
    if settings.get("version") != VERSION:
        raise CheckpointFormatError(f"{path}: expected version {VERSION}, got {settings.get('version')!r}")
    config = GPT2Config.from_dict(settings, source=str(path))
    entries = tensor_file.read_header(folder / "model.safetensors")
    check_shapes(config, {name: entry.shape for name, entry in entries.items()}, source=str(folder))
    entries = {name: entries[name] for name in expected_shapes(config)}

    def tensors() -> Tensors:
        manifest.verify(folder)
        return tensor_file.stream(entries)

    return Contents(config, tensor_file.dtype_of(entries), tensors)


def write(folder: Path, config: GPT2Config, tensors: Tensors, codec: Codec | None, dtype: str) -> None:
    """Fill an empty folder."""
    write_files(folder, config, tensors, codec, dtype)
    manifest.write(folder)


def write_files(folder: Path, config: GPT2Config, tensors: Tensors, codec: Codec | None, dtype: str) -> None:
    """As `write`, but without the manifest, for a caller that adds files of its own."""
    settings = {"format": FORMAT, "version": VERSION, **config.to_dict()}
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    shapes = expected_shapes(config)
    tensor_file.write_file(folder / "model.safetensors", tensors, shapes, dtype, {"format": FORMAT})
    if codec is not None:
        for name, data in codec.files("openai").items():
            (folder / name).write_bytes(data)
