"""OpenAI's `/v1/files` and `/v1/fine_tuning/jobs`, over `gpt2.jobs`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Message

from gpt2 import store
from gpt2.config import TrainingConfig
from gpt2.errors import JobError
from gpt2.jobs.records import Event, File, Job, Order, Records
from gpt2.jobs.supervisor import supervise
from gpt2.server import objects
from gpt2.server.bodies import read_json, too_large
from gpt2.server.document import FILES_PAGE, PAGE, PURPOSES, UPLOAD
from gpt2.server.problems import Problem
from gpt2.server.service import Service
from gpt2.server.settings import Settings

EPOCHS = 3
"""Where `n_epochs` is `auto`."""
LEARNING_RATE = 1e-4
"""What `learning_rate_multiplier` multiplies."""
KEPT_CHECKPOINTS = 5
_PAGE = 20

Auto = Literal["auto"]


class Hyperparameters(BaseModel):
    """How to train; whatever is `auto` is chosen for the text."""

    model_config = ConfigDict(extra="forbid", strict=True)

    n_epochs: Annotated[int, Field(ge=1, le=1000)] | Auto | None = "auto"
    batch_size: Annotated[int, Field(ge=1, le=256)] | Auto | None = "auto"
    learning_rate_multiplier: Annotated[float, Field(gt=0, le=100)] | Auto | None = "auto"


class Supervised(BaseModel):
    """The one method that there is."""

    model_config = ConfigDict(extra="forbid", strict=True)

    hyperparameters: Hyperparameters = Field(default_factory=Hyperparameters)


class Method(BaseModel):
    """How to train, as newer clients say it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["supervised"]
    supervised: Supervised = Field(default_factory=Supervised)


