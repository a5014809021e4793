"""Overlap and memorisation, against counting by sets and comparing by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gpt2.overlap.sources
import gpt2.overlap.spans
import gpt2.overlap.words
from gpt2.cli import app
from gpt2.codec import Codec, default_codec
from gpt2.data.documents import Document
from gpt2.data.prepare import prepare
from gpt2.data.rows import ArrayTokens
from gpt2.errors import ConfigError, TrainingError
from gpt2.overlap import Texts, memorized, open_prepared, overlap, overlaps, with_shards
from gpt2.overlap.grams import Grams
from gpt2.overlap.words import words_of
from test_cli import gpt2 as run_gpt2

SMALL = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def rows_of(largest: int, size: int = 14, count: int = 4) -> st.SearchStrategy[list[list[int]]]:
    return st.lists(st.lists(st.integers(0, largest), max_size=size), max_size=count)


def grams_of(row: Sequence[object], n: int) -> list[tuple[object, ...]]:
    return [tuple(row[at : at + n]) for at in range(len(row) - n + 1)]


def documents(texts: Sequence[str], cut: int = 1000) -> Iterator[Document]:
    for number, text in enumerate(texts):
        yield Document(f"text {number}", iter([text[at : at + cut] for at in range(0, len(text), cut)]))


# N-grams


@settings(max_examples=200, deadline=None)
@given(rows_of(2), st.lists(st.integers(-1, 3), max_size=40), st.integers(1, 5))
def test_grams_are_found_as_by_a_set(rows: list[list[int]], text: list[int], n: int) -> None:
    grams = Grams([np.array(row, np.int32) for row in rows], n)
    wanted = [gram for row in rows for gram in grams_of(row, n)]
    assert len(grams) == len(set(wanted))
    numbers = [number for row in range(len(rows)) for number in grams.row(row).tolist()]
    assert len(dict(zip(wanted, numbers, strict=True))) == len(set(zip(wanted, numbers, strict=True))) == len(grams)
    places, kinds = grams.find(np.array(text, np.int32))
    assert places.tolist() == [at for at, gram in enumerate(grams_of(text, n)) if gram in set(wanted)]
    number_of = dict(zip(wanted, numbers, strict=True))
    assert kinds.tolist() == [number_of[tuple(text[at : at + n])] for at in places.tolist()]


def test_equal_hashes_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a multiplier of 1 the hash is that of a sum, and [0, 3], [1, 2] collide: they pass for candidates alone."""
    monkeypatch.setattr("gpt2.overlap.grams._MULTIPLIERS", (1,))
    grams = Grams([np.array([0, 3], np.int32)], 2)
    places, _ = grams.find(np.array([1, 2, 0, 3], np.int32))
    assert places.tolist() == [2]
    monkeypatch.setattr("gpt2.overlap.grams._MULTIPLIERS", (1, 3))
    rows = [np.array([0, 3], np.int32), np.array([1, 2], np.int32)]
    assert len(Grams(rows, 2)) == 2, "collisions within take another multiplier"


# Words


def test_words_are_lower_cased_and_alphanumeric() -> None:
    (document,) = documents(["The QUICK—brown fox's 3rd_jump, Ärger: «Ψυχή»\n\n東京 x²"])
    assert [word for words in words_of(document) for word in words] == [
        *["the", "quick", "brown", "fox", "s", "3rd", "jump", "ärger", "ψυχή", "東京", "x²"]
    ]


@SMALL
@given(st.text(st.sampled_from("abΣσ' _.É2\n"), max_size=40), st.integers(1, 7))
def test_pieces_cut_no_word(text: str, cut: int) -> None:
    (document,) = documents([text], cut)
    wanted = [word.lower() for word in re.findall(r"[^\W_]+", text)]
    assert [word for words in words_of(document) for word in words] == wanted


WORDS = st.lists(st.sampled_from(["a", "B", "the", "The", "King", "x1"]), max_size=12).map(" ".join)


