"""Evaluation: what is asked of the engine, what is made of the answers; every figure is the one of a plain loop."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
import json
import math
import os
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import model_server as faulty
from fakes import FakeCache, FakeEngine
from gpt2 import store
from gpt2.checkpoints.transfer import Settings
from gpt2.cli import app
from gpt2.codec import Codec
from gpt2.config import SIZES, GPT2Config
from gpt2.errors import CacheFullError, ConfigError, DownloadError, EvaluationError, IntegrityError
from gpt2.evaluation import Options, Result, compare_runs, evaluate, find_data, paper, readers, sets, work
from gpt2.evaluation.detokenisers import DETOKENISERS, ESCAPE, escapes
from gpt2.evaluation.journal import JOURNAL, Journal, read_documents
from gpt2.evaluation.likelihood import Reader
from gpt2.evaluation.pages import write_page
from gpt2.evaluation.scoring import Request, Scorer, windows
from gpt2.evaluation.statistics import Estimate, compare, estimate
from gpt2.evaluation.tasks import TASKS, Metric
from gpt2.gpt import new_model, save_model
from gpt2.hashing import sha256_of

CODEC = Codec.from_merges("#version: 0.2\nt h\nth e\nĠ the\nĠ a\ni n\nĠ i\nĊ Ċ\n")
SETS = Path(__file__).parent.parent.parent / "shared" / "data" / "eval"
NONE = DETOKENISERS["none"]
needs_sets = pytest.mark.skipif(not SETS.is_dir(), reason="the evaluation sets are not beside this repository")


def fake(n_ctx: int = 32, engine: Any = None) -> Any:
    """A model without a network, with a vocabulary."""
    return SimpleNamespace(engine=engine or FakeEngine(CODEC.n_vocab, n_ctx), codec=CODEC, name="fake")


def log_probability(engine: FakeEngine, context: Sequence[int], token: int) -> float:
    """The plain way."""
    logits = engine.function(list(context)).astype(np.float32).astype(np.float64)
    return float(logits[token] - np.log(np.exp(logits - logits.max()).sum()) - logits.max())


# Logits to log-probabilities


@pytest.mark.parametrize("n_vocab", [1, 3, 64, 101, 259, 50257])
def test_log_probabilities_are_those_of_float64(n_vocab: int) -> None:
    rng = np.random.default_rng(n_vocab)
    logits = (rng.standard_normal((9, n_vocab)) * [[0.01], [1], [5], [30], [100], [1], [1], [1], [1]]).astype(
        np.float32
    )
    targets = rng.integers(0, n_vocab, 9)
    excluded = np.unique(logits[:4].argmax(axis=1)) if n_vocab > 64 else np.empty(0, np.int64)
    out, best, kept = Reader(n_vocab, excluded)(logits, targets)
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    np.testing.assert_allclose(
        out, wide[np.arange(9), targets] - np.log(np.exp(wide).sum(axis=1)), atol=1e-6, rtol=1e-6
    )
    np.testing.assert_array_equal(best, logits.argmax(axis=1))
    without = logits.copy()
    without[:, excluded] = -np.inf
    np.testing.assert_array_equal(kept, without.argmax(axis=1))


def test_threads_change_nothing() -> None:
    rng = np.random.default_rng(0)
    logits, targets = rng.standard_normal((37, 300)).astype(np.float32), rng.integers(0, 300, 37)
    for one, two in zip(Reader(300, threads=1)(logits, targets), Reader(300, threads=3)(logits, targets), strict=True):
        np.testing.assert_array_equal(one, two)


def test_the_lowest_of_several_best_tokens_is_taken() -> None:
    logits = np.zeros((1, 300), np.float32)
    logits[0, [70, 200, 299]] = 2
    assert Reader(300)(logits, np.array([0]))[1].tolist() == [70]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 64, 299])
def test_what_is_no_number_is_seen(bad: float, place: int) -> None:
    logits = np.zeros((2, 300), np.float32)
    logits[0, place] = bad
    out, best, _ = Reader(300)(logits, np.array([5, 5]))
    assert math.isnan(out[0])
    assert out[1] == pytest.approx(-math.log(300))
    assert best[1] == 0


# Windows


@given(
    total=st.integers(0, 60),
    window=st.integers(1, 12),
    stride=st.integers(1, 12),
    begin=st.sampled_from([None, 99]),
    cuts=st.lists(st.integers(0, 60), max_size=4),
)
def test_every_token_is_scored_once_with_the_context_that_is_promised(
    total: int, window: int, stride: int, begin: int | None, cuts: list[int]
) -> None:
    stride = min(stride, window)
    bounds = [0, *sorted(min(cut, total) for cut in cuts), total]
    pieces = [list(range(a, b)) for a, b in itertools.pairwise(bounds)]
    whole = [*([] if begin is None else [begin]), *range(total)]
    scored = []
    for number, cut in enumerate(windows(pieces, window, stride, begin)):
        context, targets = list(cut.request.context), list(cut.request.continuations[0])
        at = whole.index(targets[0])
        assert cut.first == targets[0]
        assert whole[at - len(context) : at + len(targets)] == context + targets
        assert len(context) + len(targets) - 1 <= window
        assert number == 0 or len(context) + len(targets) - 1 == window, "all but the first are full"
        assert number == 0 or len(context) > window - stride
        scored += targets
    assert scored == list(range(0 if begin is not None else 1, total))


# Requests


def random_requests(seed: int, n_ctx: int, count: int) -> list[Request]:
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        choices = int(rng.integers(1, 5))
        lengths = rng.integers(1, 6, choices)
        context = rng.integers(0, CODEC.n_vocab, rng.integers(1, n_ctx - 5)).tolist()
        continuations = [rng.integers(0, CODEC.n_vocab, n).tolist() for n in lengths]
        found.append(Request(context, continuations, [int(rng.integers(0, n + 1)) for n in lengths]))
    return found


def check_scores(engine: FakeEngine, requests: list[Request], scored: list[list[Any]]) -> None:
    assert len(requests) == len(scored)
    for request, answers in zip(requests, scored, strict=True):
        assert len(answers) == len(request.continuations)
        for number, (continuation, answer) in enumerate(zip(request.continuations, answers, strict=True)):
            whole = [*request.context, *continuation]
            places = range(len(request.context) + request.skipped(number), len(whole))
            wanted = [log_probability(engine, whole[:place], whole[place]) for place in places]
            np.testing.assert_allclose(answer.log_probabilities, wanted, atol=2e-6)
            assert answer.tokens.tolist() == [whole[place] for place in places]
            assert answer.best.tolist() == [int(engine.function(whole[:place]).argmax()) for place in places]


@pytest.mark.parametrize("batch_tokens", [1, 40, 2048])
def test_scores_are_those_of_a_plain_loop(batch_tokens: int) -> None:
    engine = FakeEngine(CODEC.n_vocab, 24)
    requests = random_requests(1, 24, 30)
    check_scores(engine, requests, list(Scorer(engine, batch_tokens=batch_tokens).score(requests)))


class SmallCache(FakeEngine):
    """Has memory for `room` rows."""

    room = 2

    def feed(self, cache: FakeCache, ids: Sequence[Sequence[int]], *, all_positions: bool = False) -> list[np.ndarray]:
        if len(cache.rows) > self.room:
            raise CacheFullError("cache: full")
        return super().feed(cache, ids, all_positions=all_positions)


def test_what_does_not_fit_the_cache_together_is_read_one_by_one() -> None:
    engine = SmallCache(CODEC.n_vocab, 24)
    requests = random_requests(2, 24, 10)
    check_scores(engine, requests, list(Scorer(engine).score(requests)))
    engine.room = 0
    with pytest.raises(CacheFullError):
        list(Scorer(engine).score(requests[:1]))


def test_a_context_that_is_too_long_is_cut_off_at_its_beginning() -> None:
    engine = FakeEngine(CODEC.n_vocab, 8)
    context, continuation = list(range(20)), [1, 2, 3]
    ((answer,),) = Scorer(engine).score([Request(context, [continuation])])
    assert answer.dropped == 20 + 3 - 1 - 8
    kept = context[answer.dropped :]
    wanted = [log_probability(engine, [*kept, *continuation[:n]], continuation[n]) for n in range(3)]
    np.testing.assert_allclose(answer.log_probabilities, wanted, atol=2e-6)
    with pytest.raises(EvaluationError, match="expected at most n_ctx = 8 tokens, got 9"):
        list(Scorer(engine).score([Request([1], [list(range(9))])]))
    with pytest.raises(EvaluationError, match="expected at least one token"):
        list(Scorer(engine).score([Request([], [[1]])]))


def test_logits_that_are_no_numbers_end_it() -> None:
    engine = FakeEngine(CODEC.n_vocab, 8, lambda tokens: np.full(CODEC.n_vocab, np.nan))
    with pytest.raises(EvaluationError, match="got NaN or infinity from the fake engine"):
        list(Scorer(engine).score([Request([1], [[2]])]))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model in a folder, with weights large enough for logits to differ."""
    config = GPT2Config(n_vocab=CODEC.n_vocab, n_ctx=48, n_embd=32, n_head=2, n_layer=2)
    model = new_model(config, codec=CODEC, seed=1)
    for variable in model.network.tensors().values():
        variable.assign(variable * 4.0)
    return Path(save_model(model, tmp_path_factory.mktemp("models") / "tiny"))


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_the_engines_agree(tiny: Path, precision: str) -> None:
    """On shared contexts, on windows, and to the bit whether a context is shared or read anew."""
    from gpt2.language_model import open_model

    model = open_model(tiny, engine="litert", precision=precision)
    requests = random_requests(3, 48, 20)
    requests += [cut.request for cut in windows([list(range(200))], 48, 20, 5)]
    ours = list(Scorer(model.engine).score(requests))
    singles = [
        Request(request.context, [continuation], [request.skipped(n)])
        for request in requests
        for n, continuation in enumerate(request.continuations)
    ]
    alone = [answer for (answer,) in Scorer(model.engine, batch_tokens=1).score(singles)]
    for one, two in zip(itertools.chain.from_iterable(ours), alone, strict=True):
        np.testing.assert_array_equal(one.log_probabilities, two.log_probabilities)
    if precision == "float32":
        theirs = Scorer(open_model(tiny, engine="keras").engine).score(requests)
        for one, two in zip(itertools.chain(*ours), itertools.chain.from_iterable(theirs), strict=True):
            np.testing.assert_allclose(one.log_probabilities, two.log_probabilities, atol=2e-5)


