"""Vocabularies on disk: OpenAI's own files byte for byte, folders of every layout, and broken ones."""

from __future__ import annotations

import hashlib
import json
import re
from importlib import resources
from pathlib import Path

import pytest

import gpt2.codec
from gpt2.codec import END_OF_TEXT, Codec, StreamDecoder, default_codec, fitting
from gpt2.errors import CodecError

VOCAB_BPE = resources.files("gpt2").joinpath("assets").joinpath("vocab.bpe").read_bytes()


def test_files_are_openais_own():
    files = default_codec().files("openai")
    assert {name: hashlib.sha256(content).hexdigest() for name, content in files.items()} == {
        "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
        "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    }
    assert list(files.values()) == list(default_codec().files("huggingface").values())
    with pytest.raises(CodecError, match="layout: expected one of openai, huggingface, got 'sentencepiece'"):
        default_codec().files("sentencepiece")


# A vocabulary of its own: <|endoftext|> first, then the bytes, then three merges.
SMALL_MERGES = "#version: 0.2\nh e\nl l\nhe ll\n"


def small_ids() -> dict[str, int]:
    gpt2_ids = json.loads(default_codec().files("openai")["encoder.json"])
    return {token: n for n, token in enumerate([END_OF_TEXT, *list(gpt2_ids)[:256], "he", "ll", "hell"])}


def tokenizer_json(merges: list[object], ids: dict[str, int], **changes: object) -> dict[str, object]:
    ids = {token: n for token, n in ids.items() if token != END_OF_TEXT}
    return {
        "added_tokens": [{"id": 0, "content": END_OF_TEXT, "special": True}],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel", "add_prefix_space": False}]},
        "model": {"type": "BPE", "vocab": ids, "merges": merges},
    } | changes


def small_folder(folder: Path, layout: str) -> Path:
    if layout in ("openai", "huggingface"):
        merges_name, ids_name = {"openai": ("vocab.bpe", "encoder.json"), "huggingface": ("merges.txt", "vocab.json")}[
            layout
        ]
        (folder / merges_name).write_text(SMALL_MERGES)
        (folder / ids_name).write_text(json.dumps(small_ids()))
    else:
        pairs = ["h e", "l l", "he ll"]
        merges: list[object] = [pair.split(" ") for pair in pairs] if layout == "tokenizer.json, lists" else list(pairs)
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(merges, small_ids())))
    return folder


@pytest.mark.parametrize("layout", ["openai", "huggingface", "tokenizer.json, strings", "tokenizer.json, lists"])
def test_a_small_vocabulary_in_each_layout(tmp_path, layout):
    codec = Codec.from_folder(small_folder(tmp_path, layout))
    assert (codec.n_vocab, codec.end_of_text) == (260, 0)
    assert codec.encode("hello<|endoftext|>", allowed_special={END_OF_TEXT}) == [259, codec.encode("o")[0], 0]
    assert codec.decode(codec.encode("Héllo 😀")) == "Héllo 😀"
    assert StreamDecoder(codec).push(259) == "hell"
    written = codec.files("huggingface")
    assert written["merges.txt"].decode() == SMALL_MERGES
    assert json.loads(written["vocab.json"]) == small_ids()


@pytest.mark.parametrize("layout", ["openai", "huggingface"])
def test_gpt2s_own_vocabulary_through_a_folder(tmp_path, layout):
    for name, content in default_codec().files(layout).items():
        (tmp_path / name).write_bytes(content)
    codec = Codec.from_folder(tmp_path)
    assert codec.encode("Hello world") == [15496, 995]
    assert codec.end_of_text == 50256
    assert codec.files(layout) == default_codec().files(layout)


def test_merges_alone_are_numbered_as_gpt2_numbers_them(tmp_path):
    (tmp_path / "vocab.bpe").write_bytes(VOCAB_BPE)
    codec = Codec.from_folder(tmp_path)
    assert codec.encode("Hello world") == [15496, 995]
    assert codec.end_of_text == 50256


