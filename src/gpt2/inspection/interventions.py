"""Ready-made hooks: ablation of heads and neurons, patching from another run, steering by a direction.

Each function gives a table of hooks for `run_with_hooks`, `run_with_cache` or `with_hooks`, where several may be given
together. Layers, heads and neurons are numbered from 0. Each table says what it changes, so that what is shown of a
changed network is never taken for the intact one.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from gpt2.errors import ConfigError
from gpt2.gpt import Model
from gpt2.inspection.names import matching, of_tokens
from gpt2.inspection.running import Activations, Hook, Hooks, Prompt, run_with_cache

_MOST_SAID = 12  # of units or names, in words; all of them stand in the record

Positions = int | Sequence[int] | None
"""Of a text: one, several, or None for all; negative ones count from its end."""


class Change(dict[str, Hook]):
    """Hooks of which it is known what they change.

    Args:
        hooks: the table.
        kind: `ablated heads`, `ablated neurons`, `patched`, `steered` or `hooks`.
        said: the same in words, such as `without heads 0.1, 5.3`.
        details: what JSON can hold.
    """

    def __init__(self, hooks: Hooks, kind: str, said: str, **details: Any) -> None:
        super().__init__(hooks)
        self.record: dict[str, Any] = {"kind": kind, "said": said, **details}


def changes(tables: Iterable[Hooks]) -> tuple[dict[str, Any], ...]:
    """What some tables of hooks change: the record of each that is not empty; of one's own hooks where they act."""
    found = []
    for table in tables:
        if isinstance(table, Mapping) and table:
            names = list(table)
            own = Change(table, "hooks", f"hooks at {_listed(names)}", at=names)
            found.append((table if isinstance(table, Change) else own).record)
    return tuple(found)


def ablate_heads(heads: Iterable[tuple[int, int]], *, mean_of: Activations | None = None) -> Hooks:
    """Silence attention heads: what they hand on (`attn.hook_z`) becomes 0, or its mean.

    Args:
        heads: pairs of layer and head.
        mean_of: take the mean over all rows and positions of these activations, which is what a head says on average,
            in place of 0.

    Raises:
        ConfigError: no such head (when the hooks are used, as are those of a layer that is not there).
    """
    return _ablation(heads, "attn.hook_z", "heads", mean_of)


def ablate_neurons(neurons: Iterable[tuple[int, int]], *, mean_of: Activations | None = None) -> Hooks:
    """Silence neurons of the MLPs: their activation after the GELU (`mlp.hook_post`) becomes 0, or its mean.

    Args:
        neurons: pairs of layer and neuron, 0 to 4 * n_embd - 1.
        mean_of: as for `ablate_heads`.
    """
    return _ablation(neurons, "mlp.hook_post", "neurons", mean_of)


def _ablation(chosen: Iterable[tuple[int, int]], site: str, argument: str, mean_of: Activations | None) -> Hooks:
    by_layer: dict[int, list[int]] = {}
    for pair in chosen:
        layer, unit = _pair(pair, argument)
        by_layer.setdefault(layer, []).append(unit)

    def silencing(name: str, units: list[int]) -> Hook:
        def hook(value: np.ndarray) -> None:  # (B, T, H, D) or (B, T, 4C)
            _check_below(units, value.shape[2], argument)
            value[:, :, units] = 0 if mean_of is None else mean_of[name].mean(axis=(0, 1))[units]

        return hook

    names = {f"blocks.{layer}.{site}": units for layer, units in sorted(by_layer.items())}
    pairs = [[layer, unit] for layer, units in sorted(by_layer.items()) for unit in sorted(set(units))]
    listed = f"{argument} {_listed([f'{layer}.{unit}' for layer, unit in pairs])}"
    return Change(
        {name: silencing(name, units) for name, units in names.items()},
        f"ablated {argument}",
        f"without {listed}" if mean_of is None else f"with the mean of {listed}",
        **{argument: pairs, "to": "zero" if mean_of is None else "mean"},
    )


def patch(
    source: Activations,
    names: str | Iterable[str] = "blocks.*.hook_resid_pre",
    *,
    positions: Positions = None,
    heads: Iterable[int] | None = None,
) -> Hooks:
    """Put activations of another run in the place of this one's.

    Args:
        source: of `run_with_cache`, on a text of as many tokens.
        names: which activations.
        positions: of the text; of a pattern or of scores these are the rows, that is, the positions that look.
        heads: only these, where the activation is that of heads.

    Raises:
        ConfigError: an activation that was not kept; when the hooks are used, another shape, no such position or head.
    """
    chosen = None if heads is None else whole_numbers(heads, "heads")
    where_at = _numbers(positions)

    def patching(name: str, axes: list[str]) -> Hook:
        theirs = source[name]

        def hook(value: np.ndarray) -> None:
            if theirs.shape != value.shape:
                raise ConfigError(f"patch: {name}: expected the shape {list(value.shape)}, got {list(theirs.shape)}")
            where: list[np.ndarray] = [np.arange(n) for n in value.shape]
            where[axes.index("T")] = _positions(where_at, value.shape[axes.index("T")])
            if chosen is not None:
                if "H" not in axes:
                    raise ConfigError(f"heads: expected none, since {name} is not of heads, got {chosen}")
                _check_below(chosen, value.shape[axes.index("H")], "heads")
                where[axes.index("H")] = np.array(chosen, int)
            value[np.ix_(*where)] = theirs[np.ix_(*where)]

        return hook

    hooks = {site.name: patching(site.name, site.axes.split()) for site in matching(names, source.config)}
    said = f"with another text's {_listed(list(hooks))}{_said_positions(where_at)}"
    said += "" if chosen is None else f", heads {_listed([str(head) for head in chosen])}"
    return Change(hooks, "patched", said, at=list(hooks), positions=where_at, heads=chosen)


