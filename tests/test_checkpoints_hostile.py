"""Checkpoints made to do harm: structured faults in headers, endless files, names that reach out, odd TensorFlow files.

`test_checkpoints_bad.py` has the faults that happen; these are the ones that somebody builds.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt2 import checkpoints
from gpt2.errors import CheckpointFormatError, TensorMismatchError
from test_checkpoints import CONFIG, TENSORS, assert_holds_exactly, saver_checkpoint
from test_checkpoints_bad import assert_sound_or_refused, read_all, write

Header = dict[str, Any]


def split(path: Path) -> tuple[Header, bytes]:
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def join(path: Path, header: str | Header, data: bytes) -> None:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


VALUES: list[Any] = [
    *(None, True, -1, 0, 1, 7, 2**31, 2**63, 2**64, 10**400, 1.5, float("nan"), float("inf")),
    *("", "F32", "F16", "F8_E4M3", "I64", "BOOL", "../../x", "\x00", "\x1b[2J", "é" * 2000),
    *([], [0], [1, 2], [-1, 4], [2**40, 2**40], ["1"], [[1]], {}, {"dtype": "F32"}),
]


def change(value: Any, rng: random.Random) -> Any:
    """One place of a JSON value replaced, removed or doubled."""
    if not isinstance(value, (dict, list)) or not value or rng.random() < 0.15:
        return rng.choice(VALUES)
    if isinstance(value, list):
        at = rng.randrange(len(value))
        return [*value[:at], *([change(value[at], rng)] * rng.randrange(3)), *value[at + 1 :]]
    key = rng.choice(list(value))
    kind = rng.randrange(6)
    if kind == 0:
        return {k: v for k, v in value.items() if k != key}
    if kind == 1:
        return {**value, str(rng.choice(VALUES))[:50]: value[key]}
    if kind == 2:
        return {**value, key: value[rng.choice(list(value))]}
    return {**value, key: change(value[key], rng)}


@pytest.mark.parametrize("format", ["native", "huggingface"])
def test_headers_changed_in_one_place(tmp_path: Path, format: str) -> None:
    folder = write(tmp_path / "model", format)
    path, config_path = folder / "model.safetensors", folder / "config.json"
    header, data = split(path)
    config = json.loads(config_path.read_text())
    rng = random.Random(format)
    for n in range(300):
        if n % 3:
            join(path, change(header, rng), data)
        else:
            config_path.write_text(json.dumps(change(config, rng)))
        assert_sound_or_refused(folder)
        join(path, header, data)
        config_path.write_text(json.dumps(config))
    assert assert_sound_or_refused(folder)


def test_index_changed_in_one_place(tmp_path: Path) -> None:
    from gpt2.checkpoints import huggingface

    folder = tmp_path / "hf"
    folder.mkdir()
    huggingface.write(folder, CONFIG, TENSORS.items(), None, "float32", max_shard_bytes=8000)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    rng = random.Random(0)
    for _ in range(200):
        path.write_text(json.dumps(change(index, rng)))
        assert_sound_or_refused(folder)


FAULTS: list[tuple[Callable[[Header, bytes], tuple[str | Header, bytes]], str]] = [
    (lambda h, d: (h, d[:-4]), "expected a safetensors file"),
    (lambda h, d: (h, d + b"more"), "expected a safetensors file"),
    (lambda h, d: ({**h, "wpe": {**h["wpe"], "data_offsets": h["wte"]["data_offsets"]}}, d), "safetensors file"),
    (lambda h, d: ({**h, "wpe": {**h["wpe"], "data_offsets": [2**63, 2**64 - 1]}}, d), "safetensors file"),
    (lambda h, d: ({**h, "wpe": {**h["wpe"], "shape": [2**62, 2**62]}}, d), "safetensors file"),
    (lambda h, d: (json.dumps(h)[:-1] + ',"wpe":' + json.dumps(h["wpe"]) + "}", d), "model.safetensors"),
    (lambda h, d: ("[" * 200_000, d), "expected a safetensors file"),
    (lambda h, d: ('{"a":' * 200_000, d), "expected a safetensors file"),
]


@pytest.mark.parametrize(("fault", "message"), FAULTS)
def test_broken_headers(
    tmp_path: Path, fault: Callable[[Header, bytes], tuple[str | Header, bytes]], message: str
) -> None:
    folder = write(tmp_path / "model")
    join(folder / "model.safetensors", *fault(*split(folder / "model.safetensors")))
    with pytest.raises(CheckpointFormatError, match=message):
        read_all(folder)


@pytest.mark.parametrize("data", [b"", b"\0" * 7, b"\xff" * 8, (2**30).to_bytes(8, "little") + b"{" * 100])
def test_no_room_for_a_header(tmp_path: Path, data: bytes) -> None:
    folder = write(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(
        CheckpointFormatError, match=r"model.safetensors: expected a (safetensors file|header of up to)"
    ):
        read_all(folder)


def test_a_pipe_in_place_of_a_file_does_not_wait_for_ever(tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")
    with pytest.raises(CheckpointFormatError, match="found no file"):
        read_all(folder)


def test_control_characters_and_endless_names_do_not_reach_the_message(tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    header, data = split(folder / "model.safetensors")
    header["\x1b[2J" + "x" * 100_000] = header.pop("wpe")
    join(folder / "model.safetensors", header, data)
    with pytest.raises(TensorMismatchError, match="missing wpe") as caught:
        read_all(folder)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_numbers_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    """They used to be saved, and the model could then not be loaded again."""
    for value in (np.nan, np.inf):
        with pytest.raises(TensorMismatchError, match=r"writing .*model: wpe holds 192 numbers that are NaN"):
            tensors = {**TENSORS, "wpe": np.full_like(TENSORS["wpe"], value)}
            checkpoints.write(tmp_path / "model", CONFIG, tensors.items())
    assert list(tmp_path.iterdir()) == []


# TensorFlow checkpoints


def renamed(folder: Path, name: str, said: str) -> Path:
    for path in list(folder.glob("model.ckpt.*")):
        path.rename(folder / path.name.replace("model.ckpt", name))
    (folder / "checkpoint").write_text(f'model_checkpoint_path: "{said}"\nall_model_checkpoint_paths: "{said}"\n')
    return folder


@pytest.mark.parametrize("said", ["model-1000", "/home/somebody/run1/model-1000", "../model-1000", "C:\\x\\model-1000"])
def test_the_prefix_that_the_file_checkpoint_names(tmp_path: Path, said: str) -> None:
    """Who trains a released model further saves `model-1000.*`; the folder may since have been moved."""
    assert_holds_exactly(renamed(saver_checkpoint(tmp_path / "model"), "model-1000", said))


@pytest.mark.parametrize("said", ["", "..", "model-1000", "../outside", "a" * 5000, 'x"\nmodel_checkpoint_path: "y'])
def test_a_checkpoint_file_that_names_nothing(tmp_path: Path, said: str) -> None:
    folder = renamed(saver_checkpoint(tmp_path / "model"), "else", said)
    for path in list(folder.glob("else.*")):
        path.rename(tmp_path / path.name.replace("else", "outside"))
    with pytest.raises(CheckpointFormatError, match="expected model.ckpt.index, found none"):
        checkpoints.read(folder)


def sharded_checkpoint(folder: Path, names: dict[str, str]) -> Path:
    """A checkpoint of two data files, by TensorFlow's own operations; `names` says what each tensor is called."""
    import tensorflow as tf

    folder.mkdir()
    parts = [list(TENSORS)[:10], list(TENSORS)[10:]]
    for n, part in enumerate(parts):
        tf.raw_ops.SaveV2(
            prefix=str(folder / f"part{n}"),
            tensor_names=[names[name] for name in part],
            shape_and_slices=[""] * len(part),
            tensors=[tf.constant(TENSORS[name]) for name in part],
        )
    tf.raw_ops.MergeV2Checkpoints(
        checkpoint_prefixes=[str(folder / f"part{n}") for n in range(2)], destination_prefix=str(folder / "model.ckpt")
    )
    (folder / "hparams.json").write_text(json.dumps(CONFIG.to_dict()))
    return folder


