"""Text to tokens and back: GPT-2's byte-level byte-pair encoding.

`encode(text)` and `decode(tokens)` use GPT-2's own vocabulary of 50,257 tokens, which ships with the package; a `Codec`
holds any vocabulary of the same kind, read from a model's folder. The pair merging itself is `tiktoken`'s. Nothing here
imports TensorFlow, and text never becomes a special token unless the caller allows it.

Source: the scheme is that of OpenAI's `encoder.py` (Radford et al. 2019, section 2.2), with its one quirk kept: the
contractions ('s, 't, ...) are split off in lower case only.
"""

from __future__ import annotations

import codecs
import functools
import hashlib
import itertools
import json
import operator
from collections.abc import Collection, Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tiktoken

from gpt2.errors import CodecError

if TYPE_CHECKING:
    import numpy as np

END_OF_TEXT = "<|endoftext|>"
"""The special token that stands between documents (50256 in GPT-2's vocabulary)."""

VOCAB_BPE_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
"""The hash of OpenAI's `vocab.bpe`; the merges alone determine every id."""

MAX_VOCABULARY_FILE = 64 * 1024 * 1024
"""Bytes; a larger vocabulary file is refused unread."""

# How text is cut before merging: contractions, words, numbers, other signs, white space. A run of white space leaves
# its last character to the word after it. The pattern is part of the format; this is the form of OpenAI's that tiktoken
# has under the name r50k, possessive (++) where giving back could not help, so that long runs cost no backtracking.
_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""


@functools.cache
def _byte_letters() -> dict[int, str]:
    """For each byte the letter that vocabulary files write for it: itself if it prints, else one from U+0100 on.

    The order of this table is the order of GPT-2's first 256 ids.
    """
    printing = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in set(printing)]
    letters = {byte: chr(byte) for byte in printing}
    return letters | {byte: chr(256 + n) for n, byte in enumerate(others)}


