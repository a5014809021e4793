"""A real HTTP server on 127.0.0.1 that serves files, and misbehaves as it is told."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Fault = Callable[["Handler", bytes], None]


class ModelServer(ThreadingHTTPServer):
    """Serves `files`; each request for a file takes the next of its `faults`, and a proper answer when none is left."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[Fault]] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.sent = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is what these tests are about."""


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    server: ModelServer

    def log_message(self, format: str, *args: object) -> None:
        """Be quiet."""

    def do_GET(self) -> None:
        name = self.path.rsplit("/", 1)[-1]
        self.server.requests.append((name, self.headers.get("Range")))
        data = self.server.files.get(name)
        if self.server.faults.get(name):
            self.server.faults[name].pop(0)(self, data or b"")
        elif data is None:
            self.answer(404, b"<html>not here</html>", {"Content-Type": "text/html"})
        else:
            self.serve(data)

    def serve(self, data: bytes, cut: int | None = None, etag: str | None = None) -> None:
        """The file, or the part that is asked for; only `cut` bytes of it before the connection ends."""
        etag = etag or f'"{hashlib.sha256(data).hexdigest()[:16]}"'
        headers = {"ETag": etag, "Content-Type": "application/octet-stream"}
        asked, status = self.headers.get("Range"), 200
        if asked and self.headers.get("If-Range", etag) == etag:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(data):
                self.answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
                return
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            data, status = data[start:], 206
        self.answer(status, data, headers, cut)

    def answer(self, status: int, body: bytes, headers: dict[str, str], cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        part = body if cut is None else body[:cut]
        self.server.sent += len(part)  # before the client has it, which may ask at once
        self.wfile.write(part)
        if cut is not None:
            self.close_connection = True


@contextlib.contextmanager
def serving() -> Iterator[ModelServer]:
    server = ModelServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# Faults


def cut_after(count: int) -> Fault:
    return lambda handler, data: handler.serve(data, cut=count)


def status(code: int, **headers: str) -> Fault:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler, data: handler.answer(code, b"sorry", named)


def html_page(code: int = 200, kind: str = "text/html; charset=utf-8") -> Fault:
    return lambda handler, data: handler.answer(code, b"<!DOCTYPE html><p>Log in first", {"Content-Type": kind})


def without_range(handler: Handler, data: bytes) -> None:
    """A server that knows no ranges: the whole file, whatever is asked."""
    handler.answer(200, data, {"ETag": '"x"'})


def wrong_range(handler: Handler, data: bytes) -> None:
    """Another part than was asked for."""
    handler.answer(206, data[3:], {"ETag": '"x"', "Content-Range": f"bytes 3-{len(data) - 1}/{len(data)}"})


def redirect(where: str) -> Fault:
    return lambda handler, data: handler.answer(302, b"", {"Location": where})


def other_file(data: bytes) -> Fault:
    return lambda handler, _: handler.serve(data)


def unknown_length(handler: Handler, data: bytes) -> None:
    """No Content-Length: the end of the connection is the end of the file."""
    handler.send_response(200)
    handler.send_header("Connection", "close")
    handler.end_headers()
    handler.wfile.write(data)
    handler.close_connection = True
