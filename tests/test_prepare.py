"""Text files to tokens on disk: documents, bad files, cuts, duplicates, what is held out, shards."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2.codec import decode, encode
from gpt2.data import documents, shards
from gpt2.data import prepare as module
from gpt2.data.documents import find_files, read_documents
from gpt2.data.prepare import prepare
from gpt2.data.shards import Prepared, ShardTokens, is_prepared
from gpt2.errors import CheckpointError, ConfigError, TrainingError

END = 50256


def texts(*files: object, **options: str) -> list[str]:
    return ["".join(document.pieces) for document in read_documents(find_files(map(str, files)), **options)]


def row(tokens: ShardTokens | None) -> list[int]:
    return [] if tokens is None else tokens.gather(np.array([0]), len(tokens))[0].tolist()


def split_documents(tokens: list[int]) -> list[str]:
    found: list[list[int]] = [[]]
    for token in tokens:
        if token == END:
            found.append([])
        else:
            found[-1].append(token)
    assert not found[-1]
    return [decode(ids) for ids in found[:-1]]


def write(folder: Path, **files: str | bytes) -> Path:
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / f"{name}.txt").write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder


# Documents


def test_every_format_gives_its_documents(tmp_path):
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfOne\r\ntext")
    (tmp_path / "b.md").write_text("# Two")
    (tmp_path / "c.jsonl").write_text('{"text": "three"}\n\n{"prompt": "fo", "completion": "ur"}\n')
    (tmp_path / "d.csv").write_text('id,text\n1,"five, ""quoted""\nand broken"\n2,six\n')
    (tmp_path / "e.tsv").write_text("text\tid\nseven\t1\n")
    pyarrow.parquet.write_table(
        pyarrow.table({"text": ["eight", None, "nine"], "n": [1, 2, 3]}), tmp_path / "f.parquet"
    )
    with gzip.open(tmp_path / "g.txt.gz", "wb") as file:
        file.write("zehn – ten".encode())
    (tmp_path / "h.jsonl.zst").write_bytes(zstandard.compress(b'{"text": "eleven"}\n'))
    (tmp_path / "ignored.bin").write_bytes(b"\0\1")
    expected = ["One\r\ntext", "# Two", "three", "four", 'five, "quoted"\nand broken', "six", "seven", "eight", "nine"]
    expected += ["zehn – ten", "eleven"]
    assert texts(tmp_path) == expected
    assert texts(tmp_path / "*.t*v", tmp_path / "b.md") == ["seven", "# Two"]


def test_a_column_by_name(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "x", "text": "y"}\n')
    (tmp_path / "b.csv").write_text("body,text\nz,w\n")
    assert texts(tmp_path, column="body") == ["x", "z"]


def test_other_encodings(tmp_path):
    (tmp_path / "a.txt").write_bytes("Grün".encode("latin-1"))
    assert texts(tmp_path, encoding="latin-1") == ["Grün"]
    (tmp_path / "a.txt").write_bytes("Grün".encode("utf-16"))
    assert texts(tmp_path, encoding="utf-16") == ["Grün"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"text\0text", "a.txt: expected text, got a NUL character; is it binary, or UTF-16"),
        ("a.txt", "Grün".encode("utf-16"), r"expected UTF-8, got the byte 0xff at 0; is it UTF-16\? --encoding utf-16"),
        ("a.txt", b"x" * 2_000_000 + "ü".encode("latin-1"), "expected UTF-8, got the byte 0xfc at 2000000; --encoding"),
        ("a.txt", "ü".encode()[:1], "expected UTF-8, got the byte 0xc3 at 0"),
        ("a.txt", bytes(range(256)), "NUL|expected UTF-8"),
        ("a.jsonl", b'{"text": "x"}\n{"text"', "a.jsonl: row 2: expected JSON"),
        ("a.jsonl", b"[1]\n", "row 1: expected an object with a field 'text', got"),
        ("a.jsonl", b'{"body": 1}\n', "row 1: expected text in the field 'text'; the fields are body; choose one with"),
        ("a.jsonl", b'{"text": "x\\u0000"}\n', "row 1: expected text, got a NUL"),
        ("a.jsonl", b"[" * 100_000, "row 1: expected JSON"),
        ("a.jsonl", b'{"text": "x"}\n\xff\n', "expected UTF-8, got the byte 0xff; --encoding latin-1"),
        ("a.csv", b"id,body\n1,x\n", "expected a column 'text', found id, body; choose with --column"),
        ("a.csv", b'text\n"open', "row 2: "),
        ("a.csv", b"id,text\n1,x\n2\n", "row 3: expected a column 'text', got 1 columns"),
        ("a.parquet", b"PAR1 not", "a.parquet: expected a Parquet file"),
        ("a.txt.gz", b"not gzip", "a.txt.gz: cannot be read"),
        (
            "a.txt.gz",
            gzip.compress(b"text" * 1000, mtime=0)[:20],
            "expected a whole compressed file, got its beginning",
        ),
    ],
)
def test_bad_files_are_named(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(TrainingError, match=message):
        texts(tmp_path / name)


def test_a_field_that_is_too_long(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "MAX_FIELD", 100)
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "x" * 200}) + "\n")
    with pytest.raises(TrainingError, match="row 1: expected a line of at most 100 characters, got more"):
        texts(tmp_path / "a.jsonl")
    (tmp_path / "a.csv").write_text("text\n" + "x" * 200 + "\n")
    with pytest.raises(TrainingError, match="row 2: field larger than field limit"):
        texts(tmp_path / "a.csv")


def test_inputs_that_stand_for_nothing(tmp_path):
    for bad, message in ((tmp_path / "no", "found nothing"), (tmp_path / "*.txt", "found nothing"), (tmp_path, "none")):
        with pytest.raises(TrainingError, match=message):
            find_files([str(bad)])
    with pytest.raises(TrainingError, match="encoding: expected a name such as utf-8"):
        texts(write(tmp_path / "x", a="x"), encoding="klingon")


# Tokens


def test_documents_end_with_a_token_that_text_cannot_forge(tmp_path):
    folder = write(tmp_path / "in", a="Hello<|endoftext|> world", b="Second")
    made = prepare([folder], tmp_path / "out", valid_fraction=0)
    assert row(made.train) == [*encode("Hello<|endoftext|> world"), END, *encode("Second"), END]
    assert row(made.train).count(END) == 2
    assert made.valid is None
    assert made.manifest["valid_from"] == "none"
    made.verify()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(text=st.text(st.sampled_from("ab 'st\n\t.1é\u3000\x1c\U0001f600"), min_size=1, max_size=300))
def test_a_text_that_is_cut_has_the_tokens_of_the_whole(tmp_path_factory, text):
    work = module._Work(tmp_path_factory.mktemp("w"), module.default_codec(), 0, 0, False, 10)
    old, module.PIECE = module.PIECE, 16
    try:
        pieces = list(work._cut([text[:100], text[100:]]))
    finally:
        module.PIECE = old
    assert "".join(pieces) == text
    assert all(len(piece) <= 16 for piece in pieces)
    if not work.forced_cuts:
        assert [token for piece in pieces for token in encode(piece)] == encode(text)


def test_a_long_document(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PIECE", 1000)
    text = " ".join(f"word{n * n}" for n in range(20_000))
    made = prepare([write(tmp_path / "in", a=text, b=text)], tmp_path / "out", valid_fraction=0, shard_tokens=7777)
    assert row(made.train) == [*encode(text), END]
    assert made.manifest["duplicates"] == 1
    assert len(made.manifest["splits"]["train"]["shards"]) > 3
    assert made.manifest["forced_cuts"] == 0


def test_one_long_word_is_cut_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PIECE", 1000)
    made = prepare([write(tmp_path / "in", a="x" * 3500)], tmp_path / "out", valid_fraction=0)
    assert made.manifest["forced_cuts"] == 3
    assert split_documents(row(made.train)) == ["x" * 3500]


def many(folder: Path, count: int = 200) -> Path:
    folder.mkdir()
    lines = [json.dumps({"text": f"Story {n}: once there were {n} of them."}) for n in range(count)]
    (folder / "a.jsonl").write_text("\n".join(lines))
    return folder


def test_the_same_bytes_whatever_the_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PIECE", 300)
    folder = many(tmp_path / "in")
    for workers in (1, 4):
        prepare([folder], tmp_path / f"out{workers}", workers=workers, shard_tokens=500)
    one, four = ({p.name: p.read_bytes() for p in (tmp_path / f"out{n}").iterdir()} for n in (1, 4))
    assert one == four


def test_documents_are_held_out_by_their_text_and_the_seed(tmp_path):
    folder = many(tmp_path / "in")
    made = prepare([folder], tmp_path / "a", valid_fraction=0.2)
    train, valid = split_documents(row(made.train)), split_documents(row(made.valid))
    assert 20 < len(valid) < 60
    assert sorted(train + valid) == sorted(texts(folder))
    (folder / "a.jsonl").write_text("\n".join(reversed((folder / "a.jsonl").read_text().splitlines())))
    again = prepare([folder], tmp_path / "b", valid_fraction=0.2)
    assert sorted(split_documents(row(again.valid))) == sorted(valid)
    other = prepare([folder], tmp_path / "c", valid_fraction=0.2, seed=1)
    assert sorted(split_documents(row(other.valid))) != sorted(valid)


def test_the_end_of_a_single_document_is_held_out(tmp_path):
    text = " ".join(f"word{n}" for n in range(1000))
    made = prepare([write(tmp_path / "in", a=text)], tmp_path / "out", valid_fraction=0.1, shard_tokens=1500)
    whole = [*encode(text), END]
    assert made.manifest["valid_from"] == "tail"
    assert row(made.train) + row(made.valid) == whole
    assert len(made.valid) == int(len(whole) * 0.1)
    made.verify()


def test_there_is_always_something_to_train_on(tmp_path):
    made = prepare([write(tmp_path / "in", a="One text of some words.")], tmp_path / "out", valid_fraction=0.999)
    assert len(made.train) >= 1
    assert len(made.train) + len(made.valid or []) == len(encode("One text of some words.")) + 1


def test_of_few_documents_not_too_much_is_held_out(tmp_path):
    """Of three books the draw took one, which was 84 % of the text."""
    long = " ".join(f"word{n}" for n in range(3000))
    for seed in range(30):
        folder = write(tmp_path / "in", a="A few words.", b="Some others.", c=long)
        made = prepare([folder], tmp_path / "out", valid_fraction=0.3, seed=seed, shard_tokens=2000)
        assert 0 < len(made.valid) < 0.9 * (len(made.train) + len(made.valid))
        assert sorted(split_documents(row(made.train) + row(made.valid)), key=len)[-1] == long
        made.verify()


def test_duplicates_and_empty_documents(tmp_path):
    folder = write(tmp_path / "in", a="Same", b="Same", c="Same ", d="", e=" \n ")
    made = prepare([folder], tmp_path / "out", valid_fraction=0)
    assert split_documents(row(made.train)) == ["Same", "Same "]
    assert (made.manifest["duplicates"], made.manifest["empty"]) == (1, 2)
    kept = prepare([folder], tmp_path / "out", valid_fraction=0, deduplicate=False)
    assert split_documents(row(kept.train)) == ["Same", "Same", "Same "]


def test_no_text_at_all(tmp_path):
    with pytest.raises(TrainingError, match="inputs: expected some text, found none"):
        prepare([write(tmp_path / "in", a="")], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_things_is_not_replaced(tmp_path):
    folder = write(tmp_path / "in", a="Text")
    with pytest.raises(CheckpointError, match="expected no folder, an empty one or"):
        prepare([folder], folder)
    assert (folder / "a.txt").read_text() == "Text"


def test_a_failure_leaves_the_earlier_data(tmp_path):
    prepare([write(tmp_path / "in", a="Good text")], tmp_path / "out", valid_fraction=0)
    with pytest.raises(TrainingError):
        prepare([write(tmp_path / "in", b=b"bad \xff text")], tmp_path / "out")
    assert split_documents(row(Prepared(tmp_path / "out").train)) == ["Good text"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out"]


@pytest.mark.parametrize("options", [{"valid_fraction": 1.0}, {"shard_tokens": 0}, {"workers": 0}])
def test_bad_options(tmp_path, options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        prepare([write(tmp_path / "in", a="x")], tmp_path / "out", **options)


# Shards


@settings(max_examples=100, deadline=None, derandomize=True)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5), data=st.data())
def test_windows_across_shards(lengths, data):
    whole = np.arange(sum(lengths), dtype=np.uint16)
    tokens = ShardTokens(np.split(whole, np.cumsum(lengths)[:-1]), "x")
    assert len(tokens) == len(whole)
    length = data.draw(st.integers(1, len(whole)))
    starts = np.array(data.draw(st.lists(st.integers(0, len(whole) - length), min_size=1, max_size=4)))
    windows = tokens.gather(starts, length)
    assert windows.dtype == np.int32
    np.testing.assert_array_equal(windows, whole[starts[:, None] + np.arange(length)])
    with pytest.raises(IndexError):
        tokens.gather(np.array([len(whole) - length + 1]), length)


def test_damaged_data(tmp_path):
    made = prepare([write(tmp_path / "in", a="Some words to keep.")], tmp_path / "out", valid_fraction=0)
    path = tmp_path / "out" / "train-00000.bin"
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    with pytest.raises(TrainingError, match=r"train-00000.bin: expected SHA-256"):
        Prepared(tmp_path / "out").verify()
    path.write_bytes(data[:-2])
    with pytest.raises(TrainingError, match=f"expected {len(data)} bytes, found {len(data) - 2}"):
        Prepared(tmp_path / "out")
    path.unlink()
    with pytest.raises(TrainingError, match="found none"):
        Prepared(tmp_path / "out")
    assert made.manifest["format"] == shards.FORMAT


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"dtype": "object"},
        {"splits": {}},
        {
            "splits": {
                "train": {"shards": [{"file": "../x-00000.bin", "tokens": 1, "sha256": ""}]},
                "valid": {"shards": []},
            }
        },
        {
            "splits": {
                "train": {"shards": [{"file": "train-00000.bin", "tokens": -1, "sha256": ""}]},
                "valid": {"shards": []},
            }
        },
        {"splits": None},
        {"codec": 3},
    ],
)
def test_bad_manifests(tmp_path, change):
    prepare([write(tmp_path / "in", a="Some words.")], tmp_path / "out", valid_fraction=0)
    path = tmp_path / "out" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(TrainingError, match=r"manifest.json: expected the manifest of prepared data, version 1"):
        Prepared(tmp_path / "out")
    path.write_text("{")
    assert not is_prepared(tmp_path / "out")
    with pytest.raises(TrainingError, match="expected the manifest"):
        Prepared(tmp_path / "out")


# The command line


def test_the_command_reads_a_pipe_and_never_imports_tensorflow(tmp_path):
    program = (
        "import sys; from gpt2.cli import main\n"
        "try: main()\n"
        "finally: print('tensorflow' in sys.modules or 'keras' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "prepare", "-", "-o", str(tmp_path / "out")],
        input=b"Hello world. " * 50,
        capture_output=True,
        check=True,
    )
    lines = done.stdout.decode().splitlines()
    assert lines[0].endswith("tokens of 1 documents to train on")
    assert lines[1].endswith("the end of the last document")
    assert lines[-1] == "False"
    assert b"\x1b" not in done.stderr
    assert is_prepared(tmp_path / "out")


@pytest.mark.slow
def test_one_line_of_a_gigabyte_in_constant_memory(tmp_path):
    with (tmp_path / "a.txt").open("w") as file:
        for _ in range(1000):
            file.write("all of it in one line, " * 43_478)
    program = (
        "import resource, sys; from gpt2.data.prepare import prepare\n"
        "made = prepare([sys.argv[1]], sys.argv[2])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, made.manifest['characters'])"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "a.txt"), str(tmp_path / "out")]
    megabytes, characters = map(int, subprocess.run(command, capture_output=True, check=True).stdout.split())
    assert characters == 1000 * 43_478 * 23
    assert megabytes < 600
