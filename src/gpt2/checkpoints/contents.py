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
