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
import itertools
import math
import mmap
import threading
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
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
_WIDTH = 16 if llvm.get_host_cpu_features().get("avx512f") else 8  # numbers of a vector register
_SHARED_FROM = 4_000_000  # operations from which on it pays to wake another thread, about 0.15 ms
_LINE = 16  # numbers between two prefetches: a cache line of float32, half of one of float16
_AHEAD = 2  # heads between what is read and what is prefetched; without, attention at long context is half as fast
_PARTS = 16  # partial sums of a sum of many numbers
# What is bound by arithmetic is written in LLVM's own terms, since the compiler keeps no array in registers. Elsewhere
# lengths of inner loops, and distances between what they read, are constants: else the compiler, which cannot prove
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


def _lanes(builder: Any, array: Any, at: Any, width: int) -> Any:
    """`width` numbers from array[at] on, as float32."""
    element = array.type.pointee
    vector = builder.bitcast(builder.gep(array, [at]), ir.VectorType(element, width).as_pointer())
    lanes = builder.load(vector, align=4 if element == ir.FloatType() else 2)
    if element == ir.FloatType():
        return lanes
    halves = builder.bitcast(lanes, ir.VectorType(ir.HalfType(), width))
    return builder.fpext(halves, ir.VectorType(ir.FloatType(), width))


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
            scores[p] = (((scores[p] + q0 * k0) + q1 * k1) + q2 * k2) + q3 * k3


