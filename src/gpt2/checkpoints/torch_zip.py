"""What `torch.save` writes, read without pickle and without torch: a zip with one pickle and the bytes of the tensors.

A pickle is a program, and Python's `pickle` runs it. Here nothing of it is run, imported or called: `read_pickle` walks
its opcodes and builds plain values, dicts, lists and tuples, and knows by name the few things that torch needs for a
tensor, which become descriptions (`Storage`, `Tensor`). Whatever else it meets is refused by name. The zip may hold
stored entries alone, so nothing is ever inflated.

Source: `torch/serialization.py` for the zip, `pickletools` of the standard library for the opcodes.
"""

from __future__ import annotations

import io
import math
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from gpt2.checkpoints.contents import shown
from gpt2.checkpoints.json_file import MAX_BYTES
from gpt2.checkpoints.tensor_file import DTYPES
from gpt2.errors import CheckpointFormatError

MAX_OPCODES = 1_000_000
"""A training of 1558M with its optimizer's state has about 150,000."""
_LOCAL_HEADER = 30


@dataclass(frozen=True)
class Global:
    """A name that a pickle asks for; nothing has been looked up under it."""

    module: str
    name: str


@dataclass(frozen=True)
class Storage:
    """The bytes of one or several tensors."""

    key: str
    """The entry is `data/KEY`."""
    kind: str
    """torch's name of it, such as FloatStorage."""
    size: int
    """Numbers."""


@dataclass(frozen=True)
class Tensor:
    """A part of a storage."""

    storage: Storage
    offset: int
    """Numbers before its first one."""
    shape: tuple[int, ...]
    strides: tuple[int, ...]


_STORAGES = tuple(
    f"{kind}Storage" for kind in ("Float", "Half", "BFloat16", "Double", "Long", "Int", "Short", "Char", "Byte", "Bool")
)
CODES = {"FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16"}
"""The storages whose numbers can be read -> the code of their type in `tensor_file`."""
_ORDERED_DICT = Global("collections", "OrderedDict")
_TENSOR = Global("torch._utils", "_rebuild_tensor_v2")
_PARAMETER = Global("torch._utils", "_rebuild_parameter")
_KNOWN = {_ORDERED_DICT, _TENSOR, _PARAMETER, *(Global("torch", name) for name in _STORAGES)}


