"""One file by HTTP: resumed where it broke off, tried again where that may help, hashed as it is written.

It knows nothing of models. A transfer that is not finished stays as `NAME.part` with `NAME.part.json` beside it (the
server's ETag and the length), and goes on from there the next time if the server still has the same file.
"""

from __future__ import annotations

import contextlib
import datetime
import email.utils
import hashlib
import http.client
import json
import os
import random
import re
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2.errors import DownloadError, IntegrityError
from gpt2.hashing import digest_of

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
        DownloadError: the server, the network or the disk failed to the end; what has come stays for the next time.
        IntegrityError: it is longer than it may be or said to be, compressed, or an HTML page; nothing stays.
    """
    check_url(url)
    part = _Part(target, url)
    try:
        failures, best = 0, part.size()
        while True:
            try:
                _attempt(part, limit, settings, progress)
                break
            except _Again as error:
                # Only more than ever before counts as headway: what is thrown away and fetched anew would never end.
                failures = 1 if part.size() > best else failures + 1
                best = max(best, part.size())
                if failures >= settings.tries:
                    raise DownloadError(
                        f"{url}: {error}; gave up after {failures} attempts, run it again to go on"
                    ) from None
                pause = min(settings.backoff * 2 ** (failures - 1), 60.0) * (0.5 + random.random())
                time.sleep(min(max(pause, error.wait or 0.0), settings.longest_wait))
            except IntegrityError:
                part.discard()
                raise
        digest, size = part.digest_of(part.size()).hexdigest(), part.size()
        os.replace(part.path, target)
        part.discard()
    except OSError as error:  # of the disk: those of the network have become _Again
        raise DownloadError(f"{part.path}: cannot be written: {error.strerror or error}") from error
    return Done(target, digest, size)


def check_url(url: str) -> None:
    """Refuse anything but http and https.

    Raises:
        DownloadError: another scheme, no host, a password in it (it would stand in messages), or spaces.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        sound = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
    except ValueError:  # a port that is no number, half an IPv6 address
        sound = False
    if not sound or re.search(r"[\x00-\x20\x7f]", url):
        raise DownloadError(f"url: expected http:// or https:// and a host, got {url!r}")
    if "@" in parts.netloc:
        raise DownloadError(f"url: expected no user and password in it, got one for {parts.hostname}")


