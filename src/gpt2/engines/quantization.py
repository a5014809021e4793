"""Weights in fewer bits: what each precision of the fast engine stores for a matrix.

`float32` stores the numbers as they are, `int8` round(w / s) with one scale s for each output. `int4` does so for each
block of inputs of an output, with the float16 scale that makes the squared error of the block least. Scales are
symmetric: there are no zero points.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

INT8_MAX = 127
INT4_MAX = 7
# Of the scale that just holds a block's largest number: smaller ones cut it off and serve the others better.
_FACTORS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.72)
_ROWS = 1 << 20  # numbers that are worked on at once


@dataclass(frozen=True)
class Scheme:
    """How a matrix (n_out, n_in) is stored."""

    type: str
    """float32, int8 or int4."""
    block: int = 0
    """Of int4: inputs that share a scale."""

    def fitting(self, n_in: int) -> Scheme:
        """This scheme, or int8 where the inputs do not fill whole blocks."""
        return replace(self, type="int8", block=0) if self.block and n_in % self.block else self

    def layout(self, n_out: int, n_in: int) -> list[tuple[Any, tuple[int, ...]]]:
        """Type and shape of the arrays that `pack` gives."""
        if self.type == "float32":
            return [(np.float32, (n_out, n_in))]
        if self.type == "int8":
            return [(np.int8, (n_out, n_in)), (np.float32, (n_out,))]
        return [(np.uint8, (n_out, n_in // 2)), (np.float16, (n_out, n_in // self.block))]

    def pack(self, weights: np.ndarray) -> tuple[np.ndarray, ...]:
        """The numbers of weights (n_out, n_in) float32, and for the others than float32 their scales.

        Returns:
            float32: the weights. int8: (n_out, n_in) int8, (n_out,) float32. int4: (n_out, n_in / 2) uint8 with two
            numbers in each, the first in its lower half, and (n_out, n_in / block) float16.

        >>> [array.tolist() for array in Scheme("int8").pack(np.array([[0.5, -1.27]], np.float32))]
        [[[50, -127]], [0.009999999776482582]]
        """
        weights = np.asarray(weights, np.float32)
        if self.type == "float32":
            return (np.ascontiguousarray(weights),)
        pack = _to_int8 if self.type == "int8" else self._to_int4
        rows = max(1, _ROWS // weights.shape[1])
        parts = [pack(np.ascontiguousarray(weights[n : n + rows])) for n in range(0, len(weights), rows)]
        return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))

    def _to_int4(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        blocks = weights.reshape(len(weights), -1, self.block)  # (n_out, n_in / block, block)
        largest = np.abs(blocks).max(axis=-1) / INT4_MAX
        scales = np.empty_like(largest)
        least = np.full(largest.shape, np.inf, np.float32)
        for factor in _FACTORS:
            tried = (largest * np.float32(factor)).astype(np.float16).astype(np.float32)
            tried[tried == 0] = 1.0
            rest = _rounded(blocks, tried) * tried[..., None] - blocks
            error = np.einsum("oib,oib->oi", rest, rest)
            better = error < least
            least[better], scales[better] = error[better], tried[better]
        numbers = _rounded(blocks, scales).astype(np.int8).reshape(len(weights), -1)
        return ((numbers[:, ::2] & 15) | (numbers[:, 1::2] << 4)).view(np.uint8), scales.astype(np.float16)


def _rounded(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    numbers = np.rint(blocks / scales[..., None])
    return np.clip(numbers, -INT4_MAX - 1, INT4_MAX, out=numbers)


def _to_int8(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scales = np.abs(weights).max(axis=1) / INT8_MAX
    scales[scales == 0] = 1.0
    return np.rint(weights / scales[:, None]).astype(np.int8), scales


def unpack(scheme: Scheme, arrays: tuple[np.ndarray, ...]) -> np.ndarray:
    """The weights (n_out, n_in) float32 that are computed with, from what `Scheme.pack` gave."""
    if scheme.type == "float32":
        return arrays[0]
    numbers, scales = arrays
    if scheme.type == "int8":
        return numbers * scales[:, None]
    whole = np.stack([numbers & 15, numbers >> 4], axis=-1).reshape(*scales.shape, scheme.block).astype(np.int8)
    whole -= 16 * (whole > INT4_MAX).astype(np.int8)  # two's complement
    return (whole * scales[..., None].astype(np.float32)).reshape(len(numbers), -1)
