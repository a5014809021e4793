"""Lossless compression: arithmetic coding with a language model's probabilities.

    with open("book.txt", "rb") as source, open("book.gpt2z", "wb") as target:
        compress(source, target, open_model(precision="int8"))

Whoever expands it must compute the same probabilities to the last bit. So logits become whole numbers by a rule without
rounding of its own (`intervals`), and the file says what the logits came from: where weights, vocabulary, engine,
versions or the machine's arithmetic differ, it is refused. A hash of the content is compared at the end in any case.

The content is cut into blocks, each coded by itself from `<|endoftext|>` on, so that many can be expanded side by side,
as rows of a batch. Any bytes can be content: what is UTF-8 is encoded as text, every other byte is a token by itself. A
block that does not become smaller is kept as it is.

Source: text coded by a predictor's surprise is Shannon's (1951); with language models, Delétang et al. (2023, "Language
modeling is compression") and others do it.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import platform
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import BinaryIO, TypeVar

import numpy as np
from llvmlite import binding

from gpt2 import machine
from gpt2.codec import Codec
from gpt2.compression.archive import MAX_BLOCK, MAX_SEGMENT, MAX_STREAMS, Header, Reader, Stream, Writer
from gpt2.compression.intervals import Intervals
from gpt2.compression.range_coder import RangeDecoder, RangeEncoder
from gpt2.data.prepare import codec_hash
from gpt2.engines import Cache, Engine, kept_tokens
from gpt2.errors import CacheFullError, CodecError, CompressionError, ConfigError
from gpt2.language_model import LanguageModel

BLOCK = 1 << 14
"""Bytes that are coded by themselves: the larger, the better coded; the smaller, the more can be expanded at once."""
STREAMS = 32
"""Blocks that are worked on together."""

_TOKENS = 256  # that are fed at once, in all rows together
_PROBE = (3, 24)  # rows and tokens of the probe
_PACKAGES = {
    "litert": ("gpt2", "numpy", "ai-edge-litert", "numba", "llvmlite"),
    "keras": ("gpt2", "numpy", "tensorflow", "keras"),
}
_LOOSE = ("threads", "processor", "versions")  # what need not be the same if the probe is

_T = TypeVar("_T")
_Row = TypeVar("_Row")
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Report:
    """What came of it."""

    content: int
    """Bytes of the content."""
    compressed: int
    """Bytes of the compressed file."""
    tokens: int
    """Tokens of the content."""

    @property
    def bits_per_byte(self) -> float:
        """Bits of the compressed file for each byte of content; 0 where there is none."""
        return 8 * self.compressed / self.content if self.content else 0.0


def compress(
    source: BinaryIO,
    target: BinaryIO,
    model: LanguageModel,
    *,
    block: int = BLOCK,
    streams: int = STREAMS,
    progress: Progress | None = None,
) -> Report:
    """Write the content of `source`, any bytes, to `target`; `block * streams` bytes of it are in memory at once.

    Args:
        source: opened to read bytes.
        target: opened to write bytes.
        model: whose probabilities are used; with the litert engine it is fastest.
        block: bytes that are coded by themselves.
        streams: blocks that are worked on together.
        progress: told now and then how many bytes of content are done.

    Raises:
        ConfigError: `block` or `streams` out of range, or a model without a vocabulary or whose logits vary.
        GenerationError: the model gives NaN.
    """
    limit = min(MAX_STREAMS, MAX_SEGMENT // max(1, block))
    if not 1 <= block <= MAX_BLOCK:
        raise ConfigError(f"block: expected 1 to {MAX_BLOCK:,} bytes, got {block!r}")
    if not 1 <= streams <= limit:
        raise ConfigError(f"streams: expected 1 to {limit} of {block:,} bytes, got {streams!r}")
    codec = _codec_of(model)
    writer = Writer(target, header_of(model))
    digest, size, tokens = hashlib.sha256(), 0, 0
    while content := source.read(block * streams):
        pieces = [content[n : n + block] for n in range(0, len(content), block)]
        rows = [tokens_of(piece, codec) for piece in pieces]
        told = _Told(progress, size, len(content))
        coded = _in_parts(functools.partial(_encode, model.engine, codec, told), rows)
        writer.segment([_stream(piece, row, data) for piece, row, data in zip(pieces, rows, coded, strict=True)])
        digest.update(content)
        size, tokens = size + len(content), tokens + sum(map(len, rows))
    writer.end(size, digest.digest())
    return Report(size, writer.size, tokens)


def decompress(
    source: BinaryIO,
    target: BinaryIO,
    model: LanguageModel,
    *,
    name: str = "source",
    any_version: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write to `target` the content that `compress` was given.

    What it has written when an error comes is to be thrown away.

    Args:
        source: opened to read bytes, at the beginning of a compressed file.
        target: opened to write bytes.
        model: the one that it was compressed with, with the same engine and precision.
        name: of the source, for errors.
        any_version: try it also where versions of packages or the processor differ, if the probe comes out the same.
        progress: told now and then how many bytes of the source are done.

    Raises:
        CompressionError: the file is damaged or of another kind, or was made with something else, or what came out is
            not what had been compressed.
    """
    codec = _codec_of(model)
    reader = Reader(source, name)
    found = differences(reader.header, header_of(model), any_version=any_version)
    if found:
        raise CompressionError(f"{name}: cannot be expanded here: {'; '.join(found)}")
    digest, size, tokens = hashlib.sha256(), 0, 0
    for streams in reader.segments():
        coded = sum(len(stream.coded) for stream in streams)
        told = _Told(progress, reader.size - coded, coded)
        rows = _in_parts(functools.partial(_decode, model.engine, codec, told), streams)
        told.share(1)
        for stream, row in zip(streams, rows, strict=True):
            try:
                content = codec.decode_bytes(row) if stream.tokens else stream.coded
            except CodecError:  # a padded network has tokens that mean nothing
                content = b""
            if len(content) != stream.size:
                raise _wrong(name)
            target.write(content)
            digest.update(content)
            size, tokens = size + stream.size, tokens + stream.tokens
    if (size, digest.digest()) != (reader.content, reader.sha256):
        raise _wrong(name)
    return Report(size, reader.size, tokens)