def test_memory_does_not_grow_with_the_requests(tiny: Path) -> None:
    """The engine's cache is given back after each batch, not kept until it is full."""
    from gpt2.engines.litert import LiteRTEngine
    from gpt2.language_model import open_model

    engine = open_model(tiny, engine="litert").engine
    assert isinstance(engine, LiteRTEngine)
    used = []
    for seed in range(4):
        requests = [Request(list(np.random.default_rng(seed).integers(0, 200, 40)), [[1, 2], [3]])]
        list(Scorer(engine).score(requests * 2))
        used.append(int(engine.pool.keys.any(axis=(0, 2, 3, 4)).sum()))
    assert used == used[:1] * 4


# Detokenisers

EXAMPLES = [
    (
        "wikitext",
        ' He did n\'t , at 1 @,@ 000 @.@ 5 ( or so ) , say " yes " . ',
        'He didn\'t, at 1,000.5 (or so), say "yes".',
    ),
    ("wikitext", " = Du Fu = ", "= Du Fu ="),
    ("wikitext", " a well @-@ known U.S. band ; it 's 5 % ", "a well-known U.S. band; it's 5%"),
    ("wikitext", ' the dogs \' tails : " x " ', 'the dogs\' tails: "x"'),
    ("ptb", " it was n't $ N at cities\\/abc <unk> 's ", "it wasn't $N at cities/abc <unk>'s"),
    ("1bw", 'He said : " I ca n\'t ( yet ) . "', 'He said: "I can\'t (yet)."'),
    ("treebank", "` But we must , ' said `` he '' -LRB- then -RRB- .", "'But we must,' said \"he\" (then)."),
    ("treebank", "Mr. Fox 's tail ca n't .", "Mr. Fox's tail can't."),
]


@pytest.mark.parametrize(("name", "line", "natural"), EXAMPLES)
def test_natural_spelling(name: str, line: str, natural: str) -> None:
    assert DETOKENISERS[name].detokenise(line) == natural
    assert DETOKENISERS[name].restore(natural) == line


MARKS = (
    ". , ; : ! ? % ( ) [ ] \" ' $ # ` `` '' -LRB- -RRB- @-@ @,@ @.@ n't 's U.S. Mr. a dogs ca 1 20 - 1,5 a-b don't x/y"
)
WORDS = st.sampled_from([*MARKS.split(" "), "x\\/y", "...", "", ESCAPE, ESCAPE * 2 + "x"])


@pytest.mark.parametrize("name", DETOKENISERS)
@given(words=st.lists(WORDS, max_size=12), framed=st.booleans())
@settings(max_examples=150)
def test_every_line_of_words_comes_back(name: str, words: list[str], framed: bool) -> None:
    line = " ".join(words)
    line = f" {line} " if framed else line
    detokeniser = DETOKENISERS[name]
    assert detokeniser.restore(detokeniser.detokenise(line)) == line


@pytest.mark.parametrize("name", DETOKENISERS)
@given(line=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n")))
@settings(max_examples=60)
def test_every_line_comes_back(name: str, line: str) -> None:
    assert DETOKENISERS[name].restore(DETOKENISERS[name].detokenise(line)) == line


@needs_sets
@pytest.mark.parametrize(
    ("name", "file", "rarer"),
    [
        ("ptb", "ptb/ptb.test.txt", 1e-4),
        ("wikitext", "wikitext-2-raw/wiki.test.raw", 1e-3),
        pytest.param("wikitext", "wikitext-2/test.txt", 1e-3, marks=pytest.mark.slow),
        pytest.param("treebank", "cbt-books/cbt_test.txt", 1e-3, marks=pytest.mark.slow),
    ],
)
def test_the_real_sets_come_back_and_hardly_need_escapes(name: str, file: str, rarer: float) -> None:
    detokeniser = DETOKENISERS[name]
    words = escaped = gaps = 0
    for line in (SETS / file).read_text(encoding="utf-8").removesuffix("\n").split("\n"):
        natural = detokeniser.detokenise(line)
        assert detokeniser.restore(natural) == line
        words, escaped = words + len(line.split()), escaped + escapes(natural)
        gaps += line.count(" ") - natural.count(" ")
    assert escaped < rarer * words
    assert gaps > 0.05 * words


# Readers


def write(path: Path, content: str | list[Any]) -> Path:
    path.write_text(
        content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content), "utf-8"
    )
    return path


def test_hellaswag_in_each_format(tmp_path: Path) -> None:
    endings = ["runs. [step] x", "sits.", "goes.", "eats."]
    row = {"ind": 1, "activity_label": "Dogs", "ctx_a": "A dog is seen.", "ctx_b": "the DOG", "endings": endings}
    plain = [("Dogs: A dog is seen. The dog", text) for text in (" runs. x", " sits.", " goes.", " eats.")]
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist([{**row, "label": "2"}]), tmp_path / "x.parquet")
    paths = [
        write(tmp_path / "a.jsonl", [{**row, "label": 2}]),
        write(tmp_path / "b.json", json.dumps([{**row, "label": "2"}])),
        write(tmp_path / "c.txt", "Dogs: A dog is seen. The dog\n2\nruns. x\nsits.\ngoes.\neats.\n"),
        tmp_path / "x.parquet",
    ]
    for path in paths:
        assert list(readers.endings(path, NONE)) == [readers.Choice(tuple(plain), 2)], path


def test_winograd_in_each_format(tmp_path: Path) -> None:
    xml = """<collection><schema><text><txt1>The cup fell off
        the shelf because</txt1><pron>it</pron><txt2>was not level.</txt2></text>
        <answers><answer>The cup</answer><answer>The shelf</answer></answers>
        <correctAnswer>B.</correctAnswer></schema></collection>"""
    start = "The cup fell off the shelf because the "
    rows = {"context_options": [start + "cup", start + "shelf"], "continuation": "was not level.", "gold": 1}
    blank = {"sentence": start.removesuffix("the ") + "_ was not level.", "option1": "the cup", "option2": "the shelf"}
    text = start.removesuffix("the ") + "it was not level."
    pronoun = {"text": text, "pronoun": "it", "pronoun_loc": text.index("it was"), "label": 1}
    his = xml.replace("<pron>it<", "<pron>his<").replace("was not", "edge was not")
    (item,) = readers.schemas(write(tmp_path / "his.xml", his), NONE)
    assert item.options[0] == ("The cup fell off the shelf because the cup's", " edge was not level.")
    row = {
        **pronoun,
        "text": text.replace("it was", "his edge was"),
        "pronoun": "his",
        "options": ["The cup", "The shelf"],
    }
    assert list(readers.schemas(write(tmp_path / "his.jsonl", [row]), NONE)) == [item]
    paths = [
        write(tmp_path / "a.jsonl", [rows]),
        write(tmp_path / "b.xml", xml),
        write(tmp_path / "c.jsonl", [{**blank, "answer": "2"}]),
        write(tmp_path / "e.jsonl", [{**pronoun, "options": ["The cup", "The shelf"]}]),
        write(
            tmp_path / "d.txt",
            "The cup fell off the shelf because [MASK] was not level.\n[MASK]\n The cup ,The shelf\nThe shelf \n\n",
        ),
    ]
    wanted = readers.Choice(((start + "cup", " was not level."), (start + "shelf", " was not level.")), 1)
    for path in paths:
        assert list(readers.schemas(path, NONE)) == [wanted], path