@pytest.mark.parametrize("place", ["added_tokens.json", "tokenizer.json"])
def test_tokens_that_were_added_later_are_special(tmp_path, place):
    """With vocab.json at hand only <|endoftext|> was known, and `<|user|>` was lost on the way to another format."""
    small_folder(tmp_path, "huggingface")
    added = {END_OF_TEXT: 0, "<|user|>": 260, "[PAD]": 261}
    entries = [{"id": n, "content": token, "special": True} for token, n in added.items()]
    content = added if place == "added_tokens.json" else tokenizer_json(["h e"], small_ids(), added_tokens=entries)
    (tmp_path / place).write_text(json.dumps(content))
    codec = Codec.from_folder(tmp_path)
    assert codec.special_tokens == added
    assert codec.n_vocab == 262
    assert codec.encode("<|user|>hell", allowed_special={"<|user|>"}) == [260, 259]
    assert 260 not in codec.encode("<|user|>"), "text never becomes a special token unasked"
    assert codec.decode([260, 259]) == "<|user|>hell"
    (tmp_path / "again").mkdir()
    for name, data in codec.files("openai").items():
        (tmp_path / "again" / name).write_bytes(data)
    assert Codec.from_folder(tmp_path / "again").special_tokens == added
    fit = fitting(codec, 261, source="x")
    assert (fit.special_tokens, fit.n_vocab) == ({END_OF_TEXT: 0, "<|user|>": 260}, 261), "the network has no [PAD]"
    with pytest.raises(CodecError, match="x: expected a vocabulary of at most n_vocab = 259, got 260"):
        fitting(codec, 259, source="x")


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ({"hell": 7}, "expected the id 259 for 'hell', got 7"),
        ({"<|user|>": 259}, "expected a different id for each token"),
        ({"<|user|>": "260"}, "expected ids from 0, got '260' for '<|user|>'"),
    ],
)
def test_added_tokens_that_contradict(tmp_path, added, message):
    small_folder(tmp_path, "huggingface")
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    with pytest.raises(CodecError, match=re.escape(message)):
        Codec.from_folder(tmp_path)


def test_a_folder_without_a_vocabulary(tmp_path):
    assert Codec.from_folder(tmp_path) is None


def without(token: str) -> str:
    return json.dumps({t: n for t, n in small_ids().items() if t != token})


BROKEN = {
    "a line of three": (
        {"vocab.bpe": "#version: 0.2\nh e l\n"},
        "line 2: expected a pair of known tokens, got 'h e l'",
    ),
    "an unknown part": ({"vocab.bpe": "h e\nhel p\n"}, "line 2: expected a pair of known tokens, got 'hel p'"),
    "not UTF-8": ({"merges.txt": b"h e\n\xff\xfe"}, "merges.txt: expected UTF-8 text, got the byte 0xff"),
    "not JSON": ({"merges.txt": "h e", "vocab.json": "{"}, "vocab.json: expected JSON: "),
    "deep JSON": ({"merges.txt": "h e", "vocab.json": "[" * 100_000}, "vocab.json: expected JSON: "),
    "a list": ({"merges.txt": "h e", "vocab.json": "[]"}, "vocab.json: expected a JSON object, got list"),
    "a missing id": (
        {"merges.txt": SMALL_MERGES, "vocab.json": without("hell")},
        "expected an id for every byte and merge; 1 missing, as 'hell'",
    ),
    "an id twice": (
        {"merges.txt": SMALL_MERGES, "vocab.json": json.dumps(small_ids() | {"hell": 0})},
        "expected a different id for each token",
    ),
    "a negative id": (
        {"merges.txt": SMALL_MERGES, "vocab.json": json.dumps(small_ids() | {"hell": -1})},
        "expected ids from 0, got -1 for 'hell'",
    ),
    "an id that is no integer": (
        {"merges.txt": SMALL_MERGES, "vocab.json": json.dumps(small_ids() | {"hell": "259"})},
        "expected ids from 0, got '259' for 'hell'",
    ),
    "ids out of order": (
        {"merges.txt": SMALL_MERGES, "vocab.json": json.dumps(small_ids() | {"he": 300})},
        "expected the ids of merged tokens to rise in the order of the merges",
    ),
    "another kind of tokenizer": (
        {"tokenizer.json": json.dumps(tokenizer_json([], {}, model={"type": "Unigram"}))},
        "tokenizer.json: expected a BPE tokenizer, got Unigram",
    ),
    "no byte level": (
        {"tokenizer.json": json.dumps(tokenizer_json([], {}, pre_tokenizer={"type": "Metaspace"}))},
        "tokenizer.json: expected a ByteLevel pre-tokenizer",
    ),
    "no merges": (
        {"tokenizer.json": json.dumps(tokenizer_json([], {}, model={"type": "BPE", "vocab": {}}))},
        "tokenizer.json: expected model.vocab, model.merges and added_tokens",
    ),
    "a merge of one": (
        {"tokenizer.json": json.dumps(tokenizer_json([["he"]], small_ids()))},
        r"tokenizer.json: expected merges of two tokens, got \"\['he'\]\"",
    ),
    "an added token without text": (
        {"tokenizer.json": json.dumps(tokenizer_json(["h e"], small_ids(), added_tokens=[{"id": 0}]))},
        "tokenizer.json: expected added_tokens with content and id",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_folders(tmp_path, case):
    files, message = BROKEN[case]
    for name, content in files.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CodecError, match=message):
        Codec.from_folder(tmp_path)


def test_a_file_too_large_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(gpt2.codec, "MAX_VOCABULARY_FILE", 10)
    (tmp_path / "vocab.bpe").write_text("h e\nl l\nhe ll\n")
    with pytest.raises(CodecError, match="expected at most 10 bytes, got 14"):
        Codec.from_folder(tmp_path)