class TorchFile:
    """A file of `torch.save`, opened.

    Args:
        path: the file.

    Raises:
        CheckpointFormatError: it is not such a zip, or its pickle holds what is not read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._size = path.stat().st_size
        self._entries = self._read_zip()
        order = self._entries.get("byteorder")
        if order is not None and self._bytes(order) != b"little":
            raise CheckpointFormatError(f"{path}: expected little-endian numbers")
        if "data.pkl" not in self._entries:
            raise CheckpointFormatError(f"{path}: expected data.pkl in the zip, as torch.save writes it, found none")
        self.value = read_pickle(self._bytes(self._entries["data.pkl"]), str(path))

    def check(self, tensors: Mapping[str, Tensor]) -> None:
        """See that tensors lie within their storages, and these within the file, before any number is read.

        Raises:
            CheckpointFormatError: one does not, or its numbers are of a type that is not read.
        """
        held: dict[str, int] = {}
        for name, tensor in tensors.items():
            held[name] = self._check(f"{self.path}: {name[:80]!r}", tensor)
        # Only the head and the embedding share one; else a small file would make a large model.
        if sum(held.values()) - held.get("lm_head", 0) > self._size:
            raise CheckpointFormatError(f"{self.path}: expected a storage for each tensor, got one for several")

    def _check(self, where: str, tensor: Tensor) -> int:
        """The bytes of a tensor's storage."""
        storage = tensor.storage
        if storage.kind not in CODES:
            raise CheckpointFormatError(f"{where}: expected float32, float16 or bfloat16, got a {storage.kind}")
        entry = self._entries.get(f"data/{storage.key}")
        if entry is None or entry.file_size != storage.size * DTYPES[CODES[storage.kind]].itemsize:
            held = "nothing" if entry is None else f"{entry.file_size:,} bytes"
            raise CheckpointFormatError(
                f"{where}: expected {storage.size:,} numbers in data/{storage.key[:20]}, got {held}"
            )
        strides, step = [], 1
        for length in reversed(tensor.shape):
            strides.append(step)
            step *= length
        if tensor.strides != tuple(reversed(strides)):
            raise CheckpointFormatError(f"{where}: expected a contiguous tensor, got strides {list(tensor.strides)}")
        if tensor.offset + step > storage.size:
            raise CheckpointFormatError(f"{where}: expected a tensor within its storage")
        return entry.file_size

    def load(self, name: str, tensor: Tensor) -> np.ndarray:
        """The numbers of a tensor that `check` has seen, as they are stored.

        Raises:
            CheckpointFormatError: they are damaged: their CRC-32 is another.
        """
        entry = self._entries[f"data/{tensor.storage.key}"]
        dtype = DTYPES[CODES[tensor.storage.kind]]
        data = np.fromfile(self.path, np.uint8, entry.file_size, offset=self._data_offset(entry))
        if data.size != entry.file_size or zlib.crc32(data.data) != entry.CRC:
            raise CheckpointFormatError(f"{self.path}: {name[:80]!r}: damaged, its CRC-32 is not what the zip says")
        count = math.prod(tensor.shape)
        return data.view(dtype)[tensor.offset : tensor.offset + count].reshape(tensor.shape)

    def _read_zip(self) -> dict[str, zipfile.ZipInfo]:
        """Every entry by its name without the first folder."""
        try:
            with _Bounded(self.path) as file, zipfile.ZipFile(file) as opened:
                found = opened.infolist()
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error, EOFError) as error:
            message = f"{self.path}: expected a zip as torch.save writes it: {str(error)[:200]}"
            raise CheckpointFormatError(message) from None
        entries: dict[str, zipfile.ZipInfo] = {}
        for info in found:
            name = info.filename.partition("/")[2]
            if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1:
                raise CheckpointFormatError(
                    f"{self.path}: {info.filename[:80]!r}: expected an entry that is stored as it is"
                )
            if name in entries:
                raise CheckpointFormatError(f"{self.path}: {info.filename[:80]!r} stands twice")
            entries[name] = info
        if sum(info.file_size for info in found) > self._size:
            raise CheckpointFormatError(f"{self.path}: expected entries that do not overlap")
        return entries

    def _data_offset(self, info: zipfile.ZipInfo) -> int:
        """Where an entry's bytes begin."""
        with self.path.open("rb") as file:
            file.seek(max(info.header_offset, 0))
            header = file.read(_LOCAL_HEADER)
        if len(header) < _LOCAL_HEADER or header[:4] != b"PK\3\4":
            raise CheckpointFormatError(f"{self.path}: {info.filename[:80]!r}: expected an entry of a zip")
        name, extra = struct.unpack("<HH", header[26:30])
        offset: int = info.header_offset + _LOCAL_HEADER + name + extra
        if offset + info.file_size > self._size:
            raise CheckpointFormatError(f"{self.path}: {info.filename[:80]!r} is cut short")
        return offset

    def _bytes(self, info: zipfile.ZipInfo) -> bytes:
        if info.file_size > MAX_BYTES:
            raise CheckpointFormatError(
                f"{self.path}: {info.filename[:80]!r}: expected at most {MAX_BYTES:,} bytes, got {info.file_size:,}"
            )
        with self.path.open("rb") as file:
            file.seek(self._data_offset(info))
            data = file.read(info.file_size)
        if zlib.crc32(data) != info.CRC:
            raise CheckpointFormatError(f"{self.path}: {info.filename[:80]!r}: damaged, its CRC-32 is another")
        return data


class _Bounded(io.FileIO):
    """A file that is not read in large pieces: `zipfile` would take a whole list of entries as long as the file."""

    def read(self, size: int | None = -1, /) -> bytes:
        """As any file's, up to 16 MiB at once."""
        wanted = MAX_BYTES + 1 if size is None or size < 0 else size
        data = super().read(wanted) if wanted <= MAX_BYTES + 1 else None
        if data is None or len(data) > MAX_BYTES:
            raise zipfile.BadZipFile(f"its list of entries is longer than {MAX_BYTES:,} bytes")
        return data


# The pickle