CLOZE = (
    "".join(f"{n} Line {n} , he said .\n" for n in range(1, 21))
    + "21 Then ` XXXXX 's dog , ' he said .\tfox\t\tcat|fox|owl\n"
)


def test_the_childrens_book_test(tmp_path: Path) -> None:
    (item,) = readers.clozes(write(tmp_path / "a.txt", CLOZE + "\n"), DETOKENISERS["treebank"])
    story = " ".join(f"Line {n}, he said." for n in range(1, 21))
    assert item.gold == 1
    assert [context for context, _ in item.options] == [f"{story} Then '"] * 3
    assert item.options[1][1] == "fox's dog,' he said."
    rows = {
        "sentences": [f"Line {n} , he said ." for n in range(1, 21)],
        "question": "Then ` XXXXX 's dog , ' he said .",
        "answer": "fox",
        "options": ["cat", "fox", "owl"],
    }
    assert list(readers.clozes(write(tmp_path / "a.jsonl", [rows]), DETOKENISERS["treebank"])) == [item]


def test_lambada_in_each_format(tmp_path: Path) -> None:
    wanted = [readers.Passage("He saw the big", " dog")]
    assert list(readers.passages(write(tmp_path / "a.jsonl", [{"text": "He saw the big dog"}]), NONE)) == wanted
    rows = [{"context": "He saw the big", "continuation": "dog"}]
    assert list(readers.passages(write(tmp_path / "b.jsonl", rows), NONE)) == wanted
    assert list(readers.passages(write(tmp_path / "c.txt", "He saw the big dog\n"), NONE)) == wanted


