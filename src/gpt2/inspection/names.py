"""What the activations are called: TransformerLens' names, and ours beside them.

A name of TransformerLens (`blocks.0.attn.hook_pattern`) or of ours (`h0/attn/pattern`, below the canonical names of the
tensors) means the same array; either may hold a `*`. TransformerLens has `hook_scale` of the layer norms and
`hook_result` (each head's share of `hook_attn_out`) besides. Our weights are as they were trained, so the numbers are
those of its `from_pretrained_no_processing`.

Source: github.com/TransformerLensOrg/TransformerLens, `transformer_lens/components`.
"""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from gpt2.config import GPT2Config
from gpt2.errors import ConfigError

_EMBEDDINGS = (
    ("hook_embed", "wte", "B T C"),
    ("hook_pos_embed", "wpe", "1 T C"),
)
_OF_A_BLOCK = (
    ("hook_resid_pre", "in", "B T C"),
    ("ln1.hook_normalized", "ln_1", "B T C"),
    ("attn.hook_q", "attn/q", "B T H D"),
    ("attn.hook_k", "attn/k", "B T H D"),
    ("attn.hook_v", "attn/v", "B T H D"),
    ("attn.hook_attn_scores", "attn/scores", "B H T T"),
    ("attn.hook_pattern", "attn/pattern", "B H T T"),
    ("attn.hook_z", "attn/z", "B T H D"),
    ("hook_attn_out", "attn", "B T C"),
    ("hook_resid_mid", "mid", "B T C"),
    ("ln2.hook_normalized", "ln_2", "B T C"),
    ("mlp.hook_pre", "mlp/c_fc", "B T 4C"),
    ("mlp.hook_post", "mlp/gelu", "B T 4C"),
    ("hook_mlp_out", "mlp", "B T C"),
    ("hook_resid_post", "out", "B T C"),
)
_FINAL = (("ln_final.hook_normalized", "ln_f", "B T C"),)
_QKV = ("attn/q", "attn/k", "attn/v")


@dataclass(frozen=True)
class Site:
    """A place in the network where an activation can be seen and replaced."""

    name: str
    """As TransformerLens has it."""
    ours: str
    """Below the names of our tensors."""
    axes: str
    """Of the array: B rows, T positions, C channels, H heads, D channels of a head."""
    tap: str
    """What `gpt2.model` shows it as: q, k and v are thirds of what `c_attn` gives."""
    third: int | None
    """Which one."""

    def view(self, value: np.ndarray, config: GPT2Config) -> np.ndarray:
        """The activation in the array that the network shows, as a view: what is written to it is written there."""
        if self.axes != "B T H D":
            return value
        B, T, _ = value.shape
        parts = value.reshape(B, T, -1, config.n_head, config.head_size)  # (B, T, 3 or 1, H, D)
        return parts[:, :, self.third or 0]


@functools.lru_cache(maxsize=8)
def sites(config: GPT2Config) -> dict[str, Site]:
    """Every place in a network of that shape under TransformerLens' name, in the order in which they are computed."""
    rows = list(_EMBEDDINGS)
    for n in range(config.n_layer):
        rows += [(f"blocks.{n}.{name}", f"h{n}/{ours}", axes) for name, ours, axes in _OF_A_BLOCK]
    found = {}
    for name, ours, axes in (*rows, *_FINAL):
        layer, _, part = ours.partition("/")
        third = _QKV.index(part) if part in _QKV else None
        tap = ours if third is None else f"{layer}/attn/c_attn"
        found[name] = Site(name, ours, axes, tap, third)
    return found


def matching(patterns: str | Iterable[str], config: GPT2Config, argument: str = "names") -> list[Site]:
    """The places that some names mean, each once, in the order in which they are computed.

        "blocks.*.attn.hook_pattern", or "h*/attn/pattern"  ->  one for each layer

    Raises:
        ConfigError: a name that nothing in this network has.
    """
    every, wanted = sites(config), set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        ours = {
            site.name
            for site in every.values()
            if fnmatch.fnmatchcase(site.name, pattern) or fnmatch.fnmatchcase(site.ours, pattern)
        }
        if not ours:
            raise ConfigError(
                f"{argument}: expected names such as blocks.0.attn.hook_pattern or h0/attn/pattern, layers 0 to "
                f"{config.n_layer - 1}, got {pattern!r}; gpt2.inspection.hook_names(config) lists them"
            )
        wanted |= ours
    return [site for name, site in every.items() if name in wanted]


def of_tokens(name: str, config: GPT2Config, argument: str = "name") -> Site:
    """The one place that a name means, which is of each token.

    Raises:
        ConfigError: a name that nothing has, that several places have, or that is of pairs of tokens or of no text.
    """
    found = matching(name, config, argument)
    if len(found) > 1 or not found[0].axes.startswith("B T"):
        expected = "the name of one activation of each token, such as blocks.3.hook_resid_pre"
        raise ConfigError(f"{argument}: expected {expected}, got {name!r}")
    return found[0]


def hook_names(config: GPT2Config) -> list[str]:
    """TransformerLens' names of all activations of a network of that shape, in the order in which they are computed."""
    return list(sites(config))
