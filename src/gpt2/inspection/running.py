"""One forward pass with its activations kept, or changed on the way by hooks.

A hook is a function that is given an activation as a NumPy array. What it returns takes the array's place; it may as
well change the array where it is, and return None. Hooks come as tables, name -> function, as `ablate_heads` and others
make them; several are applied one after another. Without hooks, or with such as change nothing, no bit changes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from keras import ops

from gpt2.config import GPT2Config
from gpt2.engines import Cache, Take
from gpt2.engines.keras import KerasEngine
from gpt2.errors import ConfigError, GenerationError, PromptError
from gpt2.gpt import Model
from gpt2.inspection.names import Site, matching
from gpt2.language_model import LanguageModel

# A single token looks at itself alone, which is as it should be.
warnings.filterwarnings("ignore", message="You are using a softmax over axis -1 of a tensor of shape")

Hook = Callable[[np.ndarray], "np.ndarray | None"]
"""Takes an activation and gives what is computed with in its place; None where it was changed in place, or not."""
Hooks = Mapping[str, Hook]
"""Hooks by the names of the activations (see `gpt2.inspection.names`), in which `*` stands for anything."""
Prompt = str | Sequence[int] | Sequence[Sequence[int]] | np.ndarray | None
"""Text, token ids (T,) or rows of them (B, T), or None for `<|endoftext|>` alone."""


class Activations(Mapping[str, np.ndarray]):
    """Activations of one forward pass by name, as float32 arrays; the names of `gpt2.inspection.names`, of both kinds.

    `activations["blocks.0.attn.hook_pattern"]` and `activations["h0/attn/pattern"]` are the same array, (B, H, T, T).
    """

    def __init__(self, config: GPT2Config, ids: np.ndarray, arrays: Mapping[str, np.ndarray]) -> None:
        self.config = config
        self.ids = ids
        """The tokens (B, T)."""
        self._arrays = arrays

    def __getitem__(self, name: str) -> np.ndarray:
        found = self._arrays.get(name)
        if found is None:
            site = matching(name, self.config, "activation")[0].name
            if site not in self._arrays:
                raise ConfigError(f"activation: expected one that was kept ({', '.join(self)[:300]}), got {name!r}")
            found = self._arrays[site]
        return found

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        try:
            return matching(name, self.config)[0].name in self._arrays
        except ConfigError:
            return False

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def layers(self, name: str) -> np.ndarray:
        """An activation of every layer on top of each other: `attn.hook_pattern` gives (L, B, H, T, T)."""
        return np.stack([self[f"blocks.{n}.{name}"] for n in range(self.config.n_layer)])


def run_with_cache(
    model: Model, prompt: Prompt, *hooks: Hooks, names: str | Iterable[str] = "*"
) -> tuple[np.ndarray, Activations]:
    """Compute a text's logits, and keep what was computed on the way (after the hooks).

    Args:
        model: of `gpt2.load_model`.
        prompt: text, ids (T,) or (B, T), or None; nothing is put before it.
        hooks: tables of hooks, applied in their order.
        names: what is kept. All of it is a gigabyte for 124M and 1,024 tokens, most of that scores and patterns.

    Returns:
        Logits (B, T, V), and the activations by name.

    Raises:
        PromptError: an empty text, one that is too long, or texts of different lengths.
        ConfigError: a name that no activation has, or a hook that gives another shape.
        GenerationError: hooks under which the logits are no numbers.

    >>> logits, seen = run_with_cache(load_model(), "Once upon a time")  # doctest: +SKIP
    >>> seen["blocks.0.attn.hook_pattern"].shape  # doctest: +SKIP
    (1, 4, 4, 4)
    """
    ids = checked_ids(model, prompt)
    tap = Tapping(model.config, hooks, names)
    hidden, _ = model.network.hidden(ops.convert_to_tensor(ids, dtype="int32"), tap=tap)
    order = [site.name for site in matching("*", model.config)]
    kept = {name: tap.kept[name] for name in order if name in tap.kept}
    logits = array_of(model.network.head(hidden))
    return _finite(logits) if any(hooks) else logits, Activations(model.config, ids, kept)


def run_with_hooks(model: Model, prompt: Prompt, *hooks: Hooks) -> np.ndarray:
    """A text's logits (B, T, V) float32 under some hooks; arguments and errors as `run_with_cache`."""
    return run_with_cache(model, prompt, *hooks, names=())[0]


