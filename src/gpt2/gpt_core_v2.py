"""The versioned API, version 2: how other programs query, train and save a GPT-2.

The contract is this file: functions that take and give plain, typed values, over `gpt2.gpt`. It will not change under
those who use it; what would break them becomes `gpt_core_v3.py`. Models are named by strings: a name in the store, a
folder, or a name that `train_via_api` gave to its result. A model that was opened stays open for the next request.
TensorFlow is imported where something is trained or saved, or where the engine needs it.

    query_model("Once upon a time", max_tokens=40, seed=1)
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gpt2.config import TrainingConfig
from gpt2.errors import ModelNameError
from gpt2.language_model import LanguageModel, open_model

if TYPE_CHECKING:
    from gpt2.gpt import Model
    from gpt2.training import LogEntry

API_VERSION = 2
MAX_LOADED = 2
"""Models from disk that stay open; the one that was longest unused goes first."""


@dataclass(frozen=True)
class TrainRequest:
    """What to train."""

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


@dataclass(frozen=True)
class TrainResponse:
    """What came of it."""

    model: str
    """The name that was asked for."""
    log: tuple[LogEntry, ...]
    """Losses on the way; the last entry is the end."""


@dataclass(frozen=True)
class SaveRequest:
    """What to save where."""

    model: str
    """A name that `train_via_api` gave, a name in the store, or a folder."""
    path: str
    """The folder to write; a model that is already there is replaced."""
    format: str = "native"
    """`native`, `huggingface` or `openai`."""
    dtype: str = "float32"
    """`float32`, or `float16` for half the size (not in the openai format)."""


@dataclass(frozen=True)
class SaveResponse:
    """Where it is."""

    path: str
    """The folder."""
    format: str
    """Its format."""
    num_parameters: int
    """How many numbers it holds, the tied head counted once."""


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


def save_model_via_api(request: SaveRequest) -> SaveResponse:
    """Save a model as a folder, atomically.

    Raises:
        ModelNameError: there is no such model.
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
