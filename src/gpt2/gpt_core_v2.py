"""The versioned API, version 2: how other programs query, train and save a GPT-2.

The contract is this file: functions that take and give plain, typed values, over `gpt2.gpt`. It will not change under
those who use it; what would break them becomes `gpt_core_v3.py`. Models are named by strings: a name in the store, a
folder, or a name that `train_via_api` gave to its result. A model that was opened stays open for the next request.
TensorFlow is imported where something is trained or saved, or where the engine needs it.

    query_model("Once upon a time", max_tokens=40, seed=1)
"""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

from gpt2 import checkpoints, store
from gpt2.codec import Codec
from gpt2.config import GenerationConfig, GPT2Config, SamplingConfig, TrainingConfig, size_name
from gpt2.continuation import Completion, Piece
from gpt2.contract import Call, Events, Opening, Question, Route, Writing
from gpt2.errors import ConfigError, GPT2Error, JobError, ModelNameError, NameTakenError, PromptError
from gpt2.language_model import LanguageModel, open_model

if TYPE_CHECKING:
    from gpt2.gpt import Model
    from gpt2.inspection import Inspection
    from gpt2.inspection.hosted import Inspector
    from gpt2.jobs.records import Job
    from gpt2.training import LogEntry

API_VERSION = 2
MAX_LOADED = 2
"""Models from disk that stay open; the one that was longest unused goes first."""
MAX_INSPECTED_TOKENS = 256
"""Of a text that is looked into."""
MAX_INSPECTED_TOP = 20
"""Of the most probable tokens after each."""


@dataclass(frozen=True)
class QueryRequest:
    """A prompt, and how it is to be continued."""

    __pydantic_config__: ClassVar[Any] = {
        "extra": "forbid",
        "strict": True,
        "use_attribute_docstrings": True,
    }  # for servers that check by pydantic

    prompt: str | tuple[int, ...] | None = None
    """Text, token ids, or None for unconditional text."""
    model: str | None = None
    """Which model; None for the default."""
    max_tokens: int = 128
    """At most this many tokens are generated for each sample."""
    num_samples: int = 1
    """How many continuations."""
    temperature: float = 1.0
    """0 always takes the most probable token; 1 samples from the model as it is."""
    top_k: int = 0
    """Only the k most probable tokens are kept; 0 keeps all."""
    top_p: float = 1.0
    """Only the most probable tokens that together reach p are kept."""
    min_p: float = 0.0
    """Only tokens at least this times as probable as the most probable one are kept."""
    typical_p: float = 1.0
    """Only the tokens closest to the expected surprisal are kept, until they reach p."""
    repetition_penalty: float = 1.0
    """Above 1, tokens that are in the text already become less probable."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit for each time that it was generated."""
    presence_penalty: float = 0.0
    """Subtracted from a token's logit once it has been generated at all."""
    logit_bias: dict[int, float] = field(default_factory=dict)
    """Added to the logits of these tokens, from -100 (never) to 100 (always)."""
    min_tokens: int = 0
    """The text does not end before this many tokens were generated."""
    stop: tuple[str, ...] = ()
    """Text that ends the continuation and is not part of it."""
    seed: int | None = None
    """The same seed gives the same text; None takes a new one every time."""
    logprobs: int | None = None
    """Log-probabilities of the chosen tokens and of this many most probable ones; None gives none."""
    echo: bool = False
    """The prompt is part of the text, of the tokens and of the log-probabilities."""
    context: str = "slide"
    """Past the context, `slide` forgets the oldest half of the text, `error` refuses beforehand."""
    regex: str | None = None
    """A regular expression that the whole continuation matches."""
    json_schema: str | None = None
    """Or a JSON schema that it fits, as text."""
    stream: bool = False
    """Over HTTP: events of type `QueryEvent`, instead of one `QueryResponse` at the end."""


@dataclass(frozen=True)
class QueryToken:
    """A token of an answer."""

    id: int
    """In the vocabulary."""
    logprob: float | None = None
    """Its natural log-probability under the model itself, if asked for; None for a prompt's first token."""
    top: tuple[tuple[int, float], ...] | None = None
    """The most probable tokens in its place and their log-probabilities, if asked for."""


