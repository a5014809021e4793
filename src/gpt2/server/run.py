"""The process: a socket, signals, and no patience with slow connections."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Callable
from types import FrameType

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from gpt2.errors import ConfigError
from gpt2.server.app import create_app, new_service
from gpt2.server.gate import MAX_HEAD_BYTES, JsonLines
from gpt2.server.service import Service
from gpt2.server.settings import Settings

BACKLOG = 2048


class Impatient(H11Protocol):
    """HTTP/1.1 by uvicorn, but a head of a request has to arrive in time, and an answer has to be taken."""

    head_seconds = 10.0
    write_seconds = 30.0
    _timer: asyncio.TimerHandle | None = None
    _untaken: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there."""
        super().connection_made(transport)
        self._timer = self.loop.call_later(self.head_seconds, self._too_slow)

    def data_received(self, data: bytes) -> None:
        """Bytes are there."""
        super().data_received(data)
        reading = self.conn.their_state is h11.IDLE
        if not reading and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        elif reading and self._timer is None:
            self._timer = self.loop.call_later(self.head_seconds, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        for timer in (self._timer, self._untaken):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """More is written than the client takes; one that takes nothing must not keep a model for ever."""
        super().pause_writing()
        self._untaken = self.loop.call_later(self.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """It was taken."""
        if self._untaken is not None:
            self._untaken.cancel()
        super().resume_writing()

    def _too_slow(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
            self.transport.close()


class Server(uvicorn.Server):
    """uvicorn's server, which tells the service that it stops."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal to stop; the second one stops at once."""
        self.service.stopping = True
        super().handle_exit(sig, frame)


def serve(settings: Settings, say: Callable[[str], None]) -> None:
    """Serve until SIGTERM, SIGHUP or Ctrl-C; what is being answered then is finished, for a while.

    Args:
        settings: how.
        say: told the address, and which engine runs the model.

    Raises:
        ConfigError: a public address without an API key, or one that is taken.
        GPT2Error: the model cannot be opened.
    """
    service = new_service(settings, say)
    if not settings.is_local and not service.keys.all():
        raise ConfigError(
            f"host: {settings.host} can be reached by others, so expected an API key (gpt2 keys create), found none"
        )
    listening = _listen(settings)
    with service.host.lease(None):
        pass  # opened, so that it is ready when it answers
    _log_to_stderr()
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    say(f"serving on http://{shown}:{port} (Ctrl-C stops)")
    server = new_server(service)
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # which uvicorn does not handle
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, server.handle_exit)
    try:
        # uvicorn raises a signal again when it has stopped; to us it means that all is well.
        server.run(sockets=[listening])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        listening.close()


def new_server(service: Service) -> Server:
    """A server that does not run yet."""
    settings = service.settings
    limits = {"head_seconds": settings.header_seconds, "write_seconds": settings.write_seconds}
    config = uvicorn.Config(
        create_app(service),
        http=type("Protocol", (Impatient,), limits),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=int(settings.grace_seconds),
        backlog=BACKLOG,
    )
    return Server(config, service)


def _listen(settings: Settings) -> socket.socket:
    host = settings.host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, asyncio turns Nagle's algorithm off, by which every answer would wait 40 ms for an ACK.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, settings.port))
    except OSError as error:
        listening.close()
        raise ConfigError(f"host, port: {settings.host}:{settings.port}: {error.strerror or error}") from None
    listening.listen(BACKLOG)
    return listening


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name, level in (("gpt2.server", logging.INFO), ("gpt2.jobs", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
