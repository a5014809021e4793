"""Foreign files made to do harm: evil pickles that must not run, mutations, lies about lengths, endless structures."""

from __future__ import annotations

import os
import pickle
import random
import struct
import subprocess
import sys
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import foreign
from gpt2 import checkpoints
from gpt2.checkpoints.torch_zip import read_pickle
from gpt2.errors import CheckpointFormatError, GPT2Error
from test_checkpoints import CONFIG, TENSORS
from test_checkpoints_bad import assert_sound_or_refused, mutate
from test_foreign import write

pytestmark = pytest.mark.filterwarnings("ignore:invalid escape sequence")  # of `pickletools`, about texts in mutations

SAVED = {"model": foreign.nano_arrays(TENSORS), "model_args": foreign.nano_args(CONFIG)}


class Call:
    """Pickles as a call, which is run by whoever loads the pickle."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.result = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.result


def evil_pickles(canary: Path) -> list[bytes]:
    """Programs that would make the file `canary`, in as many ways as pickles have to call."""
    make = f"open({str(canary)!r}, 'w').close()"
    quoted = repr(str(canary)).encode()
    corpus = [
        pickle.dumps(Call(value, *arguments), protocol)
        for protocol in range(6)
        for value, arguments in (
            (os.system, (f"touch {canary}",)),
            (exec, (make,)),
            (eval, (make,)),
            (open, (str(canary), "w")),
            (subprocess.Popen, (["touch", str(canary)],)),
            (getattr, (os, "system")),
        )
        if not (value is getattr and protocol < 6)  # modules cannot be pickled; the same by hand below
    ]
    corpus += [
        b"cos\nsystem\n(S'touch " + str(canary).encode() + b"'\ntR.",
        b"(S'touch " + str(canary).encode() + b"'\nios\nsystem\n.",
        b"(cos\nsystem\nS'touch " + str(canary).encode() + b"'\no.",
        b"\x80\x02cbuiltins\nopen\n(X"
        + struct.pack("<I", len(str(canary)))
        + str(canary).encode()
        + b"X\1\0\0\0wt\x81.",
        b"\x80\x04\x8c\x08builtins\x8c\x04open\x93(\x8c"
        + bytes([len(str(canary))])
        + str(canary).encode()
        + b"\x8c\x01wtR.",
        b"cbuiltins\ngetattr\n(c__builtin__\n__import__\n(S'os'\ntRS'system'\ntR(S'touch " + quoted + b"'\ntR.",
        b"ctorch\nload\n(S" + quoted + b"\ntR.",
        b"ctorch.hub\nload\n(S" + quoted + b"\ntR.",
        b"ctorch._utils\n_rebuild_tensor_v2.__globals__\n.",
        b"ccollections\nOrderedDict.__init__\n.",
        b"c_pickle\nloads\n(S'x'\ntR.",
        b"P0\n.",
        b"\x82\x01.",
        b"\x97.",
    ]
    return corpus


def test_evil_pickles_do_not_run(tmp_path: Path) -> None:
    """Each alone, as a tensor, as a key of the settings, and as a state; a canary that appears would tell of it."""
    canary = tmp_path / "canary"
    subprocess.run(  # the corpus does run where pickles are loaded
        [sys.executable, "-c", "import pickle, sys; pickle.loads(sys.stdin.buffer.read())"],
        input=evil_pickles(canary)[0],
        check=False,
    )
    assert canary.exists()
    canary.unlink()
    corpus = evil_pickles(canary)
    assert len(corpus) > 40
    for evil in corpus:
        inner = foreign.Raw(evil.removeprefix(evil[:2] if evil[:1] == b"\x80" else b"").removesuffix(b"."))
        for value in (
            inner,
            {**SAVED, "best_val_loss": inner},
            {**SAVED, "model": {**SAVED["model"], "lm_head.weight": inner}},
            {**SAVED, "model_args": {**SAVED["model_args"], "bias": inner}},
        ):
            path = foreign.torch_file(tmp_path / "ckpt.pt", value)
            with pytest.raises(CheckpointFormatError, match=r"ckpt.pt: its pickle is refused: it "):
                checkpoints.read(path)
        (tmp_path / "ckpt.pt").write_bytes(evil)
        with pytest.raises(CheckpointFormatError, match="expected a zip as torch.save writes it; a bare pickle is"):
            checkpoints.read(tmp_path / "ckpt.pt")
    time.sleep(0.2)  # for a process that was started
    assert not canary.exists()


def test_what_is_refused_is_named(tmp_path: Path) -> None:
    for data, message in (
        (b"cos\nsystem\n(S'x'\ntR.", "it asks for 'os', 'system', which is not on the list of what is read"),
        (b"ccollections\nOrderedDict\n(](K\1K\2etR.", "it calls collections.OrderedDict with something that is not"),
        (b"K\1K\2\x86)R.", "it calls a tuple with something that is not read"),
        (b"](K\1K\2eK\3b.", "it changes what is no dict"),
        (b"}K\1K\2\x86K\3s.", "it has a tuple as a key"),
        (b"}\x8a\x09" + b"\xff" * 8 + b"\x00K\3s.", "it has a int as a key, where only text and small integers"),
        (b"X\4\0\0\0fileQ.", "it is broken"),
        (b"K\1.K\2", ""),
        (b"K\1", "it is broken|it has no end"),
        (b"", "it is broken|it has no end"),
        (b"0.", "it needs the opcode POP"),
        (b"t.", "it is broken"),
        (b"(K\1", "it is broken|it has no end"),
        (b"h\5.", "it is broken"),
        (b"N" * 1_100_000 + b".", "it has more than 1,000,000 opcodes"),
    ):
        if message:
            with pytest.raises(CheckpointFormatError, match=f"x: its pickle is refused: ({message})"):
                read_pickle(data, "x")
        else:
            assert read_pickle(data, "x") == 1


def test_structures_without_end_cost_nothing(tmp_path: Path) -> None:
    """A list that holds itself, ten thousand levels, and lists of lists that would be 2 ** 60 items if shown."""
    itself = b"\x80\x02]q\0h\0a."
    deep = b"\x80\x02" + b"]" * 10_000 + b"a" * 9_999 + b"."
    doubling = b"\x80\x02]q\0" + b"".join(
        b"](h" + bytes([n]) + b"h" + bytes([n]) + b"eq" + bytes([n + 1]) for n in range(60)
    )
    for data in (itself, deep, doubling + b"."):
        started = time.perf_counter()
        value = foreign.Raw(data[2:-1])
        for saved in (
            value,
            {**SAVED, "model_args": {**SAVED["model_args"], "n_head": value}},
            {**SAVED, "model": value},
        ):
            with pytest.raises(GPT2Error) as caught:
                checkpoints.read(foreign.torch_file(tmp_path / "ckpt.pt", saved))
            assert len(str(caught.value)) < 1000
        assert time.perf_counter() - started < 30


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_any_bytes_as_a_pickle(data: bytes) -> None:
    try:
        read_pickle(data, "x")
    except CheckpointFormatError as error:
        assert str(error).startswith("x: its pickle is refused: ")


OPCODES = (
    b"NIJKMLGXUCBSTV\x88\x89\x8a\x8b\x8c\x8d\x8e\x93\x94()]}tlduseaqrhjgp0123\x85\x86\x87cioRQPb\x80\x81\x92\x95.\n"
)


@settings(max_examples=500, deadline=None)
@given(st.lists(st.one_of(st.sampled_from([bytes([code]) for code in OPCODES]), st.binary(max_size=4)), max_size=60))
def test_any_opcodes_as_a_pickle(parts: list[bytes]) -> None:
    try:
        read_pickle(b"".join(parts), "x")
    except CheckpointFormatError as error:
        assert str(error).startswith("x: its pickle is refused: ")


@pytest.mark.parametrize("format", ["gguf", "llmc", "nanogpt"])
def test_mutations(tmp_path: Path, format: str) -> None:
    """In the header most often, where it matters."""
    path = write(tmp_path, format)
    original = path.read_bytes()
    rng = random.Random(format)
    refused = 0
    for n in range(300):
        if format == "nanogpt" and n % 2:  # the pickle alone, in a sound zip
            storages: list[np.ndarray] = []
            foreign.torch_file(path, SAVED, data=mutate(foreign.pickled(SAVED, storages), rng))
        elif format == "gguf" and n % 2:
            path.write_bytes(mutate(original[:2500], rng) + original[2500:])
        else:
            path.write_bytes(mutate(original, rng))
        refused += not assert_sound_or_refused(path)
    assert refused > 50
    path.write_bytes(original)
    assert assert_sound_or_refused(path)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["gguf", "llmc", "nanogpt"])
def test_more_mutations(tmp_path: Path, format: str) -> None:
    path = write(tmp_path, format)
    original = path.read_bytes()
    rng = random.Random(f"more {format}")
    for _ in range(5000):
        path.write_bytes(mutate(original, rng))
        assert_sound_or_refused(path)


@pytest.mark.slow
def test_mutations_of_a_preset(tmp_path: Path) -> None:
    """Each is a child process; whatever h5py makes of it, this one lives."""
    folder = write(tmp_path, "keras_hub")
    path = folder / "model.weights.h5"
    original = path.read_bytes()
    rng = random.Random(0)
    refused = 0
    for n in range(150):
        path.write_bytes(mutate(original[:8192], rng) + original[8192:] if n % 2 else mutate(original, rng))
        refused += not assert_sound_or_refused(folder)
    assert refused > 10


def test_a_preset_that_is_no_hdf5(tmp_path: Path) -> None:
    folder = write(tmp_path, "keras_hub")
    path = folder / "model.weights.h5"
    for data in (b"", b"\x89HDF\r\n\x1a\n" + b"\xff" * 100, path.read_bytes()[:5000]):
        path.write_bytes(data)
        with pytest.raises(CheckpointFormatError, match=r"model.weights.h5: (cannot be read|damaged)"):
            checkpoints.read(folder)


# Lies about lengths


def put(data: bytes, place: int, value: int) -> bytes:
    return data[:place] + struct.pack("<Q", value) + data[place + 8 :]


@pytest.mark.parametrize("value", [2**20, 2**40, 2**63, 2**64 - 1])
def test_gguf_lengths_that_lie(tmp_path: Path, value: int) -> None:
    """Counts of tensors and keys, a key's length, a string's, an array's, a tensor's axes and its place."""
    keys = {**foreign.gguf_keys(CONFIG), "list": ["a", "b"], "numbers": [1, 2, 3]}
    data = foreign.gguf_bytes(keys, foreign.gguf_f32(foreign.gguf_arrays(TENSORS)))
    name = b"token_embd.weight"
    at = data.index(name) + len(name)
    places = [8, 16, 24, data.index(b"gpt2") - 8, data.index(b"list") + 12, data.index(b"numbers") + 15]
    places += [at + 4, at + 12, at + 24]
    tracemalloc.start()
    for place in places:
        (tmp_path / "tiny.gguf").write_bytes(put(data, place, value))
        with pytest.raises(GPT2Error, match=r"tiny.gguf"):
            checkpoints.read(tmp_path / "tiny.gguf")
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


FAULTS: list[tuple[Callable[[Path], object], str]] = [
    (lambda path: foreign.torch_file(path, SAVED, compress=True), "expected an entry that is stored as it is"),
    (lambda path: foreign.torch_file(path, SAVED, byteorder="big"), "expected little-endian numbers"),
    (lambda path: zipfile.ZipFile(path, "w").writestr("a/b", "c"), "expected data.pkl in the zip"),
    (lambda path: path.write_bytes(b"PK\3\4" + b"\0" * 100), "expected a zip as torch.save writes it"),
    (lambda path: path.write_bytes(path.read_bytes()[:-500]), "expected a zip as torch.save writes it"),
    (
        lambda path: path.write_bytes(b"PK\3\4" + b"x" * 50 + path.read_bytes()[54:]),
        "expected an entry of a zip|damaged|cut short",
    ),
]


@pytest.mark.parametrize(("fault", "message"), FAULTS)
def test_zips_that_are_refused(tmp_path: Path, fault: Callable[[Path], object], message: str) -> None:
    path = foreign.torch_file(tmp_path / "ckpt.pt", SAVED)
    fault(path)
    with pytest.raises(CheckpointFormatError, match=message):
        checkpoints.read(path)


def test_a_flipped_bit_in_a_zip_is_found(tmp_path: Path) -> None:
    path = foreign.torch_file(tmp_path / "ckpt.pt", SAVED)
    data = bytearray(path.read_bytes())
    data[data.index(TENSORS["wte"].tobytes()) + 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointFormatError, match=r"'wte': damaged, its CRC-32 is not what the zip says"):
        dict(checkpoints.read(path)[1])


def test_a_list_of_entries_without_end(tmp_path: Path) -> None:
    """`zipfile` would take all of it into memory, twenty times as large."""
    path = tmp_path / "ckpt.pt"
    size = 64 * 1024 * 1024
    with path.open("wb") as file:
        file.write(b"PK\3\4")
        file.truncate(size)
        file.seek(size)
        file.write(b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 65535, 65535, size - 100, 100, 0))
    tracemalloc.start()
    with pytest.raises(CheckpointFormatError, match="its list of entries is longer than"):
        checkpoints.read(path)
    assert tracemalloc.get_traced_memory()[1] < 40_000_000
    tracemalloc.stop()


def test_one_storage_for_many_tensors(tmp_path: Path) -> None:
    """A small file must not become a large model."""
    arrays = foreign.nano_arrays(TENSORS)
    for name in arrays:
        if ".1." in name and name.replace(".1.", ".0.") in arrays:
            arrays[name] = arrays[name.replace(".1.", ".0.")]
    saved = {"model": arrays, "model_args": SAVED["model_args"]}
    with pytest.raises(CheckpointFormatError, match="expected a storage for each tensor, got one for several"):
        checkpoints.read(foreign.torch_file(tmp_path / "ckpt.pt", saved))


def test_tensors_that_overlap_in_gguf(tmp_path: Path) -> None:
    arrays = foreign.gguf_f32(foreign.gguf_arrays(TENSORS))
    data = foreign.gguf_bytes(foreign.gguf_keys(CONFIG), arrays)
    head = len(data) - sum(len(raw) + -len(raw) % 32 for _, _, raw in arrays.values())
    place = 0
    changed = data
    for name, (_, shape, raw) in arrays.items():
        at = data.index(struct.pack("<Q", len(name)) + name.encode()) + 8 + len(name) + 4 + 8 * len(shape) + 4
        assert struct.unpack("<Q", data[at : at + 8]) == (place,)
        place += len(raw) + -len(raw) % 32
        changed = put(changed, at, 0)
    largest = max(len(raw) for _, _, raw in arrays.values())
    (tmp_path / "tiny.gguf").write_bytes(changed[: head + largest])
    with pytest.raises(CheckpointFormatError, match="expected tensors that do not overlap"):
        checkpoints.read(tmp_path / "tiny.gguf")


def test_pipes_and_missing_files(tmp_path: Path) -> None:
    for name in ("x.gguf", "ckpt.pt", "model.bin"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(CheckpointFormatError, match="found another file"):
            checkpoints.read(tmp_path / name)