class Codec:
    """A byte-level BPE vocabulary with its special tokens.

    Make one with `default_codec()`, `Codec.from_merges(...)` or `Codec.from_folder(...)`.
    """

    def __init__(self, ranks: Mapping[bytes, int], special_tokens: Mapping[str, int], *, name: str) -> None:
        self.name = name
        self.special_tokens: Mapping[str, int] = dict(special_tokens)
        self._ranks = dict(ranks)
        self._encoding = tiktoken.Encoding(
            name=name, pat_str=_PATTERN, mergeable_ranks=self._ranks, special_tokens=dict(special_tokens)
        )
        self._valid = frozenset(self._ranks.values()) | frozenset(self.special_tokens.values())
        self.n_vocab = max(self._valid, default=-1) + 1
        """How many ids there are: the highest id plus one."""

    @property
    def ranks(self) -> Mapping[bytes, int]:
        """The bytes of every token but the special ones, and its id."""
        return self._ranks

    @property
    def pattern(self) -> str:
        """The regular expression that cuts a text into what is merged by itself."""
        return _PATTERN

    # Making one

    @classmethod
    def from_merges(cls, merges: str, ids: Mapping[str, int] | None = None, *, name: str = "bpe") -> Codec:
        """A codec from the text of a `vocab.bpe` or `merges.txt`.

        Args:
            merges: one pair a line, most frequent first; a first line that begins with `#version` is skipped.
            ids: token, spelled as in `encoder.json`, -> id. None numbers them as GPT-2 does: the bytes, the merges in
                their order, then `<|endoftext|>`.
            name: for errors.

        Raises:
            CodecError: a line that is no pair, a pair of unknown parts, or ids that do not fit the merges.
        """
        letters = _byte_letters()
        tokens = list(letters.values())
        known = set(tokens)
        lines = merges.split("\n")
        for number, line in enumerate(lines, start=1):
            if not line.strip() or (number == 1 and line.startswith("#version")):
                continue
            parts = line.rstrip("\r").split(" ")
            if len(parts) != 2 or not (parts[0] in known and parts[1] in known):
                raise CodecError(f"{name}: line {number}: expected a pair of known tokens, got {line[:80]!r}")
            token = parts[0] + parts[1]
            if token not in known:
                tokens.append(token)
                known.add(token)
        special_tokens = {END_OF_TEXT: len(tokens)}
        if ids is None:
            numbered = {token: n for n, token in enumerate(tokens)}
        else:
            numbered, special_tokens = _check_ids(tokens, ids, name)
        values = {letter: byte for byte, letter in letters.items()}
        ranks = {bytes(values[letter] for letter in token): n for token, n in numbered.items()}
        return cls(ranks, special_tokens, name=name)

    @classmethod
    def from_folder(cls, folder: str | Path) -> Codec | None:
        """The vocabulary that a model's folder brings along, or None if it has none.

        Read are, in this order: `vocab.bpe` (with `encoder.json` where there is one), `merges.txt` with `vocab.json`
        and the tokens added later (of `added_tokens.json`, else of `tokenizer.json`), and Hugging Face's
        `tokenizer.json`.

        Raises:
            CodecError: a file is broken, or it is not byte-level BPE as in GPT-2.
        """
        folder = Path(folder)
        found = cls.from_files(folder / "vocab.bpe", folder / "encoder.json")
        if found is None:
            found = cls.from_files(folder / "merges.txt", folder / "vocab.json")
            if found is not None:
                found = found._with(_added_tokens(folder), str(folder))
        if found is not None:
            return found
        path = folder / "tokenizer.json"
        if path.is_file():
            return cls.from_merges(*_read_tokenizer_json(path), name=str(path))
        return None

    @classmethod
    def from_files(cls, merges: Path, ids: Path) -> Codec | None:
        """The vocabulary in a file of merges, with the ids of another where it is there; None without merges.

        Raises:
            CodecError: as `from_folder`.
        """
        if not merges.is_file():
            return None
        return cls.from_merges(_read_text(merges), _read_json(ids) if ids.is_file() else None, name=str(merges))

    def _with(self, added: Mapping[str, Any], source: str) -> Codec:
        """With more special tokens; those that it has already are named again in such lists."""
        known = self.vocabulary()
        new = {token: number for token, number in added.items() if token not in known}
        wrong = next((token for token in added if token not in new and added[token] != known[token]), None)
        if wrong is not None:
            raise CodecError(f"{source}: expected the id {known[wrong]} for {wrong!r}, got {added[wrong]!r} beside it")
        _, special = _check_ids([], {**known, **new}, source)
        return Codec(self._ranks, dict(self.special_tokens) | {t: special[t] for t in new}, name=self.name)

    # Facts

    @property
    def end_of_text(self) -> int | None:
        """The id of `<|endoftext|>`, if the vocabulary has it."""
        return self.special_tokens.get(END_OF_TEXT)

    # Text to tokens

    def encode(self, text: str, *, allowed_special: Collection[str] = ()) -> list[int]:
        """The tokens of a text.

        Args:
            text: any text without lone surrogates.
            allowed_special: special tokens that the text may spell, such as `{"<|endoftext|>"}`; any other special
                token in the text is encoded as the ordinary characters that it consists of.

        Raises:
            CodecError: `text` is not a str or holds a lone surrogate, or `allowed_special` an unknown token.

        >>> encode("Hello world")
        [15496, 995]
        """
        return self._encoding.encode(
            _checked_text(text), allowed_special=self._checked_special(allowed_special), disallowed_special=()
        )

    def encode_batch(self, texts: Iterable[str], *, allowed_special: Collection[str] = ()) -> list[list[int]]:
        """The tokens of each text, encoded on several threads."""
        return self._encoding.encode_batch(
            [_checked_text(text) for text in texts],
            allowed_special=self._checked_special(allowed_special),
            disallowed_special=(),
        )

    def encode_array(self, text: str, *, allowed_special: Collection[str] = ()) -> np.ndarray:
        """The tokens of a text as an array (N,): uint16 where the vocabulary fits, else uint32."""
        import numpy as np  # here, since it takes longer to import than all the rest

        dtype = np.uint16 if self.n_vocab <= 2**16 else np.uint32
        array = self._encoding.encode_to_numpy(
            _checked_text(text), allowed_special=self._checked_special(allowed_special), disallowed_special=()
        )
        return array.astype(dtype)

    # Tokens to text

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens; U+FFFD stands only where their bytes are not UTF-8.

        Raises:
            CodecError: a token that is not an integer or not in the vocabulary.

        >>> decode([15496, 995])
        'Hello world'
        """
        return self.decode_bytes(tokens).decode("utf-8", errors="replace")

    def decode_batch(self, batch: Iterable[Iterable[int]]) -> list[str]:
        """The text of each row of tokens."""
        return [self.decode(tokens) for tokens in batch]

    def decode_bytes(self, tokens: Iterable[int]) -> bytes:
        """The exact bytes of tokens, which need not be UTF-8.

        Raises:
            CodecError: a token that is not an integer or not in the vocabulary.
        """
        return self._encoding.decode_bytes(self._checked_tokens(tokens))

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token."""
        return self.decode_bytes([token])

    # On disk

    def files(self, layout: str) -> dict[str, bytes]:
        """The vocabulary as files: name -> content.

        Args:
            layout: `"openai"` gives `vocab.bpe` and `encoder.json`, `"huggingface"` `merges.txt` and `vocab.json`.
        """
        names = {"openai": ("vocab.bpe", "encoder.json"), "huggingface": ("merges.txt", "vocab.json")}
        if layout not in names:
            raise CodecError(f"layout: expected one of {', '.join(names)}, got {layout!r}")
        merges_name, ids_name = names[layout]
        merges, ids = self._files
        return {merges_name: merges, ids_name: ids}

    @functools.cached_property
    def _files(self) -> tuple[bytes, bytes]:
        """Merges and ids as files, made once: a run writes them with each of its checkpoints."""
        return self._merges().encode("utf-8"), json.dumps(self.vocabulary()).encode("ascii")

    def vocabulary(self) -> dict[str, int]:
        """Token -> id, by id, as `vocab.json` has it: bytes written as OpenAI's printable letters."""
        letters = _byte_letters()
        ids = {"".join(letters[byte] for byte in token): n for token, n in self._ranks.items()}
        return dict(sorted((ids | dict(self.special_tokens)).items(), key=lambda item: item[1]))

    def _merges(self) -> str:
        """The merges in the order of their ids, each the last pair that merging leaves of the token itself."""
        if self is default_codec():
            return _packaged_merges()
        letters = _byte_letters()
        lines = ["#version: 0.2"]
        for token, rank in sorted(self._ranks.items(), key=lambda item: item[1]):
            if len(token) > 1:
                pair = _last_pair(token, rank, self._ranks)
                lines.append(" ".join("".join(letters[byte] for byte in part) for part in pair))
        return "\n".join(lines) + "\n"

    def _checked_tokens(self, tokens: Iterable[int]) -> list[int]:
        checked: list[int] = []
        for token in tokens:
            number = -1 if isinstance(token, bool) or not hasattr(token, "__index__") else operator.index(token)
            if number not in self._valid:
                limit = self.n_vocab - 1
                raise CodecError(f"tokens: expected integers of the vocabulary (0 to {limit}), got {token!r}")
            checked.append(number)
        return checked

    def _checked_special(self, allowed: Collection[str]) -> set[str]:
        if isinstance(allowed, str):
            raise CodecError(f"allowed_special: expected a collection of special tokens, got the string {allowed!r}")
        unknown = set(allowed) - set(self.special_tokens)
        if unknown:
            known = ", ".join(self.special_tokens) or "none"
            raise CodecError(f"allowed_special: expected some of {known}, got {', '.join(sorted(unknown))}")
        return set(allowed)


