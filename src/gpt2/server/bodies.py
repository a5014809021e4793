"""JSON from strangers: of bounded size, in bounded time, strictly of the type that is asked for."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from starlette.requests import ClientDisconnect, Request

from gpt2.server.problems import Problem
from gpt2.server.settings import Settings

T = TypeVar("T")


async def read_bytes(request: Request, settings: Settings) -> bytes:
    """The body of a request.

    Raises:
        Problem: it is too large (413) or too slow (408), or never came.
    """
    try:
        return await asyncio.wait_for(_read(request, settings), settings.body_seconds)
    except asyncio.TimeoutError:
        raise Problem(
            408, f"body: expected all of it in {settings.body_seconds:g} seconds", headers={"Connection": "close"}
        ) from None
    except ClientDisconnect:
        raise Problem(400, "body: the client left") from None


async def _read(request: Request, settings: Settings) -> bytes:
    pieces: list[bytes] = []
    length = 0
    async for piece in request.stream():
        length += len(piece)
        if length > settings.max_body_bytes:
            raise too_large(settings.max_body_bytes)
        pieces.append(piece)
    return b"".join(pieces)


def too_large(limit: int) -> Problem:
    """What a body over the limit gets."""
    message = f"body: expected at most {limit:,} bytes"
    return Problem(413, message, code="body_too_large", headers={"Connection": "close"})


async def read_json(request: Request, kind: Callable[..., T], settings: Settings) -> T:
    """The body of a request as a value of a type.

    Raises:
        Problem: as `read_bytes`; it is not JSON, or not of the type (400, naming the first field that is wrong).
    """
    data = await read_bytes(request, settings)
    try:
        return adapter_of(kind).validate_json(data or b"{}", strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = [str(part) for part in first["loc"] if not str(part).startswith(("function-", "tuple[", "list["))]
        param = where[0] if where else None
        got = "" if first["type"] == "json_invalid" else _shown(error)
        message = f"{param or 'body'}: {first['msg']}{got}"
        raise Problem(400, message, param=param, code=first["type"]) from None


def schema_of(kind: type) -> dict[str, Any]:
    """The JSON schema of a type, for the OpenAPI document."""
    return adapter_of(kind).json_schema(ref_template="#/components/schemas/{model}")


def to_json(value: Any) -> bytes:
    """A dataclass or a dict of plain values as JSON."""
    kind: Any = dict if isinstance(value, Mapping) else type(value)
    return adapter_of(kind).dump_json(value)


@functools.cache
def adapter_of(kind: Any) -> TypeAdapter[Any]:
    """What checks and writes a type; making one takes a while."""
    return TypeAdapter(kind)


def _shown(error: ValidationError) -> str:
    """What came, if that is short."""
    given = error.errors(include_url=False, include_context=False)[0].get("input")
    return (
        f", got {given!r}" if isinstance(given, (int, float, bool, str, type(None))) and len(repr(given)) < 60 else ""
    )