class _Part:
    """What has come of a file: `NAME.part`, and beside it where it came from, its ETag and its length."""

    def __init__(self, target: Path, url: str) -> None:
        self.name, self.url = target.name, url
        self.path = target.with_name(target.name + ".part")
        self._notes = target.with_name(target.name + ".part.json")
        self._digest, self._hashed = hashlib.sha256(), 0

    def size(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    def resumable(self) -> tuple[int, str, int | None]:
        """The bytes to go on from, the server's tag and the file's length; 0 bytes where it cannot be told."""
        try:
            notes = json.loads(self._notes.read_text(encoding="utf-8"))
            url, etag, total = notes["url"], notes["etag"], notes["total"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return 0, "", None
        # Without a strong tag, nothing says that the rest belongs to the same file; nor does one of another server.
        if url != self.url or not (isinstance(etag, str) and re.fullmatch(r'"[\x21\x23-\x7e]*"', etag)):
            return 0, "", None
        return self.size(), etag, total if isinstance(total, int) else None

    def begin(self, etag: str | None, total: int | None) -> None:
        """Start from nothing."""
        self.discard()
        self._notes.write_text(json.dumps({"url": self.url, "etag": etag, "total": total}), encoding="utf-8")

    def add(self, file: Any, chunk: bytes) -> None:
        file.write(chunk)
        self._digest.update(chunk)
        self._hashed += len(chunk)

    def digest_of(self, size: int) -> Any:
        """The hash of the `size` bytes that are here, which are read again only if this process did not write them."""
        if self._hashed != size:
            self._digest, self._hashed = digest_of(self.path), size
        return self._digest

    def discard(self) -> None:
        for path in (self.path, self._notes):
            path.unlink(missing_ok=True)
        self._digest, self._hashed = hashlib.sha256(), 0


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, a few, to http and https alone."""

    max_redirections = 5

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        check_url(newurl)
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise DownloadError(f"{req.full_url}: expected a redirect to https, got one to {newurl}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _attempt(part: _Part, limit: int, settings: Settings, progress: Progress | None) -> None:
    """One request, from where the last one broke off.

    Raises:
        _Again: the file is not whole yet.
    """
    had, etag, total = part.resumable()
    request = urllib.request.Request(part.url, headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"})
    if had:
        request.add_header("Range", f"bytes={had}-")
        request.add_header("If-Range", etag)
    response = _open(request, part, had, total, settings)
    if response is None:  # there was nothing left to ask for
        return
    with contextlib.closing(response):
        _check_kind(response, part.url)
        length = _length(response)
        if response.status == 206:
            total = _checked_range(response, part, had, etag, total)
        else:
            had, total = 0, length
        if max(total or 0, had + (length or 0)) > limit:
            size = max(total or 0, had + (length or 0))
            raise IntegrityError(f"{part.url}: expected at most {limit:,} bytes, got a Content-Length of {size:,}")
        if had == 0:
            part.begin(response.headers.get("ETag"), total)
        have = _receive(response, part, had, length, total, limit, progress)
    if total is not None and have < total:
        raise _Again(f"the connection ended after {have:,} of {total:,} bytes")


def _receive(
    response: Any,
    part: _Part,
    have: int,
    length: int | None,
    total: int | None,
    limit: int,
    progress: Progress | None,
) -> int:
    """Append what comes to the part; give how many bytes there are then."""
    end = None if length is None else have + length
    if length is not None and response.will_close:
        response.length += 1  # http.client reads no further than the length said; one byte more shows that it was a lie
    part.digest_of(have)
    with part.path.open("ab", buffering=0) as file:  # what has come survives a kill
        while True:
            try:
                chunk = response.read1(CHUNK)
            except (http.client.HTTPException, OSError) as error:
                if have == end:  # all that was promised; how the connection ended does not matter
                    break
                raise _Again(f"the connection broke: {str(error) or type(error).__name__}") from None
            if not chunk:
                break
            if have + len(chunk) > limit:
                raise IntegrityError(f"{part.url}: expected at most {limit:,} bytes, got more")
            if end is not None and have + len(chunk) > end:
                raise IntegrityError(f"{part.url}: expected {end:,} bytes as its Content-Length says, got more")
            part.add(file, chunk)
            have += len(chunk)
            if progress is not None:
                progress(part.name, have, total)
    return have


def _open(request: Any, part: _Part, had: int, total: int | None, settings: Settings) -> Any:
    """The server's answer, or None where it says that the part is the whole file already.

    Raises:
        _Again: another attempt may succeed.
        DownloadError: it will not.
    """
    try:
        return urllib.request.build_opener(_Redirects).open(request, timeout=settings.timeout)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416:
                size = re.fullmatch(r"bytes \*/(\d{1,18})", error.headers.get("Content-Range", ""), re.ASCII)
                if had and had == (int(size[1]) if size else total):
                    return None
                part.discard()  # what is here is not a beginning of what is there
                raise _Again("the server has no such part of the file") from None
            message = f"the server answered {error.code} {error.reason}"
            if error.code in (408, 425, 429) or error.code >= 500:
                raise _Again(message, _retry_after(error.headers.get("Retry-After", ""))) from None
        raise DownloadError(f"{part.url}: {message}") from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise DownloadError(f"{part.url}: expected a valid certificate: {error.reason}") from None
        raise _Again(f"cannot be reached: {error.reason}") from None
    except (http.client.InvalidURL, ValueError) as error:
        raise DownloadError(f"{part.url}: the server sent on to an address that is none: {error}") from None
    except (http.client.HTTPException, OSError) as error:
        raise _Again(f"the connection broke: {str(error) or type(error).__name__}") from None


def _check_kind(response: Any, url: str) -> None:
    if response.status not in (200, 206):
        raise DownloadError(f"{url}: expected the answer 200 or 206, got {response.status} {response.reason}")
    kind = response.headers.get_content_type()
    if kind in ("text/html", "application/xhtml+xml"):
        raise IntegrityError(f"{url}: expected a file, got an HTML page ({kind})")
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        raise IntegrityError(f"{url}: expected the file as it is, got it compressed ({encoding[:40]})")


def _checked_range(response: Any, part: _Part, had: int, etag: str, total: int | None) -> int | None:
    """The whole file's length, if what the server sends goes on from what is here and is of the same file."""
    span = re.fullmatch(
        r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", response.headers.get("Content-Range", ""), re.ASCII
    )
    length = _length(response)
    said = int(span[3]) if span and span[3] != "*" else total
    first, last = (int(span[1]), int(span[2])) if span else (-1, -1)
    if first != had or (length is not None and length != last - first + 1) or (said is not None and last >= said):
        part.discard()
        raise _Again(f"the server sent another part than bytes {had} and after")
    # A server that does not heed If-Range may send the rest of another file.
    if had and (response.headers.get("ETag", etag) != etag or (total is not None and said != total)):
        part.discard()
        raise _Again("the file on the server has changed meanwhile")
    return last + 1 if said is None else said


def _length(response: Any) -> int | None:
    text = response.headers.get("Content-Length", "")
    return int(text) if re.fullmatch(r"\d{1,18}", text, re.ASCII) and not response.chunked else None


def _retry_after(text: str) -> float | None:
    """The seconds in `Retry-After: 120` or `Retry-After: Wed, 21 Oct 2015 07:28:00 GMT`."""
    if re.fullmatch(r"\d{1,9}", text, re.ASCII):
        return float(text)
    try:
        moment = email.utils.parsedate_to_datetime(text)
        return (moment - datetime.datetime.now(moment.tzinfo)).total_seconds()
    except (ValueError, TypeError, OverflowError):
        return None
