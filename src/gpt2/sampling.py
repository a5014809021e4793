"""Logits to the next token: bias and penalties, filters, and one draw. NumPy alone, and pure.

It knows nothing about models or text: logits (V,) of one position come in, a token goes out. Letters in the shapes: V
vocabulary, K tokens kept. The order is that of `SamplingConfig`: bias and minimum length, penalties, temperature,
top-k, top-p, min-p, typical-p; each filter sees what the one before it left, renormalised.

Departures from OpenAI's original `sample.py`: top-k keeps exactly k tokens where several tie for the last place (the
lower id goes first; the original kept them all), and top-p keeps the token that crosses the threshold, as Holtzman et
al. (2020) define the nucleus and as Hugging Face does (the original dropped it).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gpt2.config import SamplingConfig
from gpt2.errors import ConfigError, GenerationError

# Below it, a quotient in float32 would be 0 / 0; far above it only the most probable token is left anyway.
_LOWEST_TEMPERATURE = 1e-30

# How many tokens top-p and typical-p look at first; most distributions need fewer.
_FIRST_LOOK = 512
# How many weights are summed at once where one is drawn.
_BLOCK = 256


def sample(
    logits: np.ndarray,
    config: SamplingConfig,
    rng: np.random.Generator,
    *,
    context: Sequence[int] = (),
    generated: Sequence[int] = (),
    end_of_text: int | None = None,
) -> int:
    """Choose the next token.

    With temperature 0 it is the one with the highest adjusted logit (the lowest id of several), and `rng` is not
    touched. Otherwise `rng.random()` is called exactly once, and the token is where that number falls in the
    cumulative distribution: in the order of `candidates`, or in the order of the ids where no filter is set.

    Args:
        logits: (V,) of one position.
        config: how to choose.
        rng: see `sample_rng`.
        context: the prompt's tokens.
        generated: the tokens generated since.
        end_of_text: the token that `config.min_tokens` holds back, if the vocabulary has one.

    Raises:
        GenerationError: the logits hold NaN or +inf, or leave no token to choose.
        ConfigError: `logit_bias` names a token that is not in the vocabulary.
    """
    logits = adjust(logits, config, context=context, generated=generated, end_of_text=end_of_text)
    if config.temperature == 0:
        _peak(logits)
        return int(logits.argmax())
    if config.top_k == 0 and config.top_p == 1 and config.min_p == 0 and config.typical_p == 1:
        return _draw(np.exp(_scaled(logits, config.temperature)), rng)
    tokens, probabilities = candidates(logits, config)
    return int(tokens[_draw(probabilities, rng)])


def adjust(
    logits: np.ndarray,
    config: SamplingConfig,
    *,
    context: Sequence[int] = (),
    generated: Sequence[int] = (),
    end_of_text: int | None = None,
) -> np.ndarray:
    """The logits (V,) after bias, minimum length and penalties; see `sample` for the arguments.

    The repetition penalty (Keskar et al. 2019) sees the prompt and what was generated, the frequency and presence
    penalties what was generated alone, as in OpenAI's API. The array that came in is never changed; it is returned
    as it is where there is nothing to do.

    Raises:
        GenerationError: the logits are not of one axis.
        ConfigError: `logit_bias` names a token that is not in the vocabulary.
    """
    given = _as_floats(logits)
    logits = given.copy()
    changed = False
    if config.logit_bias:
        tokens = np.fromiter(config.logit_bias.keys(), dtype=np.int64)
        if tokens.max() >= len(logits):
            raise ConfigError(f"logit_bias: expected token ids below {len(logits)}, got {tokens.max()}")
        logits[tokens] += np.fromiter(config.logit_bias.values(), dtype=np.float64)
        changed = True
    if end_of_text is not None and len(generated) < config.min_tokens:
        logits[end_of_text] = -np.inf
        changed = True
    if config.repetition_penalty != 1 and (context or generated):
        tokens = np.unique([*context, *generated])
        seen = logits[tokens].astype(np.float64)
        logits[tokens] = np.where(seen > 0, seen / config.repetition_penalty, seen * config.repetition_penalty)
        changed = True
    if (config.frequency_penalty or config.presence_penalty) and generated:
        tokens, counts = np.unique(generated, return_counts=True)
        logits[tokens] -= config.frequency_penalty * counts + config.presence_penalty
        changed = True
    return logits if changed else given


def candidates(logits: np.ndarray, config: SamplingConfig) -> tuple[np.ndarray, np.ndarray]:
    """The tokens that temperature and filters leave, and their probabilities.

    Args:
        logits: (V,) of one position, after `adjust`.
        config: temperature 0 leaves the most probable token alone.

    Returns:
        Tokens (K,) int64 and probabilities (K,) float64 that sum to 1, the most probable first and of equals the
        lower id. K is at least 1; tokens with the logit -inf are never among them.

    Raises:
        GenerationError: the logits hold NaN or +inf, or leave no token to choose.

    >>> candidates(np.log([0.5, 0.1, 0.4]), SamplingConfig(top_k=2))[0]
    array([0, 2])
    """
    logits = _as_floats(logits)
    if config.temperature == 0:
        _peak(logits)
        return logits.argmax(keepdims=True), np.ones(1)
    scaled = _scaled(logits, config.temperature)
    tokens = None  # all of them, in the order of their ids; an array of V ids would cost more than the filters
    for positions_kept in (_possible, _top_k, _top_p, _min_p, _typical_p):
        kept = positions_kept(scaled, config)
        if kept is not None:
            tokens, scaled = kept if tokens is None else tokens[kept], scaled[kept]
    # Every filter leaves equals in the order of their ids, so a stable sort is all that is needed.
    order = np.argsort(-scaled, kind="stable")
    weights = np.exp(scaled[order].astype(np.float64))
    return order if tokens is None else tokens[order], weights / weights.sum()


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """The natural logarithms (V,) of the probabilities, in the type of the logits (float32 or float64).

    For reports, give it the raw logits: what the model said, whatever the sampling made of it.

    Raises:
        GenerationError: the logits hold NaN or +inf, or all are -inf.
    """
    logits = _as_floats(logits)
    shifted = _scaled(logits, 1.0)
    normaliser = math.log(float(np.exp(shifted).sum(dtype=np.float64)))
    return shifted - logits.dtype.type(normaliser)


def top_log_probabilities(logits: np.ndarray, n: int) -> list[tuple[int, float]]:
    """The n most probable tokens and the logarithms of their probabilities, the most probable first.

    They are the very floats of `log_softmax`, so a greedy token's log-probability equals the first one here.

    >>> [token for token, _ in top_log_probabilities(np.log([0.5, 0.1, 0.4]), 2)]
    [0, 2]
    """
    log_probabilities = log_softmax(logits)
    tokens: Sequence[int] | np.ndarray = _highest(_as_floats(logits), n) if n > 0 else []
    return [(int(token), float(log_probabilities[token])) for token in tokens]


def sample_rng(seed: int, index: int) -> np.random.Generator:
    """The generator of one sample: a function of the request's seed and of the sample's number alone.

    The stream is PCG64 seeded through NumPy's `SeedSequence`, both of which NumPy keeps stable over its versions; a
    test holds its first draws, so the same seed gives the same text for good. Negative seeds are taken modulo 2**64.
    """
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed % 2**64, spawn_key=(index,))))


def _as_floats(logits: np.ndarray) -> np.ndarray:
    """The logits as (V,) float32, or float64 if that is what came."""
    logits = np.asarray(logits)
    if logits.ndim != 1 or not logits.size:
        raise GenerationError(f"logits: expected the shape (n_vocab,), got {logits.shape}")
    return logits if logits.dtype in (np.float32, np.float64) else logits.astype(np.float32)


def _peak(logits: np.ndarray) -> float:
    """The highest logit, which NaN and infinity cannot hide from."""
    peak = float(logits.max())
    if peak == -math.inf:
        raise GenerationError("logits: expected a token that can be chosen, got -inf for every one")
    if not math.isfinite(peak):
        raise GenerationError(f"logits: expected numbers, got {peak} for at least one token; are the weights sound?")
    return peak


def _scaled(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Logits (V,) divided by the temperature and shifted so that the highest is 0."""
    peak = _peak(logits)
    with np.errstate(over="ignore"):  # what overflows becomes -inf: probability 0, as it should
        scaled = logits - logits.dtype.type(peak)
        if temperature != 1:
            scaled /= max(temperature, _LOWEST_TEMPERATURE)
    return scaled


