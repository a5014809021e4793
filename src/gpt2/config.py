"""Settings as frozen dataclasses, checked when they are made.

`GPT2Config` is a network's shape, `SIZES` are the four released ones, `SamplingConfig` says how the next token is
chosen and `TrainingConfig` how a network is trained. Nothing here reads files or imports TensorFlow.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from gpt2.errors import ConfigError


def _check(holds: bool, name: str, expected: str, value: object) -> None:
    """Raise a `ConfigError` that names the setting unless `holds`."""
    if not holds:
        raise ConfigError(f"{name}: expected {expected}, got {value!r}")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


LAYER_NORM_EPSILON = 1e-5
"""In every GPT-2."""


@dataclass(frozen=True)
class GPT2Config:
    """The shape of one GPT-2 network. The keys are those of OpenAI's `hparams.json`.

    Everything that is not here is the same in every GPT-2: layer norm epsilon 1e-5, GELU in its tanh form, a hidden
    layer of 4 * n_embd in the MLP, and a head tied to the token embedding.
    """

    n_vocab: int = 50257
    """How many tokens the vocabulary has."""
    n_ctx: int = 1024
    """How many positions the network can see at once."""
    n_embd: int = 768
    """The width of the residual stream (C)."""
    n_head: int = 12
    """Attention heads in each layer; n_embd must be a multiple of it."""
    n_layer: int = 12
    """How many blocks are stacked."""

    def __post_init__(self) -> None:
        for name, limit in _CONFIG_LIMITS.items():
            value = getattr(self, name)
            _check(_is_int(value) and 1 <= value <= limit, name, f"an integer from 1 to {limit:,}", value)
        _check(self.n_embd % self.n_head == 0, "n_embd", f"a multiple of n_head ({self.n_head})", self.n_embd)

    @property
    def head_size(self) -> int:
        """The width of one attention head (D)."""
        return self.n_embd // self.n_head

    @property
    def num_parameters(self) -> int:
        """How many numbers the network learns, the tied head counted once."""
        c = self.n_embd
        return (self.n_vocab + self.n_ctx) * c + self.n_layer * (12 * c * c + 13 * c) + 2 * c

    def to_dict(self) -> dict[str, int]:
        """The five settings under the names of `hparams.json`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, source: str = "hparams.json") -> GPT2Config:
        """Make a config from all five keys of `hparams.json`; `source` names the file in errors."""
        if not isinstance(values, Mapping):
            raise ConfigError(f"{source}: expected an object with the keys {', '.join(_CONFIG_LIMITS)}, got {values!r}")
        missing = [name for name in _CONFIG_LIMITS if name not in values]
        if missing:
            raise ConfigError(f"{source}: expected the keys {', '.join(_CONFIG_LIMITS)}; missing {', '.join(missing)}")
        try:
            return cls(**{name: values[name] for name in _CONFIG_LIMITS})
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from None


# Generous bounds that keep a hostile config from asking for petabytes.
_CONFIG_LIMITS = {"n_vocab": 10_000_000, "n_ctx": 1_000_000, "n_embd": 100_000, "n_head": 1_000, "n_layer": 1_000}

SIZES: Mapping[str, GPT2Config] = {
    "124M": GPT2Config(n_embd=768, n_head=12, n_layer=12),
    "355M": GPT2Config(n_embd=1024, n_head=16, n_layer=24),
    "774M": GPT2Config(n_embd=1280, n_head=20, n_layer=36),
    "1558M": GPT2Config(n_embd=1600, n_head=25, n_layer=48),
}
"""The four released sizes (Radford et al. 2019, table 2, with the parameters counted right)."""

SIZE_ALIASES: Mapping[str, str] = {
    **{"117M": "124M", "345M": "355M", "762M": "774M", "1542M": "1558M"},  # as the paper counted them
    **{"small": "124M", "medium": "355M", "large": "774M", "xl": "1558M"},
    **{"gpt2": "124M", "gpt2-medium": "355M", "gpt2-large": "774M", "gpt2-xl": "1558M"},  # Hugging Face's names
}


def size_name(name: str) -> str:
    """The canonical name of a released size: `"small"` -> `"124M"`.

    Raises:
        ConfigError: there is no such size.
    """
    canonical = SIZE_ALIASES.get(name, name)
    if canonical not in SIZES:
        known = ", ".join([*SIZES, *SIZE_ALIASES])
        raise ConfigError(f"size: expected one of {known}, got {name!r}")
    return canonical