@SMALL
@given(st.lists(WORDS, max_size=4), st.lists(WORDS, max_size=6), st.integers(1, 4), st.integers(1, 30))
def test_overlap_counts_as_sets_do(
    monkeypatch: pytest.MonkeyPatch, texts: list[str], training: list[str], n: int, chunk: int
) -> None:
    monkeypatch.setattr(gpt2.overlap.words, "_CHUNK", chunk)
    if not any(text.split() for text in texts) or not any(text.split() for text in training):
        with pytest.raises(TrainingError, match="expected some words, found none"):
            overlap(documents(texts), documents(training), n=n)
        return
    found = overlap(documents(texts, 3), documents(training, 5), n=n)
    known = {gram for text in training for gram in grams_of(text.lower().split(), n)}
    mine = [grams_of(text.lower().split(), n) for text in texts]
    flat = [gram for grams in mine for gram in grams]
    assert [(d.grams, d.found) for d in found.documents] == [(len(g), sum(x in known for x in g)) for g in mine]
    assert found.grams == len(flat)
    assert found.found == sum(gram in known for gram in flat)
    assert found.distinct == len(set(flat))
    assert found.distinct_found == len(set(flat) & known)
    assert found.training_documents == len(training)
    assert found.training_words == sum(len(text.split()) for text in training)
    assert found.percent == (100 * found.found / len(flat) if flat else None)
    both = overlaps([documents(["b king"]), documents(texts)], documents(training), n=n)
    assert both == [overlap(documents(["b king"]), documents(training), n=n), found], "one beside another"


def test_overlap_refuses_no_words_in_a_gram() -> None:
    with pytest.raises(ConfigError, match="n: expected 1 or more words, got 0"):
        overlap(documents(["a"]), documents(["a"]), n=0)


# Prepared folders


TEXTS = ["The king — who was old — had three sons.", "東京 🙂 the king who was old", "sons. <|endoftext|> The", "x"]


@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_a_prepared_folder_is_its_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(gpt2.overlap.sources, "CHUNK", chunk)
    for number, text in enumerate(TEXTS):
        (tmp_path / f"{number}.txt").write_text(text, encoding="utf-8")
    prepare([tmp_path / "*.txt"], tmp_path / "data", valid_fraction=0, shard_tokens=10)
    texts = Texts([tmp_path / "data"])
    read = [(document.source, "".join(document.pieces)) for document in texts]
    assert read == [(f"{tmp_path / 'data'}: document {n + 1}", text) for n, text in enumerate(TEXTS)]
    assert texts.done == texts.total
    unread = [document.source for document in Texts([tmp_path / "data"])]
    assert len(unread) == len(TEXTS), "also where nobody reads their text"
    wanted = overlap(documents(TEXTS[1:2]), documents(TEXTS), n=3)
    assert overlap(documents(TEXTS[1:2]), Texts([tmp_path / "data"]), n=3) == wanted


def test_a_prepared_folder_beside_others_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a king", encoding="utf-8")
    prepare([tmp_path / "a.txt"], tmp_path / "data", valid_fraction=0)
    given = [tmp_path / "a.txt", tmp_path / "data"]
    with pytest.raises(TrainingError, match="data: expected a prepared folder by itself, got 2 inputs"):
        Texts(given)
    with (
        pytest.raises(TrainingError, match="data: expected a prepared folder by itself"),
        with_shards(given, default_codec()),
    ):
        pass


def test_another_vocabulary_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a king", encoding="utf-8")
    prepare([tmp_path / "a.txt"], tmp_path / "data", codec=Codec.from_merges("a b\n"), valid_fraction=0)
    with pytest.raises(ConfigError, match="expected text prepared with the model's vocabulary, got another"):
        open_prepared(tmp_path / "data", default_codec())
    with pytest.raises(ConfigError, match="name its --model"):
        Texts([tmp_path / "data"])


# Spans


