"""What can be read off one forward pass over a text: the loss of each token, the logit lens, where heads look.

Everything here is of a single text, T tokens; `gpt2.inspection.running` takes rows of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops

from gpt2.codec import Codec
from gpt2.errors import CodecError, ConfigError, PromptError
from gpt2.gpt import Model
from gpt2.inspection.interventions import changes
from gpt2.inspection.running import Activations, Hooks, Prompt, array_of, checked_ids, run_with_cache
from gpt2.sampling import log_softmax

RESIDUALS = ("blocks.0.hook_resid_pre", "blocks.*.hook_resid_post")
"""The residual stream before the first layer and after each one: what the logit lens reads."""


@dataclass(frozen=True)
class Predictions:
    """What a network, or its first layers, expect after each token of a text."""

    top: np.ndarray
    """The k most probable tokens, (T, k) int, the best first."""
    top_probabilities: np.ndarray
    """Theirs, (T, k)."""
    losses: np.ndarray
    """Of the token that does come, in nats, (T,); NaN at the last position, after which nothing comes."""
    ranks: np.ndarray
    """Of the token that does come, 0 if it was the most probable, (T,) int; -1 at the last position."""
    entropies: np.ndarray
    """Of the whole distribution, in nats, (T,)."""


@dataclass(frozen=True)
class Lens:
    """The logit lens: what would be predicted if the network ended after a layer."""

    stages: tuple[str, ...]
    """`embedding`, then `layer 0` and so on; the last is the network itself."""
    predictions: tuple[Predictions, ...]
    """For each stage."""


@dataclass(frozen=True)
class Inspection:
    """A text as the network sees it."""

    model: str
    """Its name."""
    weights_sha256: str
    """Of the network's numbers; see `gpt2.checkpoints.names.weights_sha256`."""
    changes: tuple[dict[str, Any], ...]
    """What hooks changed while it was computed, as JSON can hold it; `said` has it in words."""
    ids: np.ndarray
    """The tokens (T,)."""
    texts: tuple[str, ...]
    """What each spells; bytes that are not whole characters as `\\xf0`."""
    losses: np.ndarray
    """Of each token in nats, (T,); NaN for the first, which nothing predicts."""
    lens: Lens
    """What each layer expects after each token."""
    patterns: np.ndarray
    """Where each head looks: (L, H, T, T), row i for the position that looks; rows add up to 1."""
    vocabulary: Callable[[int], str]
    """What any token spells."""

    @property
    def mean_loss(self) -> float:
        """In nats a token, over all that are predicted; NaN for a single token."""
        return float(self.losses[1:].mean()) if len(self.ids) > 1 else float("nan")

    @property
    def changed(self) -> str:
        """What hooks changed, in words; empty for the model as it is."""
        return "; ".join(change["said"] for change in self.changes)


def inspect(model: Model, prompt: Prompt, *hooks: Hooks, top: int = 5) -> Inspection:
    """Compute all that is shown of a text.

    Args:
        model: of `gpt2.load_model`.
        prompt: one text, or its ids (T,).
        hooks: tables of hooks that act while it is computed.
        top: how many of the most probable tokens are kept.

    Raises:
        PromptError: several texts, or one that is empty or too long.
    """
    _, seen = run_with_cache(model, single(model, prompt), *hooks, names=(*RESIDUALS, "blocks.*.attn.hook_pattern"))
    lens = _lens(model, seen, top)
    losses = np.concatenate([[np.nan], lens.predictions[-1].losses[:-1]])
    ids, spelling = seen.ids[0], speller(model.codec)
    texts = tuple(spelling(int(token)) for token in ids)
    patterns = seen.layers("attn.hook_pattern")[:, 0]
    return Inspection(
        model=model.name,
        weights_sha256=model.engine.weights_sha256,
        changes=changes(hooks),
        ids=ids,
        texts=texts,
        losses=losses,
        lens=lens,
        patterns=patterns,
        vocabulary=spelling,
    )


