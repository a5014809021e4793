"""Errors as OpenAI's clients know them: a status, and `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import errno
import re
import sqlite3
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from gpt2.errors import (
    CacheFullError,
    CancelledError,
    CheckpointNotFoundError,
    CodecError,
    ConfigError,
    ContextLengthError,
    GenerationError,
    GPT2Error,
    JobError,
    JobStateError,
    ModelInUseError,
    ModelLockedError,
    ModelNameError,
    NameTakenError,
    PromptError,
    QueueFullError,
)

RETRY_SECONDS = 1
"""What a client that is refused for lack of room is told to wait."""


class Problem(Exception):
    """A request that is not answered, and why."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """What is sent."""
        # Escapes keep a text that is no Unicode, such as a lone surrogate, from spoiling the answer.
        message = self.message.encode("utf-8", "backslashreplace").decode()
        return {"error": {"message": message, "type": _TYPES[self.status], "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """As an answer."""
        return JSONResponse(self.body, self.status, self.headers)


_TYPES: Mapping[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    422: "invalid_request_error",
    431: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    504: "timeout_error",
    507: "server_error",
}


def problem_of(error: BaseException) -> Problem:
    """What a client is told of an error; of one that nobody foresaw, nothing."""
    if isinstance(error, Problem):
        return error
    if is_disk_full(error):
        return Problem(507, "there is no room left on the server's disk", code="disk_full")
    if isinstance(error, GPT2Error):
        message = " ".join(str(error).split())
        named = re.match(r"([a-z_]+)[:,]", message)
        for kind, status, code in _KINDS:
            if isinstance(error, kind):
                headers = {"Retry-After": str(RETRY_SECONDS)} if status in (429, 503) else None
                param = named[1] if named and status in (400, 404) else None
                return Problem(status, message, param=param, code=code, headers=headers)
        return Problem(500, "the model cannot be read", code="model_unreadable")
    return Problem(
        500, "something went wrong here; the request id says where to look in the log", code="internal_error"
    )


def is_disk_full(error: BaseException | None) -> bool:
    """Whether this error, or what it came from, is that a disk is full, or somebody's part of it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if isinstance(error, sqlite3.OperationalError) and "disk is full" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


_KINDS: tuple[tuple[type[GPT2Error], int, str | None], ...] = (
    (ContextLengthError, 400, "context_length_exceeded"),
    (PromptError, 400, "invalid_prompt"),
    (CodecError, 400, "invalid_text"),
    (NameTakenError, 409, "name_taken"),
    (ModelLockedError, 409, "model_locked"),
    (ModelInUseError, 409, "model_in_use"),
    (JobStateError, 409, "wrong_state"),
    (JobError, 404, "not_found"),
    (ModelNameError, 404, "model_not_found"),
    (CheckpointNotFoundError, 404, "model_not_found"),
    (ConfigError, 400, None),
    (QueueFullError, 429, "queue_full"),
    (CacheFullError, 503, "out_of_memory"),
    (CancelledError, 503, "shutting_down"),
    (GenerationError, 500, "generation_failed"),
)
"""The first that fits counts."""