def shape_of(size: str | None = None, **changes: int | None) -> GPT2Config:
    """The shape of a released size, or of the smallest one for None, with some of its settings changed.

    Args:
        size: a name that `size_name` knows.
        changes: settings of `GPT2Config`; None leaves them as they are.

    Raises:
        ConfigError: no such size, or a bad value.
    """
    base = GPT2Config() if size is None else SIZES[size_name(size)]
    return dataclasses.replace(base, **{name: value for name, value in changes.items() if value is not None})


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is chosen from the logits.

    The order is fixed: logit bias and minimum length, penalties, temperature, top-k, top-p, min-p, typical-p.
    """

    temperature: float = 1.0
    """Logits are divided by it; 0 takes the most probable token every time (greedy)."""
    top_k: int = 0
    """Only the k most probable tokens are kept; 0 keeps all."""
    top_p: float = 1.0
    """Only the smallest set of most probable tokens whose probabilities reach p is kept (Holtzman et al. 2020)."""
    min_p: float = 0.0
    """Only tokens at least this times as probable as the most probable one are kept (Nguyen et al. 2024)."""
    typical_p: float = 1.0
    """Only the tokens closest to the expected surprisal are kept, until they reach p (Meister et al. 2023)."""
    repetition_penalty: float = 1.0
    """Logits of tokens already in the text are divided (positive) or multiplied (negative) by it (Keskar et al.)."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit for each time that it was generated (OpenAI's API)."""
    presence_penalty: float = 0.0
    """Subtracted from a token's logit once it has been generated at all (OpenAI's API)."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of these tokens, from -100 (never) to 100 (always)."""
    min_tokens: int = 0
    """The end-of-text token is not chosen before this many tokens were generated."""

    def __post_init__(self) -> None:
        for name, (low, high) in _SAMPLING_BOUNDS.items():
            value = getattr(self, name)
            _check(_is_number(value) and low <= value <= high, name, f"a number from {low:g} to {high:g}", value)
        _check(self.top_p > 0, "top_p", "a number above 0, up to 1", self.top_p)
        _check(self.typical_p > 0, "typical_p", "a number above 0, up to 1", self.typical_p)
        _check(self.repetition_penalty > 0, "repetition_penalty", "a number above 0", self.repetition_penalty)
        for name in ("top_k", "min_tokens"):
            value = getattr(self, name)
            _check(_is_int(value) and value >= 0, name, "an integer of 0 or more", value)
        _check(isinstance(self.logit_bias, Mapping), "logit_bias", "a mapping of token to number", self.logit_bias)
        for token, bias in self.logit_bias.items():
            _check(_is_int(token) and token >= 0, "logit_bias", "token ids as keys", token)
            _check(_is_number(bias) and -100 <= bias <= 100, "logit_bias", "values from -100 to 100", bias)


_SAMPLING_BOUNDS: Mapping[str, tuple[float, float]] = {
    "temperature": (0, 100),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "typical_p": (0, 1),
    "repetition_penalty": (0, 100),
    "frequency_penalty": (-2, 2),
    "presence_penalty": (-2, 2),
}


