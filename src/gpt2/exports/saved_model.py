"""A TensorFlow SavedModel: network, text codec and generation in one folder, which needs nothing of this package.

It is loaded by `tf.saved_model.load` alone, and by TensorFlow Serving. Its signatures, with B rows of up to T tokens:

    logits        ids (B, T)                                      -> logits (B, T, V)
    score         ids (B, T), lengths (B,)                        -> log_probabilities (B, T - 1), totals (B,)
    generate_ids  ids (B, T), lengths (B,), and options           -> ids (B, max_tokens), lengths (B,)
    generate      prompts (B,) strings, and options               -> texts (B,) strings, ids, lengths
    encode        texts (B,) strings                              -> ids (B, T), lengths (B,)
    decode        ids (B, T), lengths (B,)                        -> texts (B,) strings

The options are scalars, all of them needed: max_tokens, top_k (0 keeps all) and seed (int32), temperature (0 is
greedy) and top_p (above 0; 1 keeps all) (float32); what `SamplingConfig` refuses is refused. All integers are int32;
rows end where `lengths` says. Without a vocabulary `generate` is `generate_ids`, and there is neither `encode` nor
`decode`.

The forward pass is that of `gpt2.model`, with its key/value cache inside a TensorFlow loop. There is no sliding window:
prompt and max_tokens together fit n_ctx, or the call fails. Strings are cut and merged by TensorFlow's own operations
(`gpt2.exports.string_codec`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from gpt2.checkpoints.names import Tensors
from gpt2.codec import Codec
from gpt2.config import GPT2Config
from gpt2.exports.string_codec import StringCodec
from gpt2.model import GPT2

MARK = "saved_model.pb"
FILES = (MARK, "fingerprint.pb", "variables", "assets", "assets.extra")

_OPTIONS = {
    "max_tokens": tf.TensorSpec((), tf.int32),
    "temperature": tf.TensorSpec((), tf.float32),
    "top_k": tf.TensorSpec((), tf.int32),
    "top_p": tf.TensorSpec((), tf.float32),
    "seed": tf.TensorSpec((), tf.int32),
}
_IDS = tf.TensorSpec((None, None), tf.int32, name="ids")
_LENGTHS = tf.TensorSpec((None,), tf.int32, name="lengths")
_TEXTS = tf.TensorSpec((None,), tf.string)


def write(folder: Path, config: GPT2Config, tensors: Tensors, codec: Codec | None, dtype: str) -> None:
    """Fill an empty folder.

    Args:
        folder: the folder; for TensorFlow Serving it is named by a number, its version.
        config: the shape.
        tensors: all of them under canonical names.
        codec: the vocabulary, or None for a model of ids alone.
        dtype: float32.

    Raises:
        OSError: the disk is full or has failed.
    """
    network = GPT2(config, initialize=False)
    network.set_tensors(tensors)
    write_network(folder, network, codec)


def write_network(folder: Path, network: GPT2, codec: Codec | None) -> None:
    """As `write`, for a network that is in memory already; it is not copied."""
    saved = tf.Module(name="gpt2")
    # TensorFlow saves what it finds as an attribute; it looks for its own variables, which Keras wraps.
    saved.weights = [variable.value for variable in network.tensors().values()]
    graphs = Graphs(network, codec).functions
    signatures = {name: graph.get_concrete_function() for name, graph in graphs.items()}
    try:
        tf.saved_model.save(saved, str(folder), signatures)
    except tf.errors.OpError as error:  # a full disk, for one
        raise OSError(" ".join(error.message.split())[:500]) from None
    extra = folder / "assets.extra"  # TensorFlow Serving's place for what it does not read itself
    extra.mkdir()
    (extra / "hparams.json").write_text(json.dumps(network.config.to_dict(), indent=2) + "\n", encoding="utf-8")
    if codec is not None:
        for name, data in codec.files("openai").items():
            (extra / name).write_bytes(data)


class Graphs:
    """A function for each signature; they call each other, so that the network is traced three times and not six."""

    def __init__(self, network: GPT2, codec: Codec | None) -> None:
        self._network = network
        self.n_ctx, self.n_vocab = network.config.n_ctx, network.config.n_vocab
        self.end_of_text = -1 if codec is None or codec.end_of_text is None else codec.end_of_text
        signatures: dict[str, tuple[Any, dict[str, tf.TensorSpec]]] = {
            "logits": (self._logits, {"ids": _IDS}),
            "score": (self._score, {"ids": _IDS, "lengths": _LENGTHS}),
            "generate_ids": (self._generate_ids, {"ids": _IDS, "lengths": _LENGTHS, **_OPTIONS}),
        }
        if codec is None:
            signatures["generate"] = signatures["generate_ids"]
        else:
            self._codec = StringCodec(codec)
            signatures |= {
                "generate": (self._generate, {"prompts": _TEXTS, **_OPTIONS}),
                "encode": (self._encode, {"texts": _TEXTS}),
                "decode": (self._decode, {"ids": _IDS, "lengths": _LENGTHS}),
            }
        self.functions = {name: _function(name, body, specs) for name, (body, specs) in signatures.items()}

    def _logits(self, ids: tf.Tensor) -> dict[str, tf.Tensor]:
        with tf.control_dependencies(self._checks(ids, tf.shape(ids)[1])):
            ids = tf.identity(ids)
        return {"logits": self._network(ids)}

    def _score(self, ids: tf.Tensor, lengths: tf.Tensor) -> dict[str, tf.Tensor]:
        """The log-probability of each token behind the first, 0 behind a row's end, and their sums."""
        ids = self._checked_rows(ids, lengths, tf.constant(0))
        logits = self.functions["logits"](ids)["logits"][:, :-1]
        targets = ids[:, 1:]
        chosen = -tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits)  # (B, T - 1)
        chosen = tf.where(tf.sequence_mask(lengths - 1, tf.shape(targets)[1]), chosen, 0.0)
        return {"log_probabilities": chosen, "totals": tf.reduce_sum(chosen, axis=1)}

    def _generate_ids(self, ids: tf.Tensor, lengths: tf.Tensor, **options: tf.Tensor) -> dict[str, tf.Tensor]:
        with tf.control_dependencies(_option_checks(options)):
            ids = self._checked_rows(ids, lengths, options["max_tokens"])
        found, count = self._continue(ids, lengths, options)
        return {"ids": found, "lengths": count}

    def _generate(self, prompts: tf.Tensor, **options: tf.Tensor) -> dict[str, tf.Tensor]:
        ids, lengths = self._codec.encode(prompts)
        found = self.functions["generate_ids"](ids, lengths, *(options[name] for name in _OPTIONS))
        # The text stops before <|endoftext|>, the ids behind it.
        ended = tf.reduce_any(found["ids"] == self.end_of_text, axis=1)
        return {"texts": self._codec.decode(found["ids"], found["lengths"] - tf.cast(ended, tf.int32)), **found}

    def _encode(self, texts: tf.Tensor) -> dict[str, tf.Tensor]:
        ids, lengths = self._codec.encode(texts)
        return {"ids": ids, "lengths": lengths}

    def _decode(self, ids: tf.Tensor, lengths: tf.Tensor) -> dict[str, tf.Tensor]:
        with tf.control_dependencies(self._checks(ids, tf.constant(0))):
            return {"texts": self._codec.decode(ids, lengths)}

    def _checks(self, ids: tf.Tensor, length: tf.Tensor) -> list[tf.Operation]:
        """What fails where ids are none of the vocabulary, or more than the context holds."""
        in_vocabulary = tf.reduce_all((ids >= 0) & (ids < self.n_vocab))
        return [
            tf.debugging.Assert(in_vocabulary, [f"ids: expected 0 to {self.n_vocab - 1}, got", ids], summarize=8),
            tf.debugging.Assert(length <= self.n_ctx, [f"expected at most {self.n_ctx} tokens in all, got", length]),
        ]

    def _checked_rows(self, ids: tf.Tensor, lengths: tf.Tensor, more: tf.Tensor) -> tf.Tensor:
        """The ids, 0 behind each row's end, of which nothing is looked at."""
        T = tf.shape(ids)[1]
        ids = tf.where(tf.sequence_mask(lengths, T), ids, 0)
        fits = tf.reduce_all((lengths >= 1) & (lengths <= T))
        checks = [
            *self._checks(ids, T + more),
            tf.debugging.Assert(fits, ["lengths: expected from 1 to the width of ids, got", lengths], summarize=8),
        ]
        with tf.control_dependencies(checks):
            return tf.identity(ids)

    def _continue(
        self, ids: tf.Tensor, lengths: tf.Tensor, options: Mapping[str, tf.Tensor]
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """New ids (B, max_tokens), `end_of_text` (or 0) behind a row's end, and how many there are in each row (B,)."""
        network = self._network
        max_tokens = tf.maximum(options["max_tokens"], 0)  # what is below has been refused
        B = tf.shape(ids)[0]
        hidden, present = network.hidden(ids)
        logits = network.head(tf.gather(hidden, lengths[:, None] - 1, batch_dims=1))[:, 0]  # (B, V)
        room = [[0, 0], [0, 0], [0, max_tokens], [0, 0]]
        # What a row has behind its own length is masked by it, and written over by its new tokens.
        caches = [tf.pad(part, room) for layer in present for part in layer]  # each (B, H, T + max_tokens, D)
        places = tf.range(max_tokens)[None]
        out = tf.fill((B, max_tokens), max(self.end_of_text, 0))

        def step(n: Any, logits: Any, done: Any, count: Any, out: Any, *caches: Any) -> tuple[Any, ...]:
            token = tf.where(done, max(self.end_of_text, 0), _choose(logits, n, options))  # (B,)
            count = count + tf.cast(~done, tf.int32)
            done = done | (token == self.end_of_text)
            used = lengths + n  # (B,): how long each row's cache is
            pairs = list(zip(caches[::2], caches[1::2], strict=True))
            hidden, present = network.hidden(token[:, None], pairs, used)
            new = [part for layer in present for part in layer]  # each (B, H, 1, D)
            caches = tuple(_put(cache, used, part) for cache, part in zip(caches, new, strict=True))
            return n + 1, network.head(hidden)[:, 0], done, count, tf.where(places == n, token[:, None], out), *caches

        def going_on(n: Any, logits: Any, done: Any, *_: Any) -> Any:
            return (n < max_tokens) & ~tf.reduce_all(done)

        shapes = [tf.TensorShape([None, cache.shape[1], None, cache.shape[3]]) for cache in caches]
        row = tf.TensorShape([None])
        _, _, _, count, out, *_ = tf.while_loop(
            going_on,
            step,
            (tf.constant(0), logits, tf.zeros(B, tf.bool), tf.zeros(B, tf.int32), out, *caches),
            shape_invariants=(
                *(tf.TensorShape([]), tf.TensorShape([None, self.n_vocab]), row, row, tf.TensorShape([None, None])),
                *shapes,
            ),
        )
        return out, count


def _option_checks(options: Mapping[str, tf.Tensor]) -> list[tf.Operation]:
    """What fails where an option is one that `SamplingConfig` refuses too; NaN is in no range."""
    max_tokens, temperature = options["max_tokens"], options["temperature"]
    top_k, top_p = options["top_k"], options["top_p"]
    is_warm = (temperature >= 0) & (temperature <= 100)
    return [
        tf.debugging.Assert(max_tokens >= 0, ["max_tokens: expected 0 or more, got", max_tokens]),
        tf.debugging.Assert(is_warm, ["temperature: expected a number from 0 to 100, got", temperature]),
        tf.debugging.Assert(top_k >= 0, ["top_k: expected 0 or more, got", top_k]),
        tf.debugging.Assert((top_p > 0) & (top_p <= 1), ["top_p: expected a number above 0, up to 1, got", top_p]),
    ]


def _put(cache: tf.Tensor, places: tf.Tensor, new: tf.Tensor) -> tf.Tensor:
    """The cache (B, H, P, D) with new keys or values (B, H, 1, D) at each row's own place (B,)."""
    is_place = tf.range(tf.shape(cache)[2])[None] == places[:, None]  # (B, P)
    return tf.where(is_place[:, None, :, None], new, cache)


def _choose(logits: tf.Tensor, n: tf.Tensor, options: Mapping[str, tf.Tensor]) -> tf.Tensor:
    """The next token of each row (B,) from logits (B, V): temperature, top-k, top-p, then a draw by Gumbel's trick.

    The n-th draw of a row depends on the seed, n and the row's number alone.
    """
    temperature, top_k, top_p = options["temperature"], options["top_k"], options["top_p"]
    V = tf.shape(logits)[1]

    def draw() -> tf.Tensor:
        # With the highest at 0, none that is kept falls below the others or out of float32's range.
        values = (logits - tf.reduce_max(logits, axis=1, keepdims=True)) / tf.maximum(temperature, 1e-30)
        values = tf.cond(top_k > 0, lambda: _keep_top_k(values, tf.minimum(top_k, V)), lambda: values)
        values = tf.cond(top_p < 1, lambda: _keep_top_p(values, top_p), lambda: values)
        tiny = tf.constant(1e-30)
        uniform = tf.random.stateless_uniform(tf.shape(values), tf.stack([options["seed"], n]), minval=tiny)
        return tf.argmax(values - tf.math.log(-tf.math.log(uniform)), axis=1, output_type=tf.int32)

    return tf.cond(temperature > 0, draw, lambda: tf.argmax(logits, axis=1, output_type=tf.int32))


def _keep_top_k(values: tf.Tensor, k: tf.Tensor) -> tf.Tensor:
    least = tf.math.top_k(values, k).values[:, -1:]
    return tf.where(values >= least, values, -float("inf"))


def _keep_top_p(values: tf.Tensor, p: tf.Tensor) -> tf.Tensor:
    """Keep the most probable tokens that together reach p, with the one that crosses it (Holtzman et al. 2020)."""
    ordered = tf.sort(values, axis=1, direction="DESCENDING")
    before = tf.cumsum(tf.nn.softmax(ordered), axis=1, exclusive=True)
    least = tf.reduce_min(tf.where(before < p, ordered, float("inf")), axis=1, keepdims=True)
    return tf.where(values >= least, values, -float("inf"))


def _function(name: str, body: Any, specs: Mapping[str, tf.TensorSpec]) -> Any:
    """A graph of `body` that takes its arguments by these names."""
    named = [tf.TensorSpec(spec.shape, spec.dtype, name=argument) for argument, spec in specs.items()]

    def call(*values: tf.Tensor) -> dict[str, tf.Tensor]:
        found: dict[str, tf.Tensor] = body(**dict(zip(specs, values, strict=True)))
        return found

    call.__name__ = name
    return tf.function(call, input_signature=named, autograph=False)
