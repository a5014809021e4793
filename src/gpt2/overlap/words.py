"""How much of an evaluation set stands in a training set: the share of its 8-grams of words that are found there.

It is the measure of Radford et al. (2019), section 4: texts are reduced to lower-cased alphanumeric words, single
spaces between them, and the share is that of the test set's 8-grams which the training set also has. They kept the
training set in Bloom filters, which find a little too much (at most once in 10**8); here the evaluation set is kept and
the training set read by, so the counts are exact. The paper does not say whether a gram that occurs twice counts twice,
nor what is alphanumeric beyond ASCII: here occurrences are counted (different grams are counted beside them), and
letters and digits are Unicode's. No gram goes across the end of a document.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gpt2.data.documents import Document
from gpt2.errors import ConfigError, TrainingError
from gpt2.overlap.grams import Grams

N = 8
"""Words of a gram, as in the paper."""

_WORD = re.compile(r"[^\W_]+")
_CHUNK = 1 << 18  # words of the training set that are looked at together
_LONGEST = 1 << 20  # characters of a word; longer ones are cut


@dataclass(frozen=True)
class DocumentOverlap:
    """What was found of one document."""

    source: str
    """Its file, and its row where it is one of many."""
    grams: int
    """Its n-grams."""
    found: int
    """Those that the training set has, too."""


@dataclass(frozen=True)
class Overlap:
    """What was found of an evaluation set."""

    n: int
    """Words of a gram."""
    grams: int
    """N-grams of the evaluation set, each as often as it occurs."""
    found: int
    """Those that the training set has, too."""
    distinct: int
    """Different n-grams of the evaluation set."""
    distinct_found: int
    """Those that the training set has, too."""
    documents: tuple[DocumentOverlap, ...]
    """Each document of the evaluation set."""
    training_documents: int
    """Documents of the training set."""
    training_words: int
    """Words of the training set."""

    @property
    def percent(self) -> float | None:
        """The paper's measure: 100 * found / grams; None where there are no grams."""
        return 100 * self.found / self.grams if self.grams else None

    @property
    def touched(self) -> int:
        """Documents of which at least one gram was found."""
        return sum(document.found > 0 for document in self.documents)


def overlap(
    texts: Iterable[Document],
    training: Iterable[Document],
    *,
    n: int = N,
    on_progress: Callable[[], None] | None = None,
) -> Overlap:
    """Count the n-grams of words of some texts that also stand in others; see `overlaps`."""
    return overlaps([texts], training, n=n, on_progress=on_progress)[0]


def overlaps(
    sets: Sequence[Iterable[Document]],
    training: Iterable[Document],
    *,
    n: int = N,
    on_progress: Callable[[], None] | None = None,
) -> list[Overlap]:
    """Count the n-grams of words of several evaluation sets that also stand in a training set.

    The evaluation sets are held in memory, about 40 bytes a word; the training set is read once, in pieces.

    Args:
        sets: evaluation sets, each as from `gpt2.overlap.sources.Texts`.
        training: the training set, in the same way.
        n: words of a gram.
        on_progress: called now and then while the training set is read.

    Returns:
        What was found, for each evaluation set.

    Raises:
        ConfigError: n is not 1 or more.
        TrainingError: a file cannot be read, or a set holds no word.
    """
    if n < 1:
        raise ConfigError(f"n: expected 1 or more words, got {n!r}")
    ids: dict[str, int] = {}
    searched = [_Searched(texts, ids, n) for texts in sets]
    documents = count = 0
    # Only words of the evaluation sets matter; any other is -1, and so is the end of a document.
    row: list[int] = []
    for document in training:
        documents += 1
        for words in words_of(document):
            row += [ids.get(word, -1) for word in words]
            count += len(words)
            if len(row) >= _CHUNK:
                for one in searched:
                    one.look_into(row)
                row = row[len(row) - n + 1 :]
                if on_progress is not None:
                    on_progress()
        row.append(-1)
    if not count:
        raise TrainingError("training: expected some words, found none")
    for one in searched:
        one.look_into(row)
    return [one.result(documents, count) for one in searched]


class _Searched:
    """An evaluation set, and which of its grams have been found; words are numbered as they come."""

    def __init__(self, texts: Iterable[Document], ids: dict[str, int], n: int) -> None:
        self.n = n
        self.sources, rows = [], []
        for document in texts:
            row = [ids.setdefault(word, len(ids)) for words in words_of(document) for word in words]
            self.sources.append(document.source)
            rows.append(np.array(row, np.int32))
        if not sum(map(len, rows)):
            raise TrainingError("texts: expected some words, found none")
        self.grams = Grams(rows, n)
        self.found = np.zeros(len(self.grams), bool)

    def look_into(self, row: Sequence[int]) -> None:
        """Note which grams are in a row of numbers of words."""
        self.found[self.grams.find(np.array(row, np.int32))[1]] = True

    def result(self, training_documents: int, training_words: int) -> Overlap:
        """What there is."""
        each = [self.found[self.grams.row(number)] for number in range(len(self.sources))]
        return Overlap(
            n=self.n,
            grams=sum(map(len, each)),
            found=sum(int(some.sum()) for some in each),
            distinct=len(self.grams),
            distinct_found=int(self.found.sum()),
            documents=tuple(
                DocumentOverlap(source, len(some), int(some.sum()))
                for source, some in zip(self.sources, each, strict=True)
            ),
            training_documents=training_documents,
            training_words=training_words,
        )


def words_of(document: Document) -> Iterator[list[str]]:
    """The lower-cased alphanumeric words of a document, in order, some at a time."""
    rest = ""
    for piece in document.pieces:
        text = rest + piece
        end = len(text)
        while end and text[end - 1].isalnum() and len(text) - end < _LONGEST:  # the piece may end in mid-word
            end -= 1
        yield [word.lower() for word in _WORD.findall(text[:end])]
        rest = text[end:]
    yield [word.lower() for word in _WORD.findall(rest)]
