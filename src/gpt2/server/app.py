"""The routes, put together into one ASGI application."""

from __future__ import annotations

import asyncio
import contextlib
import html
import json
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

import gpt2
from gpt2 import store
from gpt2.contract import Writing
from gpt2.errors import GPT2Error
from gpt2.hosting import Host
from gpt2.jobs.supervisor import stop_supervising, supervise
from gpt2.server import completions, fine_tuning, playground, versions
from gpt2.server.bodies import read_json, schema_of, to_json
from gpt2.server.gate import Gate
from gpt2.server.keys import Keys
from gpt2.server.metrics import CONTENT_TYPE, Metrics
from gpt2.server.problems import Problem, problem_of
from gpt2.server.service import Service
from gpt2.server.settings import Settings
from gpt2.server.writing import leased


class TokenizeRequest(BaseModel):
    """A text to encode."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [{"prompt": "Hello world"}]})

    prompt: str = Field(description="The text; `<|endoftext|>` in it is encoded as the characters that it is.")
    add_special_tokens: bool = Field(True, description="Changes nothing: GPT-2 puts none around a text.")
    model: str | None = None


class DetokenizeRequest(BaseModel):
    """Tokens to decode."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [{"tokens": [15496, 995]}]})

    tokens: list[Annotated[int, Field(ge=0, lt=2**31)]]
    model: str | None = None


def new_service(settings: Settings, note: Callable[[str], None] | None = None) -> Service:
    """What a server with these settings needs; its models are opened when they are asked for."""
    host = Host(
        settings.model,
        engine=settings.engine,
        precision=settings.precision,
        max_open=settings.max_models,
        max_waiting=settings.max_waiting,
        note=note,
    )
    return Service(settings, host, Keys(), Metrics(host))


