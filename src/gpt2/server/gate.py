"""What every request passes before any route: host, origin, key, scope, rate and size; and what is logged of it.

Whatever is not named in `ACCESS` needs an admin's key. Where there are no keys, the server listens to this machine
alone, and everybody on it may do everything.
"""

from __future__ import annotations

import collections
import json
import logging
import re
import secrets
import time
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gpt2.errors import ConfigError
from gpt2.server.bodies import too_large
from gpt2.server.keys import Key, Keys
from gpt2.server.metrics import Metrics
from gpt2.server.problems import Problem, problem_of
from gpt2.server.settings import Settings

PUBLIC = "public"
UPLOADS = "/v1/files"
ACCESS: tuple[tuple[str, str, str], ...] = (
    ("GET", r"/health", PUBLIC),
    ("GET", r"/ready", PUBLIC),  # says yes or no; load balancers have no keys
    ("GET", r"/|/page/[^/]*", PUBLIC),  # the same files for everybody; the page asks with a key
    ("GET", r"/openapi\.json", "query"),
    ("GET", r"/docs", "query"),
    ("GET", r"/metrics", "admin"),
    ("GET", r"/tokenizer_info|/vocabulary", "query"),
    ("POST", r"/tokenize|/detokenize", "query"),
    ("POST", r"/v1/completions", "query"),
    ("GET", r"/v1/models(/[^/]*)?", "query"),
    ("DELETE", r"/v1/models/[^/]*", "admin"),
    ("*", r"/v1/files(/[^/]*(/content)?)?", "train"),
    ("*", r"/v1/fine_tuning/jobs(/[^/]*(/(cancel|pause|resume|events|checkpoints))?)?", "train"),
    ("*", r"/v\d+/(query|models|inspect)", "query"),
    ("POST", r"/v\d+/models/[^/]*/load", "query"),
    ("POST", r"/v\d+/models/[^/]*/unload", "admin"),
    ("*", r"/v\d+/(train|save|jobs(/[^/]*(/(cancel|pause|resume|events))?)?)", "train"),
)
"""Method (`*` for any), pattern of the whole path, and who may."""
_ACCESS = tuple((method, re.compile(pattern), scope) for method, pattern, scope in ACCESS)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
MAX_HEAD_BYTES = 32 << 10
_NO_BODY = {"GET", "HEAD", "OPTIONS"}

log = logging.getLogger("gpt2.server")


def scope_of(method: str, path: str) -> str | None:
    """Who may, by the table; None where it says nothing."""
    method = "GET" if method == "HEAD" else method
    return next(
        (scope for given, pattern, scope in _ACCESS if given in ("*", method) and pattern.fullmatch(path)), None
    )


class Rates:
    """How many requests somebody has sent in the last minute."""

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._sent: collections.OrderedDict[str, collections.deque[float]] = collections.OrderedDict()

    def wait(self, who: str) -> float:
        """Count a request; how many seconds too early it is, and then it does not count."""
        now = time.monotonic()
        sent = self._sent.setdefault(who, collections.deque())
        self._sent.move_to_end(who)
        while len(self._sent) > 10_000:
            self._sent.popitem(last=False)
        while sent and sent[0] <= now - 60:
            sent.popleft()
        if len(sent) >= self.per_minute:
            return sent[0] + 60 - now
        sent.append(now)
        return 0.0