def test_a_checkpoint_of_several_data_files(tmp_path: Path) -> None:
    """Its matrices have no leading 1 either, which is accepted too."""
    folder = sharded_checkpoint(tmp_path / "model", {name: f"model/{name}" for name in TENSORS})
    assert len(list(folder.glob("*.data-*"))) == 2
    assert_holds_exactly(folder)
    checkpoints.write(folder, CONFIG, TENSORS.items())
    assert checkpoints.detect(folder) == "native"


def test_one_name_with_and_without_the_prefix(tmp_path: Path) -> None:
    names = {name: f"model/{name}" for name in TENSORS} | {"wpe": "wte"}
    with pytest.raises(CheckpointFormatError, match="expected every name to begin with model/"):
        checkpoints.read(sharded_checkpoint(tmp_path / "model", names))


def test_quick_description_does_not_read_the_numbers(tmp_path: Path) -> None:
    folder = saver_checkpoint(tmp_path / "model")
    data = folder / "model.ckpt.data-00000-of-00001"
    raw = bytearray(data.read_bytes())
    raw[100] ^= 1
    data.write_bytes(raw)
    assert checkpoints.describe(folder, quick=True).config == CONFIG
    with pytest.raises(CheckpointFormatError, match="cannot be read: .*[Cc]hecksum"):
        checkpoints.describe(folder)


def test_an_index_that_claims_more_than_there_is(tmp_path: Path) -> None:
    folder = saver_checkpoint(tmp_path / "model")
    os.truncate(folder / "model.ckpt.data-00000-of-00001", 100)
    with pytest.raises(CheckpointFormatError, match=r"the index speaks of [\d,]+ bytes, the data has 100"):
        checkpoints.describe(folder, quick=True)
