"""Attention over a paged key/value cache, compiled by Numba; exact in length, for one new token or many.

The products of weights are LiteRT's; this is what lies between them. The cache is cut into blocks of `BLOCK` positions.
Keys are kept transposed, (H, D, BLOCK), so that the scores of a block are sums of its rows, and values as (H, BLOCK, D)
(in groups of `LANES`), so that the output is: neither needs a sum across a vector register. A block holds float32, or
float16 as uint16.

Every sum has one order, that of the positions in the cache. So what a query gives is the same to the last bit whether
its token came alone or in a long prompt, and whoever shares the call.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import threading
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from gpt2.compiled import compiled
from gpt2.config import GPT2Config

BLOCK = 32
"""Positions in a block of the cache."""
TILE = 16
"""Queries that are worked on together: a block of the cache is read once for all of them."""

LANES = 64
"""Numbers of a value that are summed together; a head size that is no multiple of it is filled up with zeros."""

_F = np.float32
_SHARED_FROM = 4_000_000  # operations from which on it pays to wake another thread, about 0.15 ms
_LINE = 16  # numbers between two prefetches: a cache line of float32, half of one of float16
_AHEAD = 2  # heads between what is read and what is prefetched; without, attention at long context is half as fast
_PARTS = 16  # partial sums of a sum of many numbers
# Lengths of inner loops, and distances between what they read, are constants: else the compiler, which cannot prove
# that two arrays do not overlap, does not use vector registers.
# The order of sums is ours, so nothing may be reassociated; fused multiply-adds are welcome. NaN comes out as NaN.
_OPTIONS: dict[str, Any] = {"fastmath": {"contract", "nsz"}, "error_model": "numpy", "nogil": True}


_compiled = compiled(**_OPTIONS)


@intrinsic
def _load(context: Any, x: Any) -> Any:
    """A number of the cache as float32."""

    def widen(_: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    def same(_: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return arguments[0]

    return types.float32(x), widen if x == types.uint16 else same


@intrinsic
def _store(context: Any, x: Any, like: Any) -> Any:
    """A float32 as a number of the cache, of the type of `like`."""

    def narrow(_: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(builder.fptrunc(arguments[0], ir.HalfType()), ir.IntType(16))

    def same(_: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return arguments[0]

    return like(types.float32, like), narrow if like == types.uint16 else same


@intrinsic
def _from_bits(context: Any, x: Any) -> Any:
    """The float32 with the bits of an int32."""

    def code(_: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), code


@intrinsic
def _prefetch(context: Any, array: Any, at: Any) -> Any:
    """Have the memory of array[at] brought near, ahead of its use; it may lie behind the array's end."""

    def code(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = target.make_array(array)(target, builder, arguments[0]).data
        address = builder.bitcast(builder.gep(data, [arguments[1]]), ir.IntType(8).as_pointer())
        i32 = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [address.type, i32, i32, i32])
        function = builder.module.declare_intrinsic("llvm.prefetch", [address.type], kind)
        builder.call(function, [address, i32(0), i32(3), i32(1)])  # to read, into the nearest cache, data
        return target.get_dummy_value()

    return types.void(array, types.intp), code


@numba.njit(inline="always")
def exp(x: Any) -> Any:
    """exp of x <= 0, within 2 units in the last place; below -87 it is exp(-87), which is 0 beside 1.

    exp(x) = 2**n exp(r) with r in [-ln 2 / 2, ln 2 / 2], and a polynomial for exp(r) (Cephes, `expf`). It has no
    branches, so it is done for many numbers at once.
    """
    x = max(x, _F(-87.0))
    n = np.floor(x * _F(1.44269504088896341) + _F(0.5))
    r = x - n * _F(0.693359375) + n * _F(2.12194440e-4)
    p = _F(1.9875691500e-4)
    p = p * r + _F(1.3981999507e-3)
    p = p * r + _F(8.3334519073e-3)
    p = p * r + _F(4.1665795894e-2)
    p = p * r + _F(1.6666665459e-1)
    p = p * r + _F(5.0000001201e-1)
    return (p * r * r + r + _F(1.0)) * _from_bits((np.int32(n) + np.int32(127)) << np.int32(23))


@_compiled
def _score(query: Any, keys: Any, at: int, scores: Any) -> None:
    """scores (BLOCK,) of a query (D,) for the keys of a block, which begin at keys[at]."""
    for p in range(BLOCK):
        scores[p] = _F(0)
    for d in range(0, len(query), 4):
        q0, q1, q2, q3 = query[d], query[d + 1], query[d + 2], query[d + 3]
        k = keys[at + d * BLOCK : at + (d + 4) * BLOCK]
        for p in range(0, 4 * BLOCK, _LINE):
            _prefetch(keys, at + (_AHEAD * len(query) + d) * BLOCK + p)
        for p in range(BLOCK):
            k0, k1 = _load(k[p]), _load(k[BLOCK + p])
            k2, k3 = _load(k[2 * BLOCK + p]), _load(k[3 * BLOCK + p])
            scores[p] += (q0 * k0 + q1 * k1) + (q2 * k2 + q3 * k3)


