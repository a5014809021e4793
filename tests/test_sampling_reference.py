"""Sampling against the logits processors of Hugging Face.

One difference is by choice: top-k here keeps exactly k tokens, where Hugging Face keeps all that tie for the last
place; so the logits here have no ties.
"""

from __future__ import annotations

import numpy as np
import pytest

from gpt2.config import SamplingConfig
from gpt2.sampling import adjust, candidates, log_softmax

pytestmark = pytest.mark.reference
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SEEDS = range(20)


def row(seed: int, V: int = 1000) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(scale=rng.uniform(0.5, 5), size=V).astype(np.float32)


def peers(config: SamplingConfig) -> list[object]:
    """Hugging Face's warpers for these settings, in the order in which its `generate` applies them."""
    made = [transformers.TemperatureLogitsWarper(config.temperature)]
    if config.top_k:
        made.append(transformers.TopKLogitsWarper(config.top_k))
    if config.top_p < 1:
        made.append(transformers.TopPLogitsWarper(config.top_p))
    if config.min_p:
        made.append(transformers.MinPLogitsWarper(config.min_p))
    if config.typical_p < 1:
        made.append(transformers.TypicalLogitsWarper(config.typical_p))
    return made


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "config",
    [
        SamplingConfig(temperature=0.7),
        SamplingConfig(top_k=1),
        SamplingConfig(top_k=40),
        SamplingConfig(top_p=0.5),
        SamplingConfig(top_p=0.95),
        SamplingConfig(min_p=0.05),
        SamplingConfig(typical_p=0.2),
        SamplingConfig(typical_p=0.9),
        SamplingConfig(temperature=0.8, top_k=40, top_p=0.95),
        SamplingConfig(temperature=1.3, top_k=200, top_p=0.9, min_p=0.02, typical_p=0.8),
    ],
    ids=lambda config: f"{config.temperature}-{config.top_k}-{config.top_p}-{config.min_p}-{config.typical_p}",
)
def test_the_same_tokens_with_the_same_probabilities(config, seed):
    logits = row(seed)
    scores = torch.from_numpy(logits.copy())[None]  # (1, V)
    for peer in peers(config):
        scores = peer(torch.zeros((1, 1), dtype=torch.long), scores)
    expected = torch.softmax(scores[0].double(), dim=-1).numpy()
    tokens, probabilities = candidates(logits, config)
    ours = np.zeros(len(logits))
    ours[tokens] = probabilities
    np.testing.assert_array_equal(ours > 0, expected > 0)
    np.testing.assert_allclose(ours, expected, rtol=2e-5, atol=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("penalty", [0.5, 1.2, 2.0])
def test_the_same_repetition_penalty(penalty, seed):
    logits = row(seed)
    seen = np.random.default_rng(seed).integers(0, 100, 30).tolist()
    peer = transformers.RepetitionPenaltyLogitsProcessor(penalty)
    expected = peer(torch.tensor([seen]), torch.from_numpy(logits.copy())[None])[0].numpy()
    ours = adjust(logits, SamplingConfig(repetition_penalty=penalty), context=seen[:20], generated=seen[20:])
    np.testing.assert_allclose(ours, expected, rtol=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_same_log_probabilities(seed):
    logits = row(seed, V=50257)
    expected = torch.log_softmax(torch.from_numpy(logits).double(), dim=-1).numpy()
    np.testing.assert_allclose(log_softmax(logits), expected, rtol=3e-7, atol=1e-6)