class StreamDecoder:
    """Tokens in, text out as soon as whole characters are there; never half a character.

    All that `push` and `flush` return, joined, equals `codec.decode` of all tokens.
    """

    def __init__(self, codec: Codec | None = None) -> None:
        self._codec = codec or default_codec()
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, *tokens: int) -> str:
        """The text that these tokens complete, which may be empty."""
        return self._decoder.decode(self._codec.decode_bytes(tokens))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that never became whole."""
        return self._decoder.decode(b"", final=True)


def fitting(codec: Codec | None, n_vocab: int, *, source: str) -> Codec | None:
    """The vocabulary that a model brings along if it fits the network; for None GPT-2's where that fits, else None.

    GPT-2's fits a network of its size, or one padded up to the next multiple of 128, as some train it. Special tokens
    that were added to a vocabulary, but never to the network, are left away.

    Raises:
        CodecError: it has other ids that the network does not.
    """
    if codec is not None and codec.n_vocab > n_vocab:
        fit = {token: n for token, n in codec.special_tokens.items() if n < n_vocab or token == END_OF_TEXT}
        codec = Codec(codec.ranks, fit, name=codec.name)
    if codec is not None and codec.n_vocab > n_vocab:
        raise CodecError(f"{source}: expected a vocabulary of at most n_vocab = {n_vocab}, got {codec.n_vocab}")
    return codec or fitting_default(n_vocab)


def fitting_default(n_vocab: int) -> Codec | None:
    """GPT-2's own vocabulary if a network with `n_vocab` tokens can use it, else None."""
    return default_codec() if 50257 <= n_vocab <= 50304 else None


