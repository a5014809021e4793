"""A key/value cache in pages: rows of tokens made of blocks, which rows that begin alike share.

All rows of an engine take their blocks from one pool, so memory is bounded. A copy of a row shares its blocks; whoever
writes into a shared block first gets its own. A full block stays after its row is gone, under a hash of its tokens and
all before them, until its place is needed: a later row that begins with the same tokens takes it over and computes
nothing for it.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from gpt2.config import GPT2Config
from gpt2.engines import Cache
from gpt2.engines.attention import BLOCK, blocks_for
from gpt2.errors import CacheFullError


class Pool:
    """The blocks of an engine.

    Args:
        config: the shape of the network.
        blocks: how many there are.
        dtype: float32, or uint16 for float16.
    """

    def __init__(self, config: GPT2Config, blocks: int, dtype: type) -> None:
        self.keys, self.values = blocks_for(config, blocks, dtype)
        self._users = np.zeros(blocks, np.int32)
        self._free = list(range(blocks - 1, -1, -1))
        self._named: dict[bytes, int] = {}  # full blocks by the hash of their tokens
        self._names: dict[int, bytes] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # named ones without users, the longest unused first

    @property
    def available(self) -> int:
        """Blocks that no row uses."""
        return len(self._free) + len(self._idle)

    def take(self) -> int:
        """A block to write into.

        Raises:
            CacheFullError: all of them are in use.
        """
        if self._free:
            block = self._free.pop()
        elif self._idle:
            block, _ = self._idle.popitem(last=False)
            del self._named[self._names.pop(block)]
        else:
            raise CacheFullError(f"cache: all of its {len(self._users)} blocks of {BLOCK} tokens are in use")
        self._users[block] = 1
        return block

    def share(self, block: int) -> int:
        """One more user of a block."""
        if self._users[block] == 0:
            del self._idle[block]
        self._users[block] += 1
        return block

    def release(self, block: int) -> None:
        """One user less."""
        self._users[block] -= 1
        if self._users[block] == 0:
            if block in self._names:
                self._idle[block] = None
            else:
                self._free.append(block)

    def own(self, block: int) -> int:
        """This block, to be written into, if it has one user, else a copy for that user alone."""
        if self._users[block] == 1:
            if block in self._names:  # it was full, and is about to hold other tokens
                del self._named[self._names.pop(block)]
            return block
        copy = self.take()
        self.keys[:, copy], self.values[:, copy] = self.keys[:, block], self.values[:, block]
        self.release(block)
        return copy

    def name(self, block: int, name: bytes) -> None:
        """Let a full block be found."""
        if name not in self._named:
            self._named[name], self._names[block] = block, name

    def find(self, name: bytes) -> int | None:
        """The block of that name, if it is still there."""
        return self._named.get(name)


class Row:
    """The blocks of one row of tokens.

    Args:
        pool: where they are from.
        keep: let its full blocks stay and be found when it is gone; else they are the first to be used again.
    """

    def __init__(self, pool: Pool, *, keep: bool = True) -> None:
        self.pool, self.keep = pool, keep
        self.tokens: list[int] = []
        self.blocks: list[int] = []
        self.names: list[bytes] = []  # of the full blocks

    def copy(self) -> Row:
        """A row with the same tokens, in the same blocks."""
        row = Row(self.pool, keep=self.keep)
        row.tokens, row.names = self.tokens.copy(), self.names.copy()
        row.blocks = [self.pool.share(block) for block in self.blocks]
        return row

    def truncate(self, length: int) -> None:
        """Forget the tokens from `length` on."""
        keep = -(-length // BLOCK)
        for block in self.blocks[keep:]:
            self.pool.release(block)
        del self.blocks[keep:], self.tokens[length:], self.names[length // BLOCK :]

    def adopt(self, tokens: Sequence[int]) -> int:
        """Begin an empty row with blocks that are there; how many of the tokens they hold, never the last one."""
        assert not self.tokens
        for end in range(BLOCK, len(tokens), BLOCK):
            name = self._name(tokens[end - BLOCK : end])
            block = self.pool.find(name)
            if block is None:
                break
            self.blocks.append(self.pool.share(block))
            self.names.append(name)
            self.tokens += tokens[end - BLOCK : end]
        return len(self.tokens)

    def reserve(self, count: int) -> None:
        """Have blocks to write `count` more tokens into."""
        if len(self.tokens) % BLOCK and count:
            self.blocks[len(self.tokens) // BLOCK] = self.pool.own(self.blocks[len(self.tokens) // BLOCK])
        while len(self.blocks) * BLOCK < len(self.tokens) + count:
            self.blocks.append(self.pool.take())

    def append(self, tokens: Sequence[int]) -> None:
        """Note tokens whose keys and values have been written."""
        self.tokens += tokens
        while self.keep and (len(self.names) + 1) * BLOCK <= len(self.tokens):
            n = len(self.names)
            name = self._name(self.tokens[n * BLOCK : (n + 1) * BLOCK])
            self.pool.name(self.blocks[n], name)
            self.names.append(name)

    def _name(self, tokens: Sequence[int]) -> bytes:
        before = self.names[-1] if self.names else b""
        return hashlib.blake2b(before + np.array(tokens, np.int32).tobytes(), digest_size=16).digest()


class PagedCache:
    """Rows of an engine's cache; see `gpt2.engines.Cache`."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows

    def __del__(self) -> None:
        for row in self.rows:
            row.truncate(0)

    @property
    def lengths(self) -> np.ndarray:
        """(B,) integers: how many tokens each row holds."""
        return np.array([len(row.tokens) for row in self.rows], np.int32)

    def select(self, rows: Sequence[int]) -> PagedCache:
        """A new cache with these rows, in this order; nothing is copied before it is changed."""
        return PagedCache([self.rows[row].copy() for row in rows])

    def extend(self, other: Cache) -> None:
        """Take over the rows of another cache, which has none then."""
        assert isinstance(other, PagedCache)
        self.rows += other.rows
        other.rows = []

    def truncate(self, row: int, length: int) -> None:
        """Forget the tokens of one row from `length` on."""
        self.rows[row].truncate(length)