def with_hooks(model: Model, *hooks: Hooks) -> LanguageModel:
    """A model to be asked (`generate`, `stream`, `logits`) in which the hooks always act.

    It writes slowly: nothing is compiled. A hook sees what is computed in one step: the whole prompt by itself, then
    one position for each text (T is 1), in which rows that stand idle may follow those of the texts. So a hook should
    do the same to every row and position, as `steer` does and ablation by zero or by means.

    Raises:
        ConfigError: a name that no activation has.
        GenerationError: when it is asked, hooks under which the logits are no numbers.
    """
    tap = Tapping(model.config, hooks, ())
    engine = (_HookedEngine if any(hooks) else KerasEngine)(model.network, tap=tap)
    return LanguageModel(engine, model.codec, name=f"{model.name}, hooked")


class _HookedEngine(KerasEngine):
    """The engine where hooks act: logits that are no numbers are laid to them, not to the weights."""

    def feed(self, cache: Cache, ids: Sequence[Sequence[int]], *, all_positions: bool = False) -> list[np.ndarray]:
        return [_finite(logits) for logits in super().feed(cache, ids, all_positions=all_positions)]

    def scan(self, cache: Cache, ids: Sequence[Sequence[int]], wanted: Sequence[np.ndarray], take: Take) -> None:
        super().scan(cache, ids, wanted, lambda rows, places, logits: take(rows, places, _finite(logits)))

    def logits(self, ids: np.ndarray) -> np.ndarray:
        return _finite(super().logits(ids))


def _finite(logits: np.ndarray) -> np.ndarray:
    """Logits that hooks had a part in, if they are numbers."""
    if not np.isfinite(logits).all():
        raise GenerationError("logits: expected numbers under these hooks, got NaN or infinity for at least one token")
    return logits


class Tapping:
    """What `GPT2.hidden` takes as `tap`: it lets hooks act, and keeps activations.

    Args:
        config: of the network.
        hooks: tables of hooks.
        names: what is kept in `kept`.
    """

    def __init__(self, config: GPT2Config, hooks: Sequence[Hooks], names: str | Iterable[str]) -> None:
        self.config = config
        self.kept: dict[str, np.ndarray] = {}
        self._keep: dict[str, list[Site]] = {}
        self._hooks: dict[str, list[tuple[Site, Hook]]] = {}
        for site in matching(names, config):
            self._keep.setdefault(site.tap, []).append(site)
        for table in hooks:
            if not isinstance(table, Mapping):
                raise ConfigError(f"hooks: expected tables of name and function, got {type(table).__name__}")
            for pattern, hook in table.items():
                for site in matching(pattern, config, "hooks"):
                    self._hooks.setdefault(site.tap, []).append((site, hook))

    def __call__(self, name: str, value: Any) -> Any:
        """Show `value` to the hooks of that name, and give what comes of it."""
        hooks, keep = self._hooks.get(name, ()), self._keep.get(name, ())
        if not hooks and not keep:
            return value
        array = np.array(array_of(value), np.float32)
        for site, hook in hooks:
            shown = site.view(array, self.config)
            result = hook(shown)
            if result is not None and result is not shown:
                new = np.asarray(result)
                if new.shape != shown.shape:
                    raise ConfigError(
                        f"hooks: {site.name}: expected an array of shape {list(shown.shape)} ({site.axes}), "
                        f"got {list(new.shape)}"
                    )
                shown[...] = new
        for site in keep:
            self.kept[site.name] = site.view(array, self.config)
        return ops.convert_to_tensor(array, dtype=value.dtype) if hooks else value


def checked_ids(model: Model, prompt: Prompt) -> np.ndarray:
    """The tokens (B, T) of a prompt.

    Raises:
        PromptError: an empty text, one that is too long, texts of different lengths, or ids outside of the vocabulary.
    """
    if isinstance(prompt, np.ndarray) and prompt.ndim > 1:
        return model.checked_ids(prompt)
    given: Any = prompt.tolist() if isinstance(prompt, np.ndarray) else prompt
    parts = list(given) if isinstance(given, Iterable) else []
    of_rows = bool(parts) and all(isinstance(part, (list, tuple, np.ndarray)) for part in parts)
    rows: Any = given if of_rows else model.prompt_tokens(given)
    if len({len(row) for row in rows}) > 1:
        raise PromptError("prompt: expected rows of equally many tokens, got " + ", ".join(str(len(r)) for r in rows))
    if parts and isinstance(parts[0], str) and len(rows[0]) > model.config.n_ctx:
        raise PromptError(f"prompt: expected at most n_ctx = {model.config.n_ctx} tokens, got {len(rows[0])}")
    return model.checked_ids(rows)


def array_of(tensor: Any) -> np.ndarray:
    """A tensor's numbers as an array."""
    return np.asarray(ops.convert_to_numpy(tensor))
