"""What a versioned API consists of, so that a server can offer any version: routes with typed requests and answers.

A version is a module (`gpt2.gpt_core_v2`) with a tuple `ROUTES`. Requests and responses are dataclasses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gpt2.config import GenerationConfig
from gpt2.continuation import Completion, Piece


@dataclass(frozen=True)
class Call:
    """A route that a function answers."""

    method: str
    """GET, POST or DELETE."""
    path: str
    """Below the version, such as `/models`."""
    scope: str
    """Who may: `query`, `train` or `admin`."""
    run: Callable[..., Any]
    """Takes the request (or nothing) and gives the response; it may take its time."""
    request: type | None
    """What comes in its body, if anything."""
    response: type
    """What goes out."""


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


Route = Call | Writing
