"""The one token loop: prompts in, text out, by any engine.

Sampling with stop strings, streaming, several samples and prompts at once, a sliding window past the context, and
log-probabilities. Beam search stands beside it, in `gpt2.beams`; many requests at once are `gpt2.scheduler`'s. All of
them write with `gpt2.batch` or `gpt2.continuation`.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterator, Sequence

from gpt2.batch import MAX_ROWS, Batch
from gpt2.codec import Codec
from gpt2.config import GenerationConfig
from gpt2.continuation import Completion, Piece, Sample
from gpt2.drafting import check_drafter
from gpt2.engines import Engine
from gpt2.errors import ContextLengthError, GPT2Error, PromptError


def generate(
    engine: Engine,
    codec: Codec | None,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    *,
    drafter: Engine | None = None,
) -> list[Completion]:
    """Continue each prompt `config.num_samples` times by sampling (or greedily, with temperature 0).

    Args:
        engine: what runs the network.
        codec: for text and stop strings; None gives tokens alone.
        prompts: token ids, at least one in each.
        config: what to generate.
        drafter: runs a smaller model with the same vocabulary, which guesses what comes next; see `gpt2.drafting`.

    Returns:
        The completions, those of the first prompt first.

    Raises:
        PromptError: a prompt is empty or holds a token that is not in the vocabulary.
        ContextLengthError: it does not fit, where `config.context` is `error` or the prompt's log-probabilities are
            asked for.
    """
    completions = [
        Completion(prompt=number, sample=n, prompt_tokens=len(prompt))
        for number, prompt in enumerate(prompts)
        for n in range(config.num_samples)
    ]
    for piece in stream(engine, codec, prompts, config, drafter=drafter):
        completions[piece.prompt * config.num_samples + piece.sample].add(piece)
    return completions


def stream(
    engine: Engine,
    codec: Codec | None,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    *,
    drafter: Engine | None = None,
) -> Iterator[Piece]:
    """As `generate`, but piece by piece as tokens come; samples take turns. The arguments are checked at once."""
    check_prompts(engine, codec, prompts, config)
    if config.num_beams > 1:
        raise PromptError("num_beams: expected 1 where text is streamed: beam search knows its text only at the end")
    check_drafter(engine, drafter)
    seed = new_seed(config)
    samples = [
        sample for n, prompt in enumerate(prompts) for sample in samples_of(engine, codec, prompt, config, seed, n)
    ]
    return _stream(engine, samples, drafter)


def _stream(engine: Engine, samples: Sequence[Sample], drafter: Engine | None) -> Iterator[Piece]:
    for first in range(0, len(samples), MAX_ROWS):
        batch = Batch(engine, drafter=drafter)
        together = samples[first : first + MAX_ROWS]
        batch.join([list(group) for _, group in itertools.groupby(together, lambda sample: sample.prompt_number)])
        while batch.samples:
            for _, piece in batch.step():
                if isinstance(piece, GPT2Error):
                    raise piece
                yield piece


def samples_of(
    engine: Engine, codec: Codec | None, prompt: Sequence[int], config: GenerationConfig, seed: int, number: int = 0
) -> list[Sample]:
    """The continuations of one prompt that are to be written, of which none has begun.

    Args:
        engine: what runs the network.
        codec: for text and stop strings; None gives tokens alone.
        prompt: token ids, at least one.
        config: what to generate.
        seed: what is drawn follows from it, from the sample's number and from the prompt alone.
        number: the prompt's number, for the pieces.
    """
    n_ctx, n_vocab = engine.config.n_ctx, engine.config.n_vocab
    return [
        Sample(number, n, prompt, config, codec, seed=seed, n_ctx=n_ctx, n_vocab=n_vocab)
        for n in range(config.num_samples)
    ]


def new_seed(config: GenerationConfig) -> int:
    """The seed that is asked for, or one that nobody can foresee."""
    return secrets.randbits(63) if config.seed is None else config.seed


def check_prompts(
    engine: Engine, codec: Codec | None, prompts: Sequence[Sequence[int]], config: GenerationConfig
) -> None:
    """Refuse prompts that the model cannot be given, and what needs a codec where there is none; see `generate`."""
    if config.stop and codec is None:
        raise PromptError("stop: expected a model with a codec, got one without")
    n_ctx, n_vocab = engine.config.n_ctx, engine.config.n_vocab
    for prompt in prompts:
        if not len(prompt):
            raise PromptError("prompt: expected at least one token, got none; leave it out for unconditional text")
        bad = next((token for token in prompt if not 0 <= token < n_vocab), None)
        if bad is not None:
            raise PromptError(f"prompt: expected tokens from 0 to {n_vocab - 1}, got {bad}")
        if config.context == "error" and len(prompt) + config.max_tokens > n_ctx:
            raise ContextLengthError(
                f"prompt: expected at most {n_ctx} tokens (n_ctx) together with max_tokens, "
                f"got {len(prompt)} + {config.max_tokens}"
            )
        if config.echo and config.logprobs is not None and len(prompt) > n_ctx:
            raise ContextLengthError(
                f"prompt: expected at most {n_ctx} tokens (n_ctx) where its log-probabilities are asked for, "
                f"got {len(prompt)}"
            )
