"""Test sets as they circulate, turned into items: texts, choices, and passages with a last word.

Text files are UTF-8, read piece by piece. Rows, for sets that circulate as such, come from JSON lines, a JSON list or
Parquet (extra `data`), one reader for all three. Errors name the file and the line or row.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from gpt2.errors import EvaluationError
from gpt2.evaluation.detokenisers import Detokeniser

BLOCK_BYTES = 4096
"""About so long are the documents that a text without any is counted in."""


@dataclass(frozen=True)
class Document:
    """A part of a text."""

    text: str


@dataclass(frozen=True)
class Choice:
    """Several continuations, each with its context, one of them right."""

    options: tuple[tuple[str, str], ...]
    """(context, continuation): the latter begins with a space where words are separated by one."""
    gold: int


@dataclass(frozen=True)
class Passage:
    """A passage whose last word is to be guessed."""

    context: str
    word: str
    """With the space before it."""


Item = Document | Choice | Passage
Reader = Callable[[Path, Detokeniser], Iterator[Item]]


# Files


def lines(path: Path) -> Iterator[str]:
    """The lines of a text file, or of the rows of a file of rows, each with its line feed, without a CR before it."""
    return (line.removesuffix("\r\n") + "\n" if line.endswith("\r\n") else line for line in _lines_as_they_are(path))


def _lines_as_they_are(path: Path) -> Iterator[str]:
    if not _is_rows(path):
        yield from _text_lines(path)
        return
    for number, row in rows(path):
        text = next((row[key] for key in ("text", "page", "sentence") if isinstance(row.get(key), str)), None)
        if text is None:
            raise EvaluationError(f"{path}: row {number}: expected text, page or sentence, got {_keys(row)}")
        yield from (line + "\n" for line in text.removesuffix("\n").split("\n"))


def rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The rows of a file with their numbers, from 1.

    Raises:
        EvaluationError: a row is no object, or the file is broken.
    """
    if path.suffix == ".parquet":
        entries = _parquet_rows(path)
    elif path.suffix == ".json":
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise EvaluationError(f"{path}: expected JSON: {error}") from None
        entries = iter(found if isinstance(found, list) else [found])
    else:
        entries = _json_lines(path)
    for number, row in enumerate(entries, start=1):
        if not isinstance(row, dict):
            raise EvaluationError(f"{path}: row {number}: expected a JSON object, got {row!r:.60}")
        yield number, row


def _parquet_rows(path: Path) -> Iterator[Any]:
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise EvaluationError(f"{path}: Parquet needs the package pyarrow: pip install 'gpt2[data]'") from None
    try:
        for batch in pq.ParquetFile(path).iter_batches(1024):
            yield from batch.to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's errors are these
        raise EvaluationError(f"{path}: expected Parquet: {error}") from None