def spans_by_hand(text: list[int], training: list[int], shortest: int) -> list[tuple[int, int, int, int, int]]:
    """From each place the longest stretch that is in the training text; those in others are left out."""
    longest = []
    for first in range(len(text)):
        last = first
        while last < len(text) and any(
            training[at : at + last + 1 - first] == text[first : last + 1] for at in range(len(training))
        ):
            last += 1
        if last - first >= shortest:
            longest.append((first, last))
    found = []
    for first, last in longest:
        if any(a <= first and last <= b and (a, b) != (first, last) for a, b in longest):
            continue
        length = last - first
        places = [at for at in range(len(training)) if training[at : at + length] == text[first:last]]
        found.append((first, last, places[0], training[: places[0]].count(9), len(places)))
    return found


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows_of(2, size=16),
    st.lists(st.sampled_from([0, 0, 1, 1, 2, 9]), max_size=60),
    st.integers(1, 5),
    st.sampled_from([1, 7, 1000]),
)
def test_spans_are_those_found_by_hand(
    monkeypatch: pytest.MonkeyPatch, texts: list[list[int]], training: list[int], shortest: int, chunk: int
) -> None:
    monkeypatch.setattr(gpt2.overlap.spans, "CHUNK", chunk)
    monkeypatch.setattr(gpt2.overlap.spans, "_PAIRS", 3)
    monkeypatch.setattr(gpt2.overlap.spans, "_STEP", 2)
    told: list[tuple[int, int]] = []
    found = memorized(
        texts,
        ArrayTokens(np.array(training, np.int32)),
        end_of_text=9,
        shortest=shortest,
        on_progress=lambda done, total: told.append((done, total)),
    )
    for text, result in zip(texts, found, strict=True):
        wanted = spans_by_hand(text, training, shortest)
        assert [(s.first, s.last, s.offset, s.document, s.places) for s in result.spans] == wanted
        assert result.tokens == len(text)
        assert result.covered == len({at for first, last, *_ in wanted for at in range(first, last)})
        assert result.longest == max((last - first for first, last, *_ in wanted), default=0)
    assert not training or told[-1] == (len(training), len(training))


def test_a_text_of_one_token_over_and_over() -> None:
    """Every place of it fits every place of the training text; it ends, and memory stays bounded."""
    (found,) = memorized([[5] * 300], ArrayTokens(np.full(20_000, 5, np.int32)), shortest=8)
    (span,) = found.spans
    assert (span.first, span.last, span.offset, span.places) == (0, 300, 0, 20_000 - 300 + 1)


def test_spans_refuse_a_length_of_nothing() -> None:
    with pytest.raises(ConfigError, match="shortest: expected 1 or more tokens, got 0"):
        memorized([[1]], ArrayTokens(np.array([1])), shortest=0)


# The command line


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tale = "Once upon a time there was a king who had three sons, and the youngest was called Jack."
    (tmp_path / "training.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in ("Another tale altogether.", f"A tale. {tale} The end."))
    )
    (tmp_path / "set.jsonl").write_text(
        "".join(json.dumps({"body": text}) + "\n" for text in ("Nothing of it at all is in there, nothing.", tale))
    )
    prepare([tmp_path / "training.jsonl"], tmp_path / "data", valid_fraction=0)
    for training in ("training.jsonl", "data"):
        options = ["--column", "body", "--in", str(tmp_path / training)]
        app(["overlap", str(tmp_path / "set.jsonl"), *options, "--documents"], standalone_mode=False)
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].endswith(": 84.62 % of 13 8-grams (11 of 13 different ones), in 1 of 2 documents")
        assert lines[1:] == [f"  {tmp_path}/set.jsonl: row 1: 0 of 2", f"  {tmp_path}/set.jsonl: row 2: 11 of 11"]
        app(["memorized", str(tmp_path / "set.jsonl"), *options, "--json", "--min-tokens", "12"], standalone_mode=False)
        first, second = map(json.loads, capsys.readouterr().out.splitlines())
        assert (first["spans"], first["min_tokens"]) == ([], 12)
        (span,) = second["spans"]
        assert span["document"] == 1
        assert span["text"] == tale[4:], "the first word has a space before it there, and is another token"
        assert second["covered"] == second["longest"] == second["tokens"] - 1
    done = run_gpt2("memorized", "-", "--in", str(tmp_path / "data"), "--min-tokens", "12", stdin=tale)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode().splitlines()
    assert lines[0] == "-: 19 of 20 tokens stand in the training text in spans of at least 12, the longest has 19"
    assert lines[1].startswith("  19 tokens from 1, 1 place, first in document 1 at token ")
    with pytest.raises(TrainingError, match="expected text in the field 'text'; the fields are body"):
        app(["overlap", str(tmp_path / "set.jsonl"), "--in", str(tmp_path / "data")], standalone_mode=False)
    app(["overlap", str(tmp_path / "set.jsonl"), *options, "--n", "3", "--json"], standalone_mode=False)
    (facts,) = json.loads(capsys.readouterr().out).values()
    app(["overlap", str(tmp_path / "set.jsonl"), *options, "--n", "99"], standalone_mode=False)
    assert capsys.readouterr().out.endswith("no document has 99 words, so there is nothing to compare\n")
    assert (facts["n"], facts["documents"], facts["touched"]) == (3, 2, 1)
