"""GPT-2 in NumPy alone, written from the paper and the published shapes: what the network is compared with."""

from __future__ import annotations

from collections.abc import Callable

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


def gelu(x: np.ndarray) -> np.ndarray:
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def logits(
    config: GPT2Config, tensors: Arrays, ids: np.ndarray, gelu: Callable[[np.ndarray], np.ndarray] = gelu
) -> np.ndarray:
    """Logits (T, V) in float64 of one row of ids (T,)."""
    return activations(config, tensors, ids, gelu)["logits"]


def activations(
    config: GPT2Config, tensors: Arrays, ids: np.ndarray, gelu: Callable[[np.ndarray], np.ndarray] = gelu
) -> Arrays:
    """What is computed on the way to the logits of one row of ids, under TransformerLens' names, without a batch."""
    w = {name: array.astype(np.float64) for name, array in tensors.items()}
    T = len(ids)
    seen: Arrays = {"hook_embed": w["wte"][ids], "hook_pos_embed": w["wpe"][:T]}
    x = w["wte"][ids] + w["wpe"][:T]
    for n in range(config.n_layer):
        p = {name.removeprefix(f"h{n}/"): array for name, array in w.items() if name.startswith(f"h{n}/")}
        block: Arrays = {"hook_resid_pre": x, "ln1.hook_normalized": norm(x, p["ln_1/g"], p["ln_1/b"])}
        a = block["ln1.hook_normalized"] @ p["attn/c_attn/w"] + p["attn/c_attn/b"]
        heads: dict[str, list[np.ndarray]] = {name: [] for name in ("q", "k", "v", "attn_scores", "pattern", "z")}
        for q, k, v in zip(*(np.split(part, config.n_head, axis=1) for part in np.split(a, 3, axis=1)), strict=True):
            scores = q @ k.T / np.sqrt(q.shape[1])
            scores[np.triu_indices(T, 1)] = -np.inf
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            pattern = weights / weights.sum(axis=1, keepdims=True)
            for values, value in zip(heads.values(), (q, k, v, scores, pattern, pattern @ v), strict=True):
                values.append(value)
        block |= {f"attn.hook_{name}": np.stack(heads[name], axis=1) for name in ("q", "k", "v", "z")}
        block |= {f"attn.hook_{name}": np.stack(heads[name]) for name in ("attn_scores", "pattern")}
        block["hook_attn_out"] = np.concatenate(heads["z"], axis=1) @ p["attn/c_proj/w"] + p["attn/c_proj/b"]
        x = block["hook_resid_mid"] = x + block["hook_attn_out"]
        block["ln2.hook_normalized"] = norm(x, p["ln_2/g"], p["ln_2/b"])
        h = block["mlp.hook_pre"] = block["ln2.hook_normalized"] @ p["mlp/c_fc/w"] + p["mlp/c_fc/b"]
        h = block["mlp.hook_post"] = gelu(h)
        block["hook_mlp_out"] = h @ p["mlp/c_proj/w"] + p["mlp/c_proj/b"]
        x = block["hook_resid_post"] = x + block["hook_mlp_out"]
        seen |= {f"blocks.{n}.{name}": value for name, value in block.items()}
    seen["ln_final.hook_normalized"] = norm(x, w["ln_f/g"], w["ln_f/b"])
    return seen | {"logits": seen["ln_final.hook_normalized"] @ w["wte"].T}


def norm(x: np.ndarray, g: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + 1e-5) * g + b
