"""Whether a model in another format computes what it did: the format's runtime is compared with the reference engine.

Compared are the logits at every position of a short text, the most probable continuation of it (greedy), and where the
format carries a vocabulary the token ids of the text. The runtime has a process of its own (`gpt2.exports.runtimes`):
some crash rather than fail, and the memory of both models is then never needed at once.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpt2.checkpoints import child
from gpt2.codec import Codec
from gpt2.engines import Engine
from gpt2.errors import CheckpointError

TEXT = "It's 9 o'clock, said the naïve old king;  \n\nhe'd had 3 sons, and 1,024 sheep in a far-off land. Once"
MAX_TOKENS = 32
"""Of the text, at whose positions logits are compared."""
STEPS = 16
"""Tokens of the greedy continuation."""
SECONDS = 3600.0
"""After which a runtime that has not answered is given up."""

_EXACT = 1e-3
_LARGEST_EXACT = {"gguf": 1e-2}
"""The largest difference of logits in float32, for logits up to 100. llama.cpp's GELU is a table in float16, which
alone makes 3e-3 for the bundled model."""
_LARGEST_RELATIVE = {"float16": 0.05, "int8": 0.25, "q8_0": 0.25, "int4": 0.8, "q4_0": 0.8}
"""For rounded weights: the root mean square of the differences, divided by the standard deviation of the logits. A
model whose matrices are mistaken has 1.4; a rounded one far less than these."""


@dataclass(frozen=True)
class Parity:
    """What a comparison found."""

    runtime: str
    """What ran the model, with its version."""
    positions: int
    """Tokens at whose positions all logits were compared."""
    largest_difference: float
    """Of a logit."""
    relative_difference: float
    """Root mean square of the differences, divided by the standard deviation of the logits."""
    greedy_tokens: int
    """Length of the greedy continuation."""
    greedy_equal: int
    """How many of these are the same, from the first on."""
    ids_equal: bool | None
    """Whether the text has the same token ids there; None for a format without vocabulary."""

    def __str__(self) -> str:
        ids = {True: ", the same token ids", False: ", OTHER TOKEN IDS", None: ""}[self.ids_equal]
        return (
            f"{self.runtime}: logits at {self.positions} positions, largest difference {self.largest_difference:.2g} "
            f"({self.relative_difference:.2g} of their spread), {self.greedy_equal} of {self.greedy_tokens} greedy "
            f"tokens the same{ids}"
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Reference:
    """What the reference engine says."""

    text: str | None
    """None for a model without a vocabulary."""
    text_ids: list[int]
    """All tokens of the text."""
    ids: list[int]
    """The tokens that are fed."""
    logits: np.ndarray
    """(T, V) float32."""
    greedy: list[int]
    """The most probable continuation."""
    margins: list[float]
    """How far ahead each token of it was."""
    end_of_text: int | None


def greedy(engine: Engine, ids: list[int], steps: int, end_of_text: int | None) -> list[int]:
    """The most probable continuation of some tokens, up to `end_of_text`."""
    cache, found = engine.new_cache(1), []
    [logits] = engine.feed(cache, [ids])
    while True:
        found.append(int(logits[-1].argmax()))
        if len(found) == steps or found[-1] == end_of_text:
            return found
        [logits] = engine.feed(cache, [found[-1:]])


def _greedy_without_cache(
    engine: Engine, ids: list[int], steps: int, end_of_text: int | None
) -> tuple[list[int], list[float]]:
    """As `greedy`, and by how much each token led. All is computed anew each time: a cache of 1558M takes 1.3 GB."""
    found: list[int] = []
    margins: list[float] = []
    while len(found) < steps and (not found or found[-1] != end_of_text):
        logits = engine.logits(np.array([[*ids, *found]], np.int32))[0, -1]
        second, first = np.partition(logits, -2)[-2:]
        found.append(int(logits.argmax()))
        margins.append(float(first - second))
    return found, margins


def make_reference(engine: Engine, codec: Codec | None) -> Reference:
    """Ask the reference engine."""
    config = engine.config
    if codec is None:
        text_ids = np.random.default_rng(0).integers(0, config.n_vocab, MAX_TOKENS).tolist()
    else:
        text_ids = codec.encode(TEXT)
    length = max(1, min(len(text_ids), MAX_TOKENS, config.n_ctx // 2))
    ids, end = text_ids[:length], None if codec is None else codec.end_of_text
    steps = max(1, min(STEPS, config.n_ctx - length))
    logits = engine.logits(np.array([ids], np.int32))[0]
    continuation = _greedy_without_cache(engine, ids, steps, end)
    return Reference(None if codec is None else TEXT, text_ids, ids, logits, *continuation, end)


def check(path: Path, format: str, dtype: str, reference: Reference, *, base: Path | None = None) -> Parity:
    """Run the model at `path` by its format's runtime, and compare; adapters on top of their `base`.

    Raises:
        CheckpointError: it computes something else, or the runtime could not run it.
    """
    answer, logits = _ask(path, format, reference, base)
    if logits.shape[1:] != reference.logits.shape or not np.isfinite(logits).all():
        raise CheckpointError(
            f"{answer['runtime']} gave logits of shape {list(logits.shape[1:])}, or some that are not finite; expected "
            f"{list(reference.logits.shape)}; nothing was written"
        )
    difference = logits.astype(np.float64) - reference.logits
    equal = [a == b for a, b in zip(answer["greedy"], reference.greedy, strict=False)]
    found = Parity(
        runtime=answer["runtime"],
        positions=len(reference.ids),
        largest_difference=float(np.abs(difference).max()),
        relative_difference=float(np.sqrt(np.square(difference).mean()) / max(reference.logits.std(), 1e-30)),
        greedy_tokens=len(reference.greedy),
        greedy_equal=equal.index(False) if False in equal else len(equal),
        ids_equal=None if answer["text_ids"] is None else answer["text_ids"] == reference.text_ids,
    )
    wrong = _what_is_wrong(found, format, dtype, reference)
    if wrong:
        raise CheckpointError(f"{wrong}, so nothing was written; {found}")
    return found


def _what_is_wrong(found: Parity, format: str, dtype: str, reference: Reference) -> str:
    if found.ids_equal is False:
        return "expected the same token ids"
    if dtype == "float32":
        limit = _LARGEST_EXACT.get(format, _EXACT) * max(1.0, float(np.abs(reference.logits).max()) / 100)
        if not found.largest_difference <= limit:
            return f"expected logits within {limit:.2g}"
        n = found.greedy_equal
        # Where two tokens are nearly equally probable, either may be the first.
        if n < found.greedy_tokens and reference.margins[n] > 2 * limit:
            return "expected the same greedy text"
    elif not found.relative_difference <= _LARGEST_RELATIVE[dtype]:
        return f"expected logits within {_LARGEST_RELATIVE[dtype]} of their spread"
    return ""


def _ask(path: Path, format: str, reference: Reference, base: Path | None) -> tuple[dict[str, Any], np.ndarray]:
    """What the runtime says: a dict, and logits (K, T, V) of K ways to compute them."""
    with tempfile.TemporaryDirectory() as folder:
        job = {
            "path": str(path),
            "format": format,
            "text": reference.text,
            "ids": reference.ids,
            "steps": len(reference.greedy),
            "end_of_text": reference.end_of_text,
            "base": None if base is None else str(base),
        }
        Path(folder, "job.json").write_text(json.dumps(job), encoding="utf-8")
        try:
            done = child.run("gpt2.exports.runtimes", folder, seconds=SECONDS, HF_HUB_OFFLINE="1")
        except subprocess.TimeoutExpired:
            raise CheckpointError(f"{format}: the runtime gave no answer after {SECONDS:.0f} s") from None
        if done.returncode < 0:
            raise CheckpointError(f"{format}: the runtime died of it (signal {-done.returncode}); nothing was written")
        if done.returncode:
            lines = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no message"]
            raise CheckpointError(f"{format}: the runtime could not run it: {lines[-1][:500]}; nothing was written")
        answer = json.loads(Path(folder, "answer.json").read_text(encoding="utf-8"))
        return answer, np.load(Path(folder, "logits.npy"))