@_compiled
def _score_four(queries: Any, keys: Any, at: int, scores: Any) -> None:
    """As `_score` for four queries (4, D), which share the reading of the keys: scores (4 * BLOCK,)."""
    a, b, c, e = queries[0], queries[1], queries[2], queries[3]
    for p in range(4 * BLOCK):
        scores[p] = _F(0)
    for d in range(0, len(a), 4):
        a0, a1, a2, a3 = a[d], a[d + 1], a[d + 2], a[d + 3]
        b0, b1, b2, b3 = b[d], b[d + 1], b[d + 2], b[d + 3]
        c0, c1, c2, c3 = c[d], c[d + 1], c[d + 2], c[d + 3]
        e0, e1, e2, e3 = e[d], e[d + 1], e[d + 2], e[d + 3]
        k = keys[at + d * BLOCK : at + (d + 4) * BLOCK]
        for p in range(BLOCK):
            k0, k1 = _load(k[p]), _load(k[BLOCK + p])
            k2, k3 = _load(k[2 * BLOCK + p]), _load(k[3 * BLOCK + p])
            scores[p] += (a0 * k0 + a1 * k1) + (a2 * k2 + a3 * k3)
            scores[BLOCK + p] += (b0 * k0 + b1 * k1) + (b2 * k2 + b3 * k3)
            scores[2 * BLOCK + p] += (c0 * k0 + c1 * k1) + (c2 * k2 + c3 * k3)
            scores[3 * BLOCK + p] += (e0 * k0 + e1 * k1) + (e2 * k2 + e3 * k3)


@_compiled
def _softmax(scores: Any, n: int) -> Any:
    """exp(scores - max) of the first n, zero for the rest, in place; and the factor that makes their sum 1."""
    peak = scores[0]
    for p in range(1, n):
        peak = max(peak, scores[p])
    for p in range(n):
        scores[p] = exp(scores[p] - peak)
    for p in range(n, scores.shape[0]):
        scores[p] = _F(0)
    sums = np.zeros(_PARTS, np.float32)
    for first in range(0, scores.shape[0], _PARTS):
        for lane in range(_PARTS):
            sums[lane] += scores[first + lane]
    total = _F(0)
    for lane in range(_PARTS):
        total += sums[lane]
    return _F(1) / total


@_compiled
def _gather(w: Any, values: Any, at: int, n: int, out: Any) -> None:
    """Add to out (LANES,) the values of a block, from values[at], by the weights (BLOCK,) of its first n positions."""
    for p in range(0, n, 4):
        w0, w1, w2, w3 = w[p], w[p + 1], w[p + 2], w[p + 3]
        v = values[at + p * LANES : at + (p + 4) * LANES]
        for d in range(0, 4 * LANES, _LINE):
            _prefetch(values, at + (_AHEAD * BLOCK + p) * LANES + d)
        for d in range(LANES):
            v0, v1 = _load(v[d]), _load(v[LANES + d])
            v2, v3 = _load(v[2 * LANES + d]), _load(v[3 * LANES + d])
            out[d] += (w0 * v0 + w1 * v1) + (w2 * v2 + w3 * v3)


@_compiled
def _gather_four(w: Any, values: Any, at: int, n: int, out: Any) -> None:
    """As `_gather` for four queries: weights (4 * BLOCK,), out (4 * LANES,)."""
    a, b, c, e = w[:BLOCK], w[BLOCK : 2 * BLOCK], w[2 * BLOCK : 3 * BLOCK], w[3 * BLOCK :]
    for p in range(0, n, 4):
        a0, a1, a2, a3 = a[p], a[p + 1], a[p + 2], a[p + 3]
        b0, b1, b2, b3 = b[p], b[p + 1], b[p + 2], b[p + 3]
        c0, c1, c2, c3 = c[p], c[p + 1], c[p + 2], c[p + 3]
        e0, e1, e2, e3 = e[p], e[p + 1], e[p + 2], e[p + 3]
        v = values[at + p * LANES : at + (p + 4) * LANES]
        for d in range(LANES):
            v0, v1 = _load(v[d]), _load(v[LANES + d])
            v2, v3 = _load(v[2 * LANES + d]), _load(v[3 * LANES + d])
            out[d] += (a0 * v0 + a1 * v1) + (a2 * v2 + a3 * v3)
            out[LANES + d] += (b0 * v0 + b1 * v1) + (b2 * v2 + b3 * v3)
            out[2 * LANES + d] += (c0 * v0 + c1 * v1) + (c2 * v2 + c3 * v3)
            out[3 * LANES + d] += (e0 * v0 + e1 * v1) + (e2 * v2 + e3 * v3)


