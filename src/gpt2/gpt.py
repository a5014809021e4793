"""What a user holds: load a model, let it write, look at its parameters, train it, save it.

    model = load_model()                                  # the bundled one; or "124M", or a folder
    print(model.generate("Once upon a time")[0].text)
    save_model(model, "my-model", format="huggingface")

It puts the parts together and knows nothing of their insides: formats are `gpt2.checkpoints`, the network is
`gpt2.model`, the token loop `gpt2.generation`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpt2 import checkpoints, store
from gpt2.beams import beam_search
from gpt2.checkpoints.names import checked_values
from gpt2.codec import Codec, codec_for, fitting_default
from gpt2.config import SIZES, GenerationConfig, GPT2Config, TrainingConfig, size_name
from gpt2.data.text import read_tokens
from gpt2.engines.keras import KerasEngine
from gpt2.errors import CodecError, ConfigError, PromptError, TensorMismatchError
from gpt2.generation import Completion, Piece, check_prompts, generate, stream
from gpt2.model import GPT2
from gpt2.training import LogEntry, train

Prompt = str | Sequence[int] | None
"""Text, token ids, or None for unconditional text from `<|endoftext|>`."""


class Model:
    """A network with its codec, ready to be asked. Made by `load_model`, `new_model` or `train_model`."""

    def __init__(self, network: GPT2, codec: Codec | None, *, name: str) -> None:
        self.network = network
        self.codec = codec
        self.name = name
        self.engine = KerasEngine(network)

    def __repr__(self) -> str:
        return f"<Model {self.name!r}: {self.num_parameters:,} parameters, {self.config}>"

    # Parameters

    @property
    def config(self) -> GPT2Config:
        """The shape of the network."""
        return self.network.config

    @property
    def num_parameters(self) -> int:
        """How many numbers the network has learnt, the tied head counted once."""
        return self.config.num_parameters

    def parameters(self) -> dict[str, np.ndarray]:
        """Every parameter under its canonical name (`wte`, `h0/attn/c_attn/w`), as float32 copies."""
        return dict(self._stream_parameters())

    def set_parameters(self, values: Mapping[str, np.ndarray] | Iterable[tuple[str, np.ndarray]]) -> None:
        """Replace some parameters or all of them.

        Args:
            values: canonical name -> array of the parameter's shape, or such pairs.

        Raises:
            TensorMismatchError: a name that the network does not have, a wrong shape, or a number that is not finite.
                Parameters before it, in the order given, have been replaced.
        """
        variables = self.network.tensors()
        pairs = values.items() if isinstance(values, Mapping) else values
        for name, array in checked_values(pairs, source="set_parameters"):
            if name not in variables:
                raise TensorMismatchError(f"{name}: no such parameter; names are like wte or h0/attn/c_attn/w")
            shape = tuple(variables[name].shape)
            if array.shape != shape:
                raise TensorMismatchError(f"{name}: expected shape {list(shape)}, got {list(array.shape)}")
            variables[name].assign(array)

    def _stream_parameters(self) -> Iterator[tuple[str, np.ndarray]]:
        for name, variable in self.network.tensors().items():
            yield name, np.array(variable.numpy(), dtype=np.float32)

    # Asking

    def logits(self, ids: Sequence[Sequence[int]] | np.ndarray) -> np.ndarray:
        """Logits (B, T, V) float32 of the next token at every position, for token ids (B, T).

        Raises:
            PromptError: not two axes of ids from the vocabulary, or longer than n_ctx.
        """
        array = np.asarray(ids)
        if array.ndim != 2 or not array.size or not np.issubdtype(array.dtype, np.integer):
            raise PromptError(f"ids: expected integers of shape (B, T), got {array.dtype} of shape {array.shape}")
        if array.shape[1] > self.config.n_ctx:
            raise PromptError(f"ids: expected at most n_ctx = {self.config.n_ctx} positions, got {array.shape[1]}")
        if array.min() < 0 or array.max() >= self.config.n_vocab:
            raise PromptError(f"ids: expected 0 to {self.config.n_vocab - 1}, got {array.min()} to {array.max()}")
        return self.engine.logits(array)

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
            return generate(self.engine, self.codec, prompts, config)
        check_prompts(self.engine, prompts, config)
        return [
            completion
            for number, tokens in enumerate(prompts)
            for completion in beam_search(self.engine, self.codec, tokens, config, number)
        ]

    def stream(self, prompt: Prompt | Sequence[str] = None, **options: Any) -> Iterator[Piece]:
        """As `generate`, but piece by piece, as tokens come."""
        return stream(self.engine, self.codec, self.prompt_tokens(prompt), GenerationConfig.from_options(**options))

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


def load_model(name_or_path: str | os.PathLike[str] | None = None) -> Model:
    """Load a model.

    Args:
        name_or_path: None for the bundled model, the name of one in the store (`124M`; see `gpt2 models list`), or a
            folder in the native, Hugging Face or OpenAI format.

    Raises:
        ModelNameError: the store has no such model.
        CheckpointError: the folder cannot be read; nothing is ever left at random weights.
    """
    path = store.resolve(name_or_path)
    config, tensors = checkpoints.read(path)
    network = GPT2(config, initialize=False)
    variables = network.tensors()
    for name, array in tensors:
        variables[name].assign(array)
    return Model(
        network, codec_for(path, config.n_vocab), name=store.BUNDLED if name_or_path is None else str(name_or_path)
    )


def new_model(config: GPT2Config | str, *, seed: int = 0, codec: Codec | None = None, name: str = "new") -> Model:
    """A model with random weights, as GPT-2 begins its training.

    Args:
        config: a shape, or the name of a released size.
        seed: of the weights.
        codec: None takes GPT-2's own vocabulary where it fits.
        name: what it is called.
    """
    import keras

    config = SIZES[size_name(config)] if isinstance(config, str) else config
    keras.utils.set_random_seed(seed)
    return Model(GPT2(config), codec or fitting_default(config.n_vocab), name=name)


def save_model(model: Model, path: str | os.PathLike[str], format: str = "native", *, dtype: str = "float32") -> Path:
    """Save a model as a folder, atomically: killed at any moment it leaves the old one or the new one.

    Args:
        model: what to save.
        path: the folder; a model that is already there is replaced, anything else is refused.
        format: `native`, `huggingface` or `openai`.
        dtype: `float32`, or `float16` for half the size (native and huggingface).

    Returns:
        The folder.

    Raises:
        CheckpointError: it cannot be written; what was there before is untouched.
    """
    target = Path(path)
    checkpoints.write(target, model.config, model._stream_parameters(), format=format, codec=model.codec, dtype=dtype)
    return target


def train_model(
    data: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | np.ndarray,
    *,
    model: Model | str | None = None,
    config: GPT2Config | str | None = None,
    valid_data: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | np.ndarray | None = None,
    training: TrainingConfig | None = None,
    on_log: Callable[[LogEntry], None] | None = None,
) -> Model:
    """Train a model from scratch, or fine-tune one; the model that is given stays as it is.

    Args:
        data: text files or folders of them (UTF-8; each file is a document), or tokens (N,).
        model: what to fine-tune: a model, or a name or path for `load_model`.
        config: instead of `model`, the shape of a new network, or the name of a released size.
        valid_data: held-out text, as `data`.
        training: how; None takes the defaults.
        on_log: called with each `LogEntry`.

    Returns:
        The trained model. Training in bfloat16 keeps float32 weights, so it is a float32 model in any case.

    Raises:
        ConfigError: both or neither of `model` and `config`.
        TrainingError: the text cannot be used, or the loss is no longer a number.
    """
    if (model is None) == (config is None):
        raise ConfigError("train_model: expected one of model (to fine-tune) and config (to begin anew)")
    training = training or TrainingConfig()
    if model is None:
        assert config is not None
        base = new_model(config, seed=training.seed, name="trained")
    else:
        base = load_model(model) if isinstance(model, (str, os.PathLike)) else model
    policy = "mixed_bfloat16" if training.precision == "bfloat16" else "float32"
    network = GPT2(base.config, dropout=training.dropout, dtype=policy, initialize=False)
    _copy_weights(base.network, network)
    tokens = _tokens(data, base.codec)
    valid_tokens = None if valid_data is None else _tokens(valid_data, base.codec)
    train(network, tokens, training, valid_tokens=valid_tokens, on_log=on_log)
    trained = GPT2(base.config, initialize=False)
    _copy_weights(network, trained)
    return Model(trained, base.codec, name=f"{base.name}-tuned" if model is not None else base.name)


def _copy_weights(source: GPT2, target: GPT2) -> None:
    variables = source.tensors()
    for name, variable in target.tensors().items():
        variable.assign(variables[name])


def _tokens(data: Any, codec: Codec | None) -> np.ndarray:
    if isinstance(data, np.ndarray):
        return data
    if codec is None:
        raise CodecError("training data: expected tokens, since this model has no vocabulary; got text files")
    return read_tokens([Path(data)] if isinstance(data, (str, os.PathLike)) else data, codec)
