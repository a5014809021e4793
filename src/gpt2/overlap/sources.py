"""The texts that are compared: documents in files of any kind that `gpt2 prepare` reads, or in a folder it has made."""

from __future__ import annotations

import codecs
import contextlib
import itertools
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpt2.codec import Codec, default_codec
from gpt2.data.documents import Document, Meter, find_files, read_documents
from gpt2.data.prepare import codec_hash, prepare
from gpt2.data.shards import Prepared, ShardTokens, is_prepared
from gpt2.errors import ConfigError, TrainingError

CHUNK = 1 << 20
"""Tokens that are read at once."""


class Texts:
    """Documents, to be read once.

    Args:
        inputs: files, folders, patterns and `-`, as for `prepare`; or one folder that it has made, of which the
            training split is read.
        column: the field with the text, in tables and `.jsonl`.
        encoding: of text files.
        codec: the vocabulary of a prepared folder; None is GPT-2's.

    Raises:
        TrainingError: an input stands for nothing.
        ConfigError: the folder was prepared with another vocabulary.
    """

    def __init__(
        self,
        inputs: Iterable[str | os.PathLike[str]],
        *,
        column: str | None = None,
        encoding: str = "utf-8",
        codec: Codec | None = None,
    ) -> None:
        given = list(inputs)
        self._column, self._encoding = column, encoding
        self._prepared: ShardTokens | None = None
        self._codec = codec or default_codec()
        self._name = ""
        _check_alone(given)
        if len(given) == 1 and is_prepared(given[0]):
            self._name = os.fspath(given[0])
            self._prepared = open_prepared(self._name, self._codec)
            self._read = 0
        else:
            self._files = find_files(given)
            self._meter = Meter(self._files)

    @property
    def done(self) -> int:
        """How much has been read, in bytes or tokens."""
        return self._read if self._prepared is not None else self._meter.done

    @property
    def total(self) -> int | None:
        """How much there is; None where it is not known."""
        return len(self._prepared) if self._prepared is not None else self._meter.total

    def __iter__(self) -> Iterator[Document]:
        if self._prepared is None:
            return read_documents(self._files, column=self._column, encoding=self._encoding, meter=self._meter)
        return self._decoded(self._prepared)

    def _decoded(self, tokens: ShardTokens) -> Iterator[Document]:
        """The documents of a prepared folder as text."""
        words = [b""] * self._codec.n_vocab
        for word, token in self._codec.ranks.items():
            words[token] = word
        parts = self._parts(tokens)
        for number in itertools.count(1):
            first = next(parts, None)
            if first is None:
                return
            document = Document(f"{self._name}: document {number}", _text_of(first, parts, words))
            yield document
            for _ in document.pieces:  # what the reader has left
                pass

    def _parts(self, tokens: ShardTokens) -> Iterator[tuple[np.ndarray, bool]]:
        """Pieces of documents, and whether they are the last of one."""
        for first in range(0, len(tokens), CHUNK):
            chunk = tokens.gather(np.array([first]), min(CHUNK, len(tokens) - first))[0]
            self._read = first + len(chunk)
            begin = 0
            for end in np.flatnonzero(chunk == self._codec.end_of_text).tolist():
                yield chunk[begin:end], True
                begin = end + 1
            if begin < len(chunk):
                yield chunk[begin:], self._read == len(tokens)


def _text_of(
    first: tuple[np.ndarray, bool], parts: Iterator[tuple[np.ndarray, bool]], words: Sequence[bytes]
) -> Iterator[str]:
    """The text of a document whose first part is there, and whose others come next."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for part, last in itertools.chain([first], parts):
        yield decoder.decode(b"".join([words[token] for token in part.tolist()]), final=last)
        if last:
            return


@contextlib.contextmanager
def with_shards(
    inputs: Sequence[str | os.PathLike[str]], codec: Codec, *, column: str | None = None, encoding: str = "utf-8"
) -> Iterator[ShardTokens]:
    """The training tokens of a prepared folder; other text is prepared in a temporary one for as long as it lasts.

    Raises:
        TrainingError: an input cannot be read.
        ConfigError: the folder was prepared with another vocabulary.
    """
    _check_alone(inputs)
    if len(inputs) == 1 and is_prepared(inputs[0]):
        yield open_prepared(inputs[0], codec)
        return
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {"column": column, "encoding": encoding, "valid_fraction": 0.0, "deduplicate": False}
        yield prepare(inputs, Path(folder) / "data", codec=codec, **options).train


def _check_alone(inputs: Sequence[str | os.PathLike[str]]) -> None:
    prepared = next((os.fspath(given) for given in inputs if is_prepared(given)), None)
    if prepared is not None and len(inputs) > 1:
        raise TrainingError(
            f"{prepared}: expected a prepared folder by itself, got {len(inputs)} inputs; gpt2 prepare makes one"
        )


def open_prepared(folder: str | os.PathLike[str], codec: Codec) -> ShardTokens:
    """The training tokens of a prepared folder.

    Raises:
        TrainingError: it is none.
        ConfigError: it was prepared with another vocabulary.
    """
    prepared = Prepared(Path(folder))
    if prepared.manifest["codec"]["sha256"] != codec_hash(codec):
        raise ConfigError(
            f"{folder}: expected text prepared with the model's vocabulary, got another; name its --model"
        )
    return prepared.train
