"""Documents -> shards of tokens: in parallel, in constant memory, the same bytes whatever the number of threads.

It remembers 16 bytes of each document to find exact duplicates; nothing else grows with the text.
"""

from __future__ import annotations

import collections
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from gpt2 import machine
from gpt2.atomic import atomic_folder
from gpt2.codec import Codec, default_codec
from gpt2.data import shards
from gpt2.data.documents import Document, Meter, find_files, read_documents
from gpt2.errors import ConfigError, TrainingError
from gpt2.hashing import sha256_of

UNLUCKY = 3
"""Times the share that was asked for: where the documents held out have more tokens, the draw is not used."""
PIECE = 1 << 20
"""Characters that are encoded at once; longer documents are cut."""

_Item = tuple[str, bytes | None]
"""A piece of a document, and with its last piece the digest of the whole."""


class Progress(NamedTuple):
    """How far `prepare` has come."""

    characters: int
    """Encoded so far."""
    documents: int
    """Written so far."""
    bytes_read: int
    """Of the files."""
    bytes_total: int | None
    """In all files; None where one is standard input."""


def prepare(
    inputs: Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    codec: Codec | None = None,
    column: str | None = None,
    encoding: str = "utf-8",
    valid_fraction: float = 0.05,
    seed: int = 0,
    deduplicate: bool = True,
    shard_tokens: int = 100_000_000,
    workers: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> shards.Prepared:
    """Encode documents into a folder of shards, `<|endoftext|>` after each; text that spells it stays text.

    Args:
        inputs: files, folders, patterns, `-`; see `documents.find_files`.
        out: the folder; an earlier one of the same kind is replaced.
        codec: the vocabulary; None for GPT-2's own.
        column: the field with the text in tables and `.jsonl`.
        encoding: of text files.
        valid_fraction: share of the documents that are held out, chosen by a hash of seed and text, whatever their
            order. Where that hits none, or of few documents far too much, the end of the last document is held out
            instead.
        seed: of that choice.
        deduplicate: leave out documents whose text came before.
        shard_tokens: tokens of one file at most.
        workers: threads that encode; None for one a core.
        on_progress: called now and then.

    Returns:
        The folder, opened.

    Raises:
        TrainingError: a file that cannot be read, or no text at all.
        ConfigError: a fraction, a size or a number of threads out of range.
    """
    if not 0 <= valid_fraction < 1:
        raise ConfigError(f"valid_fraction: expected a number from 0 to below 1, got {valid_fraction!r}")
    for name, value in (("shard_tokens", shard_tokens), ("workers", 1 if workers is None else workers)):
        if value < 1:
            raise ConfigError(f"{name}: expected 1 or more, got {value!r}")
    codec = codec or default_codec()
    if codec.end_of_text is None:
        raise ConfigError("codec: expected a vocabulary with <|endoftext|>, got one without")
    files = find_files(inputs)
    target = Path(out)
    with atomic_folder(target, replaceable=shards.is_prepared) as folder:
        work = _Work(folder, codec, valid_fraction, seed, deduplicate, shard_tokens)
        meter = Meter(files)
        documents = read_documents(files, column=column, encoding=encoding, meter=meter)

        def told(characters: int, written: int) -> None:
            if on_progress is not None:
                on_progress(Progress(characters, written, meter.done, meter.total))

        work.run(documents, workers or machine.cores(), told)
        manifest = {
            **{"format": shards.FORMAT, "version": shards.VERSION, "dtype": work.dtype},
            "codec": {"n_vocab": codec.n_vocab, "end_of_text": codec.end_of_text, "sha256": codec_hash(codec)},
            **work.finish(),
            "options": {
                **{"inputs": len(files), "column": column, "encoding": encoding, "seed": seed},
                **{"valid_fraction": valid_fraction, "deduplicate": deduplicate},
            },
        }
        (folder / shards.MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return shards.Prepared(target)


def read_tokens(inputs: Iterable[str | os.PathLike[str]], codec: Codec) -> np.ndarray:
    """The tokens (N,) of all documents, `<|endoftext|>` after each, in memory; text that spells it stays text.

    Raises:
        TrainingError: a file that cannot be read, or no text at all.
    """
    end = [] if codec.end_of_text is None else [codec.end_of_text]
    rows: list[np.ndarray] = []
    for document in read_documents(find_files(inputs)):
        text = "".join(document.pieces)
        if text.strip():
            row = codec.encode_array(text)
            rows += [row, np.array(end, row.dtype)]
    if not rows:
        raise TrainingError("inputs: expected some text, found none")
    return np.concatenate(rows)


def codec_hash(codec: Codec) -> str:
    """SHA-256 of a vocabulary's merges."""
    return hashlib.sha256(codec.files("openai")["vocab.bpe"]).hexdigest()


def _bytes(tokens: np.ndarray, dtype: np.dtype) -> memoryview:
    return tokens.astype(dtype).data.cast("B")


class _Writer:
    """The shards of one split."""

    def __init__(self, folder: Path, split: str, dtype: np.dtype, limit: int) -> None:
        self.folder, self.split, self.dtype, self.limit = folder, split, dtype, limit
        self.lengths: list[int] = []
        self.documents = self.last_document = 0
        self._file: Any = None

    def path(self, n: int) -> Path:
        return self.folder / f"{self.split}-{n:05d}.bin"

    def add(self, tokens: np.ndarray) -> None:
        while len(tokens):
            if self._file is None or self.lengths[-1] == self.limit:
                self.close()
                self._file = self.path(len(self.lengths)).open("wb")
                self.lengths.append(0)
            part = tokens[: self.limit - self.lengths[-1]]
            self._file.write(_bytes(part, self.dtype))
            self.lengths[-1] += len(part)
            tokens = tokens[len(part) :]

    def add_file(self, file: BinaryIO) -> None:
        """Add numbers of the shards' own kind, from where a file stands to its end."""
        while data := file.read(1 << 22):
            self.add(np.frombuffer(data, self.dtype))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def facts(self) -> dict[str, Any]:
        files = [
            {"file": self.path(n).name, "tokens": length, "sha256": sha256_of(self.path(n))}
            for n, length in enumerate(self.lengths)
        ]
        return {"tokens": sum(self.lengths), "documents": self.documents, "shards": files}


class _Work:
    """One call of `prepare`."""

    def __init__(
        self, folder: Path, codec: Codec, valid_fraction: float, seed: int, deduplicate: bool, shard_tokens: int
    ) -> None:
        self.codec, self.valid_fraction, self.seed, self.deduplicate = codec, valid_fraction, seed, deduplicate
        self.dtype = "uint16" if codec.n_vocab <= 65_536 else "uint32"
        self.numbers: np.dtype = shards.DTYPES[self.dtype]
        self.writers = {split: _Writer(folder, split, self.numbers, shard_tokens) for split in shards.SPLITS}
        self.seen: set[bytes] = set()
        self.duplicates = self.empty = self.forced_cuts = 0
        self.characters = 0
        self.pending: list[np.ndarray] = []
        self.spool: Any = None  # what is pending of a very long document

    def run(self, documents: Iterator[Document], workers: int, on_progress: Callable[[int, int], None]) -> None:
        """Encode and write all documents, in their order."""
        waiting: collections.deque[tuple[list[_Item], Future[list[np.ndarray]]]] = collections.deque()

        def take() -> None:
            items, future = waiting.popleft()
            for (_, digest), tokens in zip(items, future.result(), strict=True):
                self._add(tokens, digest)
            on_progress(self.characters, sum(writer.documents for writer in self.writers.values()))

        with ThreadPoolExecutor(workers) as pool:
            try:
                for items in self._tasks(documents):
                    waiting.append((items, pool.submit(self._encode, [text for text, _ in items])))
                    if len(waiting) > 2 * workers:
                        take()
                while waiting:
                    take()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _encode(self, texts: list[str]) -> list[np.ndarray]:
        return [self.codec.encode_array(text) for text in texts]

    def _tasks(self, documents: Iterator[Document]) -> Iterator[list[_Item]]:
        """Pieces of documents, many short ones or one long one together."""
        task: list[_Item] = []
        size = 0
        for document in documents:
            pieces = self._cut(document.pieces)
            piece: str | None = next(pieces, "")
            assert piece is not None
            if len(piece) < PIECE and not piece.strip():  # then it is the last one: a cut has a word before it
                self.empty += 1
                continue
            digest = hashlib.blake2b(digest_size=16)
            while piece is not None:
                digest.update(piece.encode("utf-8", "surrogatepass"))
                following = next(pieces, None)
                task.append((piece, digest.digest() if following is None else None))
                size += len(piece)
                self.characters += len(piece)
                if size >= PIECE:
                    yield task
                    task, size = [], 0
                piece = following
        if task:
            yield task

    def _cut(self, pieces: Iterable[str]) -> Iterator[str]:
        """The same text in pieces of at most `PIECE`, cut where GPT-2's splitting has a border in any case.

        That is between a character that is no white space and a white space: no word, number or run of spaces holds
        both in this order. Where a stretch has no such place it is cut at its end, which can change the tokens there.
        """
        rest = ""
        for piece in pieces:
            rest += piece
            while len(rest) > PIECE:
                at = self._border(rest)
                yield rest[:at]
                rest = rest[at:]
        if rest:
            yield rest

    def _border(self, text: str) -> int:
        for at in range(PIECE, 0, -1):
            if text[at] in " \n" and not text[at - 1].isspace():
                return at
        self.forced_cuts += 1
        return PIECE

    def _add(self, tokens: np.ndarray, digest: bytes | None) -> None:
        """Take the tokens of a piece, and at the end of a document decide where it goes."""
        self.pending.append(tokens)
        if sum(map(len, self.pending)) > 4 * PIECE:
            self.spool = self.spool or tempfile.TemporaryFile()  # noqa: SIM115
            self._spill()
        if digest is None:
            return
        if self.deduplicate and digest in self.seen:
            self.duplicates += 1
            self._forget()
            return
        if self.deduplicate:
            self.seen.add(digest)
        draw = hashlib.blake2b(digest, digest_size=8, key=str(self.seed).encode()).digest()
        held_out = int.from_bytes(draw, "big") < self.valid_fraction * 2**64
        writer = self.writers["valid" if held_out else "train"]
        before = sum(writer.lengths)
        if self.spool is not None:
            self._spill()
            self.spool.seek(0)
            writer.add_file(self.spool)
        for part in self.pending:
            writer.add(part)
        writer.add(np.array([self.codec.end_of_text]))
        writer.documents += 1
        writer.last_document = sum(writer.lengths) - before
        self._forget()

    def _spill(self) -> None:
        for part in self.pending:
            self.spool.write(_bytes(part, self.numbers))
        self.pending = []

    def _forget(self) -> None:
        self.pending = []
        if self.spool is not None:
            self.spool.close()
            self.spool = None

    def _take_back(self) -> None:
        """Train on what was held out too: of few documents, the draw took too much."""
        train, valid = self.writers["train"], self.writers["valid"]
        for n in range(len(valid.lengths)):
            with valid.path(n).open("rb") as file:
                train.add_file(file)
            valid.path(n).unlink()
        train.close()
        train.documents += valid.documents
        train.last_document = valid.last_document
        valid.lengths, valid.documents = [], 0

    def finish(self) -> dict[str, Any]:
        """Close the shards and hold out the end of the last document where no whole one was."""
        train, valid = self.writers["train"], self.writers["valid"]
        for writer in (train, valid):
            writer.close()
        if not train.lengths and not valid.lengths:
            raise TrainingError("inputs: expected some text, found none")
        drawn, total = sum(valid.lengths), sum(train.lengths) + sum(valid.lengths)
        if not train.lengths or drawn > UNLUCKY * self.valid_fraction * total:
            self._take_back()
        held_out = "documents" if valid.lengths else "none"
        count = min(int(train.last_document * self.valid_fraction), train.lengths[-1] - 1)
        if not valid.lengths and count > 0:
            held_out = "tail"
            path = train.path(len(train.lengths) - 1)
            width = self.numbers.itemsize
            with path.open("r+b") as file:
                file.seek((train.lengths[-1] - count) * width)
                tail = np.frombuffer(file.read(), self.numbers)
                file.truncate((train.lengths[-1] - count) * width)
            train.lengths[-1] -= count
            valid.add(tail)
            valid.close()
        return {
            "splits": {"train": train.facts(), "valid": valid.facts()},
            **{"valid_from": held_out, "duplicates": self.duplicates, "empty": self.empty},
            **{"characters": self.characters, "forced_cuts": self.forced_cuts},
        }
