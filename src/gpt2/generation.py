"""The one token loop: prompts in, text out, by any engine.

Sampling with stop strings, streaming, several samples and prompts at once, a sliding window past the context, and
log-probabilities. Beam search stands on it, in `gpt2.beams`. It knows nothing about networks or files. What a sample
gives depends on its prompt, the settings, the seed and its own number alone, not on what else is generated beside it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from gpt2.codec import Codec, StreamDecoder
from gpt2.config import GenerationConfig
from gpt2.constraints import Constraint
from gpt2.drafting import SIZES, Judge, Lookup
from gpt2.engines import Cache, Engine
from gpt2.errors import ContextLengthError, PromptError
from gpt2.sampling import log_softmax, sample, sample_rng, top_log_probabilities

MAX_ROWS = 16
"""Samples that are stepped together; more wait. It bounds the memory of the cache and changes no result."""

MAX_DRAFTED_ROWS = 4
"""Beside more rows no drafts are made: then a step's tokens are no longer nearly free."""

TopLogProbs = list[tuple[int, float]]
"""Tokens and their log-probabilities, the most probable first."""


@dataclass(frozen=True)
class Piece:
    """What one step adds to one sample."""

    prompt: int
    """Which of the prompts."""
    sample: int
    """Which continuation of that prompt."""
    text: str
    """New text, which may be empty: half a character and what may become a stop string are held back."""
    tokens: tuple[int, ...]
    """New tokens (with `echo` the first piece brings the prompt)."""
    log_probabilities: tuple[float | None, ...] | None
    """Their natural log-probabilities under the model itself, before temperature and filters, if asked for."""
    top_log_probabilities: tuple[TopLogProbs | None, ...] | None
    """The most probable tokens in their places, if asked for."""
    finish_reason: str | None
    """`stop` (end of text, or a stop string), `length` (max_tokens), or None while it goes on."""


@dataclass
class Completion:
    """One finished continuation."""

    prompt: int
    """Which of the prompts."""
    sample: int
    """Which continuation of that prompt."""
    text: str = ""
    """The text, without the stop string that ended it; with `echo` the prompt comes first."""
    tokens: list[int] = field(default_factory=list)
    """All tokens generated, those of a stop string too, but not a final `<|endoftext|>`."""
    log_probabilities: list[float | None] | None = None
    """For each token; None for the first token of an echoed prompt, which nothing precedes."""
    top_log_probabilities: list[TopLogProbs | None] | None = None
    """For each token."""
    finish_reason: str = "length"
    """`stop` or `length`."""
    prompt_tokens: int = 0
    """Tokens of the prompt."""

    def add(self, piece: Piece) -> None:
        """Take in the next piece."""
        self.text += piece.text
        self.tokens += piece.tokens
        if piece.log_probabilities is not None:
            self.log_probabilities = [*(self.log_probabilities or []), *piece.log_probabilities]
        if piece.top_log_probabilities is not None:
            self.top_log_probabilities = [*(self.top_log_probabilities or []), *piece.top_log_probabilities]
        self.finish_reason = piece.finish_reason or self.finish_reason


class StopMatcher:
    """Text in, text out up to the first stop string; never a part of one.

    The text ends where, read character by character, a stop string first becomes whole; of several that become whole
    at once the longest counts. So the result does not depend on how the text was cut into pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """What of the text so far can be shown now."""
        if self.stopped:
            return ""
        self._held += text
        found = [(at + len(stop), at) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            shown, self._held = self._held[: min(found)[1]], ""
            return shown
        keep = max((self._overlap(stop) for stop in self._stops), default=0)
        shown = self._held[: len(self._held) - keep]
        self._held = self._held[len(shown) :]
        return shown

    def flush(self) -> str:
        """What was held back and became no stop string."""
        shown, self._held = self._held, ""
        return shown

    def _overlap(self, stop: str) -> int:
        """How many characters at the end of the held text begin `stop`."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)


