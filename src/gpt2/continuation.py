"""A continuation on its way: given the logits of each next place it chooses tokens, and makes pieces of text of them.

It knows nothing about networks or files. What a sample gives depends on its prompt, the settings, the seed and its own
number alone, not on what else is written beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from gpt2.codec import Codec, StreamDecoder
from gpt2.config import GenerationConfig
from gpt2.constraints import Constraint
from gpt2.engines import kept_tokens
from gpt2.errors import PromptError
from gpt2.sampling import log_softmax, sample, sample_rng, top_log_probabilities

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
    end: tuple[float, TopLogProbs] | None = None
    """Where `<|endoftext|>` ended the text: its log-probability and the most probable tokens in its place, if asked
    for. It is no token of the text."""


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
    """One continuation.

    Args:
        prompt_number: which of the prompts it continues.
        number: which of the continuations of that prompt it is.
        prompt: token ids, at least one.
        config: what to generate.
        codec: for text and stop strings; None gives tokens alone.
        seed: what is drawn follows from it and from `number`.
        n_ctx: tokens that the network can see.
        n_vocab: the length of the logits.
    """

    def __init__(
        self,
        prompt_number: int,
        number: int,
        prompt: Sequence[int],
        config: GenerationConfig,
        codec: Codec | None,
        *,
        seed: int,
        n_ctx: int,
        n_vocab: int,
    ) -> None:
        self.prompt_number, self.number, self.prompt = prompt_number, number, list(prompt)
        self.config = config
        self.tokens: list[int] = []
        self.begun = False
        self.finished = False
        self._codec, self._n_ctx = codec, n_ctx
        self._start = max(0, len(self.prompt) - n_ctx)  # of what the network sees, in the prompt and the tokens
        self._rng = sample_rng(seed, number)
        self._decoder = None if codec is None else StreamDecoder(codec)
        self._matcher = StopMatcher(config.stop)
        self._constraint = constraint_of(config, codec, n_vocab)

    @property
    def window(self) -> list[int]:
        """What the network is to see: the prompt and what was chosen, or the newer part of it."""
        return (self.prompt + self.tokens)[self._start :]

    def slide(self) -> None:
        """The context is full: only the newer part of the window stays."""
        self._start = len(self.prompt) + len(self.tokens) - kept_tokens(self._n_ctx)

    @property
    def wants_prompt(self) -> bool:
        """Whether it is to be given the logits at every token of the prompt at first, not only at the last."""
        return not self.begun and self.config.echo and self.config.logprobs is not None

    def begin(self, logits: np.ndarray) -> list[Piece]:
        """What there is to say before the first token, given the logits (N, V) behind the prompt's tokens."""
        self.begun = True
        pieces = [self._echo(logits)] if self.config.echo else []
        if self.config.max_tokens == 0:
            self.finished = True
            pieces.append(self._piece("", (), (), (), "length"))
        return pieces

    def step(self, logits: np.ndarray) -> Piece:
        """Choose the next token."""
        end = None if self._codec is None else self._codec.end_of_text
        possible = logits if self._constraint is None else self._constraint.allow(logits)
        token = sample(
            possible, self.config.sampling, self._rng, context=self.prompt, generated=self.tokens, end_of_text=end
        )
        if token == end:
            last = self._finish("stop", (), [], [])
            if self.config.logprobs is None:
                return last
            ended = (float(log_softmax(logits)[token]), top_log_probabilities(logits, self.config.logprobs))
            return replace(last, end=ended)
        self.tokens.append(token)
        chosen: list[float | None] = []
        top: list[TopLogProbs | None] = []
        if self.config.logprobs is not None:
            chosen.append(float(log_softmax(logits)[token]))
            top.append(top_log_probabilities(logits, self.config.logprobs))
        text = "" if self._decoder is None else self._matcher.push(self._decoder.push(token))
        if self._matcher.stopped:
            self.finished = True
            return self._piece(text, [token], chosen, top, "stop")
        if self._constraint is not None:
            self._constraint.accept(token)
            if self._constraint.complete:
                return self._finish("stop", [token], chosen, top, text)
        if len(self.tokens) >= self.config.max_tokens:
            return self._finish("length", [token], chosen, top, text)
        return self._piece(text, [token], chosen, top, None)

    def _echo(self, logits: np.ndarray) -> Piece:
        """The prompt itself as a piece."""
        text = "" if self._codec is None else self._codec.decode(self.prompt)
        chosen: list[float | None] = [None]
        top: list[TopLogProbs | None] = [None]
        if self.config.logprobs is not None:
            for row, token in zip(logits[:-1], self.prompt[1:], strict=True):
                chosen.append(float(log_softmax(row)[token]))
                top.append(top_log_probabilities(row, self.config.logprobs))
        return self._piece(text, self.prompt, chosen, top, None)

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
        wanted = self.config.logprobs is not None
        return Piece(
            prompt=self.prompt_number,
            sample=self.number,
            text=text,
            tokens=tuple(tokens),
            log_probabilities=tuple(chosen) if wanted else None,
            top_log_probabilities=tuple(top) if wanted else None,
            finish_reason=reason,
        )
