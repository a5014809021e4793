"""Compression: the coder against an oracle, intervals against the softmax, files there and back, and damaged ones."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import gpt2.compression
from gpt2.checkpoints.names import expected_shapes
from gpt2.cli import app
from gpt2.codec import Codec, default_codec
from gpt2.compression import Header, compress, decompress, differences, header_of, read_header, tokens_of
from gpt2.compression.archive import MAGIC, Reader, Stream, Writer
from gpt2.compression.intervals import MAX_VOCABULARY, Intervals, _table
from gpt2.compression.range_coder import BITS, RangeDecoder, RangeEncoder
from gpt2.config import GPT2Config
from gpt2.engines import Cache, Engine
from gpt2.engines.litert import LiteRTEngine
from gpt2.engines.litert_build import build
from gpt2.errors import CompressionError, ConfigError, GenerationError
from gpt2.language_model import LanguageModel
from test_cli import gpt2 as run_gpt2

ALL = 1 << BITS
CODEC = Codec.from_merges("#version: 0.2\nt h\nth e\nĠ the\n")
CONFIG = GPT2Config(n_vocab=CODEC.n_vocab, n_ctx=16, n_embd=16, n_head=2, n_layer=2)
TEXT = "the other day — Düsseldorf, 東京, 🙂🙂, " * 3


def random_weights(config: GPT2Config, seed: int = 7) -> list[tuple[str, np.ndarray]]:
    """Larger than at the start of training, so that probabilities are far from equal."""
    rng = np.random.default_rng(seed)
    return [
        (name, (rng.standard_normal(shape) * 0.3 + name.endswith("/g")).astype(np.float32))
        for name, shape in expected_shapes(config).items()
    ]


def opened(folder: Path, config: GPT2Config, precision: str, codec: Codec = CODEC, **options: Any) -> LanguageModel:
    if not folder.exists():
        build(folder, config, iter(random_weights(config)), precision, codec=codec)
    return LanguageModel(LiteRTEngine(folder, threads=2, **options), codec, name="tiny")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LanguageModel]:
    from gpt2.engines.keras import KerasEngine
    from gpt2.model import GPT2

    folder = tmp_path_factory.mktemp("built")
    found = {precision: opened(folder / precision, CONFIG, precision) for precision in ("float32", "int8", "int4")}
    network = GPT2(CONFIG, initialize=False)
    network.set_tensors(iter(random_weights(CONFIG)))
    return found | {"keras": LanguageModel(KerasEngine(network), CODEC, name="tiny")}


@pytest.fixture(autouse=True)
def always_coded(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code blocks also where that makes them larger, as with random weights it does."""
    if "real_blocks" not in request.fixturenames:
        monkeypatch.setattr(
            gpt2.compression, "_stream", lambda content, row, coded: Stream(len(content), len(row), coded)
        )


@pytest.fixture
def real_blocks() -> None:
    """Keep blocks as they are where coding makes them larger."""


def packed(content: bytes, model: LanguageModel, **options: Any) -> bytes:
    target = io.BytesIO()
    report = compress(io.BytesIO(content), target, model, **options)
    assert report.content == len(content)
    assert report.compressed == len(target.getvalue())
    return target.getvalue()


def unpacked(data: bytes, model: LanguageModel, **options: Any) -> bytes:
    target = io.BytesIO()
    decompress(io.BytesIO(data), target, model, **options)
    return target.getvalue()


# The range coder