@functools.cache
def default_codec() -> Codec:
    """GPT-2's own vocabulary, from the package."""
    return Codec.from_merges(_packaged_merges(), name="gpt2")


def encode(text: str, *, allowed_special: Collection[str] = ()) -> list[int]:
    """The tokens of a text in GPT-2's own vocabulary; see `Codec.encode`."""
    return default_codec().encode(text, allowed_special=allowed_special)


def encode_batch(texts: Iterable[str], *, allowed_special: Collection[str] = ()) -> list[list[int]]:
    """The tokens of each text in GPT-2's own vocabulary."""
    return default_codec().encode_batch(texts, allowed_special=allowed_special)


def encode_array(text: str, *, allowed_special: Collection[str] = ()) -> np.ndarray:
    """The tokens of a text in GPT-2's own vocabulary as a uint16 array (N,)."""
    return default_codec().encode_array(text, allowed_special=allowed_special)


def decode(tokens: Iterable[int]) -> str:
    """The text of tokens of GPT-2's own vocabulary; see `Codec.decode`."""
    return default_codec().decode(tokens)


def decode_batch(batch: Iterable[Iterable[int]]) -> list[str]:
    """The text of each row of tokens of GPT-2's own vocabulary."""
    return default_codec().decode_batch(batch)


def decode_bytes(tokens: Iterable[int]) -> bytes:
    """The exact bytes of tokens of GPT-2's own vocabulary."""
    return default_codec().decode_bytes(tokens)


@functools.cache
def _packaged_merges() -> str:
    data = resources.files("gpt2").joinpath("assets").joinpath("vocab.bpe").read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest != VOCAB_BPE_SHA256:
        raise CodecError(f"the package's vocab.bpe is damaged: expected SHA-256 {VOCAB_BPE_SHA256}, got {digest}")
    return data.decode("utf-8")


def _checked_text(text: str) -> str:
    if not isinstance(text, str):
        raise CodecError(f"text: expected a str, got {type(text).__name__}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise CodecError(
            f"text: expected Unicode text, got a lone surrogate U+{ord(text[error.start]):04X} "
            f"at character {error.start}"
        ) from None
    return text