def steer(
    name: str,
    direction: np.ndarray,
    strength: float = 1.0,
    *,
    positions: Positions = None,
) -> Change:
    """Add a direction to an activation.

    Args:
        name: which activation, such as `blocks.3.hook_resid_pre` (C channels).
        direction: (C,), for instance the difference of two texts' activations (`direction_between`); its length
            matters.
        strength: the direction is multiplied by this.
        positions: of the text.

    Raises:
        ConfigError: numbers that are not finite, or too large together; when the hooks are used, a direction of another
            length, or no such position.
    """
    where_at = _numbers(positions)
    given = np.asarray(direction, np.float64)
    if not np.isfinite(given).all():
        raise ConfigError("direction: expected finite numbers, got NaN or infinity")
    with np.errstate(all="ignore"):
        added = (given * strength).astype(np.float32)
    if not np.isfinite(added).all():
        raise ConfigError(f"strength: expected one by which the direction stays a vector of float32, got {strength}")
    length = float(np.linalg.norm(added.astype(np.float64)))

    def hook(value: np.ndarray) -> None:  # (B, T, ...)
        if added.shape != value.shape[2:]:
            expected, got = list(value.shape[2:]), list(added.shape)
            raise ConfigError(f"direction: expected an array of shape {expected} for {name}, got {got}")
        value[:, _positions(where_at, value.shape[1])] += added

    said = f"steered at {name} by a vector of length {length:.4g}{_said_positions(where_at)}"
    return Change({name: hook}, "steered", said, at=name, length=length, positions=where_at)


def direction_between(model: Model, name: str, toward: Prompt, away: Prompt) -> np.ndarray:
    """What one text's activation has and another's has not, at the last token of each: something to steer by.

    The texts need not be equally long. Where several are given for one, their mean is taken. The first token of a text
    is often unlike the others, as heads rest there; so let there be more than one in each, or begin both with
    `<|endoftext|>` (50256).

    Source: Turner et al., "Activation Addition: Steering Language Models Without Optimization" (2023).

    Args:
        model: of `gpt2.load_model`.
        name: of one activation of each token, such as `blocks.3.hook_resid_pre`.
        toward: text, ids (T,), or rows of equally many ids.
        away: as `toward`.

    Returns:
        (C,), or whatever axes that activation has after B and T.

    Raises:
        ConfigError: a name that no activation of each token has.
        PromptError: an empty text, or one that is too long.
    """
    site = of_tokens(name, model.config)
    ends = [run_with_cache(model, text, names=site.name)[1][site.name][:, -1].mean(axis=0) for text in (toward, away)]
    return ends[0] - ends[1]


def _pair(pair: tuple[int, int], argument: str) -> tuple[int, int]:
    try:
        layer, unit = (operator.index(number) for number in pair)
    except (TypeError, ValueError):
        raise ConfigError(f"{argument}: expected pairs of two whole numbers, got {pair!r}") from None
    if layer < 0 or unit < 0:
        raise ConfigError(f"{argument}: expected numbers from 0 on, got {pair!r}")
    return layer, unit


def _check_below(units: Sequence[int], count: int, argument: str) -> None:
    for unit in units:
        if not 0 <= unit < count:
            raise ConfigError(f"{argument}: expected numbers from 0 to {count - 1}, got {unit}")


def _positions(positions: list[int] | None, T: int) -> np.ndarray:
    if positions is None:
        return np.arange(T)
    chosen = np.array(positions, int)
    for position in chosen:
        if not -T <= position < T:
            raise ConfigError(f"positions: expected {-T} to {T - 1}, got {position}")
    return chosen % T


def _listed(words: Sequence[str]) -> str:
    rest = len(words) - _MOST_SAID
    return ", ".join(words[:_MOST_SAID]) + (f" and {rest} more" if rest > 0 else "")


def _numbers(positions: Positions) -> list[int] | None:
    if positions is None:
        return None
    return whole_numbers(positions if isinstance(positions, (Sequence, np.ndarray)) else [positions], "positions")


def whole_numbers(numbers: Iterable[Any], argument: str) -> list[int]:
    """Whole numbers as a list, if they are such; else a ConfigError that names the argument."""
    try:
        return [operator.index(number) for number in numbers]
    except TypeError:
        raise ConfigError(f"{argument}: expected whole numbers, got {numbers!r}") from None


def _said_positions(numbers: list[int] | None) -> str:
    return "" if numbers is None else f" at tokens {_listed([str(number) for number in numbers])}"
