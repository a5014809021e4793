"""One file by HTTP: resumed where it broke off, tried again where that may help, hashed as it is written.

It knows nothing of models. A transfer that is not finished stays as `NAME.part` with `NAME.part.json` beside it (the
server's ETag and the length), and goes on from there the next time if the server still has the same file.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import random
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2.errors import DownloadError, IntegrityError

CHUNK = 1 << 18
USER_AGENT = "gpt2-download"
Progress = Callable[[str, int, int | None], None]
"""Called with the file's name, the bytes there are and the bytes there will be, if that is known."""


@dataclass(frozen=True)
class Settings:
    """How patient a transfer is."""

    tries: int = 6
    """Attempts in a row that bring nothing new before it gives up."""
    timeout: float = 30.0
    """Seconds without a byte."""
    backoff: float = 1.0
    """Seconds before the second attempt; doubled each time, with some chance in it, up to a minute."""
    longest_wait: float = 60.0
    """Seconds; a server that asks for more patience (`Retry-After`) is believed up to here."""


@dataclass(frozen=True)
class Done:
    """A file that is whole."""

    path: Path
    sha256: str
    size: int


class _Again(Exception):
    """This attempt failed, another may succeed."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


def fetch(url: str, target: Path, *, limit: int, settings: Settings, progress: Progress | None = None) -> Done:
    """Bring one file to `target`.

    Args:
        url: http or https.
        target: where it shall be; `target.part` holds what has come so far.
        limit: bytes; a longer file is refused.
        settings: how patient to be.
        progress: told of every chunk.

    Raises:
        DownloadError: the server or the network failed to the end; what has come stays for the next time.
        IntegrityError: it is longer than it may be or said to be, or an HTML page; nothing stays.
    """
    check_url(url)
    part = target.with_name(target.name + ".part")
    failures, had = 0, _size(part)
    while True:
        try:
            _attempt(url, target.name, part, limit, settings, progress)
            break
        except _Again as error:
            failures = 1 if _size(part) > had else failures + 1
            had = _size(part)
            if failures >= settings.tries:
                raise DownloadError(
                    f"{url}: {error}; gave up after {failures} attempts, run it again to go on"
                ) from None
            pause = min(settings.backoff * 2 ** (failures - 1), 60.0) * (0.5 + random.random())
            time.sleep(min(max(pause, error.wait or 0.0), settings.longest_wait))
        except IntegrityError:
            _discard(part)
            raise
        except OSError as error:  # of the disk: those of the network have become _Again
            raise DownloadError(f"{part}: cannot be written: {error.strerror or error}") from error
    digest, size = sha256_of(part), _size(part)
    os.replace(part, target)
    _discard(part)
    return Done(target, digest, size)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def check_url(url: str) -> None:
    """Refuse anything but http and https.

    Raises:
        DownloadError: another scheme, or no host.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise DownloadError(f"url: expected http:// or https:// and a host, got {url!r}")


def _digest(file: Any) -> str:  # Python 3.10
    digest = hashlib.sha256()
    while chunk := file.read(CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, a few, to http and https alone."""

    max_redirections = 5

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        check_url(newurl)
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise DownloadError(f"{req.full_url}: expected a redirect to https, got one to {newurl}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _attempt(url: str, name: str, part: Path, limit: int, settings: Settings, progress: Progress | None) -> None:
    """One request, from where the last one broke off.

    Raises:
        _Again: the file is not whole yet.
    """
    had, etag = _resumable(part)
    request = urllib.request.Request(url, headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"})
    if had:
        request.add_header("Range", f"bytes={had}-")
        if etag:
            request.add_header("If-Range", etag)
    with _network(url, part), _open(request, settings) as response:
        start = had if response.status == 206 else 0
        if response.status == 206 and _range_start(response) != had:
            _discard(part)
            raise _Again(f"the server sent another part than bytes {had} and after")
        kind = response.headers.get_content_type()
        if kind in ("text/html", "application/xhtml+xml"):
            raise IntegrityError(f"{url}: expected a file, got an HTML page ({kind})")
        length = _length(response)
        total = None if length is None else start + length
        if total is not None and total > limit:
            raise IntegrityError(f"{url}: expected at most {limit:,} bytes, got a Content-Length of {total:,}")
        if start == 0:
            _discard(part)
        _note(part, response.headers.get("ETag"), total)
        _receive(response, url, name, part, start, total, limit, progress)


def _receive(
    response: Any, url: str, name: str, part: Path, start: int, total: int | None, limit: int, progress: Progress | None
) -> None:
    have = start
    with part.open("ab", buffering=0) as file:  # what has come survives a kill
        while True:
            try:
                chunk = response.read1(CHUNK)
            except http.client.IncompleteRead as error:
                chunk = error.partial
            if not chunk:
                break
            have += len(chunk)
            if have > limit:
                raise IntegrityError(f"{url}: expected at most {limit:,} bytes, got more")
            file.write(chunk)
            if progress is not None:
                progress(name, have, total)
    if total is not None and have < total:
        raise _Again(f"the connection ended after {have:,} of {total:,} bytes")


@contextlib.contextmanager
def _network(url: str, part: Path) -> Iterator[None]:
    """Turn what urllib and sockets raise into `_Again` where another attempt may help."""
    try:
        yield
    except urllib.error.HTTPError as error:
        with error:
            _refuse(url, error, part)
    except urllib.error.URLError as error:
        raise _Again(f"cannot be reached: {error.reason}") from None
    except (http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise _Again(f"the connection broke: {str(error) or type(error).__name__}") from None


def _refuse(url: str, error: urllib.error.HTTPError, part: Path) -> None:
    if error.code == 416:  # what is here is not a beginning of what is there
        _discard(part)
        raise _Again("the server has no such part of the file")
    if error.code in (408, 425, 429) or error.code >= 500:
        wait = error.headers.get("Retry-After", "")
        raise _Again(f"the server answered {error.code} {error.reason}", float(wait) if wait.isdigit() else None)
    raise DownloadError(f"{url}: the server answered {error.code} {error.reason}") from None


def _open(request: urllib.request.Request, settings: Settings) -> Any:
    return urllib.request.build_opener(_Redirects).open(request, timeout=settings.timeout)


def _length(response: Any) -> int | None:
    text = response.headers.get("Content-Length")
    return int(text) if text is not None and text.isascii() and text.isdigit() else None


def _range_start(response: Any) -> int | None:
    """The first byte of `Content-Range: bytes 100-199/200`."""
    unit, _, span = response.headers.get("Content-Range", "").partition(" ")
    first = span.partition("-")[0]
    return int(first) if unit == "bytes" and first.isascii() and first.isdigit() else None


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _notes(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _note(part: Path, etag: str | None, total: int | None) -> None:
    _notes(part).write_text(json.dumps({"etag": etag, "total": total}), encoding="utf-8")


def _resumable(part: Path) -> tuple[int, str | None]:
    """How many bytes are here to go on from, and the server's tag for them; 0 where it cannot be told."""
    try:
        notes = json.loads(_notes(part).read_text(encoding="utf-8"))
        etag = notes["etag"]
    except (OSError, ValueError, KeyError, TypeError):
        return 0, None
    if not isinstance(etag, str) or etag.startswith("W/") or not etag.isprintable():
        return 0, None  # without a strong tag, nothing says that the rest belongs to the same file
    return _size(part), etag


def _discard(part: Path) -> None:
    for path in (part, _notes(part)):
        path.unlink(missing_ok=True)
