"""A language model that can be asked: an engine, with the vocabulary that its tokens mean.

    model = open_model()                                   # the bundled one, by the fastest engine that is here
    print(model.generate("Once upon a time")[0].text)

This is for asking alone; for parameters, training and saving there is `gpt2.gpt`. It imports TensorFlow only where the
engine needs it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from gpt2 import checkpoints, store
from gpt2.beams import beam_search
from gpt2.codec import Codec
from gpt2.config import GenerationConfig, GPT2Config
from gpt2.continuation import Completion, Piece
from gpt2.drafting import check_drafter
from gpt2.engines import Engine
from gpt2.engines.registry import open_engine
from gpt2.errors import ConfigError, PromptError
from gpt2.generation import check_prompts, generate, stream

Prompt = str | Sequence[int] | None
"""Text, token ids, or None for unconditional text from `<|endoftext|>`."""


class LanguageModel:
    """An engine with its codec, ready to be asked.

    Args:
        engine: what runs the network.
        codec: what its tokens mean; None gives tokens alone.
        name: for people.
        drafter: runs a smaller model with the same vocabulary, whose guesses save time; see `gpt2.drafting`.
    """

    def __init__(self, engine: Engine, codec: Codec | None, *, name: str, drafter: Engine | None = None) -> None:
        self.engine = engine
        self.codec = codec
        self.name = name
        self.drafter = drafter

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}: {self.num_parameters:,} parameters, {self.config}>"

    @property
    def config(self) -> GPT2Config:
        """The shape of the network."""
        return self.engine.config

    @property
    def num_parameters(self) -> int:
        """How many numbers the network has learnt, the tied head counted once."""
        return self.config.num_parameters

    def logits(self, ids: Sequence[Sequence[int]] | np.ndarray) -> np.ndarray:
        """Logits (B, T, V) float32 of the next token at every position, for token ids (B, T).

        Raises:
            PromptError: not two axes of ids from the vocabulary, or longer than n_ctx.
        """
        return self.engine.logits(self.checked_ids(ids))

    def checked_ids(self, ids: Sequence[Sequence[int]] | np.ndarray) -> np.ndarray:
        """Token ids (B, T) as an array, if the network can be given them; else the error of `logits`."""
        array = np.asarray(ids)
        if array.ndim != 2 or not array.size or not np.issubdtype(array.dtype, np.integer):
            raise PromptError(f"ids: expected integers of shape (B, T), got {array.dtype} of shape {array.shape}")
        if array.shape[1] > self.config.n_ctx:
            raise PromptError(f"ids: expected at most n_ctx = {self.config.n_ctx} positions, got {array.shape[1]}")
        if array.min() < 0 or array.max() >= self.config.n_vocab:
            raise PromptError(f"ids: expected 0 to {self.config.n_vocab - 1}, got {array.min()} to {array.max()}")
        return array

    def generate(self, prompt: Prompt | Sequence[str] = None, **options: Any) -> list[Completion]:
        """Continue a prompt, or each of several.

        Args:
            prompt: text, a list of texts, token ids, or None for unconditional text.
            options: the fields of `GenerationConfig` and of `SamplingConfig`: max_tokens, num_samples, seed, stop,
                temperature, top_k, top_p, num_beams, logprobs, echo and so on.

        Returns:
            `num_samples` completions for each prompt, those of the first prompt first.

        Raises:
            ConfigError: an option that does not exist or is out of range.
            PromptError: a prompt that is empty, is too long, or does not fit the vocabulary.
        """
        config = GenerationConfig.from_options(**options)
        prompts = self.prompt_tokens(prompt)
        if config.num_beams == 1:
            return generate(self.engine, self.codec, prompts, config, drafter=self.drafter)
        check_prompts(self.engine, self.codec, prompts, config)
        return [
            completion
            for number, tokens in enumerate(prompts)
            for completion in beam_search(self.engine, self.codec, tokens, config, number)
        ]

    def stream(self, prompt: Prompt | Sequence[str] = None, **options: Any) -> Iterator[Piece]:
        """As `generate`, but piece by piece, as tokens come."""
        config = GenerationConfig.from_options(**options)
        return stream(self.engine, self.codec, self.prompt_tokens(prompt), config, drafter=self.drafter)

    def prompt_tokens(self, prompt: Prompt | Sequence[str]) -> list[list[int]]:
        """The token ids of each prompt in what `generate` accepts.

        Raises:
            PromptError: an empty prompt, or text (or None) for a model without a codec.
        """
        if prompt is None:
            if self.codec is None or self.codec.end_of_text is None:
                raise PromptError("prompt: expected one, since this model has no <|endoftext|> to begin from")
            return [[self.codec.end_of_text]]
        if isinstance(prompt, str):
            return [self._encode(prompt)]
        items: list[Any] = list(prompt) if isinstance(prompt, Iterable) else []
        if items and all(isinstance(item, str) for item in items):
            return [self._encode(text) for text in items]
        if not items or not all(isinstance(item, (int, np.integer)) and not isinstance(item, bool) for item in items):
            raise PromptError("prompt: expected text, a list of texts, token ids or None, got " + repr(prompt)[:80])
        return [[int(item) for item in items]]

    def _encode(self, text: str) -> list[int]:
        if self.codec is None:
            raise PromptError("prompt: expected token ids, since this model's folder has no vocabulary; got text")
        if not text:
            raise PromptError("prompt: expected text, got an empty one; leave it out for unconditional text")
        return self.codec.encode(text)


def open_model(
    name_or_path: str | os.PathLike[str] | None = None,
    *,
    engine: str = "auto",
    precision: str = "float32",
    draft_model: str | os.PathLike[str] | None = None,
    note: Callable[[str], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> LanguageModel:
    """Open a model to be asked, by the fastest engine.

    Args:
        name_or_path: as for `gpt2.gpt.load_model`; also a folder that `gpt2 convert --to litert` wrote.
        engine: `litert`, `keras`, or `auto` for the first of these that can be used here.
        precision: of the weights: `float32`, or with litert `int8` or `int4`.
        draft_model: a smaller model with the same vocabulary, named as `name_or_path`, which runs in int8 and guesses
            what comes next. It changes nothing but the time, and helps where the larger one is much slower and the
            smaller one often right. Without, guesses come from the text itself.
        note: told what a person might want to know, such as the engine that was chosen.
        progress: told how many of how many parameters are done while a model is built for the engine.

    Raises:
        ModelNameError: the store has no such model.
        ConfigError: no such engine or precision, or a `draft_model` for an engine that takes no drafts or with another
            vocabulary.
        CheckpointError: the folder cannot be read.
    """
    path = store.resolve(name_or_path)
    smaller = None if draft_model is None else store.resolve(draft_model)
    opened = open_engine(path, engine, precision, note=note, progress=progress)
    name = store.BUNDLED if name_or_path is None else str(name_or_path)
    drafter = None
    if smaller is not None:
        if not opened.exact:
            raise ConfigError(f"draft_model: expected the litert engine for the model itself, got {opened.name}")
        drafter = open_engine(smaller, "litert", "int8", note=note, progress=progress)
        check_drafter(opened, drafter)
    return LanguageModel(opened, checkpoints.codec_of(path, opened.config.n_vocab), name=name, drafter=drafter)
