"""Induction heads: heads that look for what came after the last occurrence of a token, and so repeat a text.

They are looked for on random tokens that come twice, after `<|endoftext|>`: the only way to do better on the second
time is to look the first one up. A head's score is its mean attention from a token of the second time to the token
after the same one of the first time. Whether heads of high score matter is shown by silencing them and, for
comparison, as many others drawn by chance; whether there is anything of the kind in the model, by the loss of the
second time, beside what it is after other tokens, and after the same ones in another order.

Source: Olsson et al., "In-context Learning and Induction Heads" (2022).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from gpt2.errors import ConfigError
from gpt2.gpt import Model
from gpt2.inspection.interventions import ablate_heads, whole_numbers
from gpt2.inspection.reading import token_losses
from gpt2.inspection.running import run_with_cache

FOUND_FROM = 0.4
"""A head that gives the one right token this much of its attention is called an induction head; our choice."""


@dataclass(frozen=True)
class Ablation:
    """Heads that were silenced, and what came of it."""

    heads: tuple[tuple[int, int], ...]
    """Pairs of layer and head."""
    first_loss: float
    """Mean loss of the tokens the first time, in nats."""
    second_loss: float
    """The second time."""


@dataclass(frozen=True)
class Induction:
    """What was found on repeated random tokens."""

    scores: np.ndarray
    """Of each head, (L, H), from 0 to 1."""
    chance: float
    """The score of a head that looks at all positions alike."""
    first_loss: float
    """Mean loss of the tokens the first time, in nats; the first of them is left out."""
    second_loss: float
    """The second time, when they could be known."""
    gain: float
    """By how much it is lower than if another sequence's tokens had come before, in nats a token."""
    shuffled_gain: float
    """The same where the second time has them in another order: what it helps to have seen the tokens alone."""
    found: tuple[tuple[int, int], ...]
    """Layer and head of all with a score of at least `FOUND_FROM`, the highest first."""
    best: Ablation
    """Those that were found are silenced; if there are none, the three of the highest scores."""
    random: tuple[Ablation, ...]
    """As many of the others, drawn by chance, several times."""
    length: int
    """Tokens that come twice."""
    rows: int
    """Sequences that all of this is the mean of."""


def repeated_tokens(
    model: Model, *, length: int = 50, rows: int = 8, seed: int = 0, among: Iterable[int] | None = None
) -> np.ndarray:
    """Random tokens that come twice: ids (rows, 1 + 2 * length), first `<|endoftext|>` (left out if there is none).

    No token comes more than once in a half, and special ones not at all.

    Args:
        model: for its vocabulary and context.
        length: tokens in a half.
        rows: sequences.
        seed: of the tokens.
        among: the tokens are drawn from these; None for all.

    Raises:
        ConfigError: longer than the context allows, or than there are tokens, tokens that are not there, fewer than two
            rows, or a negative seed.
    """
    special = set(model.codec.special_tokens.values()) if model.codec else set()
    start = None if model.codec is None else model.codec.end_of_text
    V = model.config.n_vocab
    pool = np.array(sorted(set(range(V) if among is None else whole_numbers(among, "among")) - special), int)
    outside = pool[(pool < 0) | (pool >= V)]
    if len(outside):
        raise ConfigError(f"among: expected 0 to {V - 1}, got {outside[0]}")
    most = min((model.config.n_ctx - (start is not None)) // 2, len(pool))
    if not isinstance(length, (int, np.integer)) or not 2 <= length <= most:
        raise ConfigError(f"length: expected 2 to {most} tokens for this model, got {length}")
    _check_whole("rows", rows, least=2)
    _check_whole("seed", seed, least=0)
    rng = np.random.default_rng(seed)
    half = np.stack([rng.choice(pool, length, replace=False) for _ in range(rows)])  # (rows, length)
    first = np.full((rows, 0 if start is None else 1), 0 if start is None else start)
    return np.concatenate([first, half, half], axis=1)


def find_induction(
    model: Model,
    *,
    length: int = 50,
    rows: int = 8,
    seed: int = 0,
    among: Iterable[int] | None = None,
    trials: int = 10,
) -> Induction:
    """Look for induction heads, and measure what silencing them does.

    Args:
        model: of `gpt2.load_model`.
        length: tokens that come twice.
        rows: sequences.
        seed: of the tokens and of the heads drawn by chance.
        among: the tokens are drawn from these; None for all but special ones.
        trials: how often as many other heads are drawn.

    Raises:
        ConfigError: see `repeated_tokens`; a negative number of trials.
    """
    _check_whole("trials", trials, least=0)
    ids = repeated_tokens(model, length=length, rows=rows, seed=seed, among=among)
    start = ids.shape[1] - 2 * length
    _, seen = run_with_cache(model, ids, names="blocks.*.attn.hook_pattern")
    patterns = seen.layers("attn.hook_pattern")  # (L, B, H, T, T)
    looking = np.arange(start + length, start + 2 * length)
    scores = patterns[:, :, :, looking, looking - length + 1].mean(axis=(1, 3))  # (L, H)
    del seen, patterns
    order = [divmod(int(flat), model.config.n_head) for flat in np.argsort(-scores, axis=None, kind="stable")]
    found = tuple(head for head in order if scores[head] >= FOUND_FROM)
    chosen = found or tuple(order[:3])
    others = [head for head in order if head not in chosen]
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(trials if others else 0):
        picked = rng.choice(len(others), min(len(chosen), len(others)), replace=False)
        drawn.append(tuple(sorted(others[n] for n in picked)))
    whole = _ablated(model, ids, (), length)
    half = ids[:, start + length :]
    other, shuffled = np.roll(half, 1, axis=0), rng.permuted(half, axis=1)

    def loss(first: np.ndarray, second: np.ndarray) -> float:
        return _ablated(model, np.concatenate([ids[:, :start], first, second], axis=1), (), length).second_loss

    return Induction(
        scores=scores,
        chance=float((1 / (looking + 1)).mean()),
        first_loss=whole.first_loss,
        second_loss=whole.second_loss,
        gain=loss(other, half) - whole.second_loss,
        shuffled_gain=loss(other, shuffled) - loss(half, shuffled),
        found=found,
        best=_ablated(model, ids, chosen, length),
        random=tuple(_ablated(model, ids, heads, length) for heads in drawn),
        length=length,
        rows=rows,
    )


def _check_whole(argument: str, number: int, *, least: int) -> None:
    if not isinstance(number, (int, np.integer)) or number < least:
        raise ConfigError(f"{argument}: expected a whole number of at least {least}, got {number}")


def _ablated(model: Model, ids: np.ndarray, heads: tuple[tuple[int, int], ...], length: int) -> Ablation:
    losses = token_losses(model, ids, ablate_heads(heads))
    # The first token of the second time cannot be foreseen, so the first one is left out of both.
    first, second = losses[:, -2 * length + 1 : -length], losses[:, -length + 1 :]
    return Ablation(heads, float(first.mean()), float(second.mean()))