def read_header(source: BinaryIO, *, name: str = "source") -> Header:
    """What a compressed file was made with.

    Raises:
        CompressionError: it is another kind of file, or damaged.
    """
    return Reader(source, name).header


def header_of(model: LanguageModel) -> Header:
    """What a file that is compressed with a model says of it.

    Raises:
        ConfigError: the model has no vocabulary, or gives other bits for the same tokens.
    """
    engine, codec = model.engine, _codec_of(model)
    versions = {}
    for package in _PACKAGES.get(engine.name, ("gpt2", "numpy")):
        versions[package] = metadata.version(package)
    return Header(
        weights_sha256=engine.weights_sha256,
        engine=engine.name,
        precision=engine.precision,
        n_ctx=engine.config.n_ctx,
        codec_sha256=codec_hash(codec),
        n_vocab=engine.config.n_vocab,
        probe_sha256=_probe(engine),
        threads=None if engine.exact else machine.cores(),
        processor=f"{platform.machine()} {binding.get_host_cpu_name()}",
        versions=versions,
        model=model.name if re.fullmatch(r"[\w.-]+", model.name) else "",
    )


def differences(header: Header, ours: Header, *, any_version: bool = False) -> list[str]:
    """What keeps a file with this header from being expanded by the model with the other, in words."""
    found = []
    for field in dataclasses.fields(Header):
        theirs, mine = getattr(header, field.name), getattr(ours, field.name)
        if theirs == mine or field.name == "model" or (any_version and field.name in _LOOSE):
            continue
        if field.name == "versions":
            names = sorted(name for name in {*theirs, *mine} if theirs.get(name) != mine.get(name))
            found += [_unlike(name, theirs.get(name), mine.get(name)) for name in names]
        elif field.name == "probe_sha256":
            found.append("probe_sha256: logits have other last bits here than where it was made")
        else:
            found.append(_unlike(field.name, theirs, mine))
    return found


def _unlike(what: str, theirs: object, mine: object) -> str:
    return f"{what}: it was made with {theirs!r:.80}, here is {mine!r:.80}"


def tokens_of(content: bytes, codec: Codec) -> list[int]:
    """Tokens whose bytes, joined, are the content: text where it is UTF-8, other bytes one by one."""
    tokens: list[int] = []
    # Undecodable bytes 0x80 to 0xff become U+DC80 to U+DCFF, which no UTF-8 text holds.
    for part in re.split("([\udc80-\udcff]+)", content.decode("utf-8", "surrogateescape")):
        if part and "\udc80" <= part[0] <= "\udcff":
            tokens += [codec.ranks[bytes([ord(letter) - 0xDC00])] for letter in part]
        else:
            tokens += codec.encode(part)
    return tokens


def _stream(content: bytes, row: Sequence[int], coded: bytes) -> Stream:
    """A block as it is stored: as it came where coding does not make it smaller."""
    if len(coded) < len(content):
        return Stream(len(content), len(row), coded)
    return Stream(len(content), 0, content)