def generate(
    engine: Engine, codec: Codec | None, prompts: Sequence[Sequence[int]], config: GenerationConfig
) -> list[Completion]:
    """Continue each prompt `config.num_samples` times by sampling (or greedily, with temperature 0).

    Args:
        engine: what runs the network.
        codec: for text and stop strings; None gives tokens alone.
        prompts: token ids, at least one in each.
        config: what to generate.

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
    for piece in stream(engine, codec, prompts, config):
        completions[piece.prompt * config.num_samples + piece.sample].add(piece)
    return completions


def stream(
    engine: Engine, codec: Codec | None, prompts: Sequence[Sequence[int]], config: GenerationConfig
) -> Iterator[Piece]:
    """As `generate`, but piece by piece as tokens come; samples take turns. The arguments are checked at once."""
    if config.num_beams > 1:
        raise PromptError("num_beams: expected 1 where text is streamed: beam search knows its text only at the end")
    check_prompts(engine, prompts, config)
    if config.stop and codec is None:
        raise PromptError("stop: expected a model with a codec, got one without")
    seed = secrets.randbits(63) if config.seed is None else config.seed
    samples = [
        Sample(number, n, list(prompt), config, codec, seed, engine.config.n_vocab)
        for number, prompt in enumerate(prompts)
        for n in range(config.num_samples)
    ]
    return _stream_groups(engine, samples, config)


def check_prompts(engine: Engine, prompts: Sequence[Sequence[int]], config: GenerationConfig) -> None:
    """Refuse prompts that the model cannot be given; see `generate`."""
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


def constraint_of(config: GenerationConfig, codec: Codec | None, n_vocab: int) -> Constraint | None:
    """What a continuation may hold, anew for each; None where it may hold anything.

    Raises:
        ConfigError: the regular expression or the schema cannot be used.
        PromptError: there is no codec.
    """
    if config.regex is None and config.json_schema is None:
        return None
    if codec is None:
        raise PromptError("regex, json_schema: expected a model with a codec, got one without")
    return Constraint(codec, n_vocab, regex=config.regex, json_schema=config.json_schema)


class Sample:
    """One continuation on its way: given the logits of each next place, it chooses tokens and makes pieces of text."""

    def __init__(
        self,
        prompt_number: int,
        number: int,
        prompt: list[int],
        config: GenerationConfig,
        codec: Codec | None,
        seed: int,
        n_vocab: int,
    ) -> None:
        self.prompt_number, self.number, self.prompt = prompt_number, number, prompt
        self.tokens: list[int] = []
        self.finished = False
        self._config, self._codec = config, codec
        self._rng = sample_rng(seed, number)
        self._decoder = None if codec is None else StreamDecoder(codec)
        self._matcher = StopMatcher(config.stop)
        self._constraint = constraint_of(config, codec, n_vocab)

    def echo(self, logits: np.ndarray) -> Piece:
        """The prompt itself as a piece; logits (T, V) are those at its tokens, if log-probabilities are wanted."""
        text = "" if self._codec is None else self._codec.decode(self.prompt)
        chosen: list[float | None] = [None]
        top: list[TopLogProbs | None] = [None]
        if self._config.logprobs is not None:
            for row, token in zip(logits[:-1], self.prompt[1:], strict=True):
                chosen.append(float(log_softmax(row)[token]))
                top.append(top_log_probabilities(row, self._config.logprobs))
        return self._piece(text, self.prompt, chosen, top, None)

    def step(self, logits: np.ndarray) -> Piece:
        """Choose the next token."""
        end = None if self._codec is None else self._codec.end_of_text
        possible = logits if self._constraint is None else self._constraint.allow(logits)
        token = sample(
            possible, self._config.sampling, self._rng, context=self.prompt, generated=self.tokens, end_of_text=end
        )
        if token == end:
            return self._finish("stop", (), [], [])
        self.tokens.append(token)
        chosen: list[float | None] = []
        top: list[TopLogProbs | None] = []
        if self._config.logprobs is not None:
            chosen.append(float(log_softmax(logits)[token]))
            top.append(top_log_probabilities(logits, self._config.logprobs))
        text = "" if self._decoder is None else self._matcher.push(self._decoder.push(token))
        if self._matcher.stopped:
            self.finished = True
            return self._piece(text, [token], chosen, top, "stop")
        if self._constraint is not None:
            self._constraint.accept(token)
            if self._constraint.complete:
                return self._finish("stop", [token], chosen, top, text)
        if len(self.tokens) >= self._config.max_tokens:
            return self._finish("length", [token], chosen, top, text)
        return self._piece(text, [token], chosen, top, None)

    def _finish(
        self,
        reason: str,
        tokens: Sequence[int],
        chosen: Sequence[float | None],
        top: Sequence[TopLogProbs | None],
        text: str = "",
    ) -> Piece:
        """The last piece, with what the decoder and the matcher still hold."""
        self.finished = True
        if self._decoder is not None:
            text += self._matcher.push(self._decoder.flush())
        reason = "stop" if self._matcher.stopped else reason
        return self._piece(text + self._matcher.flush(), tokens, chosen, top, reason)

    def _piece(
        self,
        text: str,
        tokens: Sequence[int],
        chosen: Sequence[float | None],
        top: Sequence[TopLogProbs | None],
        reason: str | None,
    ) -> Piece:
        wanted = self._config.logprobs is not None
        return Piece(
            prompt=self.prompt_number,
            sample=self.number,
            text=text,
            tokens=tuple(tokens),
            log_probabilities=tuple(chosen) if wanted else None,
            top_log_probabilities=tuple(top) if wanted else None,
            finish_reason=reason,
        )


def _stream_groups(engine: Engine, samples: list[Sample], config: GenerationConfig) -> Iterator[Piece]:
    for first in range(0, len(samples), MAX_ROWS):
        yield from _stream_group(engine, samples[first : first + MAX_ROWS], config)


def _stream_group(engine: Engine, samples: list[Sample], config: GenerationConfig) -> Iterator[Piece]:
    """Step some samples together until all are finished."""
    cache, logits = _prefill(engine, samples, config)
    if config.echo:
        for entry, rows in zip(samples, logits, strict=True):
            yield entry.echo(rows)
    if config.max_tokens == 0:
        for entry in samples:
            entry.finished = True
            yield Piece(entry.prompt_number, entry.number, "", (), None, None, "length")
        return
    numbers = list(range(len(samples)))  # the sample in each row of the cache
    lookups = [Lookup(entry.prompt) for entry in samples] if config.drafts and engine.exact else []
    drafts: list[list[int]] = [[] for _ in samples]  # of each row: tokens that were fed behind the last certain one
    judge = Judge()
    while True:
        for row, number in enumerate(numbers):
            entry, draft = samples[number], drafts[row]
            if entry.finished:
                continue
            match = lookups[number].match if draft else 0
            for place, values in enumerate(logits[row][-len(draft) - 1 :]):
                yield entry.step(values)
                if entry.finished:
                    break
                if lookups:
                    lookups[number].add(entry.tokens[-1])
                if place == len(draft) or draft[place] != entry.tokens[-1]:
                    cache.truncate(row, int(cache.lengths[row]) - len(draft) + place)
                    judge.fared(match, len(draft), place)
                    break
        live = [row for row, number in enumerate(numbers) if not samples[number].finished]
        if not live:
            return
        if 2 * len(live) <= len(numbers):  # half of the rows are idle: go on without them
            cache, numbers = cache.select(live), [numbers[row] for row in live]
        fed, drafts = [], []
        for row, number in enumerate(numbers):
            entry = samples[number]
            ids = _next_ids(engine, cache, row, entry)
            drafts.append([])
            if lookups and len(live) <= MAX_DRAFTED_ROWS and len(ids) == 1:
                room = min(engine.config.n_ctx - int(cache.lengths[row]), config.max_tokens - len(entry.tokens)) - 1
                drafts[-1] = lookups[number].draft(judge.size(lookups[number].match, room))
            fed.append([*ids, *drafts[-1]])
        longest = max(map(len, drafts))
        started = time.perf_counter()
        logits = engine.feed(cache, fed, all_positions=longest > 0)
        if max(map(len, fed)) <= 1 + SIZES[-1]:  # a window that is read anew says nothing about what steps cost
            judge.took(time.perf_counter() - started, longest)


def _prefill(engine: Engine, samples: list[Sample], config: GenerationConfig) -> tuple[Cache, list[np.ndarray]]:
    """Feed the prompts, each once however many samples it has: a cache with a row for each sample, and its logits."""
    firsts = [entry for n, entry in enumerate(samples) if n == 0 or entry.prompt_number != samples[n - 1].prompt_number]
    cache = engine.new_cache(len(firsts))
    prompts = [entry.prompt[-engine.config.n_ctx :] for entry in firsts]
    logits = engine.feed(cache, prompts, all_positions=config.echo and config.logprobs is not None)
    row_of = {entry.prompt_number: row for row, entry in enumerate(firsts)}
    rows = [row_of[entry.prompt_number] for entry in samples]
    return (cache if rows == list(range(len(firsts))) else cache.select(rows)), [logits[row] for row in rows]


def _next_ids(engine: Engine, cache: Cache, row: int, entry: Sample) -> Sequence[int]:
    """What to feed a row: nothing if it is finished, its last token, or a fresh window where its context is full."""
    if entry.finished:
        return ()
    if cache.lengths[row] < engine.config.n_ctx:
        return entry.tokens[-1:]
    # Positions are absolute, so a cache cannot be shifted: the newer half of the window is read again from its start.
    cache.truncate(row, 0)
    return (entry.prompt + entry.tokens)[-max(1, engine.config.n_ctx // 2) :]
