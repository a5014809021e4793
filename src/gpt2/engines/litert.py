"""The fast engine for CPUs: products with weights by LiteRT, attention over a paged cache by Numba.

It runs a folder that `gpt2.engines.litert_build` wrote, and never imports TensorFlow. All new tokens of all rows go
through the products together, however many each row has; attention then looks at each row in its exact length. What
a row gives is the same to the last bit however its tokens were cut into calls and whoever shared them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from gpt2 import machine
from gpt2.config import GPT2Config
from gpt2.engines import Cache, Take, check_fed
from gpt2.engines.attention import BLOCK, TILE, Attention
from gpt2.engines.litert_build import PRECISIONS, read_settings
from gpt2.engines.paged import PagedCache, Pool, Row
from gpt2.engines.quantization import unpack
from gpt2.quiet import quiet

CHUNK = 512
"""Tokens that go through the network at once; more wait."""
_HEAD_ROWS = 64  # positions whose logits are made at once
_ALONE = 4  # with int4, up to so many tokens one by one: LiteRT's kernel for several costs as much as four for one
_CACHE_ROWS = 64  # full rows that the cache holds, unless that is more than its share of the memory
_CACHE_SHARE = 0.25
_MEMORY = 4 << 30  # where the machine does not say


class LiteRTEngine:
    """Runs a built model.

    Args:
        folder: from `litert_build.build`.
        threads: None takes all cores that this process may use.
        cache_bytes: at most this much memory for keys and values; None takes what 64 full rows need, up to a quarter
            of the machine's memory. It is taken as it is needed.

    Raises:
        CheckpointFormatError: the folder holds no whole built model.
    """

    name = "litert"
    exact = True
    max_rows = 64

    def __init__(self, folder: Path, *, threads: int | None = None, cache_bytes: int | None = None) -> None:
        self.folder = folder
        self.settings = read_settings(folder)
        self.config = GPT2Config.from_dict(self.settings, source=str(folder))
        self.precision: str = self.settings["precision"]
        self.weights_sha256: str = self.settings["weights_sha256"]
        self.threads = threads or machine.cores()
        self._interpreter = Interpreter(model_path=str(folder / "model.tflite"), num_threads=self.threads)
        alone = _ALONE if self.precision == "int4" else 1
        names = ["first", "last", "head", *(f"block{n}" for n in range(self.config.n_layer - 1))]
        with quiet():  # LiteRT says that it has made what it always makes
            graphs = [_Graph(self._interpreter, name, alone) for name in names]
        self._first, self._last, self._head, *self._blocks = graphs
        dtype = np.float32 if self.precision == "float32" else np.uint16
        self._attend = Attention(self.threads)
        self._attend.prepare(self.config, dtype)
        self._embedding = _Embedding(folder / "model.tflite", self.config, self.settings)
        self.pool = Pool(self.config, _pool_blocks(self.config, dtype, cache_bytes), dtype)
        self._lock = threading.Lock()

    def new_cache(self, rows: int, *, keep: bool = True) -> PagedCache:
        """An empty cache of `rows` rows; see `Engine.new_cache`."""
        return PagedCache([Row(self.pool, keep=keep) for _ in range(rows)])

    def feed(self, cache: Cache, ids: Sequence[Sequence[int]], *, all_positions: bool = False) -> list[np.ndarray]:
        """Add tokens to rows of a cache and give the logits of what follows; see `Engine.feed`.

        Rows that are empty take over what the cache still knows of how they begin, unless `all_positions` is set.

        Raises:
            PromptError: a token that is not in the vocabulary, or not one row of tokens for each row of the cache.
            ContextLengthError: a row would grow past n_ctx.
            CacheFullError: the cache's memory does not suffice; all rows are as they were.
        """
        wanted = [np.arange(0 if all_positions else max(0, len(tokens) - 1), len(tokens)) for tokens in ids]
        logits: list[np.ndarray] = []

        def run(work: Sequence[_Work]) -> None:
            logits.extend(self._run(work))

        self._add(cache, ids, wanted, run, adopt=not all_positions)
        return logits

    def scan(self, cache: Cache, ids: Sequence[Sequence[int]], wanted: Sequence[np.ndarray], take: Take) -> None:
        """Add tokens to rows of a cache and show the logits behind chosen ones of them; see `Engine.scan`.

        Rows that are empty take over what the cache still knows of how they begin, up to the first wanted one.

        Raises:
            PromptError: a token that is not in the vocabulary, or not one row of tokens for each row of the cache.
            ContextLengthError: a row would grow past n_ctx.
            CacheFullError: the cache's memory does not suffice; all rows are as they were.
        """
        self._add(cache, ids, wanted, lambda work: self._show(work, take), adopt=True)

    def _add(
        self,
        cache: Cache,
        ids: Sequence[Sequence[int]],
        wanted: Sequence[np.ndarray],
        run: Callable[[Sequence[_Work]], None],
        *,
        adopt: bool,
    ) -> None:
        """Have `run` compute new tokens of rows, and note them; if it fails, all rows are as they were."""
        assert isinstance(cache, PagedCache)
        check_fed(self.config, cache.lengths.tolist(), ids)
        with self._lock:
            work = []
            before = [len(row.tokens) for row in cache.rows]
            try:
                for row, tokens, places in zip(cache.rows, ids, wanted, strict=True):
                    known = 0
                    if adopt and not row.tokens:
                        known = row.adopt(tokens[: places[0] + 1] if len(places) else tokens)
                    work.append(_Work(row, tokens[known:], places - known, known))
                    row.reserve(len(tokens) - known)
                run(work)
            except BaseException:
                for row, length in zip(cache.rows, before, strict=True):
                    row.truncate(length)
                raise
            for row, tokens, _, _ in work:
                row.append(tokens)

    def logits(self, ids: np.ndarray) -> np.ndarray:
        """Logits (B, T, V) float32 of ids (B, T), without a cache."""
        return np.stack([self.feed(self.new_cache(1), [row], all_positions=True)[0] for row in ids.tolist()])

    def _run(self, work: Sequence[_Work]) -> list[np.ndarray]:
        """The logits of each row that are wanted."""
        parts = [hidden for _, _, hidden in self._states(work)]
        if not parts:
            return [np.zeros((0, self.config.n_vocab), np.float32) for _ in work]
        logits = self._logits(parts[0] if len(parts) == 1 else np.concatenate(parts))
        ends = np.cumsum([len(part.wanted) for part in work])
        return [logits[end - len(part.wanted) : end] for part, end in zip(work, ends, strict=True)]

    def _show(self, work: Sequence[_Work], take: Take) -> None:
        """Let `take` see the logits that are wanted, where the interpreter keeps them."""
        waiting: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

        def show(least: int) -> None:
            rows, numbers, hidden = (np.concatenate(arrays) for arrays in zip(*waiting, strict=True))
            waiting.clear()
            first = 0
            while len(hidden) - first >= least:
                last = min(first + _HEAD_ROWS, len(hidden))
                take(rows[first:last], numbers[first:last], self._head.look(hidden[first:last]))
                first = last
            if first < len(hidden):
                waiting.append((rows[first:], numbers[first:], hidden[first:]))

        for state in self._states(work):
            waiting.append(state)
            show(_HEAD_ROWS)
        if waiting:
            show(1)

    def _states(self, work: Sequence[_Work]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Run all of it; of what is wanted the numbers in `work` (N,), those of the new tokens (N,), hidden (N, C)."""
        for pieces in _chunks([len(part.tokens) for part in work]):
            keep, rows, numbers = [], [], []
            at = 0
            for n, first, count in pieces:
                found = work[n].wanted
                if count < len(work[n].tokens):
                    found = found[np.searchsorted(found, first) : np.searchsorted(found, first + count)]
                keep.append(found - first + at)
                rows.append(np.full(len(found), n))
                numbers.append(found + work[n].known)
                at += count
            hidden = self._hidden(work, pieces, np.concatenate(keep))
            if len(hidden):
                yield np.concatenate(rows), np.concatenate(numbers), hidden

    def _hidden(self, work: Sequence[_Work], pieces: Sequence[tuple[int, int, int]], keep: np.ndarray) -> np.ndarray:
        """Final hidden states of the tokens of some pieces of rows: (number in `work`, first token, tokens).

        Only those of the tokens `keep` (N,), counted over all pieces, come out as (N, C): what the last layer does
        behind its attention is left out for the others.
        """
        tokens: list[int] = []
        positions: list[int] = []
        tiles: list[tuple[int, int, int, int]] = []
        for row, (n, first, count) in enumerate(pieces):
            past = len(work[n].row.tokens) + first
            for at in range(0, count, TILE):
                tiles.append((row, len(tokens) + at, past + at, min(TILE, count - at)))
            tokens += work[n].tokens[first : first + count]
            positions += range(past, past + count)
        tables = np.zeros((len(pieces), max(len(work[n].row.blocks) for n, _, _ in pieces)), np.int32)
        for row, (n, _, _) in enumerate(pieces):
            tables[row, : len(work[n].row.blocks)] = work[n].row.blocks
        places = np.array(tiles, np.int32)
        x = self._embedding(tokens, positions)
        qkv = self._first(x)["qkv"]
        for n, graph in enumerate(self._blocks):
            given = graph(x, self._attend(qkv, self.pool.keys[n], self.pool.values[n], tables, places))
            x, qkv = given["x"], given["qkv"]
        y = self._attend(qkv, self.pool.keys[-1], self.pool.values[-1], tables, places)
        if len(keep) == 0:
            return x[:0]
        if len(keep) < len(x):
            x, y = x[keep], y[keep]
        return self._last(x, y)["hidden"]

    def _logits(self, hidden: np.ndarray) -> np.ndarray:
        parts = [self._head(hidden[n : n + _HEAD_ROWS])["logits"] for n in range(0, len(hidden), _HEAD_ROWS)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


class _Work(NamedTuple):
    """What is to be computed of a row."""

    row: Row
    tokens: Sequence[int]
    wanted: np.ndarray
    """(N,) the numbers of these tokens behind which the logits are wanted."""
    known: int
    """New tokens before these that the cache had already."""


class _Graph:
    """One graph of the file, for any number of tokens."""

    def __init__(self, interpreter: Interpreter, name: str, alone: int) -> None:
        # The public SignatureRunner does the same, but asks for new memory and looks everything up in every call.
        self._wrapper: Any = interpreter._interpreter
        signature = self._wrapper.GetSignatureDefs()[name]
        self._graph = self._wrapper.GetSubgraphIndexFromSignature(name)
        self._inputs = [signature["inputs"][key] for key in ("x", "y", "hidden") if key in signature["inputs"]]
        self._outputs = signature["outputs"]
        self._alone = alone
        self._wrapper.AllocateTensors(self._graph)  # for one token, as the file has it; this packs the weights
        self._rows = 1

    def __call__(self, *inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Run it on inputs (M, N)."""
        if 1 < len(inputs[0]) <= self._alone:
            parts = [self._run(*(array[n : n + 1] for array in inputs)) for n in range(len(inputs[0]))]
            return {name: np.concatenate([part[name] for part in parts]) for name in self._outputs}
        return self._run(*inputs)

    def look(self, *inputs: np.ndarray) -> np.ndarray:
        """As a call for a graph with one output, which is not copied: the next run overwrites it."""
        (number,) = self._outputs.values()
        if 1 < len(inputs[0]) <= self._alone:
            (output,) = self(*inputs).values()
            return output
        self._invoke(*inputs)
        return self._wrapper.tensor(self._wrapper, number, self._graph)

    def _run(self, *inputs: np.ndarray) -> dict[str, np.ndarray]:
        self._invoke(*inputs)
        return {name: self._wrapper.GetTensor(number, self._graph) for name, number in self._outputs.items()}

    def _invoke(self, *inputs: np.ndarray) -> None:
        wrapper, graph = self._wrapper, self._graph
        if len(inputs[0]) != self._rows:
            for number, array in zip(self._inputs, inputs, strict=True):
                wrapper.ResizeInputTensor(number, np.array(array.shape, np.int32), False, graph)
            wrapper.AllocateTensors(graph)
            self._rows = len(inputs[0])
        for number, array in zip(self._inputs, inputs, strict=True):
            wrapper.SetTensor(number, array, graph)
        wrapper.Invoke(graph)


class _Embedding:
    """Token and position embeddings, read from the file where the head has its weights too."""

    def __init__(self, path: Path, config: GPT2Config, settings: dict[str, Any]) -> None:
        places = settings["places"]
        self._scheme = PRECISIONS[settings["precision"]][1].fitting(config.n_embd)
        self._wte = [
            np.memmap(path, dtype, "r", place, shape)
            for place, (dtype, shape) in zip(
                places["wte"], self._scheme.layout(config.n_vocab, config.n_embd), strict=True
            )
        ]
        self._wpe = np.memmap(path, np.float32, "r", places["wpe"][0], (config.n_ctx, config.n_embd))

    def __call__(self, tokens: Sequence[int], positions: Sequence[int]) -> np.ndarray:
        """(M, C) float32."""
        return unpack(self._scheme, tuple(np.asarray(array[tokens]) for array in self._wte)) + self._wpe[positions]


def _chunks(counts: Sequence[int]) -> Iterator[list[tuple[int, int, int]]]:
    """Rows of so many tokens cut into chunks of up to CHUNK tokens: pieces (row, first token, tokens)."""
    pieces: list[tuple[int, int, int]] = []
    room = CHUNK
    for row, count in enumerate(counts):
        first = 0
        while first < count:
            taken = min(room, count - first)
            pieces.append((row, first, taken))
            first, room = first + taken, room - taken
            if room == 0:
                yield pieces
                pieces, room = [], CHUNK
    if pieces:
        yield pieces


def _pool_blocks(config: GPT2Config, dtype: type, cache_bytes: int | None) -> int:
    row = -(-config.n_ctx // BLOCK)
    block = 2 * config.n_layer * config.n_embd * BLOCK * np.dtype(dtype).itemsize
    if cache_bytes is None:
        cache_bytes = min(_CACHE_ROWS * row * block, int(_CACHE_SHARE * (machine.memory() or _MEMORY)))
    return max(row, cache_bytes // block)
