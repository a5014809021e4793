"""What every format's reader gives: what a checkpoint holds, known from its headers, with the numbers still on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gpt2.checkpoints.names import Tensors
from gpt2.config import GPT2Config


@dataclass(frozen=True)
class Contents:
    """An opened checkpoint whose tensors fit its config."""

    config: GPT2Config
    dtype: str
    """How the numbers are stored."""
    tensors: Callable[[], Tensors]
    """Reads them: canonical names and arrays, one at a time."""
    notes: tuple[str, ...] = ()
    """What a person should know who takes this model for what it was where it comes from."""


def shown(value: object) -> str:
    """A value from a file as a message can hold it: it may be endless, or hold itself."""
    if isinstance(value, str):
        return repr(value[:80])
    return repr(value)[:80] if value is None or isinstance(value, (bool, int, float)) else f"a {type(value).__name__}"
