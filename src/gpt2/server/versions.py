"""The versioned API over HTTP: each version's contract becomes routes below its name.

A new version is a module with `ROUTES` (see `gpt2.contract`) and a line in `VERSIONS`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gpt2 import store
from gpt2.contract import Call, Events, Opening, Question, Route, Writing
from gpt2.hosting import Hosted
from gpt2.server.bodies import read_json, to_json
from gpt2.server.completions import check_budget
from gpt2.server.document import EVENTS, EVENTS_AFTER
from gpt2.server.problems import Problem, problem_of
from gpt2.server.service import Service
from gpt2.server.sse import event, event_stream
from gpt2.server.writing import LONG_TEXT, Texts, apart, leased, store_name, while_connected

VERSIONS: Mapping[str, str] = {"v2": "gpt2.gpt_core_v2"}
"""The first part of the path -> the module with the contract."""

EVENT_SECONDS = 0.5
"""Between two looks for new events."""

Endpoint = Callable[[Request], Awaitable[Response]]


def routes_of(module: str) -> tuple[Route, ...]:
    """The routes of a version."""
    routes: tuple[Route, ...] = importlib.import_module(module).ROUTES
    return routes


def endpoint_of(route: Route, service: Service) -> Endpoint:
    """What answers a route."""
    if isinstance(route, Writing):
        return _writing(route, service)
    if isinstance(route, Opening):
        return _opening(route, service)
    return _events(route, service) if isinstance(route, Events) else _call(route, service)


def description_of(route: Route) -> dict[str, Any]:
    """What `Document.add` takes of a route."""
    does = {Writing: "question", Opening: "answer"}.get(type(route), "run")
    summary = getattr(route, does).__doc__ or route.response.__doc__ or ""
    if isinstance(route, Opening):
        summary = "Open a model now." if route.opens else "Close a model that no request uses."
    facts = {"summary": summary.strip().split("\n")[0], "request": route.request, "response": route.response}
    if isinstance(route, Events):
        return {"summary": facts["summary"], "query": EVENTS_AFTER, "media": EVENTS}
    return facts | {"streams": isinstance(route, Writing)}


def _call(route: Call, service: Service) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        given: list[Any] = [] if route.request is None else [await read_json(request, route.request, service.settings)]
        if route.uses_default and given[0].model is None:
            given[0] = dataclasses.replace(given[0], model=service.host.default)
        return _json(await asyncio.to_thread(route.run, *given, **request.path_params))

    return endpoint


def _opening(route: Opening, service: Service) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        name = store_name(request.path_params["name"])
        if not route.opens:
            store.resolve_name(name)
            await asyncio.to_thread(service.host.close_model, name)
            return _json(route.answer(name, None))
        async with leased(service.host, name) as hosted:
            return _json(route.answer(name, hosted.model))

    return endpoint


def _events(route: Events, service: Service) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        given = request.headers.get("last-event-id") or request.query_params.get("after") or "0"
        if not given.isdecimal() or len(given) > 15:
            raise Problem(400, f"after: expected an event's number, got {given!r:.40}", param="after")
        first = await asyncio.to_thread(route.run, **request.path_params, after=int(given))
        return event_stream(b"", _follow(route, request.path_params, first, int(given), service))

    return endpoint


async def _follow(
    route: Events, params: Mapping[str, Any], found: list[Any], after: int, service: Service
) -> AsyncIterator[bytes]:
    while True:
        for each in found:
            after = each.number
            yield b"id: %d\n" % after + event(to_json(each))
        ended = await asyncio.to_thread(route.ended, **params)
        found = await asyncio.to_thread(route.run, **params, after=after)
        if found:
            continue
        if ended or service.stopping:
            yield event(b"[DONE]")
            return
        await asyncio.sleep(EVENT_SECONDS)


def _writing(route: Writing, service: Service) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        question: Question = route.question(await read_json(request, route.request, service.settings))
        if question.stream:
            texts = _stream(route, question, service)
            first = await while_connected(request, anext(texts), service.settings.request_seconds)
            return event_stream(first, texts)
        return await while_connected(request, _answer(route, question, service), service.settings.request_seconds)

    return endpoint


async def _answer(route: Writing, question: Question, service: Service) -> Response:
    async with leased(service.host, question.model) as hosted:
        prompts = await _prompts(hosted, question)
        check_budget(prompts, question.config, service.settings)
        texts = await Texts.begun(hosted, prompts, question.config, together=True)
        try:
            completions = (await texts.completions())[0]
        finally:
            texts.close()
        service.metrics.wrote(len(prompts[0]), sum(len(done.tokens) for done in completions))
        return _json(route.answer(hosted.model.name, completions))


async def _stream(route: Writing, question: Question, service: Service) -> AsyncIterator[bytes]:
    async with leased(service.host, question.model) as hosted:
        prompts = await _prompts(hosted, question)
        check_budget(prompts, question.config, service.settings)
        texts = await Texts.begun(hosted, prompts, question.config)
        yield b""  # from here on it is an answer
        written = 0
        try:
            async for _, piece in texts:
                written += len(piece.tokens)
                yield event(to_json(route.piece(piece)))
        except Exception as error:
            yield event(to_json(problem_of(error).body))
        finally:
            texts.close()
            service.metrics.wrote(len(prompts[0]), written)
        yield event(b"[DONE]")


async def _prompts(hosted: Hosted, question: Question) -> list[list[int]]:
    length = len(question.prompt or ())
    return await apart(length > LONG_TEXT, hosted.model.prompt_tokens, question.prompt)


def _json(value: Any) -> Response:
    return Response(to_json(value), media_type="application/json")
