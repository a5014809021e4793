"""Ready-made hooks: ablation of heads and neurons, patching from another run, steering by a direction.

Each function gives a table of hooks for `run_with_hooks`, `run_with_cache` or `with_hooks`, where several may be given
together. Layers, heads and neurons are numbered from 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from gpt2.errors import ConfigError
from gpt2.inspection.names import matching
from gpt2.inspection.running import Activations, Hook, Hooks

Positions = int | Sequence[int] | None
"""Of a text: one, several, or None for all; negative ones count from its end."""


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
    return {name: silencing(name, units) for name, units in names.items()}


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
    chosen = None if heads is None else list(heads)

    def patching(name: str, axes: list[str]) -> Hook:
        theirs = source[name]

        def hook(value: np.ndarray) -> None:
            if theirs.shape != value.shape:
                raise ConfigError(f"patch: {name}: expected the shape {list(value.shape)}, got {list(theirs.shape)}")
            where: list[np.ndarray] = [np.arange(n) for n in value.shape]
            where[axes.index("T")] = _positions(positions, value.shape[axes.index("T")])
            if chosen is not None:
                if "H" not in axes:
                    raise ConfigError(f"heads: expected none, since {name} is not of heads, got {chosen}")
                _check_below(chosen, value.shape[axes.index("H")], "heads")
                where[axes.index("H")] = np.array(chosen, int)
            value[np.ix_(*where)] = theirs[np.ix_(*where)]

        return hook

    return {site.name: patching(site.name, site.axes.split()) for site in matching(names, source.config)}


def steer(
    name: str,
    direction: np.ndarray,
    strength: float = 1.0,
    *,
    positions: Positions = None,
) -> Hooks:
    """Add a direction to an activation.

    Args:
        name: which activation, such as `blocks.3.hook_resid_pre` (C channels).
        direction: (C,), for instance the difference of two texts' activations; its length matters.
        strength: the direction is multiplied by this.
        positions: of the text.

    Raises:
        ConfigError: when the hooks are used: a direction of another length, or no such position.
    """
    added = np.asarray(direction, np.float32) * np.float32(strength)

    def hook(value: np.ndarray) -> None:  # (B, T, ...)
        if added.shape != value.shape[2:]:
            expected, got = list(value.shape[2:]), list(added.shape)
            raise ConfigError(f"direction: expected an array of shape {expected} for {name}, got {got}")
        value[:, _positions(positions, value.shape[1])] += added

    return {name: hook}


def _pair(pair: tuple[int, int], argument: str) -> tuple[int, int]:
    try:
        layer, unit = (int(number) for number in pair)
    except (TypeError, ValueError):
        raise ConfigError(f"{argument}: expected pairs of a layer and a number, got {pair!r}") from None
    if layer < 0 or unit < 0:
        raise ConfigError(f"{argument}: expected numbers from 0 on, got {pair!r}")
    return layer, unit


def _check_below(units: Sequence[int], count: int, argument: str) -> None:
    for unit in units:
        if not 0 <= unit < count:
            raise ConfigError(f"{argument}: expected numbers from 0 to {count - 1}, got {unit}")


def _positions(positions: Positions, T: int) -> np.ndarray:
    if positions is None:
        return np.arange(T)
    chosen = np.atleast_1d(np.asarray(positions, int))
    for position in chosen:
        if not -T <= position < T:
            raise ConfigError(f"positions: expected {-T} to {T - 1}, got {position}")
    return chosen % T
