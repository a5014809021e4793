"""Text that must fit a regular expression or a JSON schema: at each step, only tokens that can still lead there.

The automata are `llguidance`'s, which says for any place of a text which of the tokens may follow. What is left keeps
the model's proportions. A constraint makes text fit a form; it does not make it true. It knows nothing about sampling.
"""

from __future__ import annotations

import functools
import json
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from gpt2.codec import Codec
from gpt2.errors import ConfigError, GenerationError

_JSON = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""One way to write a value: a small model would else fill its tokens with blanks."""


class Constraint:
    """What one text may hold.

    Args:
        codec: the vocabulary, with `<|endoftext|>`, which ends a text that is complete.
        n_vocab: the length of the logits.
        regex: a regular expression that the whole text matches, in the syntax of Rust's `regex`.
        json_schema: or a JSON schema, as text.

    Raises:
        ConfigError: the expression or schema is wrong or uses what is not supported, or both or neither is given.
    """

    def __init__(self, codec: Codec, n_vocab: int, *, regex: str | None = None, json_schema: str | None = None) -> None:
        from llguidance import LLMatcher

        if (regex is None) == (json_schema is None):
            raise ConfigError("regex, json_schema: expected one of them")
        if codec.end_of_text is None:
            raise ConfigError("regex, json_schema: expected a vocabulary with <|endoftext|>, got one without")
        self._n_vocab, self._end = n_vocab, codec.end_of_text
        self._name = "regex" if json_schema is None else "json_schema"
        if json_schema is not None:
            try:
                grammar = LLMatcher.grammar_from_json_schema(json.loads(json_schema), overrides=_JSON)
            except ValueError as error:
                raise ConfigError(f"json_schema: expected a schema in JSON: {error}") from None
        else:
            grammar = LLMatcher.grammar_from_regex(regex or "")
        self._matcher = LLMatcher(_tokenizer(codec, n_vocab), grammar, log_level=0)
        if self._matcher.is_error():
            raise ConfigError(f"{self._name}: cannot be used: {self._matcher.get_error()}")
        self._bits = np.zeros(-(-n_vocab // 32), np.int32)
        self.complete = bool(self._matcher.is_stopped())
        """Whether nothing can follow but the end."""
        self._next: Future[None] | None = None  # the mask behind the text so far, on its way

    def allow(self, logits: np.ndarray) -> np.ndarray:
        """The logits (V,) with -inf for each token that may not follow.

        Raises:
            GenerationError: no token may.
            ConfigError: the constraint takes too much to follow.
        """
        if self._next is None:
            self._compute()
        else:
            self._next.result()
        allowed = np.unpackbits(self._bits.view(np.uint8), bitorder="little")[: self._n_vocab].view(bool)
        self._check()
        if not allowed.any():
            raise GenerationError("constraint: no token can follow: a dead end")
        return np.where(allowed, logits, logits.dtype.type(-np.inf))

    def accept(self, token: int) -> None:
        """The text goes on with a token that was allowed; `<|endoftext|>` ends it."""
        if token != self._end and not self._matcher.consume_token(token):
            self._check()
            raise GenerationError(f"constraint: token {token} was not allowed")
        self.complete = bool(self._matcher.is_stopped())
        self._next = None if self.complete else _beside().submit(self._compute)

    def _check(self) -> None:
        if self._matcher.is_error():  # one of llguidance's limits, which keep an expression from taking hours
            why = (self._matcher.get_error() or "").splitlines() or ["?"]
            raise ConfigError(f"{self._name}: takes too much to follow: {why[0]}")

    def _compute(self) -> None:
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)


@functools.lru_cache(maxsize=1)
def _beside() -> ThreadPoolExecutor:
    """A thread in which masks are made while the engine is at work."""
    return ThreadPoolExecutor(1, thread_name_prefix="gpt2-constraints")


@functools.lru_cache(maxsize=4)
def _tokenizer(codec: Codec, n_vocab: int) -> Any:
    """The vocabulary as llguidance has it; made once, since that takes some tenths of a second."""
    from llguidance import LLTokenizer

    return LLTokenizer.from_tiktoken(  # type: ignore[attr-defined]
        encoder=codec.ranks,
        special_tokens=codec.special_tokens,
        pattern=codec.pattern,
        eos_token=codec.end_of_text,
        n_vocab=n_vocab,
        slices=None,
    )