@dataclass(frozen=True)
class GenerationConfig:
    """What is generated from a prompt, besides how each token is chosen (`SamplingConfig`)."""

    max_tokens: int = 128
    """At most this many tokens are generated for each sample."""
    num_samples: int = 1
    """How many continuations of each prompt."""
    num_beams: int = 1
    """Above 1, beam search with this many beams instead of sampling; the `num_samples` best are given."""
    length_penalty: float = 1.0
    """Beams are ranked by their log-probability divided by length ** length_penalty."""
    stop: tuple[str, ...] = ()
    """Generation ends where the text contains one of these; it is not part of the text."""
    seed: int | None = None
    """The seed of the sampling; None takes a new one every time."""
    logprobs: int | None = None
    """Log-probabilities of the chosen tokens and of this many most probable ones; None gives none."""
    echo: bool = False
    """The prompt is part of the text, of the tokens and of the log-probabilities."""
    context: str = "slide"
    """Past n_ctx tokens: `slide` drops the oldest half of the window, `error` refuses such a request beforehand."""
    regex: str | None = None
    """A regular expression that the whole continuation matches, in the syntax of Rust's `regex`."""
    json_schema: str | None = None
    """Or a JSON schema that it fits, as text (in options also as a dict)."""
    drafts: bool = True
    """Where the text repeats itself, check several guessed tokens at once; it changes the time and nothing else."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How each token is chosen."""

    def __post_init__(self) -> None:
        for name, low in (("max_tokens", 0), ("num_samples", 1), ("num_beams", 1)):
            value = getattr(self, name)
            _check(_is_int(value) and low <= value <= 2**31, name, f"an integer of {low} or more", value)
        if self.num_beams > 1:
            _check(self.num_samples <= self.num_beams, "num_samples", "at most num_beams", self.num_samples)
        _check(_is_number(self.length_penalty), "length_penalty", "a number", self.length_penalty)
        stop = self.stop
        _check(isinstance(stop, tuple) and all(isinstance(s, str) and s for s in stop), "stop", "strings", stop)
        _check(self.seed is None or _is_int(self.seed), "seed", "an integer or None", self.seed)
        logprobs = self.logprobs
        _check(logprobs is None or (_is_int(logprobs) and logprobs >= 0), "logprobs", "None or 0 or more", logprobs)
        _check(isinstance(self.echo, bool), "echo", "true or false", self.echo)
        _check(isinstance(self.drafts, bool), "drafts", "true or false", self.drafts)
        for name in ("regex", "json_schema"):
            value = getattr(self, name)
            _check(value is None or isinstance(value, str), name, "text or None", value)
            _check(value is None or self.num_beams == 1, name, "None with beams", value)
        _check(self.regex is None or self.json_schema is None, "json_schema", "None with regex", self.json_schema)
        _check(self.context in ("slide", "error"), "context", "'slide' or 'error'", self.context)

    @classmethod
    def from_options(cls, **options: Any) -> GenerationConfig:
        """Make one from the names of both classes, all in one row: `from_options(max_tokens=20, top_k=40)`.

        Raises:
            ConfigError: a name that neither class has, or a bad value.
        """
        sampling_names = {f.name for f in dataclasses.fields(SamplingConfig)}
        names = {f.name for f in dataclasses.fields(cls)} - {"sampling"}
        unknown = sorted(set(options) - sampling_names - names)
        if unknown:
            known = ", ".join(sorted(sampling_names | names))
            raise ConfigError(f"{unknown[0]}: no such option; expected some of {known}")
        if isinstance(options.get("stop"), str):
            options["stop"] = (options["stop"],)
        elif isinstance(options.get("stop"), (list, type(None))) and "stop" in options:
            options["stop"] = tuple(options["stop"] or ())
        if isinstance(options.get("json_schema"), dict):
            options["json_schema"] = json.dumps(options["json_schema"])
        sampling = SamplingConfig(**{name: options.pop(name) for name in sampling_names & set(options)})
        return cls(sampling=sampling, **options)


SCHEDULES = ("cosine", "linear", "constant", "inverse_sqrt")
LORA_TARGETS = ("attn/c_attn", "attn/c_proj", "mlp/c_fc", "mlp/c_proj")
"""The matrices of each block that an adapter can be put beside."""