# The filters: scaled logits (N,) of the tokens still there -> positions (K,) of those to keep, or None to keep all.
# Each keeps one at least, the highest always but for typical-p, and equals in the order in which they came.


def _possible(scaled: np.ndarray, config: SamplingConfig) -> np.ndarray | None:
    return np.flatnonzero(scaled > -np.inf) if scaled.min() == -np.inf else None


def _top_k(scaled: np.ndarray, config: SamplingConfig) -> np.ndarray | None:
    return _highest(scaled, config.top_k) if 0 < config.top_k < len(scaled) else None


def _top_p(scaled: np.ndarray, config: SamplingConfig) -> np.ndarray | None:
    return _highest_until(scaled, np.exp(scaled), config.top_p) if config.top_p < 1 else None


def _min_p(scaled: np.ndarray, config: SamplingConfig) -> np.ndarray | None:
    # The most probable token is always still there, and its scaled logit is 0.
    return np.flatnonzero(np.exp(scaled) >= config.min_p) if config.min_p > 0 else None


def _typical_p(scaled: np.ndarray, config: SamplingConfig) -> np.ndarray | None:
    if config.typical_p == 1:
        return None
    # The distance of surprisal from entropy is that of the logit from the mean logit: the normaliser cancels.
    weights = np.exp(scaled)
    mean = float((weights * scaled).sum(dtype=np.float64) / weights.sum(dtype=np.float64))
    return np.sort(_highest_until(-np.abs(scaled - mean), weights, config.typical_p))


