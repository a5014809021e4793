"""From a test set's items to requests, and from scores to the table of documents: what each kind of task does.

Work is cut into units, each one request: a window of a text, or a document. What comes of a unit is a small record of
plain numbers, so that a run can be written down as it goes and taken up where it was left.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from gpt2.codec import Codec
from gpt2.errors import EvaluationError
from gpt2.evaluation.detokenisers import DETOKENISERS, escapes
from gpt2.evaluation.readers import Choice, Document, Item, Passage
from gpt2.evaluation.scoring import Request, Scores, windows
from gpt2.evaluation.stop_words import STOP_WORDS
from gpt2.evaluation.tasks import Options, Task

Record = dict[str, Any]
Columns = dict[str, Any]
"""Name -> one value for each document: an array, or a list of lists."""

_PIECE = 1 << 16  # letters of a text that are encoded at once
_CUT = re.compile(r"(?<=[!-~])[ \n](?=[^\s])")


class Unit(NamedTuple):
    """A request, and what is needed to understand its scores."""

    number: int
    request: Request
    facts: Any
    size: int
    """How much of the data this is, for progress: bytes of a text, or 1 for an item."""


class Work(Protocol):
    """A kind of task at work on a set."""

    excluded: np.ndarray | None
    """Tokens for `Scorer.excluded`."""
    notes: dict[str, int]
    """What is worth knowing of the set beside the figures."""

    def units(self, items: Iterable[Item]) -> Iterator[Unit]:
        """All units, in an order that is always the same."""

    def record(self, unit: Unit, scores: list[Scores]) -> Record:
        """What is kept of a unit: numbers that JSON can hold."""

    def table(self, records: Mapping[int, Record]) -> Columns:
        """The table of documents, after all of `units` has been gone through."""


def work_for(task: Task, codec: Codec, options: Options) -> Work:
    """The work of a task; `options` are filled."""
    kinds: dict[str, Any] = {"text": TextWork, "choice": ChoiceWork, "last_word": LastWordWork}
    return kinds[task.kind](task, codec, options)


class TextWork:
    """A text in windows; a token belongs to the document in which its first byte lies."""

    excluded = None

    def __init__(self, task: Task, codec: Codec, options: Options) -> None:
        self._codec, self._options = codec, options
        self._begin = codec.end_of_text if options.begin else None
        self._detokeniser = DETOKENISERS[task.detokeniser if options.detokenise else "none"]
        self._lengths = np.zeros(codec.n_vocab, np.int64)
        for token, number in codec.ranks.items():
            self._lengths[number] = len(token)
        self._documents: list[tuple[int, int, int]] = []  # words, characters, bytes
        self._starts: list[int] = []  # the first token of each document in the text
        self.notes: dict[str, int] = {"escapes": 0}

    def units(self, items: Iterable[Item]) -> Iterator[Unit]:
        """Windows over the text, or over each document where they are read apart."""
        window, stride = self._options.window, self._options.stride
        assert window is not None
        assert stride is not None
        number = 0
        if not self._options.separate:
            seen = 0
            for cut in windows(self._tokens(self._texts(items)), window, stride, self._begin):
                size = sum(document[2] for document in self._documents[seen:])
                seen = len(self._documents)
                yield Unit(number, cut.request, (None, cut.first), size)
                number += 1
            return
        for at, text in enumerate(self._texts(items)):
            size = self._documents[-1][2]
            for cut in windows([self._codec.encode(text)], window, stride, self._begin):
                yield Unit(number, cut.request, (at, cut.first), size)
                number, size = number + 1, 0

    def record(self, unit: Unit, scores: list[Scores]) -> Record:
        """Tokens and log-likelihood of each document that the window has tokens of."""
        document, first = unit.facts
        values = scores[0].log_probabilities
        if document is not None:
            return {"documents": [document], "tokens": [len(values)], "sums": [float(values.sum())]}
        numbers = np.searchsorted(self._starts, np.arange(first, first + len(values)), side="right") - 1
        found, begins = np.unique(numbers, return_index=True)
        return {
            "documents": found.tolist(),
            "tokens": np.diff([*begins, len(numbers)]).tolist(),
            "sums": np.add.reduceat(values, begins).tolist(),
        }

    def table(self, records: Mapping[int, Record]) -> Columns:
        """tokens, words, characters, bytes and log_likelihood of each document."""
        facts = np.array(self._documents, np.int64).reshape(-1, 3)
        tokens, sums = np.zeros(len(facts), np.int64), np.zeros(len(facts))
        for number in sorted(records):
            record = records[number]
            np.add.at(tokens, record["documents"], record["tokens"])
            np.add.at(sums, record["documents"], record["sums"])
        table = {"document": np.arange(len(facts)), "tokens": tokens, "log_likelihood": sums}
        return table | dict(zip(("words", "characters", "bytes"), facts.T, strict=True))

    def _texts(self, items: Iterable[Item]) -> Iterator[str]:
        """The documents as they are read, their originals counted."""
        for item in items:
            assert isinstance(item, Document)
            text = item.text
            ends = text.count("\n")
            self._documents.append((len(text.split()) + ends, len(text), len(text.encode())))
            if self._detokeniser.name != "none":
                *whole, rest = text.split("\n")
                natural = [self._detokeniser.detokenise(line) for line in (*whole, *([rest] if rest else []))]
                text = "\n".join([*natural, ""] if not rest else natural)
                self.notes["escapes"] += escapes(text)
            yield text

    def _tokens(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
        """The tokens of all texts as of one, encoded in pieces that end where a token always does."""
        held, total = "", 0  # letters not encoded yet, tokens given
        waiting: list[int] = []  # where documents begin in the held letters, in bytes
        size = 0  # of the held letters in bytes

        def encode(piece: str) -> np.ndarray:
            nonlocal total, size, waiting
            tokens = self._codec.encode_array(piece)
            offsets = np.concatenate([[0], np.cumsum(self._lengths[tokens])])  # of each token's first byte, and the end
            taken = [start for start in waiting if start < offsets[-1]]
            self._starts += (total + np.searchsorted(offsets, taken)).tolist()
            waiting = [start - int(offsets[-1]) for start in waiting[len(taken) :]]
            total, size = total + len(tokens), size - int(offsets[-1])
            return tokens

        for text in texts:
            waiting.append(size)
            held, size = held + text, size + len(text.encode())
            while len(held) >= 2 * _PIECE:
                cut = next(_CUT.finditer(held, _PIECE), None)
                if cut is None:
                    break
                piece, held = held[: cut.start()], held[cut.start() :]
                yield encode(piece)
        if held:
            yield encode(held)
        self._starts += [total] * len(waiting)


class ChoiceWork:
    """Continuations of which one is right."""

    excluded = None

    def __init__(self, task: Task, codec: Codec, options: Options) -> None:
        self._codec = codec
        self.notes: dict[str, int] = {}

    def units(self, items: Iterable[Item]) -> Iterator[Unit]:
        """One for each item: what the options begin with is read once."""
        for number, item in enumerate(items):
            assert isinstance(item, Choice)
            pairs = [
                (self._codec.encode(context), self._codec.encode(continuation))
                for context, continuation in item.options
            ]
            made = Request.of_choices(pairs)  # what is to be skipped is scored too, for the full score
            request = _begun(Request(made.context, made.continuations), self._codec)
            yield Unit(number, request, (item, made.skip), 1)

    def record(self, unit: Unit, scores: list[Scores]) -> Record:
        """Log-likelihoods of the options: of the continuation alone, and of all in which they differ."""
        item, skips = unit.facts
        return {
            "gold": item.gold,
            "parts": [float(score.log_probabilities[n:].sum()) for score, n in zip(scores, skips, strict=True)],
            "full": [score.log_likelihood for score in scores],
            "characters": [len(continuation.removeprefix(" ")) for _, continuation in item.options],
            "tokens": sum(len(score.tokens) for score in scores),
            "dropped": scores[0].dropped,
        }

    def table(self, records: Mapping[int, Record]) -> Columns:
        """Which option is right, which was chosen in each way of scoring, and the options' log-likelihoods."""
        found = [records[number] for number in sorted(records)]
        self.notes["cut_contexts"] = sum(record["dropped"] > 0 for record in found)
        gold = np.array([record["gold"] for record in found])
        chosen = np.array([int(np.argmax(record["parts"])) for record in found])
        full = np.array([int(np.argmax(record["full"])) for record in found])
        norm = np.array(
            [int(np.argmax(np.array(record["parts"]) / np.maximum(record["characters"], 1))) for record in found]
        )
        return {
            "document": np.arange(len(found)),
            "tokens": np.array([record["tokens"] for record in found]),
            "gold": gold,
            "right": (chosen == gold).astype(np.int64),
            "right_norm": (norm == gold).astype(np.int64),
            "right_full": (full == gold).astype(np.int64),
            "log_likelihood": np.array([record["parts"][record["gold"]] for record in found]),
            "log_likelihoods": [record["parts"] for record in found],
            "full_log_likelihoods": [record["full"] for record in found],
        }