@st.composite
def intervals(draw: st.DrawFn) -> tuple[int, int]:
    start = draw(st.one_of(st.integers(0, ALL - 1), st.sampled_from([0, ALL - 1, ALL // 2])))
    width = draw(st.one_of(st.integers(1, ALL - start), st.just(1), st.just(ALL - start)))
    return start, width


def oracle(chosen: Sequence[tuple[int, int]]) -> bytes:
    """The same narrowing with one number of any length: no carry, no bytes before the end."""
    low, size, count = 0, 2**32 - 1, 4
    for start, width in chosen:
        first, end = (size * edge // ALL for edge in (start, start + width))
        low, size = low + first, end - first
        while size < ALL:
            low, size, count = low * 256, size * 256, count + 1
    low = -(-low // ALL) * ALL  # the first number in the stretch that ends in three zero bytes
    return low.to_bytes(count, "big").rstrip(b"\0")


@settings(max_examples=300, deadline=None)
@given(st.lists(intervals(), max_size=60))
def test_the_coder_equals_the_oracle_and_finds_back(chosen: list[tuple[int, int]]) -> None:
    encoder = RangeEncoder()
    for start, width in chosen:
        encoder.encode(start, width)
    data = encoder.finish()
    assert data == oracle(chosen)
    decoder = RangeDecoder(data)
    for start, width in chosen:
        assert start <= decoder.target() < start + width
        decoder.take(start, width)


@pytest.mark.parametrize("interval", [(ALL - 1, 1), (ALL - 2, 1), (0, 1), (ALL // 2, ALL // 2), (0, ALL)])
def test_long_runs_of_one_interval(interval: tuple[int, int]) -> None:
    """Bytes of 255 wait for a carry, which goes through all of them."""
    for last in (interval, (0, 1), (ALL - 1, 1)):
        chosen = [interval] * 500 + [last]
        encoder = RangeEncoder()
        for start, width in chosen:
            encoder.encode(start, width)
        data = encoder.finish()
        assert data == oracle(chosen)
        bits = sum(BITS - math.log2(width) for _, width in chosen)
        assert len(data) <= bits / 8 * 1.05 + 2


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=40), st.integers(1, 200))
def test_any_bytes_can_be_decoded(data: bytes, width: int) -> None:
    decoder = RangeDecoder(data)
    for _ in range(60):
        target = decoder.target()
        assert 0 <= target < ALL
        start = target // width * width
        decoder.take(start, min(width, ALL - start))


def test_the_format_does_not_change_unnoticed() -> None:
    """What was once compressed must be expanded alike by later versions of this code."""
    logits = np.array([0.0, -1.5, 2.25, -30.0, 2.125, -np.inf, 1e-3], np.float32)
    found = Intervals(7)
    found.set(logits)
    assert [found.of(token) for token in range(7)] == [
        *[(0, 835280), (835280, 186378), (1021658, 7924922), (8946580, 1)],
        *[(8946581, 6993718), (15940299, 1), (15940300, 836916)],
    ]
    encoder = RangeEncoder()
    for token in (2, 4, 5, 0, 3, 2, 2, 6, 1):
        encoder.encode(*found.of(token))
    assert encoder.finish().hex() == "7ff7986f5a9feb9abc"


# Intervals


def test_the_table_is_the_exponential() -> None:
    table = _table()
    assert table[0] == 2**22
    assert table[-1] == 0
    assert table[-2] == 1
    assert table.tolist() == [round(2**22 * math.exp(-n / 1024)) for n in range(len(table))]


@settings(max_examples=100, deadline=None)
@given(
    arrays.arrays(
        np.float32,
        st.one_of(st.integers(1, 20), st.integers(250, 700)),
        elements=st.one_of(st.floats(-40, 40, width=32), st.floats(-(2.0**100), 2.0**100, width=32)),
    ),
    st.integers(0, ALL - 1),
)
def test_intervals_part_all_numbers_as_the_softmax_does(logits: np.ndarray, target: int) -> None:
    V = len(logits)
    found = Intervals(V)
    found.set(logits)
    at = 0
    for token in range(V):
        start, width = found.of(token)
        assert start == at
        assert width >= 1
        assert found.at(start) == found.at(start + width - 1) == token
        at += width
    assert at == ALL
    start, width = found.of(found.at(target))
    assert start <= target < start + width
    exact = np.exp(logits.astype(np.float64) - logits.max())
    exact /= exact.sum()
    widths = np.array([found.of(token)[1] for token in range(V)]) / ALL
    np.testing.assert_allclose(widths, exact, rtol=2e-3, atol=3 * V / ALL)


def test_intervals_do_not_depend_on_what_was_there_before() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((2, 1000)).astype(np.float32)
    used, fresh = Intervals(1000), Intervals(1000)
    used.set(first)
    used.set(second)
    fresh.set(second)
    assert [used.of(n) for n in range(1000)] == [fresh.of(n) for n in range(1000)]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_refused(bad: float) -> None:
    for place in (0, 4, 9):
        logits = np.zeros(10, np.float32)
        logits[place] = bad
        with pytest.raises(GenerationError, match=f"logits: expected numbers, got {bad}"):
            Intervals(10).set(logits)
    with pytest.raises(GenerationError, match="got -inf"):
        Intervals(10).set(np.full(10, -np.inf, np.float32))


def test_too_large_a_vocabulary_is_refused() -> None:
    Intervals(MAX_VOCABULARY)
    with pytest.raises(ConfigError, match=r"n_vocab: expected at most 131,072 to compress with, got 131,073"):
        Intervals(MAX_VOCABULARY + 1)


# Bytes as tokens


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.binary(max_size=300), st.text(max_size=100).map(lambda text: text.encode("utf-8", "replace"))))
def test_any_bytes_are_tokens(content: bytes) -> None:
    for codec in (CODEC, default_codec()):
        assert codec.decode_bytes(tokens_of(content, codec)) == content


def test_text_is_encoded_as_text() -> None:
    codec = default_codec()
    assert tokens_of(b"Hello world", codec) == [15496, 995]
    assert tokens_of(b"Hello\xff\xfe world", codec) == [15496, codec.ranks[b"\xff"], codec.ranks[b"\xfe"], 995]
    assert tokens_of(b"<|endoftext|>", codec) == codec.encode("<|endoftext|>")


# There and back


@pytest.mark.parametrize("name", ["float32", "int8", "int4", "keras"])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.one_of(st.binary(max_size=150), st.text(max_size=80).map(lambda text: text.encode("utf-8", "replace"))),
    block=st.sampled_from([1, 7, 64, 1000]),
    streams=st.integers(1, 6),
)
def test_there_and_back(models: dict[str, LanguageModel], name: str, content: bytes, block: int, streams: int) -> None:
    model = models[name]
    assert unpacked(packed(content, model, block=block, streams=streams), model) == content


@pytest.mark.parametrize("name", ["float32", "int8", "int4", "keras"])
def test_past_the_context(models: dict[str, LanguageModel], name: str) -> None:
    content = (TEXT * 3).encode() + bytes(range(256))
    data = packed(content, models[name], block=300, streams=3)
    assert unpacked(data, models[name]) == content


def test_every_context_length_there_is(tmp_path: Path) -> None:
    for n_ctx in (1, 2, 3, 33):
        model = opened(tmp_path / str(n_ctx), dataclasses.replace(CONFIG, n_ctx=n_ctx), "float32")
        assert unpacked(packed(TEXT.encode(), model), model) == TEXT.encode()


def test_cuts_and_neighbours_change_no_byte(
    models: dict[str, LanguageModel], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Long chunks, token by token, side by side or in halves because the cache is small: the same streams."""
    content = (TEXT * 8).encode()
    wanted = packed(content, models["int8"], block=300, streams=8)
    monkeypatch.setattr(gpt2.compression, "_TOKENS", 1)
    assert packed(content, models["int8"], block=300, streams=8) == wanted
    config = dataclasses.replace(CONFIG, n_ctx=64)
    large = opened(tmp_path / "long", config, "int8")
    small = opened(tmp_path / "long", config, "int8", cache_bytes=1)
    blocks = len(small.engine.pool._users)  # type: ignore[attr-defined]
    assert blocks < 3 * 64 / 32, "three rows do not fit"
    wanted = packed(content, large, block=300, streams=8)
    assert packed(content, small, block=300, streams=8) == wanted
    assert unpacked(wanted, small) == content


def test_what_the_model_expects_takes_little(models: dict[str, LanguageModel]) -> None:
    """The bytes are the model's surprise: its log-probability of the tokens, to 1 % and the file's own parts."""
    model = models["float32"]
    tokens = model.generate([CODEC.end_of_text or 0], max_tokens=15, temperature=0)[0].tokens[-15:]
    content = CODEC.decode_bytes(tokens)
    fed = tokens_of(content, CODEC)
    logits = model.logits([[CODEC.end_of_text or 0, *fed[:-1]]])[0].astype(np.float64)
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    bits = -sum(logs[n, token] for n, token in enumerate(fed)) / math.log(2)
    empty, data = packed(b"", model), packed(content, model)
    reader = Reader(io.BytesIO(data), "x")
    ((stream,),) = list(reader.segments())
    assert len(stream.coded) <= bits / 8 * 1.01 + 1
    assert len(data) - len(empty) == len(stream.coded) + 3 * 4 + 4 + 4


@pytest.mark.usefixtures("real_blocks")
def test_what_does_not_become_smaller_is_kept_as_it_is(models: dict[str, LanguageModel]) -> None:
    content = np.random.default_rng(0).bytes(3000)
    data = packed(content, models["int8"], block=500)
    assert len(data) < len(content) + len(packed(b"", models["int8"])) + 100
    assert content[500:1000] in data
    assert unpacked(data, models["int8"]) == content


def test_options_out_of_range_are_refused(models: dict[str, LanguageModel]) -> None:
    for options, message in (
        ({"block": 0}, "block: expected 1 to 1,048,576 bytes, got 0"),
        ({"block": 1 << 21}, "block: expected 1 to 1,048,576 bytes, got 2097152"),
        ({"streams": 0}, "streams: expected 1 to 256 of 16,384 bytes, got 0"),
        ({"block": 1 << 20, "streams": 33}, "streams: expected 1 to 32 of 1,048,576 bytes, got 33"),
    ):
        with pytest.raises(ConfigError, match=message):
            compress(io.BytesIO(b"x"), io.BytesIO(), models["int8"], **options)
    with pytest.raises(ConfigError, match="model: expected one with a vocabulary, got tiny, which has none"):
        compress(io.BytesIO(b"x"), io.BytesIO(), LanguageModel(models["int8"].engine, None, name="tiny"))


def test_progress_ends_at_the_end(models: dict[str, LanguageModel]) -> None:
    told: list[int] = []
    data = packed(TEXT.encode(), models["int8"], block=20, streams=2, progress=told.append)
    assert told == sorted(told)
    assert told[-1] == len(TEXT.encode())
    told.clear()
    unpacked(data, models["int8"], progress=told.append)
    assert told == sorted(told)
    assert len(data) * 0.9 < told[-1] <= len(data)


# What does not fit


def test_other_models_are_refused(models: dict[str, LanguageModel], tmp_path: Path) -> None:
    data = packed(b"the other", models["int8"])
    build(tmp_path / "other", CONFIG, iter(random_weights(CONFIG, seed=8)), "int8", codec=CODEC)
    other = LanguageModel(LiteRTEngine(tmp_path / "other"), CODEC, name="tiny")
    with pytest.raises(CompressionError, match="source: cannot be expanded here: weights_sha256: it was made with '"):
        unpacked(data, other)
    with pytest.raises(CompressionError, match="precision: it was made with 'int8', here is 'float32'"):
        unpacked(data, models["float32"])
    with pytest.raises(CompressionError, match="engine: it was made with 'litert', here is 'keras'"):
        unpacked(data, models["keras"], any_version=True)
    foreign = LanguageModel(models["int8"].engine, Codec.from_merges("a b\nab c\nd e\n"), name="tiny")
    with pytest.raises(CompressionError, match="codec_sha256: it was made with '"):
        unpacked(data, foreign)


def with_header(data: bytes, header: Header) -> bytes:
    """The same streams behind another header."""
    reader = Reader(io.BytesIO(data), "x")
    target = io.BytesIO()
    writer = Writer(target, header)
    for streams in reader.segments():
        writer.segment(streams)
    writer.end(reader.content, reader.sha256)
    return target.getvalue()


def test_other_versions_are_refused_unless_one_insists(models: dict[str, LanguageModel]) -> None:
    model = models["int8"]
    data = packed(b"the other", model)
    header = read_header(io.BytesIO(data))
    assert header == header_of(model)
    assert differences(header, header_of(model)) == []
    older = dataclasses.replace(header, versions={**header.versions, "numba": "0.1"}, processor="x86_64 z80")
    with pytest.raises(
        CompressionError, match=r"processor: it was made with 'x86_64 z80', here .*numba: .* '0.1', her"
    ):
        unpacked(with_header(data, older), model)
    assert unpacked(with_header(data, older), model, any_version=True) == b"the other"
    elsewhere = dataclasses.replace(older, probe_sha256="0" * 64)
    with pytest.raises(CompressionError, match="probe_sha256: logits have other last bits here than where it was made"):
        unpacked(with_header(data, elsewhere), model, any_version=True)


class Shaky:
    """An engine whose last bits depend on how many tokens come at once, as those of some libraries do."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def feed(self, cache: Cache, ids: Sequence[Sequence[int]], *, all_positions: bool = False) -> list[np.ndarray]:
        factor = np.float32(1 + 1e-6 * (max(map(len, ids)) > 1))
        return [logits * factor for logits in self._engine.feed(cache, ids, all_positions=all_positions)]


def test_an_engine_that_breaks_its_promise_is_refused(models: dict[str, LanguageModel]) -> None:
    model = LanguageModel(Shaky(models["float32"].engine), CODEC, name="tiny")
    with pytest.raises(ConfigError, match="expected the same logits however tokens are cut into calls"):
        packed(b"the", model)


# Damage


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe takes most of the time where hundreds of small files are read."""
    monkeypatch.setattr(gpt2.compression, "_probe", functools.cache(gpt2.compression._probe))


def expect_refusal(data: bytes, model: LanguageModel) -> str:
    with pytest.raises(CompressionError) as caught:
        unpacked(data, model)
    assert str(caught.value).startswith("source: ")
    return str(caught.value)


@pytest.mark.usefixtures("probed")
def test_every_flipped_bit_is_found(models: dict[str, LanguageModel]) -> None:
    data = packed(TEXT.encode(), models["int8"], block=50)
    rng = np.random.default_rng(0)
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1 << rng.integers(8)
        expect_refusal(bytes(changed), models["int8"])


@pytest.mark.usefixtures("probed")
def test_every_cut_is_found_and_whatever_follows(models: dict[str, LanguageModel]) -> None:
    data = packed(TEXT.encode(), models["int8"], block=50)
    for length in range(len(data)):
        message = expect_refusal(data[:length], models["int8"])
        assert "cut short" in message or "another kind" in message
    assert "expected its end, got more" in expect_refusal(data + b"\0", models["int8"])
    assert "expected its end, got more" in expect_refusal(data + data, models["int8"])


@pytest.mark.usefixtures("probed")
def test_damage_that_checksums_do_not_show_is_found_by_the_hash(models: dict[str, LanguageModel]) -> None:
    """As if the arithmetic were other here, or someone had been at it: what comes out is never passed off as right."""
    model = models["int8"]
    content = TEXT.encode()
    data = packed(content, model, block=50)
    reader = Reader(io.BytesIO(data), "x")
    segments = list(reader.segments())
    rng = np.random.default_rng(0)
    for _ in range(150):
        changed = [list(streams) for streams in segments]
        row = changed[0]
        number = int(rng.integers(len(row)))
        stream = row[number]
        coded = bytearray(stream.coded)
        coded[rng.integers(len(coded))] ^= 1 << rng.integers(8)
        kind = rng.integers(4)
        if kind == 0:
            row[number] = dataclasses.replace(stream, coded=bytes(coded))
        elif kind == 1:
            row[number] = dataclasses.replace(stream, coded=stream.coded[: rng.integers(len(coded))])
        elif kind == 2:
            row[number] = dataclasses.replace(stream, tokens=max(1, stream.tokens - 1))
        else:
            row.reverse()
        target = io.BytesIO()
        writer = Writer(target, reader.header)
        for streams in changed:
            writer.segment(streams)
        writer.end(reader.content, reader.sha256)
        assert target.getvalue() != data
        assert "what comes out is not what was compressed" in expect_refusal(target.getvalue(), model)


def sealed(data: bytes) -> bytes:
    return data + struct.pack("<I", zlib.crc32(data))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (struct.pack("<I", 2**32 - 1), "4,294,967,295 streams in a segment"),
        (struct.pack("<IIII", 1, 2**32 - 1, 5, 5), "a stream of 4,294,967,295 bytes in 5 tokens in 5 bytes"),
        (struct.pack("<IIII", 1, 10, 11, 5), "a stream of 10 bytes in 11 tokens"),
        (struct.pack("<IIII", 1, 10, 0, 0), "a stream of 10 bytes in 0 tokens"),
        (struct.pack("<IIII", 1, 10, 10, 2**31), "in 2,147,483,648 bytes"),
        (struct.pack("<IIII", 1, 10, 0, 9), "a stream of 10 bytes in 0 tokens in 9 bytes"),
        (struct.pack("<I", 64) + struct.pack("<III", 1 << 20, 1, 1) * 64, "a segment that is too large"),
    ],
)
def test_sizes_that_lie_are_refused_before_memory_is_taken(
    models: dict[str, LanguageModel], table: bytes, message: str
) -> None:
    target = io.BytesIO()
    Writer(target, header_of(models["int8"]))
    assert message in expect_refusal(target.getvalue() + sealed(table + bytes(64)), models["int8"])


def framed(values: object) -> bytes:
    text = json.dumps(values).encode()
    return MAGIC + sealed(struct.pack("<I", len(text)) + text)


def test_headers_that_are_none_are_refused(models: dict[str, LanguageModel]) -> None:
    values = {"version": 1, **dataclasses.asdict(header_of(models["int8"]))}
    model = models["int8"]
    assert "expected a file made by gpt2 compress, got another kind" in expect_refusal(b"", model)
    assert "got another kind" in expect_refusal(b"PK\3\4 some other file", model)
    assert "got another kind" in expect_refusal(MAGIC.replace(b"\r\n", b"\n") + b"x" * 100, model)
    assert "expected version 1 of the format, got 2" in expect_refusal(framed({**values, "version": 2}), model)
    for bad in (
        {},
        [],
        "text",
        {**values, "more": 1},
        {**values, "n_ctx": "16"},
        {**values, "versions": []},
        {name: value for name, value in values.items() if name != "engine"},
    ):
        assert "it is damaged: a header" in expect_refusal(framed(bad), model)
    nested = b"[" * 60_000
    data = MAGIC + sealed(struct.pack("<I", len(nested)) + nested)
    assert "it is damaged: a header that is no JSON" in expect_refusal(data, model)
    huge = MAGIC + struct.pack("<I", 2**31)
    assert "it is damaged: a header of 2,147,483,648 bytes" in expect_refusal(huge, model)


def test_a_token_without_meaning_is_refused(tmp_path: Path) -> None:
    """A padded network has more tokens than the vocabulary; only a forged file holds one."""
    model = opened(tmp_path / "padded", dataclasses.replace(CONFIG, n_vocab=CODEC.n_vocab + 30), "float32")
    found = Intervals(CODEC.n_vocab + 30)
    found.set(model.logits([[CODEC.end_of_text or 0]])[0, 0])
    encoder = RangeEncoder()
    encoder.encode(*found.of(CODEC.n_vocab + 5))
    target = io.BytesIO()
    writer = Writer(target, header_of(model))
    writer.segment([Stream(1, 1, encoder.finish())])
    writer.end(1, bytes(32))
    assert "what comes out is not what was compressed" in expect_refusal(target.getvalue(), model)


# The command line


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpt2.gpt import new_model, save_model

    models = [str(save_model(new_model(CONFIG, codec=CODEC, seed=n), tmp_path / f"model{n}")) for n in (1, 2)]
    content = TEXT.encode() + b"\xff\0"
    file, made, back = tmp_path / "text", tmp_path / "text.gpt2z", tmp_path / "back"
    file.write_bytes(content)
    home = {"GPT2_HOME": str(tmp_path / "home")}
    done = run_gpt2("compress", str(file), "-m", models[0], "--verify", "--json", **home)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["content"] == len(content)
    assert facts["compressed"] == made.stat().st_size
    assert facts["bits_per_byte"] == 8 * facts["compressed"] / facts["content"]
    done = run_gpt2("decompress", str(made), "-m", models[0], "-o", str(back), **home)
    assert done.returncode == 0, done.stderr
    assert back.read_bytes() == content
    done = run_gpt2("decompress", "-", "-o", "-", "-m", models[0], stdin=made.read_bytes(), **home)
    assert (done.returncode, done.stdout) == (0, content)
    back.unlink()
    monkeypatch.setenv("GPT2_HOME", home["GPT2_HOME"])
    by_keras = tmp_path / "keras.gpt2z"
    app(["compress", str(file), "-m", models[0], "--engine", "keras", "-o", str(by_keras)], standalone_mode=False)
    app(["decompress", str(by_keras), "-m", models[0], "-o", str(back)], standalone_mode=False)
    assert back.read_bytes() == content
    back.unlink()
    by_keras.unlink()
    for arguments, error, message in (
        (["compress", str(file), "-m", models[0]], ConfigError, "is there already; --force replaces it"),
        (["compress", "-"], ConfigError, "--out: expected a file to write, or -; got none"),
        (["compress", str(back)], ConfigError, "FILE: expected a file, found none"),
        (["compress", str(back), "-o", str(file)], ConfigError, "FILE: expected a file, found none"),
        (["decompress", str(file), "-o", str(back)], CompressionError, "expected a file made by gpt2 compress, got an"),
        (["decompress", str(tmp_path / "none")], ConfigError, "FILE: expected a file, found none at .*none"),
        (["decompress", str(made), "-o", str(back)], CompressionError, "say with --model which they are"),
        (["decompress", str(made), "-m", models[1], "-o", str(back)], CompressionError, "weights_sha256: it was made"),
    ):
        with pytest.raises(error, match=message):
            app(arguments, standalone_mode=False)
    done = run_gpt2("decompress", str(file), "-o", str(back), **home)
    assert (done.returncode, done.stderr.count(b"\n"), b"got another kind" in done.stderr) == (1, 1, True)
    assert {entry.name for entry in tmp_path.iterdir()} == {"home", "text", "text.gpt2z", "model1", "model2"}


# Slow


def mixed_unicode(size: int) -> bytes:
    """Text of many scripts and some bytes that are none."""
    rng = np.random.default_rng(0)
    scripts = [(0x20, 0x7F), (0xA0, 0x250), (0x370, 0x400), (0x400, 0x500), (0x590, 0x700), (0x900, 0xA00)]
    scripts += [(0x3040, 0x3100), (0x4E00, 0x9FA0), (0xAC00, 0xD7A0), (0x1F300, 0x1F700), (0x10000, 0x10FFFF)]
    out = bytearray()
    while len(out) < size:
        first, last = scripts[rng.integers(len(scripts))]
        out += "".join(map(chr, rng.integers(first, last, rng.integers(1, 40)))).encode("utf-8", "replace")
        out += b" " if rng.random() < 0.9 else rng.bytes(rng.integers(1, 5))
    return bytes(out[:size])


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_megabyte_of_mixed_unicode(tmp_path: Path, precision: str) -> None:
    codec = default_codec()
    config = GPT2Config(n_vocab=codec.n_vocab, n_ctx=64, n_embd=16, n_head=2, n_layer=2)
    model = opened(tmp_path / "model", config, precision, codec)
    content = mixed_unicode(1 << 20)
    assert unpacked(packed(content, model, block=1 << 15), model) == content


@pytest.mark.slow
@pytest.mark.usefixtures("real_blocks")
def test_the_bundled_model_past_its_context() -> None:
    from gpt2.language_model import open_model

    # What a model writes it also compresses; the document is of another kind, and need only come back.
    tale = open_model().generate("Once upon a time", max_tokens=1500, seed=1)[0].text.encode()
    document = (Path(__file__).parent.parent / "docs" / "bundled-model.md").read_bytes()
    for precision in ("float32", "int8"):
        model = open_model(precision=precision)
        for text in (tale, document):
            assert unpacked(packed(text, model, block=1 << 13), model) == text
        assert len(packed(tale, model, block=1 << 13)) < len(zlib.compress(tale, 9))