@dataclass(frozen=True)
class QuerySample:
    """One continuation."""

    text: str
    """Written by a model: synthetic text."""
    finish_reason: str
    """`stop` (end of text, or a stop string) or `length` (max_tokens)."""
    tokens: tuple[QueryToken, ...]
    """All tokens that were generated."""


@dataclass(frozen=True)
class QueryResponse:
    """What the model wrote."""

    model: str
    """Which model."""
    samples: tuple[QuerySample, ...]
    """The continuations."""
    prompt_tokens: int
    """Tokens of the prompt."""


@dataclass(frozen=True)
class QueryEvent:
    """A piece of a continuation, as it is written."""

    sample: int
    """Which continuation."""
    text: str
    """New text, which may be empty while a character or a stop string is incomplete."""
    tokens: tuple[QueryToken, ...]
    """New tokens."""
    finish_reason: str | None
    """None while it goes on."""


@dataclass(frozen=True)
class ModelInfo:
    """A model that can be asked."""

    name: str
    """For `model` in requests."""
    format: str
    """Of its folder; `broken` where it cannot be read."""
    num_parameters: int
    """How many numbers it has learnt."""
    n_ctx: int
    """How many tokens it sees at once."""


@dataclass(frozen=True)
class ModelList:
    """All models."""

    models: tuple[ModelInfo, ...]
    """The bundled one first."""


@dataclass(frozen=True)
class LoadedModel:
    """Whether a model is open, and by what."""

    name: str
    """As it was asked for."""
    loaded: bool
    """Whether it answers without being opened first."""
    engine: str | None = None
    """What runs it: `litert` or `keras`."""
    precision: str | None = None
    """Of its weights there."""
    num_parameters: int | None = None
    """How many numbers it has learnt."""
    n_ctx: int | None = None
    """How many tokens it sees at once."""


@dataclass(frozen=True)
class TrainRequest:
    """What to train."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid", "strict": True, "use_attribute_docstrings": True}

    training_files: tuple[str, ...]
    """Files or folders of any kind that `gpt2 prepare` reads, or one folder that it has made."""
    name: str
    """What the result is called, in `query_model(..., model=name)` and `save_model_via_api`."""
    model: str | None = None
    """What to fine-tune; None for the bundled model. Not together with `size`."""
    size: str | None = None
    """A released size (`124M`) to train from scratch instead."""
    validation_files: tuple[str, ...] = ()
    """Held-out text."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """How."""
    epochs: float | None = None
    """In a job: times through the text, instead of `training.steps`."""
    automatic: tuple[str, ...] = ()
    """In a job: which of batch_size, sequence_length and eval_every are to be chosen for the text."""


@dataclass(frozen=True)
class TrainResponse:
    """What came of it."""

    model: str
    """The name that was asked for."""
    log: tuple[LogEntry, ...]
    """Losses on the way; the last entry is the end."""


@dataclass(frozen=True)
class JobStatus:
    """How it stands with a training job."""

    id: str
    """For the other functions."""
    name: str
    """Of the model that comes of it."""
    status: str
    """`queued`, `validating_files`, `running`, `paused`, `succeeded`, `failed` or `cancelled`."""
    step: int
    """Steps so far."""
    steps: int | None
    """Steps in all, once the text is known."""
    checkpoints: tuple[str, ...]
    """Models that can be asked already: `NAME@STEP`."""
    error: str | None
    """Why it failed."""
    created: int
    """Seconds since 1970."""
    started: int | None
    """When it began."""
    finished: int | None
    """When it ended."""


@dataclass(frozen=True)
class JobList:
    """All jobs."""

    jobs: tuple[JobStatus, ...]
    """The first ordered first."""


@dataclass(frozen=True)
class JobEvent:
    """Something that a job says."""

    number: int
    """Rises from event to event."""
    created: int
    """Seconds since 1970."""
    level: str
    """`info`, `warn` or `error`."""
    kind: str
    """`message`, `metrics` or `sample`."""
    message: str
    """For people."""
    data: dict[str, Any] | None
    """The numbers of `metrics`; prompt and text of a `sample`."""


@dataclass(frozen=True)
class SaveRequest:
    """What to save where."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid", "strict": True, "use_attribute_docstrings": True}

    model: str
    """A name that `train_via_api` gave, a name in the store, or a folder."""
    path: str
    """The folder to write (for gguf a file, NAME.gguf); a model that is already there is replaced."""
    format: str = "native"
    """`native`, `huggingface` or `openai`; or, but not in the store, `savedmodel`, `gguf`, `onnx` or `litert`."""
    dtype: str = "float32"
    """How matrices are stored: `float32`, or for some formats `float16`, `int8`, `int4`, `q8_0` or `q4_0`."""