def _encode(engine: Engine, codec: Codec, told: _Told, rows: Sequence[Sequence[int]]) -> list[bytes]:
    """Code each row of tokens by itself."""
    encoders = [RangeEncoder() for _ in rows]
    intervals = Intervals(engine.config.n_vocab)
    cache = engine.new_cache(len(rows), keep=False)
    fed = [[_start(codec), *row[:-1]] for row in rows]
    longest = max(map(len, rows))
    # An engine that is not exact must be fed as it will be on the way back.
    chunk = max(1, _TOKENS // len(rows)) if engine.exact else 1
    for first, last, again in _feeds(longest, engine.config.n_ctx, chunk):
        logits = _feed(engine, cache, fed, first, last, again)
        for row, encoder, values in zip(rows, encoders, logits, strict=True):
            for token, value in zip(row[first:last], values, strict=True):
                intervals.set(value)
                encoder.encode(*intervals.of(token))
        told.share(last / longest)
    return [encoder.finish() for encoder in encoders]


def _decode(engine: Engine, codec: Codec, told: _Told, streams: Sequence[Stream]) -> list[list[int]]:
    """The tokens of each stream."""
    decoders = [RangeDecoder(stream.coded) for stream in streams]
    intervals = Intervals(engine.config.n_vocab)
    cache = engine.new_cache(len(streams), keep=False)
    fed = [[_start(codec)] for _ in streams]
    longest = max(stream.tokens for stream in streams)
    for first, last, again in _feeds(longest, engine.config.n_ctx, 1):
        ended = [[] if stream.tokens <= first else row for stream, row in zip(streams, fed, strict=True)]
        logits = _feed(engine, cache, ended, first, last, again)
        for row, decoder, values in zip(fed, decoders, logits, strict=True):
            for value in values:
                intervals.set(value)
                token = intervals.at(decoder.target())
                decoder.take(*intervals.of(token))
                row.append(token)
        told.share(last / longest)
    return [row[1:] for row in fed]


def _feeds(count: int, n_ctx: int, chunk: int) -> Iterator[tuple[int, int, bool]]:
    """How `count` tokens of a row are fed: first, last, and whether the context is full and begins again.

    Then it is one token, and `kept_tokens` up to it are fed. Where that is follows from n_ctx alone.
    """
    first = held = 0
    while first < count:
        again = held == n_ctx
        last = first + 1 if again else min(first + chunk, first + n_ctx - held, count)
        yield first, last, again
        held = kept_tokens(n_ctx) if again else held + last - first
        first = last


def _feed(
    engine: Engine, cache: Cache, rows: Sequence[Sequence[int]], first: int, last: int, again: bool
) -> list[np.ndarray]:
    """The logits behind tokens first...last of each row that has them."""
    begin = first
    if again:
        begin = last - kept_tokens(engine.config.n_ctx)
        for row in range(len(rows)):
            cache.truncate(row, 0)
    new = [row[begin:last] if len(row) > first else [] for row in rows]
    return engine.feed(cache, new, all_positions=not again)


def _in_parts(work: Callable[[Sequence[_Row]], list[_T]], rows: Sequence[_Row]) -> list[_T]:
    """What `work` gives for all rows; in halves where the engine's cache does not hold them all."""
    try:
        return work(rows)
    except CacheFullError:
        if len(rows) == 1:
            raise
    half = len(rows) // 2
    return _in_parts(work, rows[:half]) + _in_parts(work, rows[half:])


def _probe(engine: Engine) -> str:
    """SHA-256 of the bits of some logits.

    Raises:
        ConfigError: they depend on how the tokens were cut into calls, though the engine promises otherwise.
    """
    count, length = _PROBE[0], min(_PROBE[1], engine.config.n_ctx)
    rows = [[(n * 7919 + row * 104729) % engine.config.n_vocab for n in range(length)] for row in range(count)]
    found = _in_parts(functools.partial(_stepped, engine), rows)
    if engine.exact:
        whole = [engine.feed(engine.new_cache(1), [row], all_positions=True)[0] for row in rows]
        if not all(np.array_equal(a, b) for a, b in zip(found, whole, strict=True)):
            raise ConfigError(
                "model: expected the same logits however tokens are cut into calls, but on this machine "
                f"the {engine.name} engine gives others, so what is compressed could not be expanded"
            )
    digest = hashlib.sha256()
    for logits in found:
        digest.update(np.ascontiguousarray(logits, "<f4").data)
    return digest.hexdigest()


def _stepped(engine: Engine, rows: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """The logits (T, V) of rows of T tokens that are fed token by token."""
    cache = engine.new_cache(len(rows))
    steps = [engine.feed(cache, [row[n : n + 1] for row in rows]) for n in range(len(rows[0]))]
    return [np.concatenate([step[row] for step in steps]) for row in range(len(rows))]


def _codec_of(model: LanguageModel) -> Codec:
    if model.codec is None:
        raise ConfigError(f"model: expected one with a vocabulary, got {model.name}, which has none")
    return model.codec


def _start(codec: Codec) -> int:
    """What stands before the first token."""
    return 0 if codec.end_of_text is None else codec.end_of_text


def _wrong(name: str) -> CompressionError:
    return CompressionError(
        f"{name}: what comes out is not what was compressed; it is damaged, or computed otherwise here"
    )


class _Told:
    """Tells the progress within a segment of `size` bytes, with `before` done before it."""

    def __init__(self, progress: Progress | None, before: int, size: int) -> None:
        self._progress, self._before, self._size = progress, before, size

    def share(self, share: float) -> None:
        """So much of the segment is done; in parts it begins anew."""
        if self._progress is not None:
            self._progress(self._before + int(share * self._size))
