"""Receipts: what it takes to write the same text again, and whether it came out the same.

A receipt names the weights by their hash, the engine with its precision, the versions, the prompt's tokens, every
setting with the seed, and the tokens that were written. It is plain JSON. It is no proof: whoever has it can change it.
"""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Sequence
from typing import Any

from gpt2.config import GenerationConfig, SamplingConfig
from gpt2.continuation import Completion
from gpt2.errors import ConfigError
from gpt2.language_model import LanguageModel
from gpt2.machine import versions

VERSION = 1


def make(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    completions: Sequence[Completion],
) -> dict[str, Any]:
    """The receipt of a call.

    Args:
        model: what wrote it.
        prompts: token ids.
        config: every setting; its seed must be given, or nothing could be repeated.
        completions: what came out.

    Raises:
        ConfigError: there is no seed, though something was drawn.
    """
    if config.seed is None and config.sampling.temperature != 0 and config.num_beams == 1:
        raise ConfigError("seed: expected one, since a text without it cannot be written again; got None")
    settings = dataclasses.asdict(config)
    settings["sampling"]["logit_bias"] = sorted(config.sampling.logit_bias.items())
    return {
        "receipt": VERSION,
        "synthetic": True,
        "model": model.name,
        "weights_sha256": model.engine.weights_sha256,
        "engine": model.engine.name,
        "precision": model.engine.precision,
        "versions": versions(),
        "machine": {"system": platform.system(), "processor": platform.machine()},
        "prompts": [list(prompt) for prompt in prompts],
        "settings": settings,
        "completions": [
            {"prompt": done.prompt, "sample": done.sample, "tokens": done.tokens, "text": done.text}
            for done in completions
        ],
    }


def replay(receipt: dict[str, Any], model: LanguageModel) -> list[str]:
    """Write the text again; what differs, in words, or nothing.

    Args:
        receipt: from `make`, perhaps through JSON.
        model: opened with the receipt's engine and precision.

    Raises:
        ConfigError: it is no receipt, or its weights are not the model's.
    """
    settings = settings_of(receipt)
    if receipt.get("weights_sha256") != model.engine.weights_sha256:
        raise ConfigError(
            f"receipt: expected weights with the SHA-256 {receipt.get('weights_sha256')}, "
            f"got {model.engine.weights_sha256} in {model.name}"
        )
    found = []
    for prompt in receipt["prompts"]:
        found += model.generate(prompt, **settings)
    differences = []
    wanted = receipt["completions"]
    if len(found) != len(wanted):
        differences.append(f"expected {len(wanted)} texts, got {len(found)}")
    for number, (done, entry) in enumerate(zip(found, wanted, strict=False)):
        if done.tokens != entry["tokens"]:
            pairs = zip(done.tokens, entry["tokens"], strict=False)
            place = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(done.tokens), len(entry["tokens"])))
            differences.append(f"text {number + 1}: another token at place {place + 1} of {len(entry['tokens'])}")
        elif done.text != entry["text"]:
            differences.append(f"text {number + 1}: the same tokens, but another text")
    return differences


def settings_of(receipt: dict[str, Any]) -> dict[str, Any]:
    """The options for `LanguageModel.generate` that a receipt tells.

    Raises:
        ConfigError: it is no receipt of this version.
    """
    if not isinstance(receipt, dict) or receipt.get("receipt") != VERSION:
        raise ConfigError(f"receipt: expected one of version {VERSION}, got something else")
    try:
        settings = dict(receipt["settings"])
        sampling = dict(settings.pop("sampling"))
        sampling["logit_bias"] = {int(token): float(bias) for token, bias in sampling["logit_bias"]}
        settings["stop"] = list(settings["stop"])
        [list(map(int, prompt)) for prompt in receipt["prompts"]]
        [(list(entry["tokens"]), str(entry["text"])) for entry in receipt["completions"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"receipt: expected settings, prompts and completions, got {error!r}") from None
    unknown = set(sampling) - {field.name for field in dataclasses.fields(SamplingConfig)}
    if unknown:
        raise ConfigError(f"receipt: expected settings of this version, got {', '.join(sorted(unknown))}")
    return settings | sampling