@dataclass(frozen=True)
class SaveResponse:
    """Where it is."""

    path: str
    """The folder."""
    format: str
    """Its format."""
    num_parameters: int
    """How many numbers it holds, the tied head counted once."""


@dataclass(frozen=True)
class InspectRequest:
    """A text to look into."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid", "strict": True, "use_attribute_docstrings": True}

    prompt: str | tuple[int, ...]
    """Text or token ids, at most 256; nothing is put before it."""
    model: str | None = None
    """Which model; None for the default."""
    layer: int | None = None
    """The attention of this layer's heads is wanted, counted from 0; None for none."""
    top: int = 5
    """How many of the most probable tokens, 1 to 20."""


@dataclass(frozen=True)
class InspectToken:
    """A token of the text."""

    id: int
    """In the vocabulary."""
    text: str
    """What it spells; bytes that are no whole character as `\\xe2`."""
    loss: float | None
    """-ln of its probability after those before it; None for the first."""


@dataclass(frozen=True)
class InspectGuess:
    """A token that is expected."""

    id: int
    """In the vocabulary."""
    text: str
    """What it spells."""
    probability: float
    """From 0 to 1."""


@dataclass(frozen=True)
class InspectStage:
    """What would be said if the network ended there (the logit lens)."""

    name: str
    """`embedding`, `layer 0` and so on; the last is what the model says."""
    top: tuple[tuple[InspectGuess, ...], ...]
    """After each token of the text the most probable ones, the best first."""
    ranks: tuple[int | None, ...]
    """Of the token that did come, 0 for the most probable; None after the last."""


@dataclass(frozen=True)
class InspectResponse:
    """A text as the network sees it."""

    model: str
    """Which model."""
    n_layer: int
    """How many layers it has."""
    n_head: int
    """How many heads each of them has."""
    tokens: tuple[InspectToken, ...]
    """The text."""
    stages: tuple[InspectStage, ...]
    """From the embedding to the last layer."""
    attention: tuple[tuple[tuple[float, ...], ...], ...] | None
    """Of each head of the layer, for each token how it looks at those up to itself; rounded to 4 decimals."""


