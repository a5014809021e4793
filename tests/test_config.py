"""Settings: the four sizes' facts, and every bad value named in its error."""

from __future__ import annotations

import dataclasses
import math

import pytest

from gpt2.config import SIZES, GPT2Config, SamplingConfig, TrainingConfig, size_name
from gpt2.errors import ConfigError, GPT2Error


@pytest.mark.parametrize(
    ("size", "parameters"),
    [("124M", 124_439_808), ("355M", 354_823_168), ("774M", 774_030_080), ("1558M", 1_557_611_200)],
)
def test_parameters_of_the_released_sizes(size, parameters):
    assert SIZES[size].num_parameters == parameters
    assert (SIZES[size].n_vocab, SIZES[size].n_ctx, SIZES[size].head_size) == (50257, 1024, 64)


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        *[(name, "124M") for name in ("124M", "117M", "small", "gpt2")],
        *[(name, "355M") for name in ("355M", "345M", "medium", "gpt2-medium")],
        *[(name, "774M") for name in ("774M", "762M", "large", "gpt2-large")],
        *[(name, "1558M") for name in ("1558M", "1542M", "xl", "gpt2-xl")],
    ],
)
def test_names_of_sizes(name, canonical):
    assert size_name(name) == canonical


def test_an_unknown_size():
    with pytest.raises(ConfigError, match="size: expected one of 124M, .*, got 'huge'"):
        size_name("huge")


BAD = [
    *[(GPT2Config, name, value) for name in SIZES["124M"].to_dict() for value in (0, -1, 1.0, "12", None, True, 10**9)],
    (GPT2Config, "n_embd", 770),  # no multiple of 12 heads
    *[(SamplingConfig, "temperature", value) for value in (-0.1, 101, math.nan, math.inf, "1", None, True)],
    *[(SamplingConfig, name, value) for name in ("top_p", "typical_p") for value in (0, -0.1, 1.1, math.nan, "1")],
    *[(SamplingConfig, "min_p", value) for value in (-0.1, 1.1, math.nan)],
    *[(SamplingConfig, "repetition_penalty", value) for value in (0, -1, 101, math.nan)],
    *[(SamplingConfig, f"{name}_penalty", value) for name in ("frequency", "presence") for value in (-2.1, 2.1, "0")],
    *[(SamplingConfig, name, value) for name in ("top_k", "min_tokens") for value in (-1, 1.0, True, None)],
    *[
        (SamplingConfig, "logit_bias", value)
        for value in ([1], {"1": 1.0}, {-1: 1.0}, {1: 101}, {1: math.nan}, {1: "1"})
    ],
    *[
        (TrainingConfig, name, value)
        for name in ("steps", "batch_size", "eval_every", "eval_batches")
        for value in (0, -1, 1.0, True, None)
    ],
    *[(TrainingConfig, name, value) for name in ("warmup_steps", "seed") for value in (-1, 1.0, True, None)],
    *[(TrainingConfig, "sequence_length", value) for value in (0, -1, 1.0, True)],
    *[(TrainingConfig, name, value) for name in ("learning_rate", "gradient_clip") for value in (0, -1, math.nan, "1")],
    *[(TrainingConfig, name, value) for name in ("dropout", "beta_1", "beta_2") for value in (-0.1, 1, math.nan, None)],
    *[(TrainingConfig, "final_learning_rate", value) for value in (-0.1, 1.1, math.nan)],
    *[(TrainingConfig, "weight_decay", value) for value in (-0.1, math.nan, math.inf)],
    *[(TrainingConfig, "precision", value) for value in ("float16", "", None)],
]


@pytest.mark.parametrize(("kind", "name", "value"), BAD, ids=lambda item: getattr(item, "__name__", repr(item)))
def test_a_bad_value_is_named(kind, name, value):
    with pytest.raises(ConfigError, match=f"^{name}: expected .*, got ") as caught:
        kind(**{name: value})
    assert isinstance(caught.value, (GPT2Error, ValueError))


def test_edges_that_are_allowed():
    SamplingConfig(temperature=0, top_p=1, top_k=10**6, min_p=1, logit_bias={0: -100, 5: 100}, presence_penalty=-2)
    TrainingConfig(steps=1, warmup_steps=0, final_learning_rate=0, weight_decay=0, sequence_length=1)
    GPT2Config(n_vocab=1, n_ctx=1, n_embd=1, n_head=1, n_layer=1)


@pytest.mark.parametrize("config", [GPT2Config(), SamplingConfig(), TrainingConfig()])
def test_configs_are_frozen(config):
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, dataclasses.fields(config)[0].name, 1)


# hparams.json


def test_dictionaries_come_back():
    config = GPT2Config(n_vocab=100, n_ctx=8, n_embd=12, n_head=3, n_layer=2)
    assert config.to_dict() == {"n_vocab": 100, "n_ctx": 8, "n_embd": 12, "n_head": 3, "n_layer": 2}
    assert GPT2Config.from_dict(config.to_dict() | {"n_other": 1}) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], r"^x.json: expected an object with the keys n_vocab, n_ctx, n_embd, n_head, n_layer, got \[\]"),
        ({"n_vocab": 10, "n_ctx": 8, "n_layer": 2}, "^x.json: expected the keys .*; missing n_embd, n_head"),
        (GPT2Config().to_dict() | {"n_head": 5}, r"^x.json: n_embd: expected a multiple of n_head \(5\), got 768"),
        (GPT2Config().to_dict() | {"n_ctx": "8"}, "^x.json: n_ctx: expected an integer from 1 to 1,000,000, got '8'"),
    ],
)
def test_bad_dictionaries(values, message):
    with pytest.raises(ConfigError, match=message):
        GPT2Config.from_dict(values, source="x.json")
