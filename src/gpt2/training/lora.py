"""Low-rank adapters (Hu et al. 2021, arXiv:2106.09685): beside a frozen w, a product A @ B of rank r is trained.

B begins at zero, so the network with adapters begins equal to the one without. `merged` gives ordinary weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from gpt2.model import GPT2


class Adapter:
    """What is added to one linear layer: x @ a @ b * scale, with a (in, r) and b (r, out)."""

    def __init__(self, n_in: int, n_out: int, rank: int, scale: float, rng: np.random.Generator) -> None:
        self.scale = scale
        bound = 1 / np.sqrt(n_in)  # as the authors' code draws it: uniform with variance 1 / (3 n_in)
        self.a = keras.Variable(rng.uniform(-bound, bound, (n_in, rank)).astype(np.float32), name="a")
        self.b = keras.Variable(np.zeros((rank, n_out), np.float32), name="b")

    def __call__(self, x: Any) -> Any:
        """What is added for rows x (N, in): (N, out)."""
        a, b = ops.cast(self.a, x.dtype), ops.cast(self.b, x.dtype)
        return ops.matmul(ops.matmul(x, a), b) * ops.cast(self.scale, x.dtype)

    def product(self) -> np.ndarray:
        """What merging adds to w, (in, out) float32."""
        return (np.asarray(self.a.numpy(), np.float64) @ self.b.numpy() * self.scale).astype(np.float32)


def attach(network: GPT2, rank: int, alpha: float | None, targets: tuple[str, ...], seed: int) -> dict[str, Adapter]:
    """Put adapters beside some matrices of every block.

    Args:
        network: what they are put into.
        rank: r; the scale is `alpha / rank`.
        alpha: None for twice the rank.
        targets: names within a block, such as `attn/c_attn`.
        seed: of the first matrices.

    Returns:
        The adapters under the canonical names of the matrices: `h0/attn/c_attn/w`.
    """
    rng = np.random.default_rng(seed)
    adapters: dict[str, Adapter] = {}
    for block in network.blocks:
        for target in targets:
            part, layer = target.split("/")
            linear = getattr(getattr(block, part), layer)
            n_in, n_out = linear.w.shape
            linear.adapter = Adapter(n_in, n_out, rank, (2 * rank if alpha is None else alpha) / rank, rng)
            adapters[f"{block.name}/{target}/w"] = linear.adapter
    return adapters


def merged(network: GPT2, adapters: dict[str, Adapter]) -> Iterator[tuple[str, np.ndarray]]:
    """Every parameter under its canonical name, float32, with the adapters added to the matrices beside them."""
    for name, array in network.arrays():
        yield name, array + adapters[name].product() if name in adapters else array
