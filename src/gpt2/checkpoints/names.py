"""Every tensor of a GPT-2: canonical names and shapes from a config, and the comparison with what a file holds.

Canonical names are OpenAI's without the leading `model/` (`h0/attn/c_attn/w`), shapes without the leading 1 of the
original's convolutions, so a linear layer's weight is (in, out). Nothing here reads files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from gpt2.config import GPT2Config
from gpt2.errors import TensorMismatchError

Tensors = Iterable[tuple[str, np.ndarray]]
"""Canonical names with their arrays, one at a time, so that a large model never stands in memory twice."""


def expected_shapes(config: GPT2Config) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor under its canonical name, in the order of OpenAI's release.

    >>> expected_shapes(GPT2Config(n_embd=4, n_head=2, n_layer=1))["h0/attn/c_attn/w"]
    (4, 12)
    """
    C = config.n_embd
    shapes: dict[str, tuple[int, ...]] = {"wte": (config.n_vocab, C), "wpe": (config.n_ctx, C)}
    layer: dict[str, tuple[int, ...]] = {
        "ln_1/g": (C,),
        "ln_1/b": (C,),
        "attn/c_attn/w": (C, 3 * C),
        "attn/c_attn/b": (3 * C,),
        "attn/c_proj/w": (C, C),
        "attn/c_proj/b": (C,),
        "ln_2/g": (C,),
        "ln_2/b": (C,),
        "mlp/c_fc/w": (C, 4 * C),
        "mlp/c_fc/b": (4 * C,),
        "mlp/c_proj/w": (4 * C, C),
        "mlp/c_proj/b": (C,),
    }
    for n in range(config.n_layer):
        shapes |= {f"h{n}/{name}": shape for name, shape in layer.items()}
    return shapes | {"ln_f/g": (C,), "ln_f/b": (C,)}


def check_shapes(config: GPT2Config, found: Mapping[str, tuple[int, ...]], *, source: str) -> None:
    """Compare what a checkpoint holds with what the config asks for, before any number is read.

    Args:
        config: the shape of the network.
        found: canonical name -> shape of every tensor in the checkpoint.
        source: the file or folder, for the message.

    Raises:
        TensorMismatchError: one message that lists every missing, unexpected and misshapen tensor.
    """
    expected = expected_shapes(config)
    problems = [f"missing {name} {list(shape)}" for name, shape in expected.items() if name not in found]
    problems += [f"unexpected {_shown(name)} {list(shape)}" for name, shape in found.items() if name not in expected]
    problems += [
        f"{name}: expected shape {list(shape)}, got {list(found[name])}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != shape
    ]
    if problems:
        shown = problems[:20] + ([f"and {len(problems) - 20} more"] if len(problems) > 20 else [])
        raise TensorMismatchError(f"{source}: the tensors do not fit the config: " + "; ".join(shown))


def weights_sha256(tensors: Tensors) -> str:
    """The hash of a model's numbers, whatever format they come from: SHA-256 over names and float32 arrays in turn.

    Args:
        tensors: all of them, in the order of `expected_shapes`.
    """
    digest = hashlib.sha256()
    for name, array in tensors:
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(array, "<f4").data)
    return digest.hexdigest()


def _shown(name: str) -> str:
    """A name from a file, which may be endless or full of control characters, as a message can hold it."""
    return name if len(name) <= 80 and name.isprintable() else f"{name[:80]!r}"


def checked_values(tensors: Tensors, *, source: str) -> Iterator[tuple[str, np.ndarray]]:
    """Pass tensors through as float32, stopping at the first that holds NaN or infinity.

    Raises:
        TensorMismatchError: naming the tensor and how many of its numbers are not finite.
    """
    for name, array in tensors:
        values = np.ascontiguousarray(array, dtype=np.float32)
        # The sum of a finite array is almost always finite, and ten times cheaper to ask for than each number.
        with np.errstate(invalid="ignore"):
            total = values.sum(dtype=np.float64)
        if not np.isfinite(total):
            bad = int(values.size - np.count_nonzero(np.isfinite(values)))
            if bad:
                raise TensorMismatchError(f"{source}: {name} holds {bad} numbers that are NaN or infinite")
        yield name, values
