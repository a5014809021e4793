"""What can be set about a server, with its limits, checked when it is made."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from gpt2.errors import ConfigError

LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True)
class Settings:
    """A server's settings."""

    host: str = "127.0.0.1"
    """The address to listen on; any but a loopback address needs an API key."""
    port: int = 8000
    """0 takes any free one."""
    model: str | None = None
    """The model that is meant where a request names none; None for the bundled one."""
    engine: str = "auto"
    """`litert`, `keras` or `auto`."""
    precision: str = "float32"
    """`float32`, `int8` or `int4`."""
    allowed_hosts: tuple[str, ...] = ()
    """Names by which the server may be called, besides this machine's own (against DNS rebinding)."""
    allowed_origins: tuple[str, ...] = ()
    """Other pages that may call it from a browser, such as `https://example.org`."""
    max_models: int = 2
    """Models that are open at once."""
    max_waiting: int = 256
    """Texts that wait for each model; more are refused with 429."""
    requests_per_minute: int | None = None
    """Of each key, or each address where there are no keys; more are refused with 429."""
    max_body_bytes: int = 4 << 20
    """Of a request."""
    max_upload_bytes: int = 256 << 20
    """Of an uploaded file."""
    upload_seconds: float = 600.0
    """For it to arrive."""
    body_seconds: float = 20.0
    """For a request's body to arrive."""
    header_seconds: float = 10.0
    """For a request's head to arrive."""
    write_seconds: float = 30.0
    """For a client to take some of an answer that waits for it."""
    request_seconds: float = 600.0
    """For a request to be answered."""
    grace_seconds: float = 25.0
    """On SIGTERM: for requests that are being answered."""
    revive_seconds: float = 2.0
    """Between two looks whether a model has to be opened anew."""
    stuck_seconds: float = 60.0
    """A step that takes longer means that the server is not ready."""
    max_choices: int = 128
    """Texts of one request: prompts times best_of (or n)."""
    max_total_tokens: int = 1 << 18
    """Tokens of one request: prompts read and tokens written, at most."""
    max_stop_length: int = 1000
    """Characters of a stop string."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port: expected 0 to 65535, got {self.port}")
        for name in ("max_models", "max_waiting", "max_body_bytes", "max_choices", "max_total_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected 1 or more, got {getattr(self, name)}")
        if self.requests_per_minute is not None and self.requests_per_minute < 1:
            raise ConfigError(f"requests_per_minute: expected 1 or more, or None, got {self.requests_per_minute}")
        for origin in self.allowed_origins:
            if not origin.startswith(("http://", "https://")) or origin.endswith("/"):
                raise ConfigError(f"allowed_origins: expected such as https://example.org, got {origin!r}")

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False

    @property
    def hosts(self) -> frozenset[str]:
        """What a request's Host may be, without the port, in lower case."""
        return frozenset(host.lower() for host in (*LOCAL_HOSTS, *self.allowed_hosts))