@dataclass(frozen=True)
class TrainingConfig:
    """How a network is trained. One step reads `accumulation_steps * batch_size * sequence_length` tokens."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid", "strict": True}  # for servers that check by pydantic

    steps: int = 1000
    """How many times the weights are updated."""
    batch_size: int = 8
    """Sequences that are computed at once (B), on all devices together."""
    accumulation_steps: int = 1
    """Batches whose gradients are summed for one update."""
    sequence_length: int | None = None
    """Tokens of one sequence (T); None takes the network's n_ctx."""
    learning_rate: float | None = None
    """The highest learning rate, reached after the warm-up; None takes 6e-4 for a new network, 1e-4 for fine-tuning
    and 1e-3 for an adapter."""
    schedule: str = "cosine"
    """How the learning rate falls after the warm-up: `cosine`, `linear`, `constant` or `inverse_sqrt`."""
    final_learning_rate: float = 0.1
    """Where `cosine` and `linear` end, as a share of `learning_rate`."""
    warmup_steps: int = 100
    """Steps in which the learning rate rises in a straight line; at most a tenth of all steps are used for it."""
    weight_decay: float = 0.1
    """Decoupled weight decay (Loshchilov and Hutter 2019), on matrices and embeddings alone."""
    beta_1: float = 0.9
    """Adam's decay of the mean of the gradients."""
    beta_2: float = 0.95
    """Adam's decay of the mean of the squared gradients."""
    gradient_clip: float = 1.0
    """The gradients together are scaled down to this norm."""
    dropout: float = 0.0
    """The share of activations dropped in training (the original used 0.1)."""
    precision: str = "float32"
    """`float32`, or `bfloat16`: products in bfloat16, weights and sums in float32."""
    gradient_checkpointing: bool = False
    """Keep only each block's input and compute the block again for its gradient: less memory, a quarter more time."""
    cross_documents: bool = True
    """Whether a token may attend to the documents before its own in the same sequence."""
    trainable: tuple[str, ...] = ()
    """Which parameters change: patterns such as `h11/*` or `*/ln_?/*` of canonical names; empty for all."""
    lora_rank: int | None = None
    """Train low-rank adapters of this rank (Hu et al. 2021) instead of the parameters; they are merged when saved."""
    lora_alpha: float | None = None
    """The adapters' output is scaled by lora_alpha / lora_rank; None takes twice the rank."""
    lora_targets: tuple[str, ...] = LORA_TARGETS
    """Which matrices of each block get an adapter."""
    eval_every: int = 100
    """Steps between two entries of the log, with a look at the held-out text."""
    eval_batches: int = 16
    """Batches of held-out text in one look."""
    patience: int | None = None
    """Stop after this many looks without a better held-out loss; None never does."""
    save_every: int | None = None
    """Steps between two checkpoints of a run; None takes `eval_every`."""
    keep_last: int = 2
    """Checkpoints of a run that are kept, besides the best one."""
    sample_prompts: tuple[str, ...] = ()
    """Prompts that a run continues at each entry of its log, to show what the model has learnt."""
    sample_tokens: int = 64
    """Tokens of such a sample."""
    seed: int = 0
    """The seed of the initial weights, of the order of the batches, of the dropout and of the samples."""

    def __post_init__(self) -> None:
        for name in _TRAINING_COUNTS:
            value = getattr(self, name)
            _check(_is_int(value) and value >= 1, name, "an integer of 1 or more", value)
        for name in ("warmup_steps", "seed"):
            value = getattr(self, name)
            _check(_is_int(value) and 0 <= value < 2**31, name, "an integer from 0 to below 2**31", value)
        for name in ("sequence_length", "lora_rank", "patience", "save_every"):
            value = getattr(self, name)
            _check(value is None or (_is_int(value) and value >= 1), name, "None or an integer of 1 or more", value)
        for name in ("learning_rate", "lora_alpha"):
            value = getattr(self, name)
            _check(value is None or (_is_number(value) and value > 0), name, "None or a number above 0", value)
        clip = self.gradient_clip
        _check(_is_number(clip) and clip > 0, "gradient_clip", "a number above 0", clip)
        for name in ("dropout", "beta_1", "beta_2"):
            value = getattr(self, name)
            _check(_is_number(value) and 0 <= value < 1, name, "a number from 0 to below 1", value)
        share = self.final_learning_rate
        _check(_is_number(share) and 0 <= share <= 1, "final_learning_rate", "a number from 0 to 1", share)
        _check(_is_number(self.weight_decay) and self.weight_decay >= 0, "weight_decay", "0 or more", self.weight_decay)
        _check(self.precision in ("float32", "bfloat16"), "precision", "'float32' or 'bfloat16'", self.precision)
        _check(self.schedule in SCHEDULES, "schedule", f"one of {', '.join(SCHEDULES)}", self.schedule)
        for name in ("gradient_checkpointing", "cross_documents"):
            _check(isinstance(getattr(self, name), bool), name, "true or false", getattr(self, name))
        for name in ("trainable", "lora_targets", "sample_prompts"):
            value = getattr(self, name)
            is_strings = isinstance(value, tuple) and all(isinstance(item, str) and item for item in value)
            _check(is_strings, name, "a tuple of strings", value)
        targets = self.lora_targets
        known = bool(targets) and set(targets) <= set(LORA_TARGETS)
        _check(known, "lora_targets", f"some of {', '.join(LORA_TARGETS)}", targets)
        both = self.lora_rank is not None and bool(self.trainable)
        _check(not both, "trainable", "nothing together with lora_rank", self.trainable)

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON has them."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> TrainingConfig:
        """The settings from JSON.

        Raises:
            ConfigError: a name that does not exist, or a bad value.
        """
        unknown = sorted(set(settings) - {f.name for f in dataclasses.fields(cls)})
        _check(not unknown, "training settings", "known names", unknown)
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in settings.items()}
        return cls(**values)


_TRAINING_COUNTS = (
    *("steps", "batch_size", "accumulation_steps"),
    *("eval_every", "eval_batches", "keep_last", "sample_tokens"),
)