class LastWordWork:
    """The last word of passages."""

    def __init__(self, task: Task, codec: Codec, options: Options) -> None:
        self._codec = codec
        self._detokeniser = DETOKENISERS[task.detokeniser if options.detokenise else "none"]
        stops = [number for token, number in codec.ranks.items() if _spells_stop_word(token)]
        self.excluded: np.ndarray | None = np.array(stops, np.int64)
        self.notes: dict[str, int] = {}

    def units(self, items: Iterable[Item]) -> Iterator[Unit]:
        """One for each passage."""
        for number, item in enumerate(items):
            assert isinstance(item, Passage)
            request = Request(self._codec.encode(item.context), [self._codec.encode(item.word)])
            yield Unit(number, _begun(request, self._codec), item, 1)

    def record(self, unit: Unit, scores: list[Scores]) -> Record:
        """Log-likelihoods, and what was guessed."""
        score = scores[0]
        return {
            "dropped": score.dropped,
            "tokens": len(score.tokens),
            "sum": score.log_likelihood,
            "last": float(score.log_probabilities[-1]),
            "right": score.greedy,
            "right_last": bool(score.best[-1] == score.tokens[-1]),
            "right_kept": bool((score.kept == score.tokens).all()),
        }

    def table(self, records: Mapping[int, Record]) -> Columns:
        """Log-likelihoods and whether the guess was right: whole word, last token, whole word without stop words."""
        found = [records[number] for number in sorted(records)]
        self.notes["cut_contexts"] = sum(record["dropped"] > 0 for record in found)
        columns = {
            "tokens": ("tokens", np.int64),
            "log_likelihood": ("sum", np.float64),
            "token_log_likelihood": ("last", np.float64),
            "right_word": ("right", np.int64),
            "right_token": ("right_last", np.int64),
            "right_filtered": ("right_kept", np.int64),
        }
        table = {name: np.array([record[key] for record in found], kind) for name, (key, kind) in columns.items()}
        return {"document": np.arange(len(found)), **table}


def _begun(request: Request, codec: Codec) -> Request:
    """With <|endoftext|> for a context where there is none."""
    if len(request.context):
        return request
    if codec.end_of_text is None:
        raise EvaluationError("context: expected some text, since this vocabulary has no <|endoftext|> to begin from")
    return Request([codec.end_of_text], request.continuations, request.skip)


def _spells_stop_word(token: bytes) -> bool:
    try:
        return token.decode("utf-8").strip() in STOP_WORDS
    except UnicodeDecodeError:
        return False
