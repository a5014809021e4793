"""One file from a server that lies about lengths, ranges and tags: every byte right, or an error that says why not."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import model_server as faulty
from gpt2.checkpoints import transfer
from gpt2.checkpoints.transfer import Settings, check_url, fetch
from gpt2.errors import DownloadError, IntegrityError
from model_server import Fault, Handler, ModelServer

DATA = bytes(range(256)) * 40
OTHER = b"z" * len(DATA)
FAST = Settings(tries=3, timeout=2.0, backoff=0.001, longest_wait=0.05)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with faulty.serving() as server:
        server.files["x.bin"] = DATA
        yield server


def bring(server: ModelServer, folder: Path, faults: list[Fault], **changes: Any) -> bytes:
    """The bytes that arrive when the server has these faults one after another; the hash is that of the bytes."""
    server.faults["x.bin"] = list(faults)
    options = {"limit": 100_000, "settings": FAST, **changes}
    done = fetch(f"{server.url}/x.bin", folder / "x.bin", **options)
    data = done.path.read_bytes()
    assert (done.sha256, done.size) == (hashlib.sha256(data).hexdigest(), len(data))
    assert os.listdir(folder) == ["x.bin"], "nothing is left over"
    return data


def tag(data: bytes) -> str:
    return f'"{hashlib.sha256(data).hexdigest()[:16]}"'


def asked(handler: Handler) -> int:
    return int(handler.headers["Range"].removeprefix("bytes=").rstrip("-"))


def part_of(data: bytes, start: int, end: int, **headers: str) -> tuple[int, bytes, dict[str, str]]:
    span = f"bytes {start}-{end - 1}/{len(data)}"
    return 206, data[start:end], {"ETag": tag(data), "Content-Range": span, **headers}


def cut_chunks(handler: Handler, data: bytes) -> None:
    """A chunked answer that ends inside a chunk."""
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b"%x\r\n" % len(data) + data[:500])
    handler.close_connection = True


def few_bytes_of_the_range(handler: Handler, data: bytes) -> None:
    handler.answer(*part_of(data, asked(handler), asked(handler) + 50))


def rest_of_another_file(handler: Handler, data: bytes) -> None:
    handler.answer(*part_of(OTHER, asked(handler), len(OTHER)))


def rest_of_a_longer_file(handler: Handler, data: bytes) -> None:
    handler.answer(*part_of(DATA + b"more", asked(handler), len(DATA) + 4, ETag=tag(DATA)))


def range_longer_than_it_says(handler: Handler, data: bytes) -> None:
    handler.answer(206, data[asked(handler) :], {"ETag": tag(data), "Content-Range": "bytes 1000-1009/10240"})


def no_content_range(handler: Handler, data: bytes) -> None:
    handler.answer(206, data[asked(handler) :], {"ETag": tag(data)})


def not_satisfiable(handler: Handler, data: bytes) -> None:
    handler.answer(416, b"", {"Content-Range": "bytes */5"})


@pytest.mark.parametrize(
    "fault",
    [
        few_bytes_of_the_range,
        rest_of_another_file,
        rest_of_a_longer_file,
        range_longer_than_it_says,
        no_content_range,
        not_satisfiable,
        faulty.wrong_range,
        faulty.without_range,
    ],
)
def test_wrong_answers_to_a_range(server: ModelServer, tmp_path: Path, fault: Fault) -> None:
    """A range shorter than the rest, or of a file with another ETag, was once taken for the end of the file."""
    assert bring(server, tmp_path, [faulty.cut_after(1000), fault]) == DATA


def test_a_chunked_answer_that_is_cut(server: ModelServer, tmp_path: Path) -> None:
    """It was once taken for a whole file of 500 bytes."""
    assert bring(server, tmp_path, [cut_chunks]) == DATA
    assert len(server.requests) == 2


@pytest.mark.parametrize("start", [0, 1000])
def test_more_than_the_content_length(server: ModelServer, tmp_path: Path, start: int) -> None:
    """http.client drops what is beyond the Content-Length; a file with its end missing was once taken for whole."""

    def lie(handler: Handler, data: bytes) -> None:
        status, body, headers = part_of(data, start, len(data)) if start else (200, data, {"ETag": tag(data)})
        handler.answer(
            status, body, {**headers, "Content-Length": str(len(body) - (start == 0)), "Connection": "close"}
        )
        if start:
            handler.wfile.write(b"more")

    faults = [faulty.cut_after(start), lie] if start else [lie]
    with pytest.raises(IntegrityError, match=r"expected 10,2\d\d bytes as its Content-Length says, got more"):
        bring(server, tmp_path, faults)
    assert os.listdir(tmp_path) == []


def test_headway_is_more_than_ever_before(server: ModelServer, tmp_path: Path) -> None:
    """1000 bytes, 416 and from the beginning: once it went on like this for ever, as each 1000 counted as headway."""
    with pytest.raises(DownloadError, match="gave up after 3 attempts"):
        bring(server, tmp_path, [faulty.cut_after(1000), not_satisfiable] * 30)
    assert len(server.requests) == 3


def test_a_part_that_is_the_whole_file_is_not_fetched_again(server: ModelServer, tmp_path: Path) -> None:
    """Killed after the last byte and before the file had its name."""
    (tmp_path / "x.bin.part").write_bytes(DATA)
    notes = {"url": f"{server.url}/x.bin", "etag": tag(DATA), "total": len(DATA)}
    (tmp_path / "x.bin.part.json").write_text(json.dumps(notes))
    assert bring(server, tmp_path, []) == DATA
    assert server.sent == 0


@pytest.mark.parametrize(
    "notes",
    [
        *("", "[]", "{", "null", "[" * 9999, '{"url": "U", "etag": 5, "total": 1}'),
        '{"url": "http://mirror/x.bin", "etag": "\\"a\\"", "total": 1}',
        '{"url": "U", "etag": "\\"a\\"\\r\\nX: y", "total": 1}',
        '{"url": "U", "etag": "W/\\"a\\"", "total": 1}',
    ],
)
def test_notes_that_cannot_be_trusted(server: ModelServer, tmp_path: Path, notes: str) -> None:
    """Broken, of another mirror, or with a tag that would smuggle a header: it starts anew."""
    (tmp_path / "x.bin.part").write_bytes(b"junk")
    (tmp_path / "x.bin.part.json").write_text(notes.replace("U", f"{server.url}/x.bin"))
    assert bring(server, tmp_path, []) == DATA
    assert server.requests == [("x.bin", None)]


def test_compressed_and_empty_answers(server: ModelServer, tmp_path: Path) -> None:
    def compressed(handler: Handler, data: bytes) -> None:
        handler.answer(200, gzip.compress(data), {"Content-Encoding": "gzip"})

    with pytest.raises(IntegrityError, match=r"got it compressed \(gzip\)"):
        bring(server, tmp_path, [compressed])
    with pytest.raises(DownloadError, match="expected the answer 200 or 206, got 204"):
        bring(server, tmp_path, [faulty.status(204)])


def test_a_location_that_is_no_address(server: ModelServer, tmp_path: Path) -> None:
    for where in ("http://[::1/x", "http://127.0.0.1:port/x", "http://user:s3cret@127.0.0.1/x"):
        with pytest.raises(DownloadError) as caught:
            bring(server, tmp_path, [faulty.redirect(where)])
        assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http://[::1/x", "http://h:port/x", "http://h/a b", "http://h/\r\nX: y", "http://u:p@h/x", "HTTP:///x"]
)
def test_addresses_that_are_none(url: str) -> None:
    """Half an IPv6 address once escaped as a ValueError."""
    with pytest.raises(DownloadError, match="url: expected"):
        check_url(url)


def test_retry_after_is_heeded_up_to_a_limit(
    server: ModelServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(transfer.time, "sleep", pauses.append)
    settings = Settings(tries=9, timeout=2.0, backoff=0.0, longest_wait=60.0)
    values = ["7", "86400", "9" * 400, "-5", "Fri, 31 Dec 2100 23:59:59 GMT", "Wed, 21 Oct 2015 07:28:00 GMT", "soon"]
    faults = [faulty.status(429, Retry_After=value) for value in values]
    assert bring(server, tmp_path, faults, settings=settings) == DATA
    assert pauses == [7.0, 60.0, 0.0, 0.0, 60.0, 0.0, 0.0]


def test_pauses_grow(server: ModelServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(transfer.time, "sleep", pauses.append)
    settings = Settings(tries=7, timeout=2.0, backoff=1.0, longest_wait=60.0)
    assert bring(server, tmp_path, [faulty.status(503)] * 6, settings=settings) == DATA
    for n, pause in enumerate(pauses):
        assert 0.5 * 2**n <= pause <= min(1.5 * 2**n, 60.0)


class FullDisk(io.FileIO):
    """A file that takes 3000 bytes and no more."""

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > 3000:
            super().write(bytes(data)[: 3000 - self.tell()])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


def test_a_full_disk_names_the_file_and_keeps_what_came(
    server: ModelServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Path.open
    with monkeypatch.context() as patch:
        patch.setattr(
            Path, "open", lambda self, mode="r", **_: FullDisk(self, "a") if "a" in mode else plain(self, mode)
        )
        with pytest.raises(DownloadError, match=r"x\.bin\.part: cannot be written: No space left on device"):
            bring(server, tmp_path, [])
    assert (tmp_path / "x.bin.part").read_bytes() == DATA[:3000]
    assert bring(server, tmp_path, []) == DATA
    assert [what for _, what in server.requests] == [None, "bytes=3000-"]


def test_stopped_by_the_user_it_goes_on_later(server: ModelServer, tmp_path: Path) -> None:
    def stop(name: str, have: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bring(server, tmp_path, [faulty.cut_after(700)], progress=stop)
    assert (tmp_path / "x.bin.part").read_bytes() == DATA[:700]
    assert bring(server, tmp_path, []) == DATA
    assert server.sent == len(DATA)


def test_a_redirect_keeps_the_range(server: ModelServer, tmp_path: Path) -> None:
    """Hugging Face answers each request with one to another host."""
    server.files["elsewhere"] = DATA
    there = faulty.redirect(f"{server.url}/elsewhere")
    server.faults["elsewhere"] = [faulty.cut_after(1000)]
    assert bring(server, tmp_path, [there, there]) == DATA
    assert [what for name, what in server.requests if name == "elsewhere"] == [None, "bytes=1000-"]