def _json_lines(path: Path) -> Iterator[Any]:
    for number, line in enumerate(_text_lines(path), start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                raise EvaluationError(f"{path}: line {number}: expected a JSON object: {error}") from None


def _text_lines(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise EvaluationError(f"{path}: line {number}: expected UTF-8: {error.reason}") from None


def _is_rows(path: Path) -> bool:
    return path.suffix in (".jsonl", ".json", ".parquet")


def _keys(row: Mapping[str, Any]) -> str:
    return ", ".join(map(str, row)) or "nothing"


def _field(path: Path, number: int, row: Mapping[str, Any], key: str, kind: type) -> Any:
    value = row.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise EvaluationError(f"{path}: row {number}: expected {key} to be {kind.__name__}, got {value!r:.60}")
    return value


# Texts


def articles(path: Path, _: Detokeniser) -> Iterator[Document]:
    """WikiText: a document is an article, from its title ` = Title = ` on."""
    held: list[str] = []
    for line in map(_framed, lines(path)):
        if re.fullmatch(r" = [^=](.*[^=])? = \n", line) and any(kept.strip() for kept in held):
            yield Document("".join(held))
            held = []
        held.append(line)
    if held:
        yield Document("".join(held))


def sentences(path: Path, _: Detokeniser) -> Iterator[Document]:
    """A document is a line."""
    return (Document(line) for line in lines(path))


def framed_sentences(path: Path, _: Detokeniser) -> Iterator[Document]:
    """Penn Treebank: a document is a line, between the spaces that the original file has."""
    return (Document(_framed(line)) for line in lines(path))


def _framed(line: str) -> str:
    """A line as the original files of WikiText and Penn Treebank have it: ` text ` and a line feed, ` ` if it is blank.

    The same sets circulate with lines stripped (Hugging Face's Penn Treebank) or nothing in blank ones (its WikiText).
    """
    text = line.removesuffix("\n") or " "
    return " " * (not text.startswith(" ")) + text + " " * (not text.endswith(" ")) + "\n"


def blocks(path: Path, _: Detokeniser, *, tail: tuple[int, int] = (0, 0)) -> Iterator[Document]:
    """Any text: a document is some `BLOCK_BYTES` up to the end of a line, or of a word where lines are long.

    Args:
        path: the file.
        tail: of a file of exactly so many bytes, only so many at the end are read, as for enwik8 and text8.
    """
    if _is_rows(path):
        yield from map(Document, _lines_as_they_are(path))
        return
    decoder = codecs.getincrementaldecoder("utf-8")(errors="strict")
    held, size = "", path.stat().st_size
    with path.open("rb") as file:
        skipping = size == tail[0]
        if skipping:
            file.seek(size - tail[1])
        while True:
            data = file.read(1 << 16)
            if skipping:  # the cut may fall into a character, whose rest is left away
                data, skipping = data.lstrip(bytes(range(0x80, 0xC0))), False
            waiting = len(decoder.getstate()[0])
            try:
                held += decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                at = file.tell() - len(data) - waiting + error.start
                raise EvaluationError(f"{path}: expected UTF-8, got at byte {at}: {error.reason}") from None
            while len(held) > BLOCK_BYTES or (held and not data):
                end = held.find("\n", BLOCK_BYTES, 2 * BLOCK_BYTES) + 1 or held.find(" ", BLOCK_BYTES, 2 * BLOCK_BYTES)
                if end <= 0 and data and len(held) < 2 * BLOCK_BYTES:
                    break
                end = end if end > 0 else 2 * BLOCK_BYTES
                yield Document(held[:end])
                held = held[end:]
            if not data:
                return


# Last words


def passages(path: Path, detokeniser: Detokeniser) -> Iterator[Passage]:
    """LAMBADA: rows with `text`, or `context` and `continuation`; or a passage a line."""
    found: Iterator[tuple[int, Any]] = rows(path) if _is_rows(path) else enumerate(lines(path), start=1)
    for number, row in found:
        if isinstance(row, str):
            if not row.strip():
                continue
            text = row.rstrip("\r\n")
        elif "continuation" in row:
            context = _field(path, number, row, "context", str)
            text = f"{context} {_field(path, number, row, 'continuation', str).strip()}"
        else:
            text = _field(path, number, row, "text", str)
        text = "\n".join(detokeniser.detokenise(line) for line in text.split("\n"))
        context, space, word = text.rpartition(" ")
        if not (context and word):
            raise EvaluationError(f"{path}: row {number}: expected several words, got {text!r:.60}")
        yield Passage(context, space + word)


# Choices


def endings(path: Path, _: Detokeniser) -> Iterator[Choice]:
    """HellaSwag: rows as its authors and Hugging Face give them, or blocks of six lines of prepared text."""
    if not _is_rows(path):
        yield from _ending_blocks(path)
        return
    for number, row in rows(path):
        if "ctx_a" in row:
            second = _field(path, number, row, "ctx_b", str)
            context = f"{_field(path, number, row, 'ctx_a', str)} {second[:1].upper()}{second[1:].lower()}"
        else:
            context = _field(path, number, row, "ctx", str)
        if row.get("activity_label"):
            context = f"{row['activity_label']}: {context}"
        options = [str(ending) for ending in _field(path, number, row, "endings", list)]
        yield _choice(path, number, [(_clean(context), " " + _clean(option)) for option in options], row.get("label"))


def _clean(text: str) -> str:
    """WikiHow's marks away, as lm-eval does it: `[title]` ends a sentence, others go."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def _ending_blocks(path: Path) -> Iterator[Choice]:
    block: list[str] = []
    for number, line in enumerate(lines(path), start=1):
        block.append(line.rstrip("\r\n"))
        if len(block) == 6:
            context, label, *options = block
            yield _choice(path, number - 5, [(context, " " + option) for option in options], label)
            block = []
    if any(block):
        raise EvaluationError(f"{path}: expected blocks of 6 lines, got {len(block)} at the end")


def schemas(path: Path, _: Detokeniser) -> Iterator[Choice]:
    """Winograd and WinoGrande: rows of contexts, with a blank or a pronoun, blocks of five lines, or the XML file."""
    if path.suffix == ".xml":
        yield from _schema_xml(path)
    elif not _is_rows(path):
        yield from _schema_blocks(path)
    else:
        for number, row in rows(path):
            if "context_options" in row:
                rest = _behind(_field(path, number, row, "continuation", str).strip())
                contexts = [str(context).strip() for context in _field(path, number, row, "context_options", list)]
                yield _choice(path, number, [(context, rest) for context in contexts], row.get("gold"))
            elif "sentence" in row:
                names = [_field(path, number, row, f"option{n}", str) for n in (1, 2)]
                label = {"1": 0, "2": 1}.get(str(row.get("answer")), row.get("answer"))
                yield _schema(path, number, _field(path, number, row, "sentence", str), "_", names, label)
            elif "pronoun_loc" in row:
                yield _schema_row(path, number, row)
            else:
                raise EvaluationError(
                    f"{path}: row {number}: expected context_options, or sentence, option1 and option2, or text, "
                    f"pronoun, pronoun_loc and options, got {_keys(row)}"
                )


def _schema_blocks(path: Path) -> Iterator[Choice]:
    block: list[str] = []
    for number, line in enumerate([*lines(path), "\n"], start=1):
        if line.strip():
            block.append(line.strip())
        elif block:
            if len(block) != 4:
                raise EvaluationError(f"{path}: line {number}: expected a sentence, a mark, two names and the answer")
            sentence, mark, names, answer = block
            options = [name.strip() for name in names.split(",")]
            yield _schema(path, number, sentence, mark, options, _same(options, answer))
            block = []


def _schema_row(path: Path, number: int, row: Mapping[str, Any]) -> Choice:
    """A row of Hugging Face's WSC273: a text, where its pronoun begins, and whom that may mean."""
    text, pronoun = (_field(path, number, row, key, str) for key in ("text", "pronoun"))
    first = _field(path, number, row, "pronoun_loc", int)
    if not 0 <= first <= len(text) or not text.startswith(pronoun, first):
        raise EvaluationError(f"{path}: row {number}: expected {pronoun!r:.40} from place {first} on, got {text!r:.60}")
    names = [_in_place_of(pronoun, str(option)) for option in _field(path, number, row, "options", list)]
    return _schema(path, number, f"{text[:first]}\0{text[first + len(pronoun) :]}", "\0", names, row.get("label"))


def _schema_xml(path: Path) -> Iterator[Choice]:
    """`WSCollection.xml`; its first 273 schemas are the set that is called WSC273."""
    text = path.read_bytes()
    if b"<!DOCTYPE" in text or b"<!ENTITY" in text:
        raise EvaluationError(f"{path}: expected XML without a document type, which could do more than hold data")
    try:
        found = ElementTree.fromstring(text).findall("schema")
    except ElementTree.ParseError as error:
        raise EvaluationError(f"{path}: expected XML: {error}") from None
    for number, schema in enumerate(found[:273], start=1):
        parts = [(schema.findtext(f"text/{name}") or "").strip() for name in ("txt1", "txt2")]
        pronoun = (schema.findtext("text/pron") or "").strip()
        options = [_in_place_of(pronoun, (answer.text or "").strip()) for answer in schema.findall("answers/answer")]
        letter = (schema.findtext("correctAnswer") or "").strip().strip(".").upper()
        yield _schema(path, number, f"{parts[0]} _ {parts[1]}", "_", options, "AB".find(letter) if letter else None)


_POSSESSIVES = ("my", "his", "her", "our", "their")  # as lm-eval has them


def _in_place_of(pronoun: str, name: str) -> str:
    """A name as it stands for a pronoun: for a possessive one with 's."""
    return name + "'s" * (pronoun.lower() in _POSSESSIVES)


_DETERMINERS = frozenset(
    (
        "a",
        "an",
        "the",
        "this",
        "that",
        "these",
        "those",
        "my",
        "your",
        "his",
        "her",
        "its",
        "our",
        "their",
        "some",
        "any",
    )
)


def _schema(path: Path, number: int, sentence: str, mark: str, options: Sequence[str], label: Any) -> Choice:
    """A sentence with a mark that stands for one of the options."""
    before, found, after = (" ".join(part.split()) for part in sentence.partition(mark))
    if not found:
        raise EvaluationError(f"{path}: item {number}: expected {mark} in the sentence, got {sentence!r:.60}")
    choices = []
    for option in options:
        name = option
        if not before or before[-1] in ".!?":
            name = option[:1].upper() + option[1:]
        elif option.split(" ")[0].lower() in _DETERMINERS and before[-1] != '"':
            name = option[:1].lower() + option[1:]
        choices.append((f"{before} {name}".strip(), _behind(after)))
    return _choice(path, number, choices, label)


def _behind(text: str) -> str:
    """With the space before it that belongs there."""
    return text if text[:1] in "'.,;:!?" else " " + text


def _same(options: Sequence[str], answer: str) -> int | None:
    plain = [" ".join(option.lower().split()) for option in options]
    wanted = " ".join(answer.lower().split())
    return plain.index(wanted) if wanted in plain else None


def clozes(path: Path, detokeniser: Detokeniser) -> Iterator[Choice]:
    """The Children's Book Test: blocks of 21 numbered lines, or rows of sentences, question, answer and options.

    The question, whose missing word is written XXXXX, is read with each candidate; what is scored is the candidate and
    the rest of the question behind it.
    """
    if _is_rows(path):
        found: Iterator[tuple[int, list[str], str, str, list[str]]] = _cloze_rows(path)
    else:
        found = _cloze_blocks(path)
    for number, context, question, answer, candidates in found:
        if "XXXXX" not in question.split():
            raise EvaluationError(f"{path}: item {number}: expected XXXXX as a word of the question")
        story = " ".join(detokeniser.detokenise(sentence) for sentence in context)
        words = question.split()
        at = words.index("XXXXX")
        choices = []
        for candidate in candidates:
            whole = detokeniser.detokenise(" ".join([*words[:at], candidate, *words[at + 1 :]]))
            start = detokeniser.detokenise(" ".join(words[:at])) if at else ""
            start = start if whole.startswith(start) else ""
            glue = " " if story and not start else ""
            choices.append((f"{story} {start}".strip(), glue + whole[len(start) :]))
        label = candidates.index(answer) if answer in candidates else None
        yield _choice(path, number, choices, label)


def _cloze_blocks(path: Path) -> Iterator[tuple[int, list[str], str, str, list[str]]]:
    context: list[str] = []
    number = 0
    for at, line in enumerate(lines(path), start=1):
        digits, _, rest = line.rstrip("\r\n").partition(" ")
        if not line.strip():
            context = []
        elif digits.isdecimal() and int(digits) == len(context) + 1 <= 20:
            context.append(rest)
        elif digits == "21" and len(context) == 20:
            parts = [part for part in rest.split("\t") if part.strip()]
            if len(parts) != 3:
                raise EvaluationError(f"{path}: line {at}: expected question, answer and candidates between tabs")
            number += 1
            yield number, context, parts[0], parts[1].strip(), parts[2].strip().split("|")
            context = []
        else:
            raise EvaluationError(f"{path}: line {at}: expected line {len(context) + 1} of 21, got {line!r:.40}")


def _cloze_rows(path: Path) -> Iterator[tuple[int, list[str], str, str, list[str]]]:
    for number, row in rows(path):
        texts = {key: _field(path, number, row, key, str) for key in ("question", "answer")}
        parts = {key: [str(e) for e in _field(path, number, row, key, list)] for key in ("sentences", "options")}
        yield number, parts["sentences"], texts["question"], texts["answer"], parts["options"]


def _choice(path: Path, number: int, options: Sequence[tuple[str, str]], label: Any) -> Choice:
    gold = int(label) if re.fullmatch("[0-9]{1,4}", str(label)) else -1
    if len(options) < 2 or not 0 <= gold < len(options):
        raise EvaluationError(
            f"{path}: item {number}: expected at least two options and which is right, "
            f"got {len(options)} and {label!r:.40}"
        )
    if not all(continuation for _, continuation in options):
        raise EvaluationError(f"{path}: item {number}: expected text in every option, got an empty one")
    return Choice(tuple(options), gold)
