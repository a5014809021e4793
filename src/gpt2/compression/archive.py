"""The file of compressed content: what it was made with, segments of streams, and a hash of what must come out.

    MAGIC                       8 bytes; their first and last ones do not survive a transfer as text
    header                      u32 length, JSON, u32 CRC of both
    segments, each              u32 streams; for each u32 bytes, u32 tokens, u32 coded bytes; the coded bytes; u32 CRC
    end                         u32 zero, u64 bytes of content, its SHA-256, u32 CRC

Numbers are little-endian. Whatever is read is bounded before memory is taken for it. It knows nothing of models.
"""

from __future__ import annotations

import dataclasses
import json
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from gpt2.errors import CompressionError

MAGIC = b"\x93GPT2Z\r\n"
VERSION = 1
"""Of the file and of how intervals are made from logits."""
MAX_STREAMS = 256
MAX_BLOCK = 1 << 20
"""Bytes of content in a stream."""
MAX_SEGMENT = 1 << 25
"""Bytes of content in a segment."""

_MAX_HEADER = 1 << 16
_NUMBER = struct.Struct("<I")
_STREAM = struct.Struct("<III")
_END = struct.Struct("<Q32s")


@dataclass(frozen=True)
class Header:
    """What the probabilities came from. All of it must be the same to read the file."""

    weights_sha256: str
    """Of the weights before they were rounded to a precision."""
    engine: str
    """That computed the logits."""
    precision: str
    """Of its weights."""
    n_ctx: int
    """The context of the network."""
    codec_sha256: str
    """Of the vocabulary's merges."""
    n_vocab: int
    """Tokens of the network."""
    probe_sha256: str
    """Of the bits of some logits: another processor or version that rounds otherwise has others."""
    threads: int | None
    """Of the engine, where their number can change a bit."""
    processor: str
    """The processor's kind, to which code is fitted."""
    versions: dict[str, str]
    """Of the packages that compute."""
    model: str
    """The model's name, if it has one; it says where to look, and nothing depends on it."""


@dataclass(frozen=True)
class Stream:
    """A piece of the content, coded by itself."""

    size: int
    """Bytes of content."""
    tokens: int
    """How many tokens they are; 0 where they stand in the file as they are."""
    coded: bytes
    """What the range coder made of the tokens, or the bytes of content themselves."""


class Writer:
    """Writes a file, piece by piece."""

    def __init__(self, target: BinaryIO, header: Header) -> None:
        self._target = target
        self.size = 0
        """Bytes written so far."""
        values = json.dumps({"version": VERSION, **dataclasses.asdict(header)}, sort_keys=True).encode()
        self._write(MAGIC)
        self._write_checked(_NUMBER.pack(len(values)) + values)

    def segment(self, streams: Sequence[Stream]) -> None:
        """Add streams that are to be decoded side by side."""
        table = b"".join(_STREAM.pack(stream.size, stream.tokens, len(stream.coded)) for stream in streams)
        self._write_checked(_NUMBER.pack(len(streams)) + table + b"".join(stream.coded for stream in streams))

    def end(self, size: int, sha256: bytes) -> None:
        """Say how many bytes of content there were, and their hash."""
        self._write_checked(_NUMBER.pack(0) + _END.pack(size, sha256))

    def _write_checked(self, data: bytes) -> None:
        self._write(data + _NUMBER.pack(zlib.crc32(data)))

    def _write(self, data: bytes) -> None:
        self._target.write(data)
        self.size += len(data)


class Reader:
    """Reads a file, piece by piece.

    Raises:
        CompressionError: it is another kind of file, of another version, or damaged.
    """

    def __init__(self, source: BinaryIO, name: str) -> None:
        self._source, self._name = source, name
        self._crc = 0
        self.size = 0
        """Bytes read so far."""
        self.content = 0
        """Bytes of content, known at the end."""
        self.sha256 = b""
        """Of the content, known at the end."""
        if self._read(len(MAGIC), whole=False) != MAGIC:
            raise self._error("expected a file made by gpt2 compress, got another kind")
        self._crc = 0
        length = self._number()
        if length > _MAX_HEADER:
            raise self._damaged(f"a header of {length:,} bytes")
        values = self._read(length)
        self._check()
        self.header = self._header(values)

    def segments(self) -> Iterator[list[Stream]]:
        """The segments in order; then `content` and `sha256` are known, and nothing follows in the file."""
        while streams := self._number():
            if streams > MAX_STREAMS:
                raise self._damaged(f"{streams:,} streams in a segment")
            table = [_STREAM.unpack(self._read(_STREAM.size)) for _ in range(streams)]
            for size, tokens, coded in table:
                # A byte is a token at most, and an interval of 2**24 takes less than 4 bytes.
                fits = coded <= 4 * tokens + 4 if tokens else coded == size
                if not (0 < size <= MAX_BLOCK and tokens <= size and fits):
                    raise self._damaged(f"a stream of {size:,} bytes in {tokens:,} tokens in {coded:,} bytes")
            if sum(size for size, _, _ in table) > MAX_SEGMENT:
                raise self._damaged("a segment that is too large")
            found = [Stream(size, tokens, self._read(coded)) for size, tokens, coded in table]
            self._check()
            yield found
        self.content, self.sha256 = _END.unpack(self._read(_END.size))
        self._check()
        if self._source.read(1):
            raise self._error("expected its end, got more")

    def _header(self, data: bytes) -> Header:
        try:
            values = json.loads(data)
            version = values.pop("version")
        except (ValueError, RecursionError, KeyError, AttributeError, TypeError):
            raise self._damaged("a header that is no JSON") from None
        if version != VERSION:
            raise self._error(f"expected version {VERSION} of the format, got {version!r:.20}")
        kinds: dict[str, Any] = {field.name: str for field in dataclasses.fields(Header)}
        kinds |= {"n_ctx": int, "n_vocab": int, "threads": (int, type(None)), "versions": dict}
        if values.keys() != kinds.keys() or not all(isinstance(values[name], kind) for name, kind in kinds.items()):
            raise self._damaged("a header with other fields")
        return Header(**values)

    def _number(self) -> int:
        return int(_NUMBER.unpack(self._read(_NUMBER.size))[0])

    def _read(self, count: int, *, whole: bool = True) -> bytes:
        data = self._source.read(count)
        if whole and len(data) < count:
            raise self._error("expected more, got the end of the file; it was cut short")
        self._crc = zlib.crc32(data, self._crc)
        self.size += len(data)
        return data

    def _check(self) -> None:
        """Compare what was read since the last time with the CRC that follows."""
        found = self._crc
        if self._number() != found:
            raise self._damaged("another checksum")
        self._crc = 0

    def _damaged(self, what: str) -> CompressionError:
        return self._error(f"it is damaged: {what}")

    def _error(self, what: str) -> CompressionError:
        return CompressionError(f"{self._name}: {what}")