class FineTuningRequest(BaseModel):
    """OpenAI's request for a fine-tuning job."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"examples": [{"model": "bundled", "training_file": "file-0123456789abcdef01234567"}]},
    )

    model: str = Field(description="What to fine-tune; see /v1/models.")
    training_file: str = Field(
        description='An uploaded file: JSON lines of {"prompt", "completion"} or {"text"}, or text.'
    )
    validation_file: str | None = Field(None, description="Held-out text; by default a part of the training file.")
    suffix: Annotated[str, Field(max_length=24)] | None = Field(None, description="Becomes part of the result's name.")
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    method: Method | None = None
    hyperparameters: Hyperparameters | None = None
    metadata: dict[str, str] | None = Field(None, description="Ignored.")


_Endpoint = Callable[[Request], Awaitable[Response]]


_Line = tuple[str, str, _Endpoint, str, type | None, type | None, dict[str, Any]]


def routes(service: Service) -> list[_Line]:
    """Method, path, endpoint, summary, body and answer of each route, and what else the document says."""
    r = _Routes(service.settings)
    file, job = "/v1/files/{file_id}", "/v1/fine_tuning/jobs/{job_id}"
    jobs, page, upload = "/v1/fine_tuning/jobs", {"query": PAGE}, {"form": UPLOAD}
    cancel, pause, resume = (r.asking(wanted) for wanted in ("cancel", "pause", "run"))
    events, checkpoints = objects.JobEventObjects, objects.CheckpointObjects
    upload_says = "Upload a file to train on (multipart: file, purpose)."
    return [
        ("POST", "/v1/files", r.upload, upload_says, None, objects.FileObject, upload),
        ("GET", "/v1/files", r.files, "The uploaded files.", None, objects.FileObjects, {"query": FILES_PAGE}),
        ("GET", file, r.file, "An uploaded file's facts.", None, objects.FileObject, {}),
        (
            "GET",
            file + "/content",
            r.content,
            "An uploaded file itself.",
            None,
            None,
            {"media": "application/octet-stream"},
        ),
        ("DELETE", file, r.delete, "Remove an uploaded file.", None, objects.DeletedObject, {}),
        ("POST", jobs, r.create, "Fine-tune a model.", FineTuningRequest, objects.JobObject, {}),
        ("GET", jobs, r.jobs, "The fine-tuning jobs.", None, objects.JobObjects, page),
        ("GET", job, r.job, "How it stands with a job.", None, objects.JobObject, {}),
        ("POST", job + "/cancel", cancel, "End a job; its checkpoints stay.", None, objects.JobObject, {}),
        ("POST", job + "/pause", pause, "Let a job save a checkpoint and wait.", None, objects.JobObject, {}),
        ("POST", job + "/resume", resume, "Let a job that pauses go on.", None, objects.JobObject, {}),
        ("GET", job + "/events", r.events, "What a job has said, the newest first.", None, events, page),
        (
            "GET",
            job + "/checkpoints",
            r.checkpoints,
            "A job's checkpoints, which can be asked.",
            None,
            checkpoints,
            page,
        ),
    ]


class _Routes:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.records = Records()

    # Files

    async def upload(self, request: Request) -> Response:
        limited = Request(request.scope, _counted(request, self.settings.max_upload_bytes))
        try:
            form = await asyncio.wait_for(limited.form(max_files=1, max_fields=8), self.settings.upload_seconds)
        except asyncio.TimeoutError:
            raise Problem(408, "file: it took too long to arrive", headers={"Connection": "close"}) from None
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(form.close)
            upload, purpose = form.get("file"), form.get("purpose")
            if not isinstance(upload, UploadFile):
                raise Problem(400, "file: expected a file in the form", param="file")
            if purpose not in PURPOSES:
                raise Problem(400, f"purpose: expected one of {', '.join(PURPOSES)}", param="purpose")
            name = (upload.filename or "upload").encode("utf-8", "replace").decode()
            file = await asyncio.to_thread(self._keep, upload, name, str(purpose))
        return JSONResponse(_file(file))

    def _keep(self, upload: UploadFile, name: str, purpose: str) -> File:
        path = None
        try:
            path = self.records.new_file_path()
            with path.open("wb") as target:
                shutil.copyfileobj(upload.file, target, 1 << 20)
            return self.records.add_file(path, name, purpose)
        except BaseException:
            if path is not None:
                path.unlink(missing_ok=True)
            raise

    async def files(self, request: Request) -> Response:
        found = await asyncio.to_thread(self.records.files)
        purpose = request.query_params.get("purpose")
        rows = [_file(file) for file in found if purpose is None or file.purpose == purpose]
        order = request.query_params.get("order", "desc")
        if order not in ("asc", "desc"):
            raise Problem(400, f"order: expected asc or desc, got {order!r:.20}", param="order")
        if order == "desc":
            rows.reverse()
        return _page(request, rows, most=10_000)

    async def file(self, request: Request) -> Response:
        return JSONResponse(_file(self.records.file(request.path_params["file_id"])))

    async def content(self, request: Request) -> Response:
        file_id = request.path_params["file_id"]
        path = self.records.file_path(file_id)
        try:
            source = await asyncio.to_thread(path.open, "rb")  # from here on it may be removed
        except FileNotFoundError:
            raise JobError(f"file: expected the id of an uploaded one, but {file_id} was removed meanwhile") from None
        headers = {
            "Content-Length": str(os.fstat(source.fileno()).st_size),
            "Content-Disposition": f'attachment; filename="{path.name}"',
        }
        return StreamingResponse(_pieces(source), headers=headers, media_type="application/octet-stream")

    async def delete(self, request: Request) -> Response:
        name = request.path_params["file_id"]
        await asyncio.to_thread(self.records.remove_file, name)
        return JSONResponse({"id": name, "object": "file", "deleted": True})

    # Jobs

    async def create(self, request: Request) -> Response:
        body = await read_json(request, FineTuningRequest, self.settings)
        return JSONResponse(await asyncio.to_thread(self._create, body))

    def _create(self, body: FineTuningRequest) -> dict[str, Any]:
        for name in ("training_file", "validation_file"):
            file = getattr(body, name)
            if file is not None:
                try:
                    self.records.file(file)
                except JobError as error:
                    raise Problem(400, f"{name}: {error}", param=name, code="file_not_found") from None
        store.resolve_name(body.model)
        chosen = body.method.supervised.hyperparameters if body.method else body.hyperparameters or Hyperparameters()
        seed = secrets.randbits(31) if body.seed is None else body.seed
        given: dict[str, Any] = {"seed": seed % 2**31, "keep_last": KEPT_CHECKPOINTS}
        auto = ["sequence_length", "eval_every"]
        if isinstance(chosen.batch_size, int):
            given["batch_size"] = chosen.batch_size
        else:
            auto.append("batch_size")
        if isinstance(chosen.learning_rate_multiplier, float):
            given["learning_rate"] = LEARNING_RATE * chosen.learning_rate_multiplier
        base = re.sub("[^A-Za-z0-9]+", "-", body.model)[:20].strip("-")
        suffix = re.sub("[^A-Za-z0-9]+", "-", body.suffix or "").strip("-")
        name = "-".join(part for part in ("ft", base, suffix, secrets.token_hex(3)) if part)
        order = Order(
            name=name,
            files=(body.training_file,),
            model=body.model,
            valid_files=() if body.validation_file is None else (body.validation_file,),
            epochs=chosen.n_epochs if isinstance(chosen.n_epochs, int) else EPOCHS,
            auto=tuple(auto),
            training=TrainingConfig(**given).to_dict(),
        )
        job = self.records.create(order, {"hyperparameters": chosen.model_dump(), "seed": seed, "model": body.model})
        supervise()
        return _job(job)

    async def jobs(self, request: Request) -> Response:
        found = await asyncio.to_thread(self.records.jobs)
        return _page(request, [_job(job) for job in reversed(found)])

    async def job(self, request: Request) -> Response:
        return JSONResponse(_job(self.records.job(request.path_params["job_id"])))

    def asking(self, wanted: str) -> _Endpoint:
        async def endpoint(request: Request) -> Response:
            job = await asyncio.to_thread(self.records.ask, request.path_params["job_id"], wanted)
            return JSONResponse(_job(job))

        return endpoint

    async def events(self, request: Request) -> Response:
        job_id = request.path_params["job_id"]
        self.records.job(job_id)
        found = await asyncio.to_thread(self.records.events, job_id, 0, 100_000)
        return _page(request, [_event(event) for event in reversed(found)])

    async def checkpoints(self, request: Request) -> Response:
        job = self.records.job(request.path_params["job_id"])
        events = await asyncio.to_thread(self.records.events, job.id, 0, 100_000)
        measured = {event.data["step"]: event for event in events if event.kind == "metrics" and event.data}
        rows = []
        for step in reversed(store.checkpoint_steps(store.runs_folder() / job.order.name)):
            event = measured.get(step)
            rows.append(
                {
                    **{"id": f"ftckpt-{job.id[6:]}-{step}", "object": "fine_tuning.job.checkpoint"},
                    "created_at": event.created if event else job.created,
                    "fine_tuned_model_checkpoint": f"{job.order.name}:ckpt-step-{step}",
                    **{"fine_tuning_job_id": job.id, "step_number": step},
                    "metrics": _metrics(event) if event else {"step": step},
                }
            )
        return _page(request, rows)


async def _pieces(source: BinaryIO) -> AsyncIterator[bytes]:
    with source:
        while piece := await asyncio.to_thread(source.read, 1 << 18):
            yield piece


def _counted(request: Request, limit: int) -> Callable[[], Awaitable[Message]]:
    """What `request` receives, up to a limit."""
    length = 0

    async def receive() -> Message:
        nonlocal length
        message = await request.receive()
        length += len(message.get("body", b""))
        if length > limit:
            raise too_large(limit)
        return message

    return receive


def _page(request: Request, rows: Sequence[dict[str, Any]], most: int = 100) -> Response:
    """One page of a list, by OpenAI's `after` and `limit`."""
    given = request.query_params.get("limit", str(_PAGE))
    if not given.isdecimal() or not 1 <= int(given[:9]) <= most:
        raise Problem(400, f"limit: expected 1 to {most}, got {given!r:.20}", param="limit")
    after = request.query_params.get("after")
    start = 0
    if after is not None:
        start = next((n + 1 for n, row in enumerate(rows) if row["id"] == after), len(rows))
    data = rows[start : start + int(given)]
    ends = {"first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None}
    return JSONResponse({"object": "list", "data": data, **ends, "has_more": start + len(data) < len(rows)})


def _file(file: File) -> dict[str, Any]:
    return {
        **{"id": file.id, "object": "file", "bytes": file.bytes, "created_at": file.created},
        **{"filename": Path(file.filename).name, "purpose": file.purpose, "status": "processed"},
    }


def _job(job: Job) -> dict[str, Any]:
    chosen = dict(job.openai.get("hyperparameters") or {})
    error = {"code": "training_failed", "message": job.error, "param": None} if job.error else None
    return {
        **{"id": job.id, "object": "fine_tuning.job", "created_at": job.created, "finished_at": job.finished},
        **{"model": job.openai.get("model") or job.order.model or store.BUNDLED, "organization_id": "gpt2"},
        "fine_tuned_model": job.order.name if job.status == "succeeded" else None,
        **{"status": job.status, "error": error, "hyperparameters": chosen, "result_files": []},
        "method": {"type": "supervised", "supervised": {"hyperparameters": chosen}},
        "trained_tokens": job.tokens if job.status == "succeeded" else None,
        **{"seed": job.openai.get("seed", job.order.training.get("seed", 0)), "training_file": job.order.files[0]},
        "validation_file": job.order.valid_files[0] if job.order.valid_files else None,
    }


def _event(event: Event) -> dict[str, Any]:
    is_metrics = event.kind == "metrics"
    return {
        **{"id": f"ftevent-{event.number}", "object": "fine_tuning.job.event", "created_at": event.created},
        **{"level": event.level, "message": event.message, "type": "metrics" if is_metrics else "message"},
        "data": _metrics(event) if is_metrics else event.data,
    }


def _metrics(event: Event) -> dict[str, Any]:
    data = dict(event.data or {})
    return {"step": data.pop("step", None), "train_loss": data.pop("loss", None), **data}
