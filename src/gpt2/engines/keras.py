"""The reference engine: the Keras network with a key/value cache in NumPy arrays.

It is written to be right and simple, not to be the fastest. One promise shapes it: a row's logits are the same bits
whatever its neighbours are. A prompt is therefore fed by itself, single tokens of many rows together, and wherever the
kernels below round differently for another number of rows, the number is kept the same (see `_step`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from gpt2.checkpoints.names import weights_sha256
from gpt2.config import GPT2Config
from gpt2.engines import Cache, Take, check_fed
from gpt2.model import GPT2, Tap
from gpt2.shared_memory import as_tensor, zeros

_HEAD_ROWS = 64  # positions whose logits `scan` makes at once


class KVCache:
    """For each layer the keys and the values of all rows, each (R, H, n_ctx, D) float32.

    R is the number of rows rounded up to a power of two, and at least 2: a step always runs over all of them, so a few
    sizes are compiled, and never one row alone, whose products round differently.
    """

    def __init__(self, config: GPT2Config, rows: int) -> None:
        self._empty(config, rows)

    def _empty(self, config: GPT2Config, rows: int) -> None:
        self.config = config
        self.lengths = np.zeros(rows, np.int32)
        self.capacity = max(2, 1 << max(0, rows - 1).bit_length())
        shape = (self.capacity, config.n_head, config.n_ctx, config.head_size)
        # Zeros, not whatever is in memory: unused positions get weight 0, and 0 * NaN would be NaN. Shared with the
        # backend, since copying a cache would double the time of a step.
        self.layers = [(zeros(shape), zeros(shape)) for _ in range(config.n_layer)]
        self.tensors = [(as_tensor(keys), as_tensor(values)) for keys, values in self.layers]

    def select(self, rows: Sequence[int]) -> KVCache:
        """A new cache with these rows, in this order."""
        chosen = KVCache(self.config, len(rows))
        for to, row in enumerate(rows):
            chosen._copy(to, self.lengths, self.layers, row)
        return chosen

    def extend(self, other: Cache) -> None:
        """Take over the rows of another cache, which has none then; all are copied."""
        assert isinstance(other, KVCache)
        parts = [(self.lengths, self.layers), (other.lengths, other.layers)]
        self._empty(self.config, sum(len(lengths) for lengths, _ in parts))
        places = [(lengths, layers, row) for lengths, layers in parts for row in range(len(lengths))]
        for to, place in enumerate(places):
            self._copy(to, *place)
        other._empty(other.config, 0)

    def _copy(self, to: int, lengths: np.ndarray, layers: Sequence[tuple[np.ndarray, np.ndarray]], row: int) -> None:
        n = self.lengths[to] = lengths[row]
        for mine, theirs in zip(self.layers, layers, strict=True):
            for target, source in zip(mine, theirs, strict=True):
                target[to, :, :n] = source[row, :, :n]

    def truncate(self, row: int, length: int) -> None:
        """Forget the tokens of one row from `length` on."""
        self.lengths[row] = min(length, self.lengths[row])

    def append(self, row: int, present: Sequence[tuple[np.ndarray, np.ndarray]], at: int) -> None:
        """Add new tokens to a row: those of row `at` of `present`, for each layer keys and values (B, H, T, D)."""
        first = self.lengths[row]
        last = first + present[0][0].shape[2]
        for (keys, values), (new_keys, new_values) in zip(self.layers, present, strict=True):
            keys[row, :, first:last] = new_keys[at]
            values[row, :, first:last] = new_values[at]
        self.lengths[row] = last


class KerasEngine:
    """Runs a `GPT2` network. Its float32 weights are used where they are, not copied.

    Args:
        network: what is run.
        tap: sees and may replace every activation (see `gpt2.model`); nothing is compiled then.
    """

    name = "keras"
    precision = "float32"
    exact = False
    max_rows = 16

    def __init__(self, network: GPT2, tap: Tap | None = None) -> None:
        self.network, self.tap = network, tap
        self.config = network.config
        # One graph for every length: graphs of fixed lengths are optimised differently, and round differently.
        ids, lengths = ((None, None), "int32"), ((None,), "int32")
        layer = ((None, self.config.n_head, self.config.n_ctx, self.config.head_size), "float32")
        past = [(layer, layer)] * self.config.n_layer
        compiled = _compiled if tap is None else _as_it_is
        self._prefill = compiled(self._prefill_graph, ids)
        self._continue = compiled(self._continue_graph, ids, past, lengths)
        self._step = compiled(self._step_graph)

    @property
    def weights_sha256(self) -> str:
        """Of the network's numbers as they are now; a second for each billion of them."""
        return weights_sha256(self.network.arrays())

    def new_cache(self, rows: int, *, keep: bool = True) -> KVCache:
        """An empty cache of `rows` rows, which never outlives them."""
        return KVCache(self.config, rows)

    def feed(self, cache: Cache, ids: Sequence[Sequence[int]], *, all_positions: bool = False) -> list[np.ndarray]:
        """Add tokens to rows of a cache and give the logits of what follows; see `Engine.feed`.

        Raises:
            PromptError: a token that is not in the vocabulary, or not one row of tokens for each row of the cache.
            ContextLengthError: a row would grow past n_ctx.
        """
        assert isinstance(cache, KVCache)
        check_fed(self.config, cache.lengths.tolist(), ids)
        logits = [np.zeros((0, self.config.n_vocab), np.float32)] * len(ids)
        single = [row for row, tokens in enumerate(ids) if len(tokens) == 1 and cache.lengths[row]]
        if single:
            for row, values in zip(single, self._feed_single(cache, single, ids), strict=True):
                logits[row] = values
        for row, tokens in enumerate(ids):
            if len(tokens) and row not in single:
                logits[row] = self._feed_row(cache, row, tokens, all_positions)
        return logits

    def scan(self, cache: Cache, ids: Sequence[Sequence[int]], wanted: Sequence[np.ndarray], take: Take) -> None:
        """Add tokens to rows of a cache and show the logits behind chosen ones of them; see `Engine.scan`.

        Raises:
            PromptError: a token that is not in the vocabulary, or not one row of tokens for each row of the cache.
            ContextLengthError: a row would grow past n_ctx.
        """
        assert isinstance(cache, KVCache)
        check_fed(self.config, cache.lengths.tolist(), ids)
        for row, (tokens, places) in enumerate(zip(ids, wanted, strict=True)):
            if not len(tokens):
                continue
            hidden = self._hidden_row(cache, row, tokens)[0]  # (T, C)
            for n in range(0, len(places), _HEAD_ROWS):
                numbers = places[n : n + _HEAD_ROWS]
                logits = _array(self.network.head(ops.take(hidden, numbers, axis=0)[None]))[0]
                take(np.full(len(numbers), row), numbers, logits)

    def logits(self, ids: np.ndarray) -> np.ndarray:
        """Logits (B, T, V) float32 of ids (B, T), without a cache."""
        hidden, _ = self._prefill(ops.convert_to_tensor(ids, dtype="int32"))
        return _array(self.network.head(hidden))

    def _feed_row(self, cache: KVCache, row: int, tokens: Sequence[int], all_positions: bool) -> np.ndarray:
        """Any number of tokens for one row by itself."""
        hidden = self._hidden_row(cache, row, tokens)
        # The head over one position and over all of them rounds differently, so the last one is always done alone.
        last = _array(self.network.head(hidden[:, -1:]))[0]  # (1, V)
        if not all_positions or len(tokens) == 1:
            return last
        return np.concatenate([_array(self.network.head(hidden[:, :-1]))[0], last])

    def _hidden_row(self, cache: KVCache, row: int, tokens: Sequence[int]) -> Any:
        """Final hidden states (1, T, C) of new tokens of one row, whose keys and values the cache then has."""
        ids = ops.convert_to_tensor(np.array([tokens], np.int32))
        if cache.lengths[row] == 0:
            hidden, present = self._prefill(ids)
        else:
            past = [tuple(tensor[row : row + 1] for tensor in layer) for layer in cache.tensors]
            hidden, present = self._continue(ids, past, ops.convert_to_tensor(cache.lengths[row : row + 1]))
        cache.append(row, _arrays(present), 0)
        return hidden

    def _feed_single(self, cache: KVCache, rows: Sequence[int], ids: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """One token for each of `rows`, in one step over the whole cache; what idle rows give is not looked at."""
        tokens = np.zeros((cache.capacity, 1), np.int32)
        lengths = np.zeros(cache.capacity, np.int32)
        for row in rows:
            tokens[row], lengths[row] = ids[row][0], cache.lengths[row]
        logits, present = self._step(ops.convert_to_tensor(tokens), cache.tensors, ops.convert_to_tensor(lengths))
        arrays, values = _arrays(present), _array(logits)  # values (R, 1, V)
        for row in rows:
            cache.append(row, arrays, row)
        return [values[row] for row in rows]

    # What is compiled

    def _prefill_graph(self, ids: Any) -> Any:
        return self.network.hidden(ids, tap=self.tap)

    def _continue_graph(self, ids: Any, past: Any, lengths: Any) -> Any:
        return self.network.hidden(ids, past, lengths, tap=self.tap)

    def _step_graph(self, ids: Any, past: Any, lengths: Any) -> Any:
        """One token in each of an even number of rows: logits (B, 1, V), and the new keys and values.

        The head's product reads its weights row by row, and its kernels round differently for 1, 2, 4, 8 and more
        rows; for two rows it costs what it costs for one. So it is done in pairs.
        """
        hidden, present = self.network.hidden(ids, past, lengths, tap=self.tap)
        pairs = [self.network.head(hidden[n : n + 2]) for n in range(0, ids.shape[0], 2)]
        return ops.concatenate(pairs, axis=0), present


def _compiled(function: Callable[..., Any], *signature: Any) -> Callable[..., Any]:
    """A TensorFlow graph of `function`; other backends run it as it is.

    Without a signature, nested (shape, dtype) pairs, a graph is made for each shape that comes.
    """
    if keras.backend.backend() != "tensorflow":
        return function
    import tensorflow as tf

    def spec(value: Any) -> Any:
        if isinstance(value, tuple) and isinstance(value[1], str):
            return tf.TensorSpec(*value)
        return type(value)(spec(part) for part in value)

    return tf.function(function, input_signature=[spec(s) for s in signature] or None, autograph=False)


def _as_it_is(function: Callable[..., Any], *_: Any) -> Callable[..., Any]:
    return function


def _array(tensor: Any) -> np.ndarray:
    return np.asarray(ops.convert_to_numpy(tensor))


def _arrays(layers: Sequence[tuple[Any, Any]]) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(_array(keys), _array(values)) for keys, values in layers]
