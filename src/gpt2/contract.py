"""What a versioned API consists of, so that a server can offer any version: routes with typed requests and answers.

A version is a module (`gpt2.gpt_core_v2`) with a tuple `ROUTES`. Requests and responses are dataclasses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gpt2.config import GenerationConfig
from gpt2.continuation import Completion, Piece
from gpt2.language_model import LanguageModel


@dataclass(frozen=True)
class Call:
    """A route that a function answers."""

    method: str
    """GET, POST or DELETE."""
    path: str
    """Below the version, such as `/jobs/{job_id}`."""
    scope: str
    """Who may: `query`, `train` or `admin`."""
    run: Callable[..., Any]
    """Takes the request, if there is one, and the path's parameters by name, and gives the response; in a thread."""
    request: type | None
    """What comes in its body, if anything."""
    response: type
    """What goes out."""
    uses_default: bool = False
    """A request that names no `model` means the server's default."""


@dataclass(frozen=True)
class Question:
    """What a request for text comes to."""

    model: str | None
    """Which model; None for the default."""
    prompt: Any
    """What `LanguageModel.prompt_tokens` takes."""
    config: GenerationConfig
    """What to generate."""
    stream: bool
    """Whether the text is wanted piece by piece."""


@dataclass(frozen=True)
class Writing:
    """A route that text answers, whole or piece by piece (server-sent events)."""

    method: str
    """POST."""
    path: str
    """Below the version, such as `/query`."""
    scope: str
    """`query`."""
    request: type
    """What comes in its body."""
    response: type
    """What goes out."""
    event: type
    """What goes out for each piece, where pieces are asked for."""
    question: Callable[[Any], Question]
    """What a request asks."""
    answer: Callable[[str, list[Completion]], Any]
    """The response, from the model's name and the texts."""
    piece: Callable[[Piece], Any]
    """The event of a piece."""


@dataclass(frozen=True)
class Events:
    """A route that goes on until something has ended: server-sent events, each with its number as `id`.

    A client that was cut off goes on where it was, by `Last-Event-ID` or `?after=`.
    """

    method: str
    """GET."""
    path: str
    """Below the version; its parameters are given to `run` and `ended`."""
    scope: str
    """Who may."""
    response: type
    """An event, with a `number`."""
    run: Callable[..., Any]
    """Takes the path's parameters and `after`; the events after that number, oldest first."""
    ended: Callable[..., bool]
    """Takes the path's parameters; whether nothing more will come."""
    request: type | None = None
    """Nothing."""


@dataclass(frozen=True)
class Opening:
    """A route that opens a model, or closes it: the path's `name` says which."""

    method: str
    """POST."""
    path: str
    """Below the version, such as `/models/{name}/load`."""
    scope: str
    """Who may."""
    response: type
    """What goes out."""
    opens: bool
    """Or closes, which is refused while requests use it."""
    answer: Callable[[str, LanguageModel | None], Any]
    """The response, from the model's name and the model, if it is open now."""
    request: type | None = None
    """Nothing."""


Route = Call | Writing | Events | Opening
