"""OpenAI's objects, as types, for the OpenAPI document. Answers are made as plain dicts; Schemathesis compares them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class ErrorFacts:
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


@dataclass(frozen=True)
class ErrorObject:
    """Every answer that is none."""

    error: ErrorFacts


@dataclass(frozen=True)
class LogProbs:
    """Of each token that was written, or of the prompt's too where it is echoed."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


@dataclass(frozen=True)
class CompletionChoice:
    """A text."""

    text: str
    index: int
    logprobs: LogProbs | None
    finish_reason: Literal["stop", "length"] | None


@dataclass(frozen=True)
class Usage:
    """Tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


@dataclass(frozen=True)
class CompletionObject:
    """OpenAI's answer to a request for completions."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage


@dataclass(frozen=True)
class ModelObject:
    """A model that can be asked."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


@dataclass(frozen=True)
class ModelObjects:
    """All of them."""

    object: Literal["list"]
    data: list[ModelObject]


@dataclass(frozen=True)
class DeletedObject:
    """What is no more."""

    id: str
    object: str
    deleted: bool


@dataclass(frozen=True)
class FileObject:
    """An uploaded file's facts."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: str


@dataclass(frozen=True)
class FileObjects:
    """A page of them."""

    object: Literal["list"]
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


@dataclass(frozen=True)
class JobError:
    """Why a job failed."""

    code: str
    message: str
    param: str | None


@dataclass(frozen=True)
class JobObject:
    """A fine-tuning job."""

    id: str
    object: Literal["fine_tuning.job"]
    created_at: int
    finished_at: int | None
    model: str
    organization_id: str
    fine_tuned_model: str | None
    status: Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
    error: JobError | None
    hyperparameters: dict[str, Any]
    result_files: list[str]
    method: dict[str, Any]
    trained_tokens: int | None
    seed: int
    training_file: str
    validation_file: str | None


@dataclass(frozen=True)
class JobObjects:
    """A page of them."""

    object: Literal["list"]
    data: list[JobObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


@dataclass(frozen=True)
class JobEventObject:
    """Something that a job has said."""

    id: str
    object: Literal["fine_tuning.job.event"]
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, Any] | None


@dataclass(frozen=True)
class JobEventObjects:
    """A page of them."""

    object: Literal["list"]
    data: list[JobEventObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


@dataclass(frozen=True)
class CheckpointObject:
    """A job's checkpoint, which can be asked."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"]
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    step_number: int
    metrics: dict[str, Any]


@dataclass(frozen=True)
class CheckpointObjects:
    """A page of them."""

    object: Literal["list"]
    data: list[CheckpointObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


@dataclass(frozen=True)
class StatusObject:
    """That all is well."""

    status: str


@dataclass(frozen=True)
class TokensObject:
    """A text's tokens."""

    tokens: list[int]
    count: int
    max_model_len: int


@dataclass(frozen=True)
class TextObject:
    """Tokens' text."""

    prompt: str


@dataclass(frozen=True)
class TokenizerObject:
    """What lm-eval asks of a tokenizer."""

    tokenizer_class: str
    model_max_length: int
    vocab_size: int
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
