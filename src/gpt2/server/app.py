"""The routes, put together into one ASGI application."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from gpt2 import store
from gpt2.errors import CheckpointNotFoundError, GPT2Error, ModelNameError
from gpt2.hosting import Host
from gpt2.jobs.supervisor import stop_supervising, supervise
from gpt2.server import completions, fine_tuning, objects, playground, versions
from gpt2.server.bodies import read_json, to_json
from gpt2.server.document import EVENTS, Document
from gpt2.server.gate import Gate
from gpt2.server.keys import Keys
from gpt2.server.metrics import CONTENT_TYPE, Metrics
from gpt2.server.problems import Problem, problem_of
from gpt2.server.service import Service
from gpt2.server.settings import Settings
from gpt2.server.writing import LONG_TEXT, apart, leased

log = logging.getLogger("gpt2.server")


class TokenizeRequest(BaseModel):
    """A text to encode."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [{"prompt": "Hello world"}]})

    prompt: str = Field(description="The text; `<|endoftext|>` in it is encoded as the characters that it is.")
    add_special_tokens: bool = Field(True, description="Changes nothing: GPT-2 puts none around a text.")
    model: str | None = None


class DetokenizeRequest(BaseModel):
    """Tokens to decode."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [{"tokens": [15496, 995]}]})

    tokens: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(fail_fast=True)]
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
        reviving = asyncio.ensure_future(_revive(service))
        yield
        reviving.cancel()
        await asyncio.to_thread(stop_supervising)
        await asyncio.to_thread(service.host.close)

    app = FastAPI(
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    app.router.redirect_slashes = False
    app.add_exception_handler(Problem, _say)
    app.add_exception_handler(GPT2Error, _say)
    app.add_exception_handler(HTTPException, _say_http)
    app.add_exception_handler(Exception, _say)
    _Routes(app, service).add_all()
    return Gate(app, service.settings, service.keys, service.metrics)


async def _revive(service: Service) -> None:
    """Open models anew whose threads have ended, whoever asks for them or not."""
    while True:
        await asyncio.sleep(service.settings.revive_seconds)
        try:
            if await asyncio.to_thread(service.host.revive):
                log.warning("a model was opened anew")
        except Exception:
            log.exception("a model cannot be opened anew")


class _Routes:
    """Adds the routes, each with its part of the OpenAPI document."""

    def __init__(self, app: FastAPI, service: Service) -> None:
        self.app, self.service = app, service
        self.document = Document()

    def add_all(self) -> None:
        s = self.service
        self.add("GET", "/health", self.health, "Whether the process answers.", None, objects.StatusObject)
        self.add(
            "GET", "/ready", self.ready, "Whether it can write text now (200) or not (503).", None, objects.StatusObject
        )
        self.add("GET", "/metrics", self.metrics, "Figures for Prometheus.", media="text/plain")
        self.add("GET", "/openapi.json", self.openapi, "This document.")
        self.add("GET", "/docs", self.docs, "This document as a page.", media="text/html")
        page = playground.endpoint()
        self.add("GET", "/", page, "The playground.", media="text/html")
        self.add("GET", "/page/{name}", page, "What the playground consists of.", media="*/*")
        self.add(
            "POST",
            "/v1/completions",
            completions.endpoint_of(s),
            "Write text (OpenAI's completions).",
            completions.CompletionRequest,
            objects.CompletionObject,
            streams=True,
        )
        self.add("GET", "/v1/models", self.models, "The models that can be asked.", None, objects.ModelObjects)
        self.add("GET", "/v1/models/{name}", self.model, "One model.", None, objects.ModelObject)
        self.add(
            "DELETE",
            "/v1/models/{name}",
            self.delete_model,
            "Remove a model from the store.",
            None,
            objects.DeletedObject,
        )
        for method, path, endpoint, summary, request, response, more in fine_tuning.routes(s):
            self.add(method, path, endpoint, summary, request, response, **more)
        self.add("POST", "/tokenize", self.tokenize, "Text to tokens.", TokenizeRequest, objects.TokensObject)
        self.add("POST", "/detokenize", self.detokenize, "Tokens to text.", DetokenizeRequest, objects.TextObject)
        self.add(
            "GET",
            "/tokenizer_info",
            self.tokenizer_info,
            "Special tokens (for lm-eval).",
            None,
            objects.TokenizerObject,
        )
        self.add(
            "GET",
            "/vocabulary",
            self.vocabulary,
            "Token -> id, as vocab.json has it.",
            query={"model": {"type": "string"}},
        )
        for version, module in versions.VERSIONS.items():
            for route in versions.routes_of(module):
                path = f"/{version}{route.path}"
                self.add(route.method, path, versions.endpoint_of(route, s), **versions.description_of(route))

    def add(
        self,
        method: str,
        path: str,
        endpoint: Callable[[Request], Any],
        summary: str,
        request: type | None = None,
        response: type | None = None,
        **more: Any,
    ) -> None:
        """Add a route, and enter it in the document (`more` as for `Document.add`)."""
        self.document.add(method, path, summary, request, response, **more)

        async def answer(request: Request) -> Response:
            given: Response = await endpoint(request)
            return given

        # What goes on until something ends has no end to be told of without it.
        methods = ["GET", "HEAD"] if method == "GET" and more.get("media") != EVENTS else [method]
        self.app.add_api_route(path, answer, methods=methods, name=f"{method} {path}", response_model=None)

    # What answers

    async def health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(self, _: Request) -> Response:
        hosts = self.service.host.open_models
        dead = [hosted.model.name for hosted in hosts if not hosted.scheduler.alive]
        stuck = [h.model.name for h in hosts if h.scheduler.stuck_seconds > self.service.settings.stuck_seconds]
        if self.service.stopping or dead or stuck or not hosts:
            broken = f"not answering: {', '.join(dead + stuck)}" if dead or stuck else "no model is open yet"
            reason = "stopping" if self.service.stopping else broken
            raise Problem(503, f"not ready: {reason}", code="not_ready", headers={"Retry-After": "1"})
        return JSONResponse({"status": "ready"})

    async def metrics(self, _: Request) -> Response:
        return Response(self.service.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    async def openapi(self, _: Request) -> Response:
        return JSONResponse(self.document.value())

    async def docs(self, _: Request) -> Response:
        return HTMLResponse(
            self.document.page(),
            headers={"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"},
        )

    async def models(self, _: Request) -> Response:
        names = await asyncio.to_thread(store.list_models)
        data = []
        for name in (store.BUNDLED, *names):
            with contextlib.suppress(ModelNameError, CheckpointNotFoundError):  # removed meanwhile
                data.append(self._model(name))
        return JSONResponse({"object": "list", "data": data})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        store.resolve_name(name)
        return JSONResponse(self._model(name))

    async def delete_model(self, request: Request) -> Response:
        name = request.path_params["name"]
        await asyncio.to_thread(store.remove, name)
        return JSONResponse({"id": name, "object": "model", "deleted": True})

    def _model(self, name: str) -> dict[str, Any]:
        try:
            created = int(store.resolve_name(name).stat().st_mtime)
        except FileNotFoundError:
            raise CheckpointNotFoundError(f"model: {name} was removed meanwhile") from None
        return {"id": name, "object": "model", "created": created, "owned_by": "gpt2"}

    async def tokenize(self, request: Request) -> Response:
        body = await read_json(request, TokenizeRequest, self.service.settings)
        async with leased(self.service.host, body.model) as hosted:
            codec, limit = completions.codec_of(hosted), hosted.model.config.n_ctx
            tokens = await apart(len(body.prompt) > LONG_TEXT, codec.encode, body.prompt)
        return Response(
            to_json({"tokens": tokens, "count": len(tokens), "max_model_len": limit}), media_type="application/json"
        )

    async def detokenize(self, request: Request) -> Response:
        body = await read_json(request, DetokenizeRequest, self.service.settings)
        async with leased(self.service.host, body.model) as hosted:
            text = await apart(len(body.tokens) > LONG_TEXT, completions.codec_of(hosted).decode, body.tokens)
            return JSONResponse({"prompt": text})

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
