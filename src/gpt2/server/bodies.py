"""JSON from strangers: of bounded size, in bounded time, strictly of the type that is asked for."""

from __future__ import annotations

import asyncio
import collections
import functools
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import SchemaValidator
from starlette.requests import ClientDisconnect, Request

from gpt2.server.problems import Problem
from gpt2.server.settings import Settings

T = TypeVar("T")
_MAX_VALUES = 300_000
"""In a body: more than the tokens that a request may have."""
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_MANY_FAULTS = 1000
_LONG_BODY = 64 << 10  # bytes that are parsed beside the event loop


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
        if len(data) <= _LONG_BODY:
            return _checked(data or b"{}", kind)
        return await asyncio.to_thread(_checked, data, kind)
    except ValidationError as error:
        if error.error_count() > _MANY_FAULTS:  # naming the first would take naming all
            message = f"body: {error.error_count():,} values in it are wrong"
            raise Problem(400, message, code="many_faults") from None
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = [str(part) for part in first["loc"] if not str(part).startswith(("function-", "tuple[", "list["))]
        param = where[0] if where else None
        got = "" if first["type"] == "json_invalid" else _shown(error)
        message = f"{param or 'body'}: {first['msg']}{got}"
        raise Problem(400, message, param=param, code=first["type"]) from None


def _checked(data: bytes, kind: Callable[..., T]) -> T:
    if data.count(b",") > _MAX_VALUES and _STRING.sub(b"", data).count(b",") > _MAX_VALUES:
        raise Problem(400, f"body: expected at most {_MAX_VALUES:,} values", code="too_many_values")
    value: T = _validator_of(kind).validate_json(data, strict=True)
    try:
        json.loads(data, object_pairs_hook=_without_twins)
    except (ValueError, RecursionError):  # a number of thousands of digits where anything is allowed
        raise Problem(400, "body: expected JSON of reasonable numbers and depth", code="json_invalid") from None
    return value


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse an object with two fields of one name: two readers of it could see two different requests."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twin = collections.Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise Problem(400, f"body: expected each field once, got {twin!r:.60} twice", code="duplicate_field")
    return found


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


@functools.cache
def _validator_of(kind: Any) -> SchemaValidator:
    """As pydantic's, but a list ends at its first fault: a million faults would take gigabytes.

    Of a dataclass; a `BaseModel` has a validator of its own, and says it by `Field(fail_fast=True)`.
    """
    return SchemaValidator(_failing_fast(adapter_of(kind).core_schema))


def _failing_fast(schema: Any) -> Any:
    if isinstance(schema, dict):
        fast = {"fail_fast": True} if schema.get("type") in ("list", "tuple") else {}
        return {key: _failing_fast(value) for key, value in schema.items()} | fast
    return [_failing_fast(part) for part in schema] if isinstance(schema, list) else schema


def _shown(error: ValidationError) -> str:
    """What came, if that is short."""
    given = error.errors(include_url=False, include_context=False)[0].get("input")
    return (
        f", got {given!r}" if isinstance(given, (int, float, bool, str, type(None))) and len(repr(given)) < 60 else ""
    )