@_compiled
def _attend(
    qkv: Any, keys: Any, values: Any, table: Any, begin: int, end: int, first: int, past: int, count: int, out: Any
) -> None:
    """Heads begin...end of `count` queries, those in rows first... of qkv, the first with `past` tokens before it."""
    _, H, width, _ = keys.shape
    groups, heads = values.shape[2], end - begin
    D = qkv.shape[1] // (3 * H)
    scale = _F(1.0 / math.sqrt(D))
    blocks = (past + count + BLOCK - 1) // BLOCK
    # One axis, and places in it: slices of several axes cost more here than what is done with them.
    flat_keys, flat_values = keys.reshape(-1), values.reshape(-1)
    queries = np.zeros((heads * count, width), np.float32)
    scores = np.empty(heads * blocks * count * BLOCK, np.float32)  # (heads, blocks, count, BLOCK)
    y = np.zeros(heads * groups * count * LANES, np.float32)  # (heads, groups, count, LANES)
    row = np.empty(blocks * BLOCK, np.float32)
    factors = np.empty(heads * count, np.float32)
    fours = count - count % 4
    for h in range(heads):
        for i in range(count):
            for d in range(D):
                queries[h * count + i, d] = qkv[first + i, (begin + h) * D + d] * scale
    for j in range(blocks):  # heads inside: a block of all heads lies together in memory
        for h in range(heads):
            block = (np.int64(table[j]) * H + begin + h) * width * BLOCK
            s = (h * blocks + j) * count * BLOCK
            for i in range(0, fours, 4):
                q = queries[h * count + i : h * count + i + 4]
                _score_four(q, flat_keys, block, scores[s + i * BLOCK : s + (i + 4) * BLOCK])
            for i in range(fours, count):
                _score(queries[h * count + i], flat_keys, block, scores[s + i * BLOCK : s + (i + 1) * BLOCK])
    for h in range(heads):
        s = h * blocks * count * BLOCK
        if count == 1:
            factors[h] = _softmax(scores[s : s + blocks * BLOCK], past + 1)
            continue
        for i in range(count):
            for j in range(blocks):
                at = s + (j * count + i) * BLOCK
                row[j * BLOCK : (j + 1) * BLOCK] = scores[at : at + BLOCK]
            factors[h * count + i] = _softmax(row, past + i + 1)
            for j in range(blocks):
                at = s + (j * count + i) * BLOCK
                scores[at : at + BLOCK] = row[j * BLOCK : (j + 1) * BLOCK]
    for j in range(blocks):
        n = min(past + count - j * BLOCK, BLOCK)  # what a query may not see has the weight 0
        for h in range(heads):
            s = (h * blocks + j) * count * BLOCK
            for g in range(groups):
                block = ((np.int64(table[j]) * H + begin + h) * groups + g) * BLOCK * LANES
                o = (h * groups + g) * count * LANES
                for i in range(0, fours, 4):
                    w = scores[s + i * BLOCK : s + (i + 4) * BLOCK]
                    _gather_four(w, flat_values, block, n, y[o + i * LANES : o + (i + 4) * LANES])
                for i in range(fours, count):
                    w = scores[s + i * BLOCK : s + (i + 1) * BLOCK]
                    _gather(w, flat_values, block, n, y[o + i * LANES : o + (i + 1) * LANES])
    for h in range(heads):
        for i in range(count):
            for d in range(D):
                at = ((h * groups + d // LANES) * count + i) * LANES + d % LANES
                out[first + i, (begin + h) * D + d] = y[at] * factors[h * count + i]


@_compiled
def _remember(qkv: Any, keys: Any, values: Any, table: Any, h: int, first: int, past: int, count: int) -> None:
    """Put head h of the keys and values of `count` tokens, those in rows first... of qkv, into the cache."""
    H = keys.shape[1]
    D = qkv.shape[1] // (3 * H)
    like = keys[0, 0, 0, 0]
    for i in range(count):
        block, p = table[(past + i) // BLOCK], (past + i) % BLOCK
        for d in range(D):
            keys[block, h, d, p] = _store(qkv[first + i, (H + h) * D + d], like)
            values[block, h, d // LANES, p, d % LANES] = _store(qkv[first + i, (2 * H + h) * D + d], like)


@_compiled
def _attend_heads(qkv: Any, keys: Any, values: Any, tables: Any, tiles: Any, begin: int, end: int, out: Any) -> None:
    """Heads begin...end of everything; see `Attention`."""
    for n in range(len(tiles)):
        row, first, past, count = tiles[n]
        for h in range(begin, end):
            _remember(qkv, keys, values, tables[row], h, first, past, count)
    for n in range(len(tiles)):
        row, first, past, count = tiles[n]
        if count <= 4:  # bound by memory: read it in its order
            _attend(qkv, keys, values, tables[row], begin, end, first, past, count, out)
        else:  # bound by arithmetic: keep little at once
            for h in range(begin, end):
                _attend(qkv, keys, values, tables[row], h, h + 1, first, past, count, out)


class _Helper(threading.Thread):
    """A thread that does what it is given, woken and waited for by bare locks: a pool takes three times as long."""

    def __init__(self) -> None:
        super().__init__(name="gpt2-attention", daemon=True)
        self._begin, self._done = threading.Lock(), threading.Lock()
        self._begin.acquire()
        self._done.acquire()
        self._arguments: Any = None
        self.start()

    def run(self) -> None:
        """Wait for work, for ever."""
        while True:
            self._begin.acquire()
            if self._arguments is None:
                return
            _attend_heads(*self._arguments)
            self._done.release()

    def begin(self, *arguments: Any) -> None:
        """Let it do its share."""
        self._arguments = arguments
        self._begin.release()

    def wait(self) -> None:
        """Until it is done."""
        self._done.acquire()

    def end(self) -> None:
        """Let the thread end."""
        self._arguments = None
        self._begin.release()


class Attention:
    """Attention by several threads, each for some of the heads; little work is done by the caller alone."""

    def __init__(self, threads: int) -> None:
        self._helpers = [_Helper() for _ in range(threads - 1)]

    def prepare(self, config: GPT2Config, dtype: type) -> None:
        """Have the code for this type of cache ready: some seconds the first time on a machine, later 0.1 s."""
        keys, values = blocks_for(config, 1, dtype)
        qkv, tiles = np.zeros((1, 3 * config.n_embd), np.float32), np.array([[0, 0, 0, 1]], np.int32)
        self(qkv, keys[0], values[0], np.zeros((1, 1), np.int32), tiles)

    def __del__(self) -> None:
        for helper in self._helpers:
            helper.end()

    def __call__(
        self, qkv: np.ndarray, keys: np.ndarray, values: np.ndarray, tables: np.ndarray, tiles: np.ndarray
    ) -> np.ndarray:
        """Add new tokens to the cache of a layer, and let each look at itself and at what is before it in its row.

        Args:
            qkv: (M, 3 C) float32, the tokens of all rows one after another.
            keys: (N, H, D, BLOCK) float32, or uint16 for float16: the blocks of the layer. Changed in place. D is the
                head size, or the next multiple of 4; what is too much holds zeros.
            values: (N, H, G, BLOCK, LANES), as keys; G * LANES is D or more.
            tables: (R, W) int32, the blocks of each row in their order.
            tiles: (K, 4) int32, each up to TILE tokens of one row: row, first of its tokens in qkv, tokens of the row
                before it, tokens in it. Of one row, the earlier ones come first.

        Returns:
            (M, C) float32.
        """
        out = np.empty((len(qkv), qkv.shape[1] // 3), np.float32)
        heads = keys.shape[1]
        work = 4 * out.shape[1] * int(((tiles[:, 2] + tiles[:, 3]) * tiles[:, 3]).sum())
        shares = min(len(self._helpers) + 1, heads) if work > _SHARED_FROM else 1
        bounds = [heads * n // shares for n in range(shares + 1)]
        helpers = self._helpers[: shares - 1]
        for helper, *share in zip(helpers, bounds[1:], bounds[2:], strict=False):
            helper.begin(qkv, keys, values, tables, tiles, *share, out)
        _attend_heads(qkv, keys, values, tables, tiles, 0, bounds[1], out)
        for helper in helpers:
            helper.wait()
        return out


def blocks_for(config: GPT2Config, count: int, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """The keys and values of `count` empty blocks in every layer; memory is taken as blocks are used."""
    shape = (config.n_layer, count, config.n_head)
    keys = _zeros((*shape, -(-config.head_size // 4) * 4, BLOCK), dtype)
    return keys, _zeros((*shape, -(-config.head_size // LANES), BLOCK, LANES), dtype)


def _zeros(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Zeros in large pages of memory where the system has them: attention at long context takes a third less time."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return np.zeros(shape, dtype)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, dtype).reshape(shape)