def _folding(start: float, fold: Callable[[Any, Any, Any], Any]) -> Any:
    """A function that folds a multiple of `_PARTS` numbers into one, every `_PARTS`th by itself first."""

    def code(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = target.make_array(signature.args[0])(target, builder, arguments[0])
        kind, count = ir.VectorType(ir.FloatType(), _PARTS), array.nitems
        place = cgutils.alloca_once_value(builder, ir.Constant(kind, [start] * _PARTS))
        with cgutils.for_range(builder, builder.udiv(count, count.type(_PARTS))) as loop:
            lanes = _lanes(builder, array.data, builder.mul(loop.index, loop.index.type(_PARTS)), _PARTS)
            builder.store(fold(builder, builder.load(place), lanes), place)
        parts = builder.load(place)
        half = _PARTS // 2
        while half:  # the upper half onto the lower one, until one is left
            moved = ir.Constant(ir.VectorType(ir.IntType(32), _PARTS), [(n + half) % _PARTS for n in range(_PARTS)])
            parts = fold(builder, parts, builder.shuffle_vector(parts, parts, moved))
            half //= 2
        return builder.extract_element(parts, ir.IntType(32)(0))

    @intrinsic
    def folded(context: Any, x: Any) -> Any:
        return types.float32(x), code

    return folded


def _larger(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", b, a), b, a)


_largest = _folding(-math.inf, _larger)
_sum = _folding(0.0, lambda builder, a, b: builder.fadd(a, b))


@_compiled
def _softmax(scores: Any, n: int) -> Any:
    """exp(scores - max) of the first n, zero for the rest, in place; and the factor that makes their sum 1."""
    for p in range(n, scores.shape[0]):
        scores[p] = _F(-np.inf)
    peak = _largest(scores)
    for first in range(0, n, BLOCK):  # whole blocks, since what is left over would be done one by one
        part = scores[first : first + BLOCK]
        for p in range(BLOCK):
            part[p] = exp(part[p] - peak)
    for p in range(n, scores.shape[0]):
        scores[p] = _F(0)
    return _F(1) / _sum(scores)


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
            out[d] = (((out[d] + w0 * v0) + w1 * v1) + w2 * v2) + w3 * v3


def _product_of_four(columns: int, *, add: bool) -> Any:
    """A function for four rows at once: x (4, N) times a matrix (N, columns), whose sums stay in registers.

    It takes x, where its first row begins and how far apart its rows are; the matrix, a part of the cache, where it
    begins, and N; out (4, columns), where that begins, and how far apart its rows are. To sums that are there the
    products are added one by one, in the order of N, as `_score` and `_gather` do it.
    """
    vector = ir.VectorType(ir.FloatType(), _WIDTH)
    first_lane = ir.Constant(ir.VectorType(ir.IntType(32), _WIDTH), None)

    def code(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, _, x_row, _, _, n, _, _, out_row = arguments
        kinds, number = signature.args, x_row.type

        def begin(array: int) -> Any:
            data = target.make_array(kinds[array])(target, builder, arguments[array]).data
            return builder.gep(data, [arguments[array + 1]])

        x, matrix, out = begin(0), begin(3), begin(6)
        for column in range(0, columns, 2 * _WIDTH):
            both = [column, column + _WIDTH]
            places = [[builder.add(builder.mul(out_row, number(i)), number(c)) for c in both] for i in range(4)]
            sums = [[cgutils.alloca_once(builder, vector) for _ in both] for _ in range(4)]
            for i, half in itertools.product(range(4), range(2)):
                start = _lanes(builder, out, places[i][half], _WIDTH) if add else ir.Constant(vector, None)
                builder.store(start, sums[i][half])
            with cgutils.for_range(builder, n) as loop:
                row = builder.mul(loop.index, number(columns))
                parts = [_lanes(builder, matrix, builder.add(row, number(c)), _WIDTH) for c in both]
                for i in range(4):
                    one = builder.load(builder.gep(x, [builder.add(builder.mul(x_row, number(i)), loop.index)]))
                    one = builder.insert_element(ir.Constant(vector, ir.Undefined), one, ir.IntType(32)(0))
                    one = builder.shuffle_vector(one, one, first_lane)
                    for part, place in zip(parts, sums[i], strict=True):
                        product = builder.fmul(one, part, flags=("contract",))
                        builder.store(builder.fadd(builder.load(place), product, flags=("contract",)), place)
            for i, half in itertools.product(range(4), range(2)):
                to = builder.bitcast(builder.gep(out, [places[i][half]]), vector.as_pointer())
                builder.store(builder.load(sums[i][half]), to, align=4)
        return target.get_dummy_value()

    @intrinsic
    def product(
        context: Any, x: Any, x_at: Any, x_row: Any, matrix: Any, at: Any, n: Any, out: Any, out_at: Any, out_row: Any
    ) -> Any:
        number = types.intp
        return types.void(x, number, number, matrix, number, number, out, number, number), code

    return product


_score_four = _product_of_four(BLOCK, add=False)
_gather_four = _product_of_four(LANES, add=True)


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
    length = blocks * BLOCK
    queries = np.zeros(heads * count * width, np.float32)  # (heads, count, width)
    scores = np.empty(heads * count * length, np.float32)  # (heads, count, length)
    y = np.zeros(heads * groups * count * LANES, np.float32)  # (heads, groups, count, LANES)
    factors = np.empty(heads * count, np.float32)
    fours = count - count % 4
    for h in range(heads):
        for i in range(count):
            for d in range(D):
                queries[(h * count + i) * width + d] = qkv[first + i, (begin + h) * D + d] * scale
    for j in range(blocks):  # heads inside: a block of all heads lies together in memory
        for h in range(heads):
            block = (np.int64(table[j]) * H + begin + h) * width * BLOCK
            for i in range(0, fours, 4):
                n = h * count + i
                at = n * length + j * BLOCK
                _score_four(queries, n * width, width, flat_keys, block, width, scores, at, length)
            for i in range(fours, count):
                n = h * count + i
                at = n * length + j * BLOCK
                _score(queries[n * width : (n + 1) * width], flat_keys, block, scores[at : at + BLOCK])
    for h in range(heads):
        for i in range(count):
            n = h * count + i
            factors[n] = _softmax(scores[n * length : (n + 1) * length], past + i + 1)
    for j in range(blocks):
        seen = min(past + count - j * BLOCK, BLOCK)  # what a query may not see has the weight 0
        for h in range(heads):
            for g in range(groups):
                block = ((np.int64(table[j]) * H + begin + h) * groups + g) * BLOCK * LANES
                o = (h * groups + g) * count * LANES
                for i in range(0, fours, 4):
                    at = (h * count + i) * length + j * BLOCK
                    _gather_four(scores, at, length, flat_values, block, seen, y, o + i * LANES, LANES)
                for i in range(fours, count):
                    at = (h * count + i) * length + j * BLOCK
                    w = scores[at : at + BLOCK]
                    _gather(w, flat_values, block, seen, y[o + i * LANES : o + (i + 1) * LANES])
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