def create_app(service: Service) -> Gate:
    """The application, behind its gate."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(supervise)  # jobs that were interrupted go on
        yield
        await asyncio.to_thread(stop_supervising)
        await asyncio.to_thread(service.host.close)

    app = FastAPI(
        title="gpt2",
        version=gpt2.__version__,
        description="GPT-2 over HTTP. Whatever it writes is synthetic text, and may be wrong, or offensive.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    app.router.redirect_slashes = False
    app.add_exception_handler(Problem, _say)
    app.add_exception_handler(GPT2Error, _say)
    app.add_exception_handler(HTTPException, _say_http)
    _Routes(app, service).add_all()
    return Gate(app, service.settings, service.keys, service.metrics)


class _Routes:
    """Adds the routes, each with its part of the OpenAPI document."""

    def __init__(self, app: FastAPI, service: Service) -> None:
        self.app, self.service = app, service
        self.schemas: dict[str, Any] = {}

    def add_all(self) -> None:
        s = self.service
        self.add("GET", "/health", self.health, "Whether the process answers.")
        self.add("GET", "/ready", self.ready, "Whether it can write text now (200) or not (503).")
        self.add("GET", "/metrics", self.metrics, "Figures for Prometheus.")
        self.add("GET", "/openapi.json", self.openapi, "This document.")
        self.add("GET", "/docs", self.docs, "This document as a page.")
        page = playground.endpoint()
        self.add("GET", "/", page, "The playground.")
        self.add("GET", "/page/{name}", page, "What the playground consists of.")
        self.add(
            "POST",
            "/v1/completions",
            completions.endpoint_of(s),
            "Write text (OpenAI's completions).",
            completions.CompletionRequest,
        )
        self.add("GET", "/v1/models", self.models, "The models that can be asked.")
        self.add("GET", "/v1/models/{name}", self.model, "One model.")
        self.add("DELETE", "/v1/models/{name}", self.delete_model, "Remove a model from the store.")
        for method, path, endpoint, summary, request in fine_tuning.routes(s):
            self.add(method, path, endpoint, summary, request)
        self.add("POST", "/tokenize", self.tokenize, "Text to tokens.", TokenizeRequest)
        self.add("POST", "/detokenize", self.detokenize, "Tokens to text.", DetokenizeRequest)
        self.add("GET", "/tokenizer_info", self.tokenizer_info, "Special tokens (for lm-eval).")
        self.add("GET", "/vocabulary", self.vocabulary, "Token -> id, as vocab.json has it (`?model=`).")
        for version, module in versions.VERSIONS.items():
            for route in versions.routes_of(module):
                doc = (route.question if isinstance(route, Writing) else route.run).__doc__ or route.response.__doc__
                self.add(
                    route.method,
                    f"/{version}{route.path}",
                    versions.endpoint_of(route, s),
                    (doc or "").strip().split("\n")[0],
                    route.request,
                    route.response,
                )

    def add(
        self,
        method: str,
        path: str,
        endpoint: Callable[[Request], Any],
        summary: str,
        request: type | None = None,
        response: type | None = None,
    ) -> None:
        extra: dict[str, Any] = {}
        if request is not None:
            extra["requestBody"] = {"required": True, "content": self._content(request)}
        if response is not None:
            extra["responses"] = {"200": {"description": "Done.", "content": self._content(response)}}

        async def answer(request: Request) -> Response:
            given: Response = await endpoint(request)
            return given

        self.app.add_api_route(
            path,
            answer,
            methods=[method],
            summary=summary,
            name=f"{method} {path}",
            operation_id=f"{method.lower()}{path.replace('/', '_').replace('{', '').replace('}', '')}",
            openapi_extra=extra,
            response_model=None,
            responses={400: {"description": "The request is wrong; the error names the field."}},
        )

    def _content(self, kind: type) -> dict[str, Any]:
        schema = schema_of(kind)
        self.schemas |= schema.pop("$defs", {})
        self.schemas[kind.__name__] = schema
        return {"application/json": {"schema": {"$ref": f"#/components/schemas/{kind.__name__}"}}}

    # What answers

    async def health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(self, _: Request) -> Response:
        hosts = self.service.host.open_models
        dead = [hosted.model.name for hosted in hosts if not hosted.scheduler.alive]
        if self.service.stopping or dead or not hosts:
            reason = "stopping" if self.service.stopping else f"dead: {dead}" if dead else "no model is open yet"
            raise Problem(503, f"not ready: {reason}", code="not_ready", headers={"Retry-After": "1"})
        return JSONResponse({"status": "ready"})

    async def metrics(self, _: Request) -> Response:
        return Response(self.service.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    async def openapi(self, _: Request) -> Response:
        return JSONResponse(self._document())

    async def docs(self, _: Request) -> Response:
        return HTMLResponse(
            _page(self._document()),
            headers={"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"},
        )

    def _document(self) -> dict[str, Any]:
        document = self.app.openapi()
        document.setdefault("components", {}).setdefault("schemas", {}).update(self.schemas)
        return document

    async def models(self, _: Request) -> Response:
        names = await asyncio.to_thread(store.list_models)
        return JSONResponse({"object": "list", "data": [self._model(name) for name in (store.BUNDLED, *names)]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        store.resolve_name(name)
        return JSONResponse(self._model(name))

    async def delete_model(self, request: Request) -> Response:
        name = request.path_params["name"]
        await asyncio.to_thread(store.remove, name)
        return JSONResponse({"id": name, "object": "model", "deleted": True})

    def _model(self, name: str) -> dict[str, Any]:
        created = int(store.resolve_name(name).stat().st_mtime)
        return {"id": name, "object": "model", "created": created, "owned_by": "gpt2"}

    async def tokenize(self, request: Request) -> Response:
        body = await read_json(request, TokenizeRequest, self.service.settings)
        async with leased(self.service.host, body.model) as hosted:
            codec, limit = completions.codec_of(hosted), hosted.model.config.n_ctx
            tokens = await asyncio.to_thread(codec.encode, body.prompt)
        return Response(
            to_json({"tokens": tokens, "count": len(tokens), "max_model_len": limit}), media_type="application/json"
        )

    async def detokenize(self, request: Request) -> Response:
        body = await read_json(request, DetokenizeRequest, self.service.settings)
        async with leased(self.service.host, body.model) as hosted:
            return JSONResponse({"prompt": completions.codec_of(hosted).decode(body.tokens)})

    async def tokenizer_info(self, _: Request) -> Response:
        async with leased(self.service.host, None) as hosted:
            codec = completions.codec_of(hosted)
            end = None if codec.end_of_text is None else codec.decode([codec.end_of_text])
            info = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": hosted.model.config.n_ctx}
            return JSONResponse(
                info | {"vocab_size": codec.n_vocab, "bos_token": end, "eos_token": end, "pad_token": None}
            )

    async def vocabulary(self, request: Request) -> Response:
        async with leased(self.service.host, request.query_params.get("model")) as hosted:
            codec = completions.codec_of(hosted)
            return JSONResponse(await asyncio.to_thread(codec.vocabulary))


async def _say(_: Request, error: Exception) -> Response:
    return problem_of(error).response()


async def _say_http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = error.status_code if error.status_code in (404, 405) else 400
    return Problem(status, f"{error.detail}", code="no_such_route", headers=error.headers).response()


def _page(document: dict[str, Any]) -> str:
    """The document as a page without scripts."""
    parts = []
    for path, methods in document["paths"].items():
        for method, facts in methods.items():
            parts.append(
                f"<h2><code>{method.upper()} {html.escape(path)}</code></h2><p>{html.escape(facts['summary'])}</p>"
            )
            for label, content in (("Body", facts.get("requestBody")), ("Answer", facts["responses"].get("200"))):
                schema = (content or {}).get("content", {}).get("application/json", {}).get("schema", {})
                name = schema.get("$ref", "").rpartition("/")[2]
                if name:
                    parts.append(f"<h3>{label}</h3>" + _fields(document["components"]["schemas"][name]))
    style = "body{font:16px/1.5 sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}td{padding:.1rem 1rem .1rem 0;vertical-align:top}pre{background:#8882;padding:.5rem}:root{color-scheme:light dark}"  # noqa: E501
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>gpt2 API</title><style>{style}</style>"
    return f"{head}<h1>gpt2 API</h1><p>{html.escape(document['info']['description'])}</p>" + "".join(parts)


def _fields(schema: dict[str, Any]) -> str:
    rows = [
        f"<tr><td><code>{html.escape(name)}</code></td><td>{html.escape(str(facts.get('default', '')))}</td>"
        f"<td>{html.escape(facts.get('description', ''))}</td></tr>"
        for name, facts in schema.get("properties", {}).items()
    ]
    examples = [f"<pre>{html.escape(json.dumps(example))}</pre>" for example in schema.get("examples", [])]
    return f"<table><tr><th>field<th>default<th></tr>{''.join(rows)}</table>{''.join(examples)}"