def token_losses(model: Model, prompt: Prompt, *hooks: Hooks) -> np.ndarray:
    """The loss of each token, -ln of its probability after those before it: (B, T) nats; NaN for the first."""
    ids = checked_ids(model, prompt)
    logits, _ = run_with_cache(model, ids, *hooks, names=())
    losses = np.full(ids.shape, np.nan)
    for row, tokens in enumerate(ids):
        for position in range(1, len(tokens)):
            losses[row, position] = -log_softmax(logits[row, position - 1])[tokens[position]]
    return losses


def logit_lens(model: Model, prompt: Prompt, *hooks: Hooks, top: int = 5) -> Lens:
    """What the network would predict if it ended after each layer: the final norm and the head, applied there.

    Source: nostalgebraist, "interpreting GPT: the logit lens" (2020).

    Args:
        model: of `gpt2.load_model`.
        prompt: one text, or its ids (T,).
        hooks: tables of hooks that act while it is computed.
        top: how many of the most probable tokens are kept.
    """
    _, seen = run_with_cache(model, single(model, prompt), *hooks, names=RESIDUALS)
    return _lens(model, seen, top)


def lens_logits(model: Model, residual: np.ndarray) -> np.ndarray:
    """Logits (B, T, V) that the final norm and the head make of a residual stream (B, T, C)."""
    if residual.ndim != 3 or residual.shape[-1] != model.config.n_embd:
        expected = f"(B, T, {model.config.n_embd})"
        raise ConfigError(f"residual: expected an array of shape {expected}, got {list(residual.shape)}")
    return array_of(model.network.head(model.network.ln_f(ops.convert_to_tensor(residual, dtype="float32"))))


def speller(codec: Codec | None) -> Callable[[int], str]:
    """What gives a token's text: bytes that are not whole characters as `\\xf0`, what no vocabulary has as `[7]`."""

    def spell(token: int) -> str:
        if codec is not None:
            with contextlib.suppress(CodecError):
                return codec.token_bytes(token).decode("utf-8", errors="backslashreplace")
        return f"[{token}]"

    return spell


def single(model: Model, prompt: Prompt) -> np.ndarray:
    """The tokens (1, T) of one text.

    Raises:
        PromptError: several texts, or one that is empty or too long.
    """
    ids = checked_ids(model, prompt)
    if len(ids) != 1:
        raise PromptError(f"prompt: expected one text, got {len(ids)}")
    return ids


def _lens(model: Model, seen: Activations, top: int) -> Lens:
    if not isinstance(top, (int, np.integer)) or not 1 <= top <= model.config.n_vocab:
        raise ConfigError(f"top: expected 1 to {model.config.n_vocab}, got {top}")
    names = [name for name in seen if name.endswith((".hook_resid_pre", ".hook_resid_post"))]
    stages = ("embedding", *(f"layer {n}" for n in range(model.config.n_layer)))
    return Lens(stages, tuple(_predictions(lens_logits(model, seen[name])[0], seen.ids[0], top) for name in names))


def _predictions(logits: np.ndarray, ids: np.ndarray, top: int) -> Predictions:
    """Of logits (T, V) after each of ids (T,)."""
    T = len(ids)
    rows: dict[str, Any] = {
        "top": np.zeros((T, top), int),
        "top_probabilities": np.zeros((T, top)),
        "losses": np.full(T, np.nan),
        "ranks": np.full(T, -1),
        "entropies": np.zeros(T),
    }
    for t, values in enumerate(logits):
        log_probabilities = log_softmax(values)
        best = np.argpartition(-log_probabilities, top - 1)[:top]
        best = best[np.lexsort((best, -log_probabilities[best]))]
        rows["top"][t], rows["top_probabilities"][t] = best, np.exp(log_probabilities[best])
        rows["entropies"][t] = -(np.exp(log_probabilities) * np.maximum(log_probabilities, -1e9)).sum()
        if t + 1 < T:
            rows["losses"][t] = -log_probabilities[ids[t + 1]]
            rows["ranks"][t] = (log_probabilities > log_probabilities[ids[t + 1]]).sum()
    return Predictions(**rows)
