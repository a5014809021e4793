"""Beam search: the most probable continuations that a bounded search finds.

Nothing is drawn: logit bias, penalties and the minimum length act, temperature and filters do not. Ends that have been
found compete with what is still running by log-probability / length ** length_penalty; the search goes on until no
running beam can overtake (an exact bound, what Hugging Face calls `early_stopping="never"`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gpt2.codec import Codec
from gpt2.config import GenerationConfig
from gpt2.continuation import Completion, StopMatcher, TopLogProbs
from gpt2.engines import Cache, Engine, kept_tokens
from gpt2.sampling import adjust, log_softmax, top_log_probabilities


@dataclass(frozen=True)
class _Beam:
    """Tokens generated so far, with what is known of them."""

    tokens: tuple[int, ...] = ()
    score: float = 0.0
    """The sum of the log-probabilities by which beams are ranked."""
    chosen: tuple[float, ...] = ()
    """The model's own log-probability of each token."""
    top: tuple[TopLogProbs, ...] = ()

    def ranked(self, config: GenerationConfig, length: int) -> float:
        """What beams of different lengths are compared by."""
        return float(self.score / max(1, length) ** config.length_penalty)


def beam_search(
    engine: Engine, codec: Codec | None, prompt: Sequence[int], config: GenerationConfig, number: int = 0
) -> list[Completion]:
    """The `config.num_samples` best continuations of one prompt, the best first.

    Args:
        engine: what runs the network.
        codec: for text and stop strings; None gives tokens alone.
        prompt: token ids, at least one.
        config: `num_beams`, `length_penalty` and the rest.
        number: the prompt's number, for the completions.
    """
    end = None if codec is None else codec.end_of_text
    n_ctx = engine.config.n_ctx
    cache: Cache = engine.new_cache(1)
    first = engine.feed(cache, [prompt[-n_ctx:]], all_positions=config.echo and config.logprobs is not None)[0]
    logits: list[np.ndarray] = [first[-1]]
    running, done = [_Beam()], list[tuple[float, _Beam, str]]()
    for length in range(1, config.max_tokens + 1):
        grown: list[tuple[int, _Beam]] = []
        for parent, beam, token in _best_steps(logits, running, prompt, config, end):
            if token == end or _cut(codec, beam.tokens, config.stop)[1]:
                done.append((beam.ranked(config, length), beam, "stop"))
            elif len(grown) < config.num_beams:
                grown.append((parent, beam))
        done = sorted(done, key=lambda entry: -entry[0])[: config.num_beams]
        running = [beam for _, beam in grown]
        if not running or length == config.max_tokens or _settled(done, running, length, config):
            break
        cache = cache.select([parent for parent, _ in grown])
        fed = []
        for row, beam in enumerate(running):
            if cache.lengths[row] < n_ctx:
                fed.append(beam.tokens[-1:])
            else:
                cache.truncate(row, 0)
                fed.append((*prompt, *beam.tokens)[-kept_tokens(n_ctx) :])
        logits = [rows[-1] for rows in engine.feed(cache, fed)]
    done += [(beam.ranked(config, len(beam.tokens)), beam, "length") for beam in running if beam.tokens]
    best = sorted(done, key=lambda entry: -entry[0])[: config.num_samples] or [(0.0, _Beam(), "length")]
    return [
        _completion(codec, prompt, first, beam, reason, config, number, n) for n, (_, beam, reason) in enumerate(best)
    ]


def _best_steps(
    logits: Sequence[np.ndarray],
    running: Sequence[_Beam],
    prompt: Sequence[int],
    config: GenerationConfig,
    end: int | None,
) -> list[tuple[int, _Beam, int]]:
    """The best steps from all beams together, twice as many as beams, so that enough remain where some end."""
    wanted = 2 * config.num_beams
    steps: list[tuple[float, int, int]] = []
    own: list[np.ndarray] = []
    for parent, (row, beam) in enumerate(zip(logits, running, strict=True)):
        own.append(log_softmax(row))
        adjusted = adjust(row, config.sampling, context=prompt, generated=beam.tokens, end_of_text=end)
        steps += [(beam.score + value, parent, token) for token, value in top_log_probabilities(adjusted, wanted)]
    steps.sort(key=lambda step: (-step[0], step[1], step[2]))
    grown = []
    for score, parent, token in steps[:wanted]:
        beam = running[parent]
        if token == end:
            grown.append((parent, _Beam(beam.tokens, score, beam.chosen, beam.top), token))
            continue
        top = beam.top
        if config.logprobs is not None:
            top = (*top, top_log_probabilities(logits[parent], config.logprobs))
        chosen = (*beam.chosen, float(own[parent][token]))
        grown.append((parent, _Beam((*beam.tokens, token), score, chosen, top), token))
    return grown


def _settled(
    done: Sequence[tuple[float, _Beam, str]], running: Sequence[_Beam], length: int, config: GenerationConfig
) -> bool:
    """Whether no running beam can still come before the ends that have been found."""
    if len(done) < config.num_samples:
        return False
    # A score only falls; the divisor that favours it most is the longest length, or with a negative penalty this one.
    best_length = config.max_tokens if config.length_penalty > 0 else length + 1
    attainable = max(beam.ranked(config, best_length) for beam in running)
    return done[config.num_samples - 1][0] >= attainable


def _cut(codec: Codec | None, tokens: Sequence[int], stops: Sequence[str]) -> tuple[str, bool]:
    """The text up to the first stop string, and whether there was one."""
    if codec is None:
        return "", False
    matcher = StopMatcher(stops)
    text = matcher.push(codec.decode(tokens))
    return text + matcher.flush(), matcher.stopped


def _completion(
    codec: Codec | None,
    prompt: Sequence[int],
    prompt_logits: np.ndarray,
    beam: _Beam,
    reason: str,
    config: GenerationConfig,
    number: int,
    sample: int,
) -> Completion:
    text, _ = _cut(codec, beam.tokens, config.stop)
    tokens, chosen, top = list(beam.tokens), list[float | None](beam.chosen), list[TopLogProbs | None](beam.top)
    if config.echo:
        text = ("" if codec is None else codec.decode(prompt)) + text
        tokens = [*prompt, *tokens]
        if config.logprobs is not None:
            pairs = list(zip(prompt_logits[:-1], prompt[1:], strict=True))
            chosen = [None, *(float(log_softmax(row)[token]) for row, token in pairs), *chosen]
            top = [None, *(top_log_probabilities(row, config.logprobs) for row, _ in pairs), *top]
    wanted = config.logprobs is not None
    return Completion(
        number, sample, text, tokens, chosen if wanted else None, top if wanted else None, reason, len(prompt)
    )
