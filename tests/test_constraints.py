"""Text of a given form: always a match, drawn in the model's proportions."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest

from fakes import FakeEngine
from gpt2.codec import Codec, default_codec
from gpt2.config import GenerationConfig
from gpt2.constraints import Constraint
from gpt2.continuation import Completion
from gpt2.errors import ConfigError, PromptError
from gpt2.generation import generate
from gpt2.scheduler import Scheduler

V = 50257
REGEXES = [r" (yes|no|perhaps)", r"[a-z]{3,9} [0-9]{2}", r"(?i)abc+d?", r"\d{4}-\d{2}-\d{2}", r"[äöü]{2,4}", r"x{0,5}"]
SCHEMAS: list[dict[str, Any]] = [
    {"type": "integer", "minimum": 10, "maximum": 99},
    {"enum": ["red", "green", 3]},
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 8},
            "ages": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 150}, "maxItems": 3},
            "kind": {"anyOf": [{"const": "a"}, {"type": "null"}]},
        },
        "required": ["name", "ages", "kind"],
        "additionalProperties": False,
    },
]


def write(count: int, **options: Any) -> list[Completion]:
    engine = FakeEngine(V, 64)
    config = GenerationConfig.from_options(**{"max_tokens": 60, "seed": 2, "num_samples": count, **options})
    return generate(engine, default_codec(), [[11]], config)


@pytest.mark.parametrize("regex", REGEXES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_regex(regex: str, temperature: float) -> None:
    for done in write(4, regex=regex, temperature=temperature):
        assert done.finish_reason == "stop"
        assert re.fullmatch(regex, done.text), done.text


@pytest.mark.parametrize("schema", SCHEMAS)
def test_json_schema(schema: dict[str, Any]) -> None:
    for done in write(4, json_schema=schema):
        value = json.loads(done.text)
        if schema.get("type") == "integer":
            assert 10 <= value <= 99
        elif "enum" in schema:
            assert value in schema["enum"]
        else:
            assert set(value) == {"name", "ages", "kind"}
            assert len(value["name"]) <= 8
            assert all(0 <= age <= 150 for age in value["ages"])
            assert value["kind"] in ("a", None)


def test_proportions_are_the_models() -> None:
    codec = default_codec()
    words = [codec.encode(word)[0] for word in (" yes", " no")]
    chances = np.full(V, -3.0)
    chances[words] = np.log([0.8, 0.2]) + 2
    engine = FakeEngine(V, 64, lambda tokens: chances)
    config = GenerationConfig.from_options(regex=" (yes|no)", num_samples=400, seed=1)
    texts = [done.text for done in generate(engine, codec, [[11]], config)]
    # " yes" is also written as " y" + "es" and so on, each piece with its own small chance.
    assert abs(texts.count(" yes") / 400 - 0.8) < 0.08


def test_cut_short_it_says_so() -> None:
    (done,) = write(1, regex="[a-z]{200}", max_tokens=3)
    assert done.finish_reason == "length"
    assert re.fullmatch("[a-z]+", done.text)


def test_log_probabilities_are_those_of_the_model_itself() -> None:
    (done,) = write(1, regex=" (yes|no)", logprobs=0)
    assert done.log_probabilities is not None
    assert all(value is not None and value < -5 for value in done.log_probabilities)  # of 50,257 random ones


def test_by_the_scheduler_too() -> None:
    config = GenerationConfig.from_options(regex="[a-z]{3,9} [0-9]{2}", num_samples=3, seed=2, max_tokens=60)
    engine = FakeEngine(V, 64)
    with Scheduler(engine, default_codec()) as scheduler:
        found = scheduler.submit([11], config).result()
    assert [done.tokens for done in found] == [done.tokens for done in write(3, regex="[a-z]{3,9} [0-9]{2}")]


def test_logits_beyond_the_vocabulary_are_never_allowed() -> None:
    constraint = Constraint(default_codec(), 50304, regex="a|b")
    allowed = np.flatnonzero(np.isfinite(constraint.allow(np.zeros(50304, np.float32))))
    assert {default_codec().decode([int(token)]) for token in allowed} == {"a", "b"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"regex": "[a-z"}, "regex: cannot be used"),
        ({"json_schema": "{"}, "json_schema: expected a schema in JSON"),
        ({"json_schema": {"type": "strange"}}, "json_schema: cannot be used"),
        ({"regex": "a", "json_schema": "{}"}, "json_schema: expected None with regex"),
        ({"regex": "a", "num_beams": 2}, "regex: expected None with beams"),
        ({"regex": 5}, "regex: expected text or None"),
    ],
)
def test_what_cannot_be_used(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        write(1, **{"num_samples": 1, **options})


def test_needs_a_vocabulary_with_an_end() -> None:
    config = GenerationConfig.from_options(regex="a")
    with pytest.raises(PromptError, match="a model with a codec"):
        generate(FakeEngine(300), None, [[1]], config)
    codec = Codec.from_merges("#version: 0.2\nt h\n")
    without = Codec(codec.ranks, {}, name="endless")
    with pytest.raises(ConfigError, match="vocabulary with"):
        generate(FakeEngine(300), without, [[1]], config)
