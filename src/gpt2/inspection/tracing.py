"""Where two texts part: activations of one are put into the other, one place at a time.

Source: Meng et al., "Locating and Editing Factual Associations in GPT" (2022), whose causal tracing this is, with a
second text in the place of noise.
"""

from __future__ import annotations

import numpy as np

from gpt2.errors import ConfigError, PromptError
from gpt2.gpt import Model
from gpt2.inspection.names import sites
from gpt2.inspection.reading import single
from gpt2.inspection.running import Hook, Prompt, run_with_cache, run_with_hooks
from gpt2.sampling import log_softmax


def patch_effects(
    model: Model, prompt: Prompt, other: Prompt, *, site: str = "hook_resid_pre", by: str = "position"
) -> np.ndarray:
    """How far a text's prediction moves to another's if one activation is taken from the other.

    An effect of 1 means that the next token is then foretold just as after `other`, 0 that nothing has changed. It is
    the share of the Kullback-Leibler divergence between the two predictions that is gone, below 0 where that grew.

    Args:
        model: of `gpt2.load_model`.
        prompt: the text, or its ids (T,).
        other: another one of as many tokens.
        site: which activation of each layer, below `blocks.N.`: `hook_resid_pre`, `hook_attn_out`, `hook_mlp_out`,
            `attn.hook_z` and so on, but not scores or patterns.
        by: `position`: one position at a time; `head`: one head at a time, all positions.

    Returns:
        (L, T), or (L, H) by head.

    Raises:
        PromptError: texts of different lengths, or that are foretold alike.
        ConfigError: no such activation, or one that is not of positions or heads.
    """
    ids, theirs = single(model, prompt), single(model, other)
    if ids.shape != theirs.shape:
        raise PromptError(f"other: expected as many tokens as the text has, {ids.shape[1]}, got {theirs.shape[1]}")
    found = sites(model.config).get(f"blocks.0.{site}")
    axes = {"position": "T", "head": "H"}
    if by not in axes:
        raise ConfigError(f"by: expected position or head, got {by!r}")
    if found is None or not found.axes.startswith("B T") or axes[by] not in found.axes.split():
        raise ConfigError(f"site: expected an activation of each {by}, such as attn.hook_z, got {site!r}")
    axis = found.axes.split().index(axes[by])
    logits, seen = run_with_cache(model, theirs, names=f"blocks.*.{site}")
    wanted = log_softmax(logits[0, -1])
    whole = _divergence(wanted, run_with_hooks(model, ids)[0, -1])
    if whole < 1e-6:
        raise PromptError("other: expected a text after which something else is foretold, got one that ends alike")
    rows = np.repeat(ids, ids.shape[1] if by == "position" else model.config.n_head, axis=0)
    effects = np.zeros((model.config.n_layer, len(rows)))
    for layer in range(model.config.n_layer):
        name = f"blocks.{layer}.{site}"
        patched = run_with_hooks(model, rows, {name: _one_each(seen[name][0], axis)})[:, -1]
        effects[layer] = [1 - _divergence(wanted, values) / whole for values in patched]
    return effects


def _one_each(source: np.ndarray, axis: int) -> Hook:
    """A hook that puts into row n what `source` (without an axis of rows) has at place n of an axis."""

    def hook(value: np.ndarray) -> None:
        for n, row in enumerate(value):
            place = (slice(None),) * (axis - 1) + (n,)
            row[place] = source[place]

    return hook


def _divergence(wanted: np.ndarray, logits: np.ndarray) -> float:
    """The Kullback-Leibler divergence from log-probabilities (V,) to those of logits (V,), in nats."""
    return float((np.exp(wanted, dtype=np.float64) * (wanted - log_softmax(logits).astype(np.float64))).sum())
