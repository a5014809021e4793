"""Whether a model on disk is whole: its files' hashes, its tensors' shapes and numbers, and what it computes.

Works for every format that is read. It compares; it mends nothing.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpt2 import checkpoints
from gpt2.checkpoints import manifest
from gpt2.checkpoints.names import weights_sha256
from gpt2.engines.registry import open_engine
from gpt2.errors import ConfigError

TOLERANCE = 1e-3
"""Between two models' logits, where none is given: what float32 in another order of sums stays far below."""
_ROWS, _POSITIONS = 2, 64


@dataclass(frozen=True)
class Verification:
    """What was found of a model that is whole."""

    path: str
    format: str
    parameters: int
    manifest: bool
    """Whether every file has the hash that was written down beside it; false where nothing was written down."""
    weights_sha256: str
    """Over all numbers as float32: the same for the same model in any format."""
    codec: bool
    """Whether it has a vocabulary, its own or GPT-2's."""
    reference: str | None = None
    positions: int = 0
    """At how many positions logits were compared with the reference's."""
    largest_difference: float | None = None
    tolerance: float | None = None
    same_weights: bool | None = None

    @property
    def holds(self) -> bool:
        """Whether it computes what the reference does; true without one."""
        return self.largest_difference is None or bool(self.largest_difference <= (self.tolerance or 0.0))

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**asdict(self), "holds": self.holds}


def verify(path: Path, reference: Path | None = None, *, tolerance: float = TOLERANCE) -> Verification:
    """Check a model, and with a reference what it computes.

    Args:
        path: a model in any format that is read.
        reference: another, of the same shape but for the padding of its vocabulary; or None.
        tolerance: the largest difference between their logits that is right.

    Returns:
        What was found; whether the logits agree says `holds`.

    Raises:
        CheckpointError: a hash, a shape or a number is wrong, or the file cannot be read.
        CodecError: the vocabulary is broken.
        ConfigError: the reference has another shape.
    """
    format = checkpoints.detect(path)
    hashed = path.is_dir() and manifest.verify(path)
    config, tensors = checkpoints.read(path)
    digest = weights_sha256(tensors)
    codec = checkpoints.codec_of(path, config.n_vocab)
    found = Verification(str(path), format, config.num_parameters, hashed, digest, codec is not None)
    if reference is None:
        return found
    other, tensors = checkpoints.read(reference)
    n_vocab = min(config.n_vocab, other.n_vocab)
    if {**config.to_dict(), "n_vocab": 0} != {**other.to_dict(), "n_vocab": 0}:
        raise ConfigError(f"reference: expected a model of the shape {config}, got {other}")
    same = weights_sha256(tensors) == digest
    shape = (_ROWS, min(_POSITIONS, config.n_ctx))
    ids = np.random.default_rng(0).integers(0, n_vocab, shape)
    logits = [open_engine(place, "keras").logits(ids)[..., :n_vocab] for place in (path, reference)]
    difference = float(np.abs(logits[0] - logits[1]).max())
    compared = {"reference": str(reference), "positions": ids.size, "largest_difference": difference}
    return Verification(**{**asdict(found), **compared, "tolerance": tolerance, "same_weights": same})