def _check_ids(tokens: Sequence[str], ids: Mapping[str, Any], name: str) -> tuple[dict[str, int], dict[str, int]]:
    """Split a vocabulary's ids into those of bytes and merges and those of special tokens, after checking them."""
    bad = next((t for t, n in ids.items() if isinstance(n, bool) or not isinstance(n, int) or not 0 <= n < 2**31), None)
    if bad is not None:
        raise CodecError(f"{name}: expected ids from 0, got {ids[bad]!r} for {bad!r}")
    if len(set(ids.values())) != len(ids):
        raise CodecError(
            f"{name}: expected a different id for each token, got {len(ids) - len(set(ids.values()))} twice"
        )
    missing = [token for token in tokens if token not in ids]
    if missing:
        raise CodecError(f"{name}: expected an id for every byte and merge; {len(missing)} missing, as {missing[0]!r}")
    numbered = {token: ids[token] for token in tokens}
    merged = list(numbered.values())[256:]
    if any(second <= first for first, second in itertools.pairwise(merged)):
        # tiktoken merges in the order of the ids, so it would cut text differently from such a vocabulary.
        raise CodecError(f"{name}: expected the ids of merged tokens to rise in the order of the merges")
    return numbered, {token: n for token, n in ids.items() if token not in numbered}


def _last_pair(token: bytes, rank: int, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes]:
    """The two parts that `token` is merged from: merge its bytes with all earlier merges until two are left."""
    parts = [token[n : n + 1] for n in range(len(token))]
    while len(parts) > 2:
        pairs = [ranks.get(parts[n] + parts[n + 1], rank) for n in range(len(parts) - 1)]
        best = min(range(len(pairs)), key=pairs.__getitem__)
        if pairs[best] >= rank:
            raise CodecError(f"vocabulary: token {token!r} cannot be reached by merging")
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts[0], parts[1]


def _read_text(path: Path) -> str:
    size = path.stat().st_size
    if size > MAX_VOCABULARY_FILE:
        raise CodecError(f"{path}: expected at most {MAX_VOCABULARY_FILE:,} bytes, got {size:,}")
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise CodecError(f"{path}: expected UTF-8 text, got the byte {error.object[error.start]:#04x}") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise CodecError(f"{path}: expected JSON: {error}") from None
    if not isinstance(value, dict):
        raise CodecError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def _added_tokens(folder: Path) -> dict[str, Any]:
    """Tokens that were added to a vocabulary in Hugging Face's layout: token -> id, both unchecked."""
    path = folder / "added_tokens.json"
    if path.is_file():
        return _read_json(path)
    path = folder / "tokenizer.json"
    listed = _read_json(path).get("added_tokens", []) if path.is_file() else []
    entries = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    return {entry["content"]: entry.get("id") for entry in entries if isinstance(entry.get("content"), str)}


def _read_tokenizer_json(path: Path) -> tuple[str, dict[str, Any]]:
    """The merges and the ids of a Hugging Face `tokenizer.json`, if it is byte-level BPE."""
    value = _read_json(path)
    model, added = value.get("model"), value.get("added_tokens", [])
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        raise CodecError(
            f"{path}: expected a BPE tokenizer, got {model.get('type') if isinstance(model, dict) else model}"
        )
    if not _mentions_byte_level(value.get("pre_tokenizer")):
        raise CodecError(f"{path}: expected a ByteLevel pre-tokenizer as in GPT-2")
    ids, merges = model.get("vocab"), model.get("merges")
    if not isinstance(ids, dict) or not isinstance(merges, list) or not isinstance(added, list):
        raise CodecError(f"{path}: expected model.vocab, model.merges and added_tokens")
    lines = []
    for merge in merges:  # "a b", or ["a", "b"] in newer files
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if not (isinstance(parts, list) and len(parts) == 2 and all(isinstance(part, str) for part in parts)):
            raise CodecError(f"{path}: expected merges of two tokens, got {str(merge)[:80]!r}")
        lines.append(" ".join(parts))
    for token in added:
        if not (isinstance(token, dict) and isinstance(token.get("content"), str)):
            raise CodecError(f"{path}: expected added_tokens with content and id, got {str(token)[:80]!r}")
        ids = {**ids, token["content"]: token.get("id")}
    return "\n".join(lines), ids


def _mentions_byte_level(value: object) -> bool:
    if isinstance(value, dict):
        inner = value.get("pretokenizers", [])
        return value.get("type") == "ByteLevel" or (isinstance(inner, list) and any(map(_mentions_byte_level, inner)))
    return False