def query_model(
    prompt: str | None = None,
    *,
    model: str | None = None,
    max_tokens: int = 128,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int | None = None,
    stop: str | list[str] | None = None,
    **options: Any,
) -> str:
    """The continuation of a prompt, without the prompt itself.

    Args:
        prompt: text; None for unconditional text.
        model: which model; None for the bundled one.
        max_tokens: at most this many tokens are generated.
        temperature: 0 always takes the most probable token; 1 samples from the model as it is.
        top_k: keep only the k most probable tokens; 0 keeps all.
        top_p: keep only the most probable tokens that together reach p.
        seed: the same seed gives the same text; None takes a new one every time.
        stop: text that ends the continuation and is not part of it.
        options: `engine`, what runs the model: `litert`, `keras`, or `auto` (the default) for the fastest that can be
            used here; `precision` of the weights: `float32` (the default), or with litert `int8` or `int4`, faster and
            a little less exact; `draft_model`, a smaller model that guesses ahead and changes nothing but the time; and
            any other field of `GenerationConfig` and `SamplingConfig`, such as min_p or repetition_penalty.

    Raises:
        GPT2Error: the tree in `gpt2.errors`; the message names the argument.

    >>> query_model("Once upon a time", max_tokens=5, temperature=0)  # doctest: +SKIP
    """
    options |= {"max_tokens": max_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    return _opened(model, options).generate(prompt, seed=seed, stop=stop, **options)[0].text


def stream_model(prompt: str | None = None, *, model: str | None = None, **options: Any) -> Iterator[str]:
    """As `query_model`, with the same options, but the text comes in pieces as it is written."""
    for piece in _opened(model, options).stream(prompt, **options):
        if piece.text:
            yield piece.text


def query_via_api(request: QueryRequest) -> QueryResponse:
    """As `query_model`, with the whole answer: all samples, their tokens and log-probabilities.

    Raises:
        GPT2Error: the tree in `gpt2.errors`; the message names the field.
    """
    question = _question(request)
    model = _opened(question.model, {})
    options: dict[str, Any] = {name: getattr(request, name) for name in _GENERATION + _SAMPLING}
    return _answer(model.name, model.generate(question.prompt, **options))


def list_models_via_api() -> ModelList:
    """The bundled model and those in the store."""
    return ModelList(tuple(_info(name) for name in (store.BUNDLED, *store.list_models())))


def load_model_via_api(name: str | None = None) -> LoadedModel:
    """Open a model now, so that the first request for it need not wait; it stays open as after a request.

    Raises:
        GPT2Error: there is no such model, or it cannot be read.
    """
    return _loaded(store.BUNDLED if name is None else name, _opened(name, {}))


def unload_model_via_api(name: str | None = None) -> LoadedModel:
    """Close a model, whose memory is free then; one that was trained here and not saved stays."""
    with _lock:
        for key in [key for key in _open if key[0] == name]:
            del _open[key]
    return _loaded(store.BUNDLED if name is None else name, None)


def train_via_api(request: TrainRequest) -> TrainResponse:
    """Train a model and keep it in memory under `request.name` until the process ends.

    Raises:
        ModelNameError: the name is empty or looks like a path, or both `model` and `size` are given.
        GPT2Error: the training could not be done; see `gpt2.gpt.train_model`.
    """
    from gpt2.gpt import train_model

    if not request.name or "/" in request.name or "\\" in request.name:
        raise ModelNameError(f"name: expected a name without slashes, got {request.name!r}")
    if request.model is not None and request.size is not None:
        raise ModelNameError("model, size: expected one of them, got both")
    log: list[LogEntry] = []
    trained = train_model(
        list(request.training_files),
        model=None if request.size else _model(request.model),
        config=request.size,
        valid_data=list(request.validation_files) or None,
        training=request.training,
        on_log=log.append,
    )
    trained.name = request.name
    with _lock:
        _trained[request.name] = trained
    return TrainResponse(model=request.name, log=tuple(log))


def start_training(request: TrainRequest) -> JobStatus:
    """Train a model in a process of its own; the result is saved in the store under `request.name`.

    The job goes on as long as this process lives, or a server with the same store; if both end, it waits for the next
    one and goes on exactly where it was. One job runs at a time.

    Raises:
        NameTakenError: a model, a run or another job has that name.
        ModelNameError: it is no name, there is no such model, or both `model` and `size` are given.
        QueueFullError: too many jobs wait.
        ConfigError: an unknown size or setting.
    """
    from gpt2.jobs.records import Order, Records
    from gpt2.jobs.supervisor import supervise

    if request.model is not None and request.size is not None:
        raise ModelNameError("model, size: expected one of them, got both")
    if not request.training_files:
        raise ConfigError("training_files: expected some, got none")
    unknown = set(request.automatic) - {"batch_size", "sequence_length", "eval_every"}
    if unknown:
        raise ConfigError(f"automatic: expected some of batch_size, sequence_length, eval_every, got {min(unknown)!r}")
    if request.epochs is not None and not 0 < request.epochs <= 1000:
        raise ConfigError(f"epochs: expected a number above 0, up to 1000, got {request.epochs}")
    if request.size is None:
        store.resolve(request.model)
    else:
        size_name(request.size)
    order = Order(
        name=request.name,
        files=tuple(request.training_files),
        model=request.model,
        size=request.size,
        valid_files=tuple(request.validation_files),
        epochs=request.epochs,
        auto=tuple(request.automatic),
        training=request.training.to_dict(),
    )
    job = Records().create(order)
    supervise()
    return _status(job)


def list_jobs() -> JobList:
    """All training jobs."""
    from gpt2.jobs.records import Records

    return JobList(tuple(map(_status, Records().jobs())))


def job_status(job_id: str) -> JobStatus:
    """How it stands with a training job.

    Raises:
        JobError: there is none; so for the next four.
    """
    from gpt2.jobs.records import Records

    return _status(Records().job(job_id))


def cancel_job(job_id: str) -> JobStatus:
    """End a training job; its checkpoints stay."""
    return _ask(job_id, "cancel")


def pause_job(job_id: str) -> JobStatus:
    """Let a training job save a checkpoint and wait."""
    return _ask(job_id, "pause")


def resume_job(job_id: str) -> JobStatus:
    """Let a training job that pauses go on, exactly where it was."""
    return _ask(job_id, "run")


def job_events(job_id: str, after: int = 0) -> list[JobEvent]:
    """What a training job has said after an event of that number."""
    from gpt2.jobs.records import Records

    records = Records()
    records.job(job_id)
    return [
        JobEvent(e.number, e.created, e.level, e.kind, e.message, None if e.data is None else dict(e.data))
        for e in records.events(job_id, after)
    ]


def inspect_via_api(request: InspectRequest) -> InspectResponse:
    """Look into the network while it reads a text: losses, the logit lens, a layer's attention.

    Raises:
        ModelNameError: there is no such model.
        PromptError: the text is empty or too long.
        ConfigError: there is no such layer, or `top` is out of range.
    """
    from gpt2.inspection import inspect

    model = _model(request.model)
    ids = _inspected_ids(request, model.config, model.codec)
    return _inspection(request, inspect(model, ids, top=request.top))


def save_model_via_api(request: SaveRequest) -> SaveResponse:
    """Save a model, atomically; what is for other programs is checked by theirs, where that is installed.

    Raises:
        ModelNameError: there is no such model.
        ConfigError: no such format or dtype, or a library is not installed.
        CheckpointError: it cannot be written; what was there before is untouched.
    """
    from gpt2.gpt import save_model

    model = _model(request.model)
    path = save_model(model, request.path, request.format, dtype=request.dtype)
    return SaveResponse(path=str(path), format=request.format, num_parameters=model.num_parameters)


_lock = threading.RLock()
_trained: dict[str, Model] = {}
_open: OrderedDict[tuple[str | None, ...], LanguageModel] = OrderedDict()


def _model(name: str | None) -> Model:
    """A model that was trained here, or one from disk."""
    from gpt2.gpt import load_model

    with _lock:
        trained = None if name is None else _trained.get(name)
    return trained or load_model(name)


def _opened(name: str | None, options: dict[str, Any]) -> LanguageModel:
    """A model to be asked: one that was trained here, or one from disk, which then stays open.

    Takes `engine`, `precision` and `draft_model` out of the options.
    """
    engine, precision = options.pop("engine", "auto"), options.pop("precision", "float32")
    draft_model = options.pop("draft_model", None)
    with _lock:
        if name is not None and name in _trained:
            return _trained[name]
        key = (name, engine, precision, draft_model)
        if key not in _open:
            _open[key] = open_model(name, engine=engine, precision=precision, draft_model=draft_model)
            if len(_open) > MAX_LOADED:
                _open.popitem(last=False)
        _open.move_to_end(key)
        return _open[key]


_SAMPLING = tuple(f.name for f in fields(SamplingConfig))
_GENERATION = tuple(f.name for f in fields(GenerationConfig) if f.name in {g.name for g in fields(QueryRequest)})


def _question(request: QueryRequest) -> Question:
    options = {name: getattr(request, name) for name in _GENERATION + _SAMPLING}
    prompt = list(request.prompt) if isinstance(request.prompt, tuple) else request.prompt
    return Question(request.model, prompt, GenerationConfig.from_options(**options), request.stream)


def _answer(model: str, completions: list[Completion]) -> QueryResponse:
    samples = tuple(
        QuerySample(
            completion.text,
            completion.finish_reason,
            _tokens(completion.tokens, completion.log_probabilities, completion.top_log_probabilities),
        )
        for completion in completions
    )
    return QueryResponse(model, samples, completions[0].prompt_tokens)


def _event(piece: Piece) -> QueryEvent:
    tokens = _tokens(piece.tokens, piece.log_probabilities, piece.top_log_probabilities)
    return QueryEvent(piece.sample, piece.text, tokens, piece.finish_reason)


def _tokens(ids: Sequence[int], chosen: Sequence[Any] | None, top: Sequence[Any] | None) -> tuple[QueryToken, ...]:
    if chosen is None or top is None:
        return tuple(map(QueryToken, ids))
    return tuple(
        QueryToken(token, value, None if most is None else tuple(most))
        for token, value, most in zip(ids, chosen, top, strict=True)
    )


def _info(name: str) -> ModelInfo:
    try:
        found = checkpoints.describe(store.resolve_name(name), quick=True)
    except GPT2Error:
        return ModelInfo(name, "broken", 0, 0)
    return ModelInfo(name, found.format, found.config.num_parameters, found.config.n_ctx)


def _loaded(name: str, model: LanguageModel | None) -> LoadedModel:
    if model is None:
        return LoadedModel(name, loaded=False)
    engine = model.engine
    return LoadedModel(name, True, engine.name, engine.precision, model.num_parameters, model.config.n_ctx)


def _ask(job_id: str, wanted: str) -> JobStatus:
    from gpt2.jobs.records import Records
    from gpt2.jobs.supervisor import supervise

    job = Records().ask(job_id, wanted)
    supervise()
    return _status(job)


def _status(job: Job) -> JobStatus:
    steps = store.checkpoint_steps(store.runs_folder() / job.order.name)
    return JobStatus(
        id=job.id,
        name=job.order.name,
        status=job.status,
        step=job.step,
        steps=job.steps,
        checkpoints=tuple(f"{job.order.name}@{step}" for step in steps),
        error=job.error,
        created=job.created,
        started=job.started,
        finished=job.finished,
    )


def _inspected_ids(request: InspectRequest, config: GPT2Config, codec: Codec | None) -> list[int]:
    """The tokens to look at, where the request is in order."""
    prompt = request.prompt
    if not 1 <= request.top <= min(MAX_INSPECTED_TOP, config.n_vocab):
        raise ConfigError(f"top: expected 1 to {min(MAX_INSPECTED_TOP, config.n_vocab)}, got {request.top}")
    if request.layer is not None and not 0 <= request.layer < config.n_layer:
        raise ConfigError(f"layer: expected 0 to {config.n_layer - 1}, got {request.layer}")
    if not prompt:
        raise PromptError("prompt: expected text or token ids, got nothing")
    if isinstance(prompt, str) and codec is None:
        raise PromptError("prompt: expected token ids, since this model has no vocabulary; got text")
    ids = codec.encode(prompt) if isinstance(prompt, str) and codec is not None else [int(token) for token in prompt]
    if len(ids) > MAX_INSPECTED_TOKENS:
        raise PromptError(f"prompt: expected at most {MAX_INSPECTED_TOKENS} tokens, got {len(ids)}")
    return ids


def _inspection(request: InspectRequest, seen: Inspection) -> InspectResponse:
    L, H, T, _ = seen.patterns.shape
    attention = None
    if request.layer is not None:
        heads = seen.patterns[request.layer].round(4).tolist()
        attention = tuple(tuple(tuple(heads[h][t][: t + 1]) for t in range(T)) for h in range(H))
    return InspectResponse(
        model=seen.model,
        n_layer=L,
        n_head=H,
        tokens=tuple(
            InspectToken(int(token), text, None if n == 0 else float(loss))
            for n, (token, text, loss) in enumerate(zip(seen.ids, seen.texts, seen.losses, strict=True))
        ),
        stages=tuple(
            InspectStage(
                name,
                tuple(
                    tuple(
                        InspectGuess(int(token), seen.vocabulary(int(token)), float(share))
                        for token, share in zip(tokens, shares, strict=True)
                    )
                    for tokens, shares in zip(found.top, found.top_probabilities, strict=True)
                ),
                tuple(None if rank < 0 else int(rank) for rank in found.ranks),
            )
            for name, found in zip(seen.lens.stages, seen.lens.predictions, strict=True)
        ),
        attention=attention,
    )


def _has_ended(job_id: str) -> bool:
    from gpt2.jobs.records import Records

    return not Records().job(job_id).is_open


def _start_training_on_uploads(request: TrainRequest) -> JobStatus:
    """Train a model on uploaded files (`/v1/files`), in a process of its own."""
    from gpt2.jobs.records import Records

    for field_name in ("training_files", "validation_files"):
        for file in getattr(request, field_name):
            try:
                Records().file(file)
            except JobError as error:
                raise ConfigError(f"{field_name}: {error}") from None
    store.resolve_name(request.model)
    return start_training(request)


def _inspect_in_store(request: InspectRequest) -> InspectResponse:
    """Look into a model in the store, which stays open for the next request; TensorFlow comes with the first."""
    folder = store.resolve_name(request.model)
    config = checkpoints.describe(folder, quick=True).config
    ids = _inspected_ids(request, config, checkpoints.codec_of(folder, config.n_vocab))
    seen = replace(_inspector().inspect(folder, ids, top=request.top), model=request.model or store.BUNDLED)
    return _inspection(request, seen)


@functools.cache
def _inspector() -> Inspector:
    from gpt2.inspection.hosted import Inspector

    return Inspector()


def _save_in_store(request: SaveRequest) -> SaveResponse:
    """Save a model, or a job's checkpoint, under another name in the store (`path`)."""
    from gpt2.jobs.records import Records

    source = store.resolve_name(request.model)
    with store.writing(request.path) as target:
        if target.exists() or Records().is_promised(request.path):
            raise NameTakenError(f"path: {request.path} is taken; choose another name")
        config, tensors = checkpoints.read(source)
        codec = checkpoints.codec_of(source, config.n_vocab)
        checkpoints.write(target, config, tensors, format=request.format, codec=codec, dtype=request.dtype)
    return SaveResponse(request.path, request.format, config.num_parameters)


ROUTES: tuple[Route, ...] = (
    Writing("POST", "/query", "query", QueryRequest, QueryResponse, QueryEvent, _question, _answer, _event),
    Call("GET", "/models", "query", list_models_via_api, None, ModelList),
    Call("POST", "/inspect", "query", _inspect_in_store, InspectRequest, InspectResponse, uses_default=True),
    Opening("POST", "/models/{name}/load", "query", LoadedModel, True, _loaded),
    Opening("POST", "/models/{name}/unload", "admin", LoadedModel, False, _loaded),
    Call("POST", "/train", "train", _start_training_on_uploads, TrainRequest, JobStatus),
    Call("POST", "/save", "train", _save_in_store, SaveRequest, SaveResponse),
    Call("GET", "/jobs", "train", list_jobs, None, JobList),
    Call("GET", "/jobs/{job_id}", "train", job_status, None, JobStatus),
    Call("POST", "/jobs/{job_id}/cancel", "train", cancel_job, None, JobStatus),
    Call("POST", "/jobs/{job_id}/pause", "train", pause_job, None, JobStatus),
    Call("POST", "/jobs/{job_id}/resume", "train", resume_job, None, JobStatus),
    Events("GET", "/jobs/{job_id}/events", "train", JobEvent, job_events, _has_ended),
)
"""What a server offers of this version, below `/v2`."""
