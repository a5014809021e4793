"""Server-sent events."""

from __future__ import annotations

from collections.abc import AsyncIterator

from starlette.responses import StreamingResponse


def event(data: bytes) -> bytes:
    """A server-sent event."""
    return b"data: " + data + b"\n\n"


def event_stream(first: bytes, rest: AsyncIterator[bytes]) -> StreamingResponse:
    """Events as an answer; when the client leaves, the rest is closed."""

    async def all_events() -> AsyncIterator[bytes]:
        try:
            if first:
                yield first
            async for part in rest:
                yield part
        finally:
            await rest.aclose()  # type: ignore[attr-defined]

    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(all_events(), media_type="text/event-stream", headers=headers)