_MARK = object()
_PLAIN = {
    *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "FLOAT"),
    *("BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE", "SHORT_BINSTRING", "BINSTRING"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
"""Opcodes that push a value of their own."""
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PUTS, _GETS = {"BINPUT", "LONG_BINPUT", "PUT"}, {"BINGET", "LONG_BINGET", "GET"}


def read_pickle(data: bytes, source: str) -> Any:
    """The value that a pickle describes, of plain things and torch's tensors alone.

    Args:
        data: the pickle.
        source: for errors.

    Raises:
        CheckpointFormatError: it is broken, or needs anything that is not on the list.
    """
    return _Reader(source).read(data)


class _Reader:
    """The machine that a pickle is written for, without its power to call."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def read(self, data: bytes) -> Any:
        try:
            for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
                if count >= MAX_OPCODES:
                    self.refuse(f"it has more than {MAX_OPCODES:,} opcodes")
                if opcode.name == "STOP":
                    return self.pop()
                self.take(opcode.name, argument)
        except (IndexError, KeyError, TypeError, ValueError, OverflowError, struct.error, AttributeError) as error:
            self.refuse(f"it is broken ({type(error).__name__}: {str(error)[:100]})")
        self.refuse("it has no end")

    def take(self, name: str, argument: Any) -> None:
        """One opcode."""
        stack = self.stack
        if name in ("PROTO", "FRAME"):
            pass
        elif name in _PLAIN:
            stack.append(_CONSTANTS.get(name, argument))
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name == "MARK":
            stack.append(_MARK)
        elif name in _PUTS:
            self.memo[argument] = self.top()
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.top()
        elif name in _GETS:
            stack.append(self.memo[argument])
        elif name in _TUPLES:
            items = [self.pop() for _ in range(_TUPLES[name])]
            stack.append(tuple(reversed(items)))
        elif name == "TUPLE":
            stack.append(tuple(self.pop_to_mark()))
        elif name == "LIST":
            stack.append(self.pop_to_mark())
        elif name == "APPEND":
            item = self.pop()
            self.top_of(list).append(item)
        elif name == "APPENDS":
            items = self.pop_to_mark()
            self.top_of(list).extend(items)
        elif name == "DICT":
            items = self.pop_to_mark()
            stack.append({})
            self.set_items(items)
        elif name == "SETITEM":
            value, key = self.pop(), self.pop()
            self.set_items([key, value])
        elif name == "SETITEMS":
            self.set_items(self.pop_to_mark())
        elif name == "GLOBAL":
            self.push_global(*argument.split(" ", 1))
        elif name == "STACK_GLOBAL":
            attribute, module = self.pop(), self.pop()
            self.push_global(module, attribute)
        elif name == "BINPERSID":
            stack.append(self.storage(self.pop()))
        elif name == "REDUCE":
            arguments, function = self.pop(), self.pop()
            stack.append(self.made_by(function, arguments))
        elif name == "BUILD":
            state = self.pop()  # of an OrderedDict, where torch keeps the versions of the modules; not needed
            if not isinstance(self.top_of(dict), dict) or not isinstance(state, dict):
                self.refuse("it sets the state of something")
        else:
            self.refuse(f"it needs the opcode {name}")

    def top(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise ValueError("nothing on the stack")
        return self.stack[-1]

    def top_of(self, kind: type) -> Any:
        if type(self.top()) is not kind:
            self.refuse(f"it changes what is no {kind.__name__}")
        return self.stack[-1]

    def pop(self) -> Any:
        self.top()
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise ValueError("no mark on the stack")
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items

    def set_items(self, items: list[Any]) -> None:
        target = self.top_of(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Others could be made so that all of them collide, or that hashing them never ends.
            if not isinstance(key, str) and not (type(key) is int and abs(key) < 2**31):
                self.refuse(f"it has a {type(key).__name__} as a key, where only text and small integers are read")
            target[key] = value

    def push_global(self, module: Any, name: Any) -> None:
        found = Global(module, name)
        if not isinstance(module, str) or not isinstance(name, str) or found not in _KNOWN:
            self.refuse(f"it asks for {shown(module)}, {shown(name)}, which is not on the list of what is read")
        self.stack.append(found)

    def storage(self, described: Any) -> Storage:
        kind, storage, key, _, size = described
        if kind != "storage" or not isinstance(storage, Global) or storage.name not in _STORAGES:
            self.refuse("it points to something outside that is no tensor's storage")
        if not isinstance(key, str) or not _is_size(size):
            raise ValueError("a storage without name or size")
        return Storage(key, storage.name, size)

    def made_by(self, function: Any, arguments: Any) -> Any:
        """What a call would give, where it is one of those that are known by name."""
        if function == _ORDERED_DICT and arguments == ():
            return {}
        if function == _PARAMETER and isinstance(arguments[0], Tensor):
            return arguments[0]
        if function == _TENSOR:
            storage, offset, shape, strides = arguments[:4]
            sizes = isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides) <= 8
            if not isinstance(storage, Storage) or not sizes or not all(map(_is_size, (offset, *shape, *strides))):
                raise ValueError("a tensor without storage or shape")
            return Tensor(storage, offset, shape, strides)
        name = f"{function.module}.{function.name}" if isinstance(function, Global) else shown(function)
        self.refuse(f"it calls {name} with something that is not read")

    def refuse(self, why: str) -> NoReturn:
        raise CheckpointFormatError(
            f"{self.source}: its pickle is refused: {why}. Pickles can run code, so none is ever run here; if you "
            "trust the file, export it to safetensors as docs/interchange.md shows"
        )


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**48