def _highest(scores: np.ndarray, k: int) -> np.ndarray:
    """The positions (k,) of the k highest scores, highest first, the lower position of equals; all if k is N or more.

    Instead of sorting N scores: cut them into many more groups than k. The k-th highest of the groups' maxima is a
    lower bound of the k-th highest score, and hardly more than k scores reach it; those are sorted.
    """
    n = len(scores)
    if k >= n:
        found = np.arange(n)
    else:
        width = max(1, n // (16 * k))
        groups = n // width
        peaks = scores[: width * groups].reshape(width, groups).max(axis=0)  # (groups,)
        found = np.flatnonzero(scores >= np.partition(peaks, groups - k)[groups - k])
    return found[np.argsort(-scores[found], kind="stable")[:k]]


def _highest_until(scores: np.ndarray, weights: np.ndarray, share: float) -> np.ndarray:
    """The positions of the fewest highest scores whose weights together reach a share of all weights; at least one."""
    wanted = share * float(weights.sum(dtype=np.float64))
    look = _FIRST_LOOK
    while True:
        found = _highest(scores, look)
        reached = np.cumsum(weights[found], dtype=np.float64)
        if reached[-1] >= wanted or look >= len(scores):
            return found[: int(np.searchsorted(reached, wanted)) + 1]
        look *= 8


def _draw(weights: np.ndarray, rng: np.random.Generator) -> int:
    """A position with a chance in proportion to its weight, from one draw; never one of weight 0.

    The weights are summed in blocks, and one by one in the block that is drawn alone, which is much faster.
    """
    whole = len(weights) // _BLOCK * _BLOCK
    sums = weights[:whole].reshape(-1, _BLOCK).sum(axis=1, dtype=np.float64)  # (N // _BLOCK,)
    reached = np.cumsum(np.append(sums, weights[whole:].sum(dtype=np.float64)))
    total = reached[-1]
    # A draw next to 1 could round up to the total, which no position exceeds.
    target = min(rng.random() * total, np.nextafter(total, 0))
    block = int(np.searchsorted(reached, target, side="right"))
    before = reached[block - 1] if block else 0.0
    inside = weights[block * _BLOCK : (block + 1) * _BLOCK]
    at = int(np.searchsorted(before + np.cumsum(inside, dtype=np.float64), target, side="right"))
    if at == len(inside):  # rounded otherwise than the block's sum
        at = int(np.flatnonzero(inside)[-1])
    return block * _BLOCK + at