@given(
    text=st.text(st.sampled_from("abc \n\té中"), max_size=400),
    block=st.integers(1, 40),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_blocks_are_the_text(text: str, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "BLOCK_BYTES", block)
    (tmp_path / "x.txt").write_bytes(text.encode())
    found = [item.text for item in readers.blocks(tmp_path / "x.txt", NONE)]
    assert "".join(found) == text
    assert all(0 < len(part) <= 2 * block + 1 for part in found)


def test_the_tail_of_a_whole_file_begins_with_a_whole_character(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes("ab中cd".encode())  # 7 bytes; the last 4 begin within the third character
    assert [item.text for item in readers.blocks(path, NONE, tail=(7, 4))] == ["cd"]
    assert [item.text for item in readers.blocks(path, NONE, tail=(8, 4))] == ["ab中cd"]


def test_wikitext_is_cut_into_articles(tmp_path: Path) -> None:
    text = " \n = One = \n \n Text . \n = = Part = = \n More . \n \n = Two = \n \n Text . \n"
    found = [item.text for item in readers.articles(write(tmp_path / "x.raw", text), NONE)]
    assert "".join(found) == text
    assert [part.strip().split("\n")[0] for part in found] == ["= One = ", "= Two = "]


WIKI = " \n = One = \n \n He did n't , at 1 @,@ 000 . \n = = Part = = \n More . \n \n = Two = \n \n Text\x0cx . \n"
PTB = " no it was n't \n black <unk> monday 's \n N $ \n"


def forms(folder: Path, text: str, key: str) -> Iterator[Path]:
    """A text of framed lines in the other forms in which WikiText and Penn Treebank circulate."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    lines = text.removesuffix("\n").split("\n")
    (folder / "crlf.txt").write_bytes(text.replace("\n", "\r\n").encode())
    write(folder / "stripped.txt", "".join(line.strip(" ") + "\n" for line in lines))
    write(folder / "without_end.txt", text.removesuffix("\n"))
    rows = {
        "as_they_are": lines,
        "stripped": [line.strip(" ") for line in lines],  # Hugging Face's Penn Treebank
        "with_ends": [line + "\n" if line.strip() else "" for line in lines],  # Hugging Face's WikiText
        "with_other_ends": [line + "\r\n" for line in lines],
        "whole": [text],
    }
    for name, values in rows.items():
        entries = [{key: value} for value in values]
        write(folder / f"{name}.jsonl", entries)
        write(folder / f"{name}.json", json.dumps(entries))
        pq.write_table(pa.Table.from_pylist(entries), folder / f"{name}.parquet")
    yield from sorted(folder.iterdir())


@pytest.mark.parametrize(
    ("task", "text", "key"), [("wikitext2", WIKI, "text"), ("wikitext103", WIKI, "page"), ("ptb", PTB, "sentence")]
)
def test_every_form_of_a_set_gives_the_figures_of_the_original(
    task: str, text: str, key: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Rows without the spaces around them, and CR before LF, made other tokens and other counts of words."""
    raw = evaluate(fake(), task, write(tmp_path_factory.mktemp("raw") / "x.txt", text), options=Options(resamples=10))
    assert raw.facts["counts"]["bytes"] == len(text)
    assert raw.facts["counts"]["escapes"] == 0
    as_it_is = list(TASKS[task].read(write(tmp_path_factory.mktemp("raw") / "x.txt", text), NONE))
    assert "".join(item.text for item in as_it_is) == text
    paths = list(forms(tmp_path, text, key))
    assert len(paths) == 18
    for path in paths:
        assert list(TASKS[task].read(path, NONE)) == as_it_is, path
        found = evaluate(fake(), task, path, options=Options(resamples=10))
        assert found.facts["counts"] == raw.facts["counts"], path
        assert found.metrics == raw.metrics, path


@needs_sets
@pytest.mark.parametrize(
    ("task", "file", "key"),
    [("wikitext2", "wikitext-2-raw/wiki.test.raw", "text"), ("ptb", "ptb/ptb.test.txt", "sentence")],
)
def test_every_form_of_the_real_sets_is_read_as_the_original(task: str, file: str, key: str, tmp_path: Path) -> None:
    with (SETS / file).open(encoding="utf-8", newline="") as opened:
        text = "".join(itertools.islice(opened, 200))
    read = [
        [item.text for item in TASKS[task].read(path, NONE)]
        for path in [write(tmp_path / "raw.txt", text), *forms(tmp_path, text, key)]
    ]
    assert "".join(read[0]) == text
    assert all(found == read[0] for found in read)


def test_rows_of_any_text_are_read_as_they_are(tmp_path: Path) -> None:
    """A row that holds several lines was joined with the next one where it had no line feed at its end."""
    path = write(tmp_path / "x.jsonl", [{"text": "a\r\nb"}, {"text": "c\n"}])
    assert [item.text for item in readers.blocks(path, NONE)] == ["a\r\n", "b\n", "c\n"]


def test_a_text_that_is_not_of_its_set_is_warned_of(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = write(tmp_path / "x.txt", 'He didn\'t come, he said; "no."\n' * 9)
    arguments = ["eval", "wikitext2", "--data", str(text), "-m", str(tiny), "-o", str(tmp_path / "runs")]
    for _ in range(2):  # the second time the result is read from the folder
        app(arguments, standalone_mode=False)
        shown = capsys.readouterr()
        assert "gpt2: wikitext2: 36 marks for 63 words were needed" in shown.err
        assert "marks" not in shown.out
    app([*arguments, "--as-is"], standalone_mode=False)
    assert "marks" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("task", "names", "wanted"),
    [
        ("wikitext2", ["wikitext-103-raw/wiki.test.raw", "wikitext-2-raw/wiki.test.raw"], 1),
        ("wikitext103", ["wikitext-103-raw/wiki.test.raw", "wikitext-2-raw/wiki.test.raw"], 0),
        ("wikitext2", ["a/wikitext-103-raw-v1/{test}", "a/wikitext-2-raw-v1/{test}", "a/wikitext-2-v1/{test}"], 1),
        ("wikitext103", ["a/wikitext-103-raw-v1/{test}", "a/wikitext-103-v1/{test}", "wikitext-2-raw-v1/{test}"], 0),
        ("wikitext2", ["wikitext-2-v1/test/0000.parquet", "wikitext-2-raw-v1/test/0000.parquet"], 1),
        ("wikitext103", ["wikitext-2-raw/wiki.test.raw"], 0),
        ("wikitext2", ["wikitext-2-v1/{test}", "wikitext-103-raw-v1/{test}"], None),
        ("ptb", ["penn_treebank/train/0000.parquet", "penn_treebank/test/0000.parquet"], 1),
        ("lambada", ["lambada_openai/data/lambada_test_de.jsonl", "lambada_openai/data/lambada_test_en.jsonl"], 1),
        ("hellaswag", ["hellaswag/data/{test}", "hellaswag/data/{validation}"], 1),
        ("hellaswag", ["datasets--Rowan--hellaswag/snapshots/1a/data/{validation}", "winogrande_xl/{validation}"], 0),
        ("winogrande", ["hellaswag/data/{validation}", "winogrande_xl/{validation}"], 1),
        ("cbt-cn", ["cbt/CN/{test}", "cbt/NE/{test}"], 0),
        ("cbt-ne", ["cbt/CN/{test}", "cbt/NE/{test}"], 1),
    ],
)
def test_a_set_is_found_by_the_folders_that_it_lies_in(
    task: str, names: list[str], wanted: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = {split: f"{split}-00000-of-00001.parquet" for split in ("test", "validation")}
    paths = [tmp_path / name.format(**pieces) for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    if wanted is None:
        with pytest.raises(EvaluationError, match="found none of them"):
            find_data(TASKS[task], tmp_path)
        return
    assert find_data(TASKS[task], tmp_path) == [paths[wanted]]
    assert find_data(TASKS[task], paths[wanted].parent) == [paths[wanted]], "the folder itself is part of the name"
    monkeypatch.chdir(paths[wanted].parent)
    assert [path.absolute() for path in find_data(TASKS[task], Path())] == [paths[wanted]]


@pytest.mark.parametrize(
    ("reader", "name", "content", "message"),
    [
        (readers.endings, "x.jsonl", '{"ctx": "a", "endings": ["b"], "label": 0}', "expected at least two options"),
        (
            readers.endings,
            "x.jsonl",
            '{"ctx": "a", "endings": ["b", "c"], "label": ""}',
            "which is right, got 2 and ''",
        ),
        (readers.endings, "x.jsonl", '{"ctx": 1}', "row 1: expected ctx to be str, got 1"),
        (readers.endings, "x.jsonl", "{", "line 1: expected a JSON object"),
        (readers.endings, "x.jsonl", "[1]", "row 1: expected a JSON object"),
        (readers.endings, "x.txt", "a\n1\nb\n", "expected blocks of 6 lines, got 3"),
        (
            readers.schemas,
            "x.jsonl",
            '{"a": 1}',
            "expected context_options, or sentence, option1 and option2, or text, pronoun, .* got a",
        ),
        (
            readers.schemas,
            "x.jsonl",
            '{"text": "It fell.", "pronoun": "it", "pronoun_loc": 0, "options": ["a", "b"], "label": 0}',
            "row 1: expected 'it' from place 0 on, got 'It fell.'",
        ),
        (readers.schemas, "x.xml", "<!DOCTYPE x []><x/>", "expected XML without a document type"),
        (readers.schemas, "x.xml", "<x", "expected XML"),
        (readers.schemas, "x.txt", "a\nb\n\n", "line 3: expected a sentence, a mark, two names and the answer"),
        (readers.clozes, "x.txt", "1 a\n3 b\n", "line 2: expected line 2 of 21"),
        (readers.clozes, "x.txt", CLOZE.replace("XXXXX", "X"), "expected XXXXX"),
        (readers.clozes, "x.txt", CLOZE.replace("\tfox\t", "\tdog\t"), "which is right"),
        (readers.passages, "x.txt", "word\n", "row 1: expected several words"),
        (readers.sentences, "x.jsonl", '{"a": 1}', "row 1: expected text, page or sentence, got a"),
    ],
)
def test_files_that_are_something_else(tmp_path: Path, reader: Any, name: str, content: str, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        list(reader(write(tmp_path / name, content), DETOKENISERS["treebank"]))


def test_a_file_that_is_no_parquet(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    with pytest.raises(EvaluationError, match="x.parquet: expected Parquet"):
        list(readers.endings(write(tmp_path / "x.parquet", "PAR1 not"), NONE))


def test_without_pyarrow_documents_are_lines_of_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    rows = [{"ctx": "a", "endings": ["b", "c", "d"], "label": 1}] * 3
    result = evaluate(fake(), "hellaswag", write(tmp_path / "h.jsonl", rows), folder=tmp_path / "runs")
    assert result.folder is not None
    assert [path.name for path in result.folder.glob("documents.*")] == ["documents.jsonl"]
    kept = read_documents(result.folder)
    assert kept["log_likelihoods"] == result.documents["log_likelihoods"]
    np.testing.assert_array_equal(kept["right"], result.documents["right"])


@pytest.mark.parametrize("reader", [readers.sentences, readers.blocks, readers.endings])
def test_text_that_is_not_utf8(tmp_path: Path, reader: Any) -> None:
    (tmp_path / "x.txt").write_bytes(b"good\n\xff\xfe bad\n")
    with pytest.raises(EvaluationError, match="expected UTF-8"):
        list(reader(tmp_path / "x.txt", NONE))


@needs_sets
def test_the_real_sets_are_read_whole() -> None:
    counts = {
        "lambada": ("lambada/lambada_test.jsonl", 5153),
        "hellaswag": ("hellaswag/hellaswag_val_full.txt", 10042),
        "winograd": ("winograd/wsc273.txt", 273),
        "winogrande": ("winogrande/winogrande.jsonl", 1267),
        "ptb": ("ptb/ptb.test.txt", 3761),
        "wikitext2": ("wikitext-2-raw/wiki.test.raw", 62),
    }
    for name, (file, count) in counts.items():
        assert sum(1 for _ in TASKS[name].read(SETS / file, NONE)) == count, name
    forms = [list(readers.schemas(SETS / "winograd" / name, NONE)) for name in ("winograd_wsc.jsonl", "wsc273.txt")]
    same = sum(
        set(a.options) == set(b.options) and a.options[a.gold] == b.options[b.gold] for a, b in zip(*forms, strict=True)
    )
    assert same > 240, "two independent preparations of the same sentences; one has lost the 's where it was `his`"


# From items to requests and back


@given(texts=st.lists(st.text(st.sampled_from("the  ain\n.'é"), max_size=60), max_size=8), piece=st.integers(1, 30))
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_text_in_pieces_has_the_tokens_of_the_whole(
    texts: list[str], piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "_PIECE", piece)
    one = work.TextWork(TASKS["perplexity"], CODEC, Options().filled(TASKS["perplexity"], 16))
    tokens = [int(token) for part in one._tokens(iter(texts)) for token in part]
    whole = "".join(texts)
    assert tokens == CODEC.encode(whole)
    begins = list(itertools.accumulate((len(text.encode()) for text in texts), initial=0))[:-1]
    offsets = list(itertools.accumulate((len(CODEC.token_bytes(token)) for token in tokens), initial=0))
    assert one._starts == [next(n for n, offset in enumerate(offsets) if offset >= begin) for begin in begins]


TEXT = "".join(f"The man in the house number {n} had a thing.\nAnd then the other one.\n\n" for n in range(40))


@pytest.mark.parametrize(
    "options",
    [Options(), Options(window=16, stride=5), Options(begin=False), Options(separate=True), Options(window=7)],
    ids=["windows", "stride", "no-begin", "separate", "short"],
)
def test_a_texts_figures_are_those_of_a_plain_loop(
    tmp_path: Path, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "BLOCK_BYTES", 300)
    model = fake(24)
    path = write(tmp_path / "x.txt", TEXT)
    result = evaluate(model, "perplexity", path, options=options)
    texts = [item.text for item in readers.blocks(path, NONE)]
    window, stride = options.window or 24, options.stride or options.window or 24
    total = count = 0.0
    for text in texts if options.separate else [TEXT]:
        tokens = [*([] if options.begin is False else [CODEC.end_of_text]), *CODEC.encode(text)]
        end = 0
        for place in range(1, len(tokens)):
            if place > end:
                end = min(place - 1 + (window if end == 0 else stride), len(tokens) - 1)
            total += log_probability(model.engine, tokens[max(0, end - window) : place], tokens[place])
            count += 1
    assert result.facts["counts"]["tokens"] == count
    assert result.facts["counts"]["documents"] == len(texts)
    words = len(TEXT.split()) + TEXT.count("\n")
    assert result.metrics["token_perplexity"].value == pytest.approx(math.exp(-total / count), rel=1e-6)
    assert result.metrics["word_perplexity"].value == pytest.approx(math.exp(-total / words), rel=1e-6)
    assert result.metrics["bits_per_byte"].value == pytest.approx(-total / math.log(2) / len(TEXT.encode()), rel=1e-6)
    np.testing.assert_allclose(result.documents["log_likelihood"].sum(), total, rtol=1e-6)
    assert result.headline is result.metrics["token_perplexity"]
    assert result.headline.low < result.headline.value < result.headline.high


def test_choices_are_chosen_as_a_plain_loop_does(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    words = ["the", "man", "in", "a", "house", "thing"]
    rows = [
        {
            "context_options": [" ".join(rng.choice(words, 4)) for _ in range(2)],
            "continuation": " ".join(rng.choice(words, 3)),
            "gold": int(rng.integers(2)),
        }
        for _ in range(25)
    ]
    model = fake(64)
    result = evaluate(model, "winograd", write(tmp_path / "w.jsonl", rows))
    right = right_full = 0
    for row in rows:
        partial, full = [], []
        for context in row["context_options"]:
            before, after = CODEC.encode(context), CODEC.encode(" " + row["continuation"])
            whole = [*before, *after]
            values = [log_probability(model.engine, whole[:n], whole[n]) for n in range(1, len(whole))]
            first = log_probability(model.engine, [CODEC.end_of_text or 0], whole[0])
            partial.append(sum(values[len(before) - 1 :]))
            full.append((first if row["context_options"][0][:1] != row["context_options"][1][:1] else 0) + sum(values))
        right += int(np.argmax(partial)) == row["gold"]
        right_full += int(np.argmax(full)) == row["gold"]
    if all(row["context_options"][0][:1] == row["context_options"][1][:1] for row in rows):
        assert result.metrics["accuracy_full"].value == pytest.approx(100 * right_full / 25)
    shared = [row for row in rows if row["context_options"][0].split()[0] == row["context_options"][1].split()[0]]
    assert 0 < len(shared) < 25
    for number, row in enumerate(rows):
        if (
            row not in shared
        ):  # then all that is before the scored part hangs on <|endoftext|>, which a plain loop lacks
            continue
        for option, context in enumerate(row["context_options"]):
            before, after = CODEC.encode(context), CODEC.encode(" " + row["continuation"])
            whole = [*before, *after]
            wanted = sum(log_probability(model.engine, whole[:n], whole[n]) for n in range(len(before), len(whole)))
            assert result.documents["log_likelihoods"][number][option] == pytest.approx(wanted, abs=1e-5)


def test_hellaswags_two_ways_of_scoring(tmp_path: Path) -> None:
    """Three likely letters lose against one less likely one by the sum, and win by the loss per character."""
    a, b = CODEC.encode("a")[0], CODEC.encode("b")[0]

    def function(_: list[int]) -> np.ndarray:
        logits = np.zeros(CODEC.n_vocab)
        logits[[a, b]] = [8.0, 6.0]
        return logits

    model = fake(32, FakeEngine(CODEC.n_vocab, 32, function))
    row = {"ctx": "x", "endings": ["aaaaaaaaaaaa", "b"], "label": 0}
    result = evaluate(model, "hellaswag", write(tmp_path / "h.jsonl", [row, row]))
    assert result.metrics["accuracy"].value == 0
    assert result.metrics["accuracy_norm"].value == 100


def test_lambadas_ways_of_scoring(tmp_path: Path) -> None:
    """The best token is one that spells a stop word, the second one the target; a word of two tokens is half right."""
    the = CODEC.encode(" the")[0]
    space, x, y = CODEC.encode(" qz")

    def function(tokens: list[int]) -> np.ndarray:
        logits = np.zeros(CODEC.n_vocab)
        logits[[the, space]] = [9.0, 8.0]
        logits[x] = 10.0 * (tokens[-1] == space)
        logits[y] = 20.0 * (tokens[-1] == x)
        return logits

    model = fake(32, FakeEngine(CODEC.n_vocab, 32, function))
    result = evaluate(model, "lambada", write(tmp_path / "l.jsonl", [{"text": "a b qz"}, {"text": "a c the"}]))
    values = {name: found.value for name, found in result.metrics.items()}
    assert values["last_token_accuracy"] == 100
    assert values["last_word_accuracy"] == 50  # `the` is the best one, ` ` of ` qz` the second best
    assert values["filtered_accuracy"] == 50  # now the other way round
    losses = [-log_probability(model.engine, CODEC.encode("a c"), the)]
    whole = CODEC.encode("a b qz")
    losses.append(-sum(log_probability(model.engine, whole[:n], whole[n]) for n in range(len(whole) - 3, len(whole))))
    assert values["last_word_perplexity"] == pytest.approx(math.exp(sum(losses) / 2), rel=1e-6)


# Runs


class Dying(FakeEngine):
    """Dies after so many calls, as a process that is killed."""

    left = 10**9

    def feed(self, cache: FakeCache, ids: Sequence[Sequence[int]], *, all_positions: bool = False) -> list[np.ndarray]:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().feed(cache, ids, all_positions=all_positions)


@pytest.mark.parametrize("separate", [False, True])
def test_a_run_that_was_stopped_goes_on_and_gives_the_same(
    tmp_path: Path, separate: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "BLOCK_BYTES", 300)
    monkeypatch.setattr("gpt2.evaluation.scoring.BATCH_TOKENS", 1)
    path = write(tmp_path / "x.txt", TEXT)
    options = Options(separate=separate)
    straight = evaluate(fake(), "perplexity", path, options=options)
    engine = Dying(CODEC.n_vocab, 32)
    engine.left = 3
    for _ in range(200):
        try:
            result = evaluate(fake(engine=engine), "perplexity", path, options=options, folder=tmp_path / "runs")
            break
        except KeyboardInterrupt:
            engine.left = 3
            (folder,) = (tmp_path / "runs").iterdir()
            with (folder / JOURNAL).open("ab") as file:
                file.write(b'{"n": 99')  # half a line, as a kill leaves it
    assert result.facts["resumed_units"] > 0
    assert result.metrics == straight.metrics
    assert result.facts["counts"] == straight.facts["counts"]
    kept = read_documents(result.folder)  # type: ignore[arg-type]
    for name, values in straight.documents.items():
        np.testing.assert_array_equal(kept[name], values)
    engine.left = 0  # it is done: nothing is computed any more
    again = evaluate(fake(engine=engine), "perplexity", path, options=options, folder=tmp_path / "runs")
    assert again.metrics == result.metrics
    with pytest.raises(KeyboardInterrupt):
        evaluate(fake(engine=engine), "perplexity", path, options=options, folder=tmp_path / "runs", again=True)


@pytest.mark.slow
def test_a_process_that_is_killed_goes_on(tiny: Path, tmp_path: Path) -> None:
    """kill -9 at any moment, again and again; in the end the figures are those of a run that was left alone."""
    text = write(tmp_path / "x.txt", "".join(f"{n} the man in the house {n * n}\n" for n in range(8000)))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}

    def start(runs: str) -> subprocess.Popen[bytes]:
        arguments = [
            "eval",
            "perplexity",
            "--data",
            text,
            "--model",
            tiny,
            "--stride",
            "8",
            "--json",
            "-o",
            tmp_path / runs,
        ]
        code = "from gpt2.cli import main; main()"
        return subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)], env=environment, stdout=subprocess.PIPE
        )

    straight = json.loads(start("straight").communicate()[0])
    sizes = []
    for _ in range(60):
        process = start("killed")
        begun = time.monotonic()
        while process.poll() is None and time.monotonic() - begun < 60:
            journals = list((tmp_path / "killed").glob(f"*/{JOURNAL}"))
            size = journals[0].stat().st_size if journals else 0
            if size > (sizes[-1] if sizes else 0) + 400_000:  # it has got further
                sizes.append(size)
                process.kill()
        out = process.communicate()[0]
        if process.returncode == 0:
            break
    told = json.loads(out)
    assert len(sizes) >= 2
    assert told["resumed_units"] > 0
    assert told["metrics"] == straight["metrics"]
    assert told["counts"] == straight["counts"]


def test_a_model_in_training_can_be_evaluated(tmp_path: Path) -> None:
    """By the reference engine, with its parameters as they are: another figure once they have changed."""
    model = new_model(GPT2Config(n_vocab=CODEC.n_vocab, n_ctx=32, n_embd=16, n_head=2, n_layer=1), codec=CODEC, seed=1)
    path = write(tmp_path / "x.txt", TEXT[:600])
    before = evaluate(model, "perplexity", path, folder=tmp_path / "runs")
    assert before.metrics["token_perplexity"].value == pytest.approx(CODEC.n_vocab, rel=0.1)
    tensors = model.network.tensors()
    tensors["wte"].assign(tensors["wte"] * 30)
    after = evaluate(model, "perplexity", path, folder=tmp_path / "runs")
    assert after.headline != before.headline
    assert after.facts["weights_sha256"] != before.facts["weights_sha256"]


def test_whatever_changes_a_figure_makes_another_run(tmp_path: Path) -> None:
    path = write(tmp_path / "x.txt", TEXT)
    runs = tmp_path / "runs"
    model = fake()
    evaluate(model, "perplexity", path, folder=runs)
    evaluate(model, "perplexity", path, folder=runs, options=Options(stride=8))
    model.engine.weights_sha256 = "other"
    evaluate(model, "perplexity", path, folder=runs)
    write(path, TEXT + "More.\n")
    evaluate(model, "perplexity", path, folder=runs)
    assert len(list(runs.iterdir())) == 4


def test_two_processes_are_not_at_one_run(tmp_path: Path) -> None:
    first, second = (Journal(tmp_path / "run", {"task": "x"}) for _ in range(2))
    with first.open(), pytest.raises(EvaluationError, match="another process is at this evaluation"), second.open():
        pass


def test_again_leaves_a_run_at_work_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "x.txt", TEXT)
    folder = evaluate(fake(), "perplexity", path, folder=tmp_path / "runs").folder
    assert folder is not None
    before = (folder / JOURNAL).read_bytes()
    key = json.loads(before.splitlines()[0])
    with Journal(folder, key).open(), pytest.raises(EvaluationError, match="another process"):
        evaluate(fake(), "perplexity", path, folder=tmp_path / "runs", again=True)
    assert (folder / JOURNAL).read_bytes() == before


def test_what_cannot_be_evaluated_leaves_no_folder(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"a line\n" * 20_000 + b"\xff")
    with pytest.raises(EvaluationError, match="expected UTF-8, got at byte 140000: invalid start byte"):
        evaluate(fake(), "perplexity", tmp_path / "x.txt", folder=tmp_path / "runs")
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_character_that_is_cut_short_is_found_where_it_begins(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"a" * ((1 << 16) - 1) + b"\xe4\xb8 b")
    with pytest.raises(EvaluationError, match=f"got at byte {(1 << 16) - 1}: "):
        list(readers.blocks(tmp_path / "x.txt", NONE))


def test_a_journal_of_another_run_is_begun_anew(tmp_path: Path) -> None:
    with (journal := Journal(tmp_path, {"task": "x"})).open():
        journal.add([(3, {"sum": 1.5})])
    with (same := Journal(tmp_path, {"task": "x"})).open():
        assert same.records == {3: {"sum": 1.5}}
    with (other := Journal(tmp_path, {"task": "y"})).open():
        assert other.records == {}


def test_every_figure_can_be_traced(tmp_path: Path) -> None:
    path = write(tmp_path / "x.txt", TEXT)
    told = evaluate(fake(), "perplexity", path, folder=tmp_path / "runs", command=["gpt2", "eval"]).to_dict()
    assert told["data"] == [{"name": "x.txt", "bytes": len(TEXT), "sha256": sha256_of(path)}]
    assert told["weights_sha256"] == "fake"
    assert (told["engine"], told["precision"], told["version"]) == ("fake", "float32", TASKS["perplexity"].version)
    assert told["options"]["window"] == told["options"]["stride"] == 32
    assert told["protocol"] == dict(TASKS["perplexity"].protocol)
    assert {"gpt2", "numpy", "numba"} <= set(told["versions"])
    assert json.loads(json.dumps(told)) == told


def test_options_that_mean_nothing_to_a_task_are_not_told(tmp_path: Path) -> None:
    row = {"ctx": "x", "endings": ["a", "b"], "label": 0}
    told = evaluate(fake(), "hellaswag", write(tmp_path / "h.jsonl", [row] * 3)).facts["options"]
    assert {name for name, value in told.items() if value is not None} == {"seed", "resamples"}


@pytest.mark.parametrize(("text", "undefined"), [(" " * 50, "word_perplexity"), ("xq" * 600, "word_perplexity")])
def test_a_figure_that_is_not_defined(tmp_path: Path, text: str, undefined: str) -> None:
    """No word to divide by; or a perplexity beyond any number."""
    path = write(tmp_path / "x.txt", text)
    result = evaluate(fake(), "perplexity", path, folder=tmp_path / "runs")
    assert math.isnan(result.metrics[undefined].value)
    assert "perplexity, per word: not defined here, or too large for a number" in result.facts["warnings"]
    assert result.folder is not None
    told = json.loads((result.folder / "result.json").read_text(), parse_constant=pytest.fail)
    assert told["metrics"][undefined] == {"value": None, "low": None, "high": None}
    assert told["metrics"]["bits_per_byte"]["value"] == result.metrics["bits_per_byte"].value
    assert math.isnan(Result.read(result.folder).metrics[undefined].value)
    found = compare_runs(result.folder, result.folder)
    assert found[undefined].to_dict() == dict.fromkeys(("first", "second", "difference", "low", "high", "p"))
    assert (found["bits_per_byte"].difference, found["bits_per_byte"].p) == (0, 1)
    assert '<td class="number">undefined</td>' in write_page([result])


def test_refusals(tmp_path: Path) -> None:
    path = write(tmp_path / "x.txt", TEXT)
    with pytest.raises(ConfigError, match="task: expected one of lambada, .*, got 'lambda'"):
        evaluate(fake(), "lambda", path)
    with pytest.raises(ConfigError, match="window: expected at most n_ctx = 32, got 33"):
        evaluate(fake(), "perplexity", path, options=Options(window=33))
    with pytest.raises(ConfigError, match="stride: expected at most the window, 8, got 9"):
        evaluate(fake(), "perplexity", path, options=Options(window=8, stride=9))
    with pytest.raises(ConfigError, match="limit: expected a whole number of at least 1, got 0"):
        Options(limit=0)
    with pytest.raises(ConfigError, match="seed: expected a whole number of at least 0, got -1"):
        Options(seed=-1)
    with pytest.raises(ConfigError, match="stride: expected none for hellaswag, which is not read in windows, got 3"):
        evaluate(fake(), "hellaswag", path, options=Options(stride=3))
    with pytest.raises(ConfigError, match="detokenise: expected none for perplexity, which has no spelling to restore"):
        evaluate(fake(), "perplexity", path, options=Options(detokenise=False))
    with pytest.raises(EvaluationError, match=r"expected wikitext-2-raw/wiki.test.raw or .* for wikitext2"):
        evaluate(fake(), "wikitext2", tmp_path)
    with pytest.raises(EvaluationError, match="expected at least one document with a token"):
        evaluate(fake(), "perplexity", write(tmp_path / "empty.txt", ""))
    with pytest.raises(EvaluationError, match="expected one with a vocabulary"):
        evaluate(SimpleNamespace(engine=fake().engine, codec=None, name="x"), "perplexity", path)  # type: ignore[arg-type]


# How sure a figure is

RATIO = Metric("x", "x", "top", "bottom", "perplexity")


def test_an_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(150):
        found = estimate(Metric("x", "x", "right"), (rng.random(80) < 0.3) * 1.0, np.ones(80), seed=0, resamples=300)
        inside += found.low <= 30 <= found.high
    assert 0.87 * 150 < inside <= 150


def test_an_interval_where_every_draw_is_alike() -> None:
    share = Metric("x", "x", "right")
    for N in (2, 60, 5153):
        none, every = (estimate(share, np.full(N, x), np.ones(N), seed=0, resamples=9) for x in (0.0, 1.0))
        assert (none.value, none.low, every.value, every.high) == (0, 0, 100, 100)
        assert (1 - none.high / 100) ** N == pytest.approx(0.025)  # nobody is right so often, if one in so many is
        assert every.low == pytest.approx(100 - none.high)
    one = estimate(RATIO, np.array([-3.0]), np.array([2.0]), seed=0, resamples=9)
    assert one.to_dict() == {"value": pytest.approx(math.exp(1.5)), "low": None, "high": None}


def test_intervals_have_a_seed() -> None:
    top, bottom = -np.arange(1.0, 30), np.full(29, 7.0)
    one, same, other = (estimate(RATIO, top, bottom, seed=seed, resamples=200) for seed in (1, 1, 2))
    assert one == same
    assert one.value == other.value == pytest.approx(math.exp(435 / 203))
    assert one != other


def test_the_paired_test_is_the_exact_one_but_for_chance() -> None:
    rng = np.random.default_rng(2)
    first, second = -rng.random(9) * 3, -rng.random(9) * 3 + 0.6
    bottom = rng.integers(1, 5, 9).astype(float)
    found = compare(RATIO, (first, bottom), (second, bottom), seed=3, resamples=20_000)
    real = abs(RATIO.value(second.sum(), bottom.sum()) - RATIO.value(first.sum(), bottom.sum()))
    extreme = 0
    for swaps in itertools.product([False, True], repeat=9):
        one, two = np.where(swaps, second, first).sum(), np.where(swaps, first, second).sum()
        extreme += abs(RATIO.value(two, bottom.sum()) - RATIO.value(one, bottom.sum())) >= real - 1e-12
    assert found.p == pytest.approx(extreme / 512, abs=0.01)
    assert found.second - found.first == pytest.approx(
        math.exp(-second.sum() / bottom.sum()) - math.exp(-first.sum() / bottom.sum())
    )


def test_two_runs_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "BLOCK_BYTES", 100)
    path, runs = write(tmp_path / "x.txt", TEXT), tmp_path / "runs"
    one, two, better = fake(16), fake(24), fake(16)
    better.engine.function = lambda tokens, old=better.engine.function: old(tokens) * 0.25
    better.engine.weights_sha256 = "better"
    first, second, third = (evaluate(model, "perplexity", path, folder=runs).folder for model in (one, two, better))
    assert first is not None
    assert second is not None
    assert third is not None
    same = compare_runs(first, first, resamples=200)["token_perplexity"]
    assert (same.second - same.first, same.low, same.high, same.p) == (0, 0, 0, 1)
    assert compare_runs(first, second, resamples=500)["token_perplexity"].p > 0.01, "chance, other contexts or not"
    found = compare_runs(first, third, resamples=500)["token_perplexity"]
    assert found.p < 0.01
    assert found.high < 0
    other = evaluate(one, "perplexity", write(tmp_path / "y.txt", TEXT[:900]), folder=runs).folder
    with pytest.raises(EvaluationError, match="data: expected the same files"):
        compare_runs(first, other)  # type: ignore[arg-type]
    with pytest.raises(EvaluationError, match=r"expected the folder of a finished evaluation: it has no result.json"):
        compare_runs(first, tmp_path)
    with pytest.raises(ConfigError, match="resamples: expected a whole number of at least 2, got 1"):
        compare_runs(first, second, resamples=1)
    (first / "documents.parquet").write_bytes((third / "documents.parquet").read_bytes())
    with pytest.raises(EvaluationError, match=r"expected the table that result.json tells of, got another one"):
        compare_runs(first, second)
    broken = json.loads((second / "result.json").read_text())
    for change in ({"metrics": []}, {"metrics": {"token_perplexity": 1}}):
        write(second / "result.json", json.dumps(broken | change))
        with pytest.raises(EvaluationError, match=r"result\.json"):
            Result.read(second)


# The paper


def test_the_papers_row_beside_ours() -> None:
    found = Result(
        "wikitext2", {name: Estimate(30.0, 29.0, math.nan) for name in ("token_perplexity", "word_perplexity")}, {}
    )
    table = {(line.column, line.metric): line for line in paper.lines(SIZES["124M"], [found])}
    line = table["WikiText2 perplexity", "perplexity, per token"]
    assert (line.paper, line.ours, line.low, line.high) == (29.41, 30.0, 29.0, None)
    assert line.difference == pytest.approx(0.59)
    assert table["WikiText2 perplexity", "perplexity, per original word"].difference is None
    assert table["CBT-CN accuracy", ""].paper == 87.65
    assert table["CBT-CN accuracy", ""].ours is None
    assert [line.paper for line in paper.lines(SIZES["1558M"], [])][:2] == [8.63, 63.24]


def test_whose_weights_they_are() -> None:
    other = GPT2Config(n_vocab=300, n_ctx=8, n_embd=8, n_head=2, n_layer=1)
    assert "not one of the paper's models" in paper.origin(Path("x"), other)
    assert "nothing shows that these are OpenAI's weights" in paper.origin(Path("x"), SIZES["124M"])
    folder = store.folder_of("124M")
    folder.mkdir(parents=True)
    (store.home() / "sha256.json").write_text(json.dumps({"124M/openai": {}}))
    assert "was downloaded from openai as 124M" in paper.origin(folder, SIZES["124M"])
    assert "nothing shows" in paper.origin(folder.parent / "other", SIZES["124M"])


# The command line


def run_command(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    app([str(argument) for argument in arguments], standalone_mode=False)
    return capsys.readouterr().out


def test_the_command(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = write(tmp_path / "x.txt", TEXT)
    base = ["eval", "perplexity", "--data", text, "--model", tiny, "--resamples", 50, "-o", tmp_path / "runs"]
    shown = run_command(capsys, *base, "--html", tmp_path / "page.html")
    assert "perplexity, per token" in shown
    assert "40 lines" not in shown
    told = json.loads(run_command(capsys, *base, "--json"))
    assert (Path(told["run"]) / "documents.parquet").is_file()
    value = told["metrics"]["token_perplexity"]["value"]
    assert f"{value:.2f}" in shown
    page = (tmp_path / "page.html").read_text()
    assert told["weights_sha256"] in page
    assert told["data"][0]["sha256"] in page
    assert not [part for part in ("http://", "https://", "<script", "url(") if part in page]
    other = json.loads(run_command(capsys, *base, "--json", "--precision", "int8"))
    assert other["metrics"]["token_perplexity"]["value"] == pytest.approx(value, rel=0.05)
    assert other["metrics"]["token_perplexity"]["value"] != value
    folders = sorted((tmp_path / "runs").iterdir())
    assert len(folders) == 2
    again = [Path(told["run"]), Path(other["run"])]
    compared = json.loads(run_command(capsys, "eval", "--compare", *again, "--json", "--resamples", 70))
    figure = compared["figures"]["token_perplexity"]
    assert (figure["first"], figure["second"]) == (value, other["metrics"]["token_perplexity"]["value"])
    assert (compared["seed"], compared["resamples"]) == (0, 70)
    assert compared["differing"] == {"precision": ["float32", "int8"]}
    assert compared["first"] == told
    assert compared["second"]["data"] == told["data"]
    shown = run_command(capsys, "eval", "--compare", *folders, "--html", tmp_path / "two.html")
    assert "bits per byte" in shown
    assert "they differ in precision: " in shown
    assert "10,000 resamplings, seed 0" in shown
    page = (tmp_path / "two.html").read_text()
    for fact in (told["weights_sha256"], told["data"][0]["sha256"], "precision", "10,000 resamplings", "first: "):
        assert fact in page
    for word, run in zip(("first", "second"), folders, strict=True):
        assert f"{word}: perplexity: one document, over which no interval can be drawn" in page
        assert f"{word}: perplexity of a text, {tiny}" in page
        assert run.name in page
    with pytest.raises(ConfigError, match="window: expected none with --compare"):
        run_command(capsys, "eval", "--compare", *folders, "--window", 3)
    with pytest.raises(ConfigError, match="detokenise: expected none for perplexity"):
        run_command(capsys, *base, "--as-is")
    with pytest.raises(ConfigError, match="detokenise: expected none for hellaswag and perplexity, which has no"):
        run_command(capsys, "eval", "hellaswag", *base[1:], "--as-is", "--window", 8)
    short = json.loads(run_command(capsys, *base, "--json", "--window", 8))
    mixed = json.loads(run_command(capsys, "eval", "--compare", told["run"], short["run"], "--json"))
    assert set(mixed["differing"]) == {"window", "stride"}


def test_the_command_beside_the_paper(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sets").mkdir()
    write(tmp_path / "sets" / "ptb.test.txt", " no it was n't \n black monday \n")
    app(["eval", "--paper", "--data", str(tmp_path / "sets"), "-m", str(tiny)], standalone_mode=False)
    shown = capsys.readouterr()
    assert "not one of the paper's models" in shown.out
    assert "PTB perplexity" in shown.out
    assert shown.out.count("no data") == 9
    assert "left out:" in shown.err
    told = run_command(capsys, "eval", "--paper", "--data", tmp_path / "sets", "-m", tiny, "--json").splitlines()
    task, beside = (json.loads(line) for line in told)
    assert "not one of the paper's models" in beside["origin"]
    (line, _) = (line for line in beside["paper"] if line["column"] == "PTB perplexity")
    assert line["ours"] == task["metrics"]["word_perplexity"]["value"]
    assert (line["paper"], line["difference"]) == (None, None), "the paper has no such model"


def test_the_list_names_every_task_and_its_data(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = run_command(capsys, "eval", "--list")
    for task in TASKS.values():
        assert f"{task.name}: {task.title}" in shown
    rows = [json.loads(line) for line in run_command(capsys, "eval", "--list", "--json").splitlines()]
    assert [row["task"] for row in rows] == list(TASKS)
    hashes = {row["task"]: row["hash"] for row in rows}
    assert hashes["enwik8"] == "known, of the file"
    assert hashes["1bw"] == "known, of the archive"
    assert hashes["perplexity"] == ""
    assert shown.count("    hash: ") == len(sets.SOURCES)
    monkeypatch.setattr(sets, "SOURCES", {"ptb": sets.Source("http://localhost/x", "x")})
    assert run_command(capsys, "eval", "--list").count("hash: not known, the first one seen is remembered") == 1


def test_the_fast_engine_is_evaluated_without_tensorflow(tiny: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom gpt2.cli import main\ntry:\n    main(sys.argv[1:])\nfinally:\n"
        "    print([m for m in ('tensorflow', 'keras', 'torch') if m in sys.modules], file=sys.stderr)"
    )
    text = write(tmp_path / "x.txt", TEXT)
    arguments = [sys.executable, "-c", code, "eval", "perplexity", "--data", str(text), "-m", str(tiny)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval"], "expected at least one, or --paper"),
        (["eval", "nothing"], "task: expected one of"),
        (["eval", "--compare", "x"], "expected the folders of two runs"),
        (["eval", "--paper", "ptb"], "expected none with --paper"),
        (["eval", "ptb"], "ptb: expected its data: give ptb.test.txt"),
        (["eval", "perplexity"], "give any text file with --data FILE"),
    ],
)
def test_misuse_of_the_command(arguments: list[str], message: str) -> None:
    with pytest.raises((ConfigError, EvaluationError), match=message):
        app(arguments, standalone_mode=False)


# Downloads

FAST = Settings(tries=2, timeout=2.0, backoff=0.01, longest_wait=0.1)


@pytest.fixture
def server() -> Iterator[faulty.ModelServer]:
    with faulty.serving() as server:
        data = b" no it was n't \n"
        packed, tarred = io.BytesIO(), io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr("folder/other.txt", "other")
            archive.writestr("folder/set.txt", data)
        with tarfile.open(fileobj=tarred, mode="w:gz") as tar:
            for name in ("../../evil.txt", "folder/set.txt"):
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
        server.files = {"set.txt": data, "set.zip": packed.getvalue(), "set.tgz": tarred.getvalue(), "none.zip": b"PK"}
        yield server


@pytest.mark.parametrize("name", ["set.txt", "set.zip", "set.tgz"])
def test_a_set_is_downloaded_unpacked_and_remembered(server: faulty.ModelServer, name: str, tmp_path: Path) -> None:
    source = sets.Source(f"{server.url}/{name}", "set.txt")
    path = sets.download("ptb", source=source, settings=FAST)
    assert path.read_bytes() == server.files["set.txt"]
    assert not list(tmp_path.rglob("evil.txt"))
    assert sets.default_data("ptb") == path.parent
    server.requests.clear()
    assert sets.download("ptb", source=source, settings=FAST) == path
    assert server.requests == []
    path.unlink()
    server.files["set.txt"] = b"changed"
    if name == "set.txt":
        with pytest.raises(IntegrityError, match=r"set.txt: expected the SHA-256 .*, got"):
            sets.download("ptb", source=source, settings=FAST)
        assert not path.exists()


def test_an_archive_of_two_sets_is_downloaded_once(server: faulty.ModelServer, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"{server.url}/set.zip"
    places = {"cbt-cn": sets.Source(url, "set.txt"), "cbt-ne": sets.Source(url, "other.txt")}
    places["ptb"] = sets.Source(url, "set.txt", "0" * 64)
    monkeypatch.setattr(sets, "SOURCES", places)
    sets.download("cbt-cn", settings=FAST)
    server.requests.clear()
    assert sets.download("cbt-ne", settings=FAST).read_bytes() == b"other"
    assert server.requests == []
    with pytest.raises(IntegrityError, match="expected the SHA-256 000"):
        sets.download("ptb", settings=FAST)


def test_a_set_that_is_not_what_it_must_be(server: faulty.ModelServer) -> None:
    for source, message in [
        (sets.Source(f"{server.url}/set.txt", "set.txt", "0" * 64), "expected the SHA-256 000"),
        (sets.Source(f"{server.url}/set.zip", "set.txt", archive_sha256="0" * 64), "set.zip: expected the SHA-256 000"),
        (sets.Source(f"{server.url}/set.zip", "missing.txt"), "expected missing.txt in the archive"),
        (sets.Source(f"{server.url}/none.zip", "set.txt"), "expected an archive with set.txt"),
        (sets.Source(f"{server.url}/set.tgz", "set.txt", limit=200), "expected at most"),
    ]:
        limited = dataclasses.replace(source, limit=5) if source.limit == 200 else source
        with pytest.raises(IntegrityError, match=message):
            sets.download("ptb", source=limited, settings=FAST)
    with pytest.raises(DownloadError, match="404"):
        sets.download("ptb", source=sets.Source(f"{server.url}/nothing.txt", "nothing.txt"), settings=FAST)
    with pytest.raises(ConfigError, match="expected one with a set of its own"):
        sets.download("perplexity")
    assert not list((store.home() / "evaluation-sets").rglob("*.txt"))
    known = hashlib.sha256(server.files["set.zip"]).hexdigest()
    assert sets.download("ptb", source=sets.Source(f"{server.url}/set.zip", "set.txt", archive_sha256=known)).is_file()


def test_a_set_that_cannot_be_brought_is_left_out_of_the_papers_table(
    server: faulty.ModelServer,
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The first dead link ended `gpt2 eval --paper --download`."""
    places = {task: sets.Source(f"{server.url}/nothing.txt", "nothing.txt") for task in sets.SOURCES}
    places["ptb"] = sets.Source(f"{server.url}/set.txt", "ptb.test.txt")
    places["enwik8"] = sets.Source(f"{server.url}/set.txt", "enwik8", "0" * 64)
    monkeypatch.setattr(sets, "SOURCES", places)
    arguments = ["-m", str(tiny), "-o", str(tmp_path / "runs"), "--resamples", "10"]
    app(["eval", "--paper", "--download", *arguments], standalone_mode=False)
    shown = capsys.readouterr()
    assert shown.out.count("no data") == 9
    told = {line.split(": ")[2]: line for line in shown.err.splitlines() if line.startswith("gpt2: left out: ")}
    assert list(told) == ["lambada", "cbt-cn", "cbt-ne", "wikitext2", "enwik8", "text8", "1bw"]
    assert all(line.endswith(sets.instruction(task)) for task, line in told.items())
    assert "404" in told["lambada"]
    assert "expected the SHA-256 000" in told["enwik8"]
    with pytest.raises(
        DownloadError, match=r"404.*; give lambada_test.jsonl or .* with --data PATH, or run .*nothing.txt$"
    ):
        app(["eval", "ptb", "lambada", "--download", *arguments], standalone_mode=False)


@needs_sets
def test_known_hashes_are_those_of_the_files_at_hand() -> None:
    for task, source in sets.SOURCES.items():
        found = list(SETS.rglob(source.name))
        if source.sha256 and found:
            assert sha256_of(found[0]) == source.sha256, task


def test_a_page_shows_what_users_wrote_as_text(tmp_path: Path) -> None:
    model = fake()
    model.name = "<img src=x onerror=alert(1)>"
    result = evaluate(model, "perplexity", write(tmp_path / "x.txt", TEXT), options=Options(resamples=10))
    page = write_page([result], [(model.name, "whose", list(paper.lines(SIZES["124M"], [])))])
    assert "<img" not in page
    assert "&lt;img src=x" in page
