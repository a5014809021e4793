"""GPT-2 in NumPy alone, written from the paper and the published shapes: what the network is compared with."""

from __future__ import annotations

import numpy as np

from gpt2.checkpoints.names import expected_shapes
from gpt2.config import GPT2Config

Arrays = dict[str, np.ndarray]


def random_tensors(config: GPT2Config, seed: int = 0, scale: float = 0.3) -> Arrays:
    """Weights at which every part matters: gains away from 1, biases away from 0, as float32."""
    rng = np.random.default_rng(seed)
    return {
        name: (rng.normal(0, scale, shape) + name.endswith("/g")).astype(np.float32)
        for name, shape in expected_shapes(config).items()
    }


def logits(config: GPT2Config, tensors: Arrays, ids: np.ndarray) -> np.ndarray:
    """Logits (T, V) in float64 of one row of ids (T,)."""
    w = {name: array.astype(np.float64) for name, array in tensors.items()}
    T = len(ids)
    x = w["wte"][ids] + w["wpe"][:T]
    for n in range(config.n_layer):
        p = {name.removeprefix(f"h{n}/"): array for name, array in w.items() if name.startswith(f"h{n}/")}
        a = norm(x, p["ln_1/g"], p["ln_1/b"]) @ p["attn/c_attn/w"] + p["attn/c_attn/b"]
        heads = []
        for q, k, v in zip(*(np.split(part, config.n_head, axis=1) for part in np.split(a, 3, axis=1)), strict=True):
            scores = q @ k.T / np.sqrt(q.shape[1])
            scores[np.triu_indices(T, 1)] = -np.inf
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            heads.append(weights / weights.sum(axis=1, keepdims=True) @ v)
        x = x + np.concatenate(heads, axis=1) @ p["attn/c_proj/w"] + p["attn/c_proj/b"]
        h = norm(x, p["ln_2/g"], p["ln_2/b"]) @ p["mlp/c_fc/w"] + p["mlp/c_fc/b"]
        h = h / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
        x = x + h @ p["mlp/c_proj/w"] + p["mlp/c_proj/b"]
    return norm(x, w["ln_f/g"], w["ln_f/b"]) @ w["wte"].T


def norm(x: np.ndarray, g: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + 1e-5) * g + b