class Gate:
    """The outermost layer of the application."""

    def __init__(self, app: ASGIApp, settings: Settings, keys: Keys, metrics: Metrics) -> None:
        self.app, self.settings, self.keys, self.metrics = app, settings, keys, metrics
        self._rates = None if settings.requests_per_minute is None else Rates(settings.requests_per_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or answer it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # there are no web sockets here
            await send({"type": "websocket.close", "code": 1008})
            return
        started = time.perf_counter()
        headers = _headers(scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else "req-" + secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        status, complete = 0, False

        async def answer(message: Message) -> None:
            nonlocal status, complete
            complete = message["type"] == "http.response.body" and not message.get("more_body", False)
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", request_id.encode()),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        key: Key | None = None
        try:
            try:
                key = self._let_in(scope, headers)
                await self.app(scope, receive, answer)
            except Exception as error:
                if not isinstance(error, Problem):
                    log.exception("request failed", extra={"fields": {"request_id": request_id}})
                if not status:
                    await problem_of(error).response()(scope, receive, answer)
                elif not complete:
                    raise  # the connection is cut, so that nobody takes a part for the whole
        finally:
            seconds = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.answered(scope["method"], route, status, seconds)
            fields = {
                **{"request_id": request_id, "method": scope["method"], "path": scope["path"][:200]},
                **{"status": status, "ms": round(1000 * seconds, 1), "key": key.id if key else None},
            }
            log.info("request", extra={"fields": fields})

    def _let_in(self, scope: Scope, headers: dict[str, str]) -> Key | None:
        """Whose request it is; None where there are no keys, or none is needed.

        Raises:
            Problem: it is refused.
        """
        line = len(scope.get("raw_path") or b"") + len(scope.get("query_string", b""))
        if line + sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEAD_BYTES:
            raise Problem(431, f"head: expected at most {MAX_HEAD_BYTES:,} bytes", code="headers_too_large")
        host = headers.get("host", "").lower()
        name = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
        if name not in self.settings.hosts:
            raise Problem(
                403, f"host: {host[:100]!r} is not a name of this server (gpt2 serve --allow-host)", code="host"
            )
        origin = headers.get("origin")
        if (
            origin is not None
            and origin not in self.settings.allowed_origins
            and urlsplit(origin).netloc.lower() != host
        ):
            raise Problem(403, f"origin: {origin[:100]!r} may not call this server", code="origin")
        wanted = scope_of(scope["method"], scope["path"])
        key = None if wanted == PUBLIC else self._key(headers, wanted or "admin")
        if self._rates is not None and wanted != PUBLIC:
            wait = self._rates.wait(key.id if key else (scope.get("client") or ("",))[0])
            if wait:
                message = f"rate: expected at most {self.settings.requests_per_minute} requests a minute"
                raise Problem(429, message, code="rate_limit_exceeded", headers={"Retry-After": str(int(wait) + 1)})
        if scope["method"] not in _NO_BODY:
            self._check_body(headers, is_upload=scope["path"] == UPLOADS)
        return key

    def _key(self, headers: dict[str, str], wanted: str) -> Key | None:
        try:
            if not self.keys.all() and self.settings.is_local:
                return None
            kind, _, secret = headers.get("authorization", "").partition(" ")
            key = self.keys.find(secret.strip().encode("latin-1")) if kind.lower() == "bearer" else None
        except (ConfigError, OSError):
            log.exception("keys cannot be read", extra={"fields": {}})
            raise Problem(503, "keys: they cannot be read", code="keys_unreadable") from None
        if key is None:
            raise Problem(
                401,
                "key: expected a valid API key in the header Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if not key.may(wanted):
            raise Problem(403, f"key: expected one with the scope {wanted}, got {key.scope}", code="scope")
        return key

    def _check_body(self, headers: dict[str, str], is_upload: bool) -> None:
        length = headers.get("content-length")
        limit = self.settings.max_upload_bytes if is_upload else self.settings.max_body_bytes
        if length is not None and length.isdecimal() and int(length[:20]) > limit:
            raise too_large(limit)
        wanted = "multipart/form-data" if is_upload else "application/json"
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if (length not in (None, "0") or "transfer-encoding" in headers) and kind != wanted:
            raise Problem(415, f"content-type: expected {wanted}, got {kind[:80]!r}", code="content_type")


class JsonLines(logging.Formatter):
    """A log line is one JSON object; control characters of strangers are escaped by that."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line = {"time": round(record.created, 3), "level": record.levelname.lower(), "message": record.getMessage()}
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _headers(scope: Scope) -> dict[str, str]:
    """Of several of one name, the last."""
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
