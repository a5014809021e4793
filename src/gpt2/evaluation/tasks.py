"""What can be evaluated: each task as data, with its protocol in words.

The kinds of task are three (`gpt2.evaluation.work` does them): a `text`, whose tokens are all scored in windows; a
`choice` between continuations; the `last_word` of passages. Every figure is a sum over documents divided by another
sum, perhaps exponentiated, which is all that intervals and comparisons need to know.

Where figures of the paper are known to have come about in a certain way, or where nobody knows, it is said here.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from gpt2.errors import ConfigError
from gpt2.evaluation import readers


@dataclass(frozen=True)
class Metric:
    """A figure: the sum of one column of the documents' table over that of another."""

    name: str
    title: str
    top: str
    bottom: str = ""
    """Empty: the number of documents."""
    kind: str = "share"
    """share: the quotient, in per cent. perplexity: exp(-quotient). bits: -quotient / ln 2."""

    @property
    def label(self) -> str:
        """The title with the unit, where it has one."""
        return f"{self.title}, %" if self.kind == "share" else self.title

    def value(self, top: Any, bottom: Any) -> Any:
        """The figure for two sums, numbers or arrays; NaN or infinity where there is nothing to divide by."""
        import numpy as np

        with np.errstate(all="ignore"):
            quotient = np.asarray(top, np.float64) / np.asarray(bottom, np.float64)
            if self.kind == "share":
                return 100 * quotient
            return np.exp(-quotient) if self.kind == "perplexity" else -quotient / math.log(2)

    @property
    def higher_is_better(self) -> bool:
        """Whether a better model has the higher figure."""
        return self.kind == "share"


@dataclass(frozen=True)
class Task:
    """Something to evaluate."""

    name: str
    title: str
    kind: str
    """text, choice or last_word."""
    read: readers.Reader
    metrics: tuple[Metric, ...]
    """The first one is the headline."""
    protocol: Mapping[str, str]
    """In words: what is done, and what is known of the paper's way."""
    files: tuple[str, ...] = ()
    """Names that the set circulates under, in the order in which they are looked for: a file's, or the last parts of
    its path; `*` stands for anything within a part. Hugging Face's names were looked up, in code of public repositories
    that opens them and in listings of files: a set that comes in one file, at `main` or as its server converted it
    (`test/0000.parquet`)."""
    tail: tuple[int, int] = (0, 0)
    """A file of so many bytes is the whole set, of which so many at the end are the test set."""
    detokeniser: str = "none"
    detokenise: bool = True
    """Whether it is applied unless one says otherwise."""
    separate: bool = False
    """Whether a text's documents are read apart from each other unless one says otherwise."""
    version: int = 1
    """Goes up whenever the same data would give another figure."""

    def takes(self, option: str) -> bool:
        """Whether an option of `Options` means anything to this task: windows do to texts, spelling to cut words."""
        if option in ("window", "stride", "separate", "begin"):
            return self.kind == "text"
        return option != "detokenise" or self.detokeniser != "none"


@dataclass(frozen=True)
class Options:
    """Variants of a protocol. What is left out is as the task has it, and None where it means nothing to the task."""

    window: int | None = None
    """Tokens that are read at once; None: n_ctx."""
    stride: int | None = None
    """Tokens between the ends of two windows; None: the window, so that they do not overlap."""
    separate: bool | None = None
    """Read each document of a text by itself; None: as the task has it."""
    begin: bool | None = None
    """Put <|endoftext|> before a text, so that its first token is scored too; None: yes."""
    detokenise: bool | None = None
    """Restore natural spelling; None: as the task has it."""
    limit: int | None = None
    """Only so many documents, the first ones."""
    seed: int = 0
    """Of the bootstrap."""
    resamples: int = 1000
    """Of the bootstrap."""

    def __post_init__(self) -> None:
        for name, least in (("window", 1), ("stride", 1), ("limit", 1), ("resamples", 2), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
                raise ConfigError(f"{name}: expected a whole number of at least {least}, got {value!r}")

    def fitting(self, task: Task) -> Options:
        """Without what means nothing to a task."""
        without: dict[str, Any] = {name: None for name in _VARIANTS if not task.takes(name)}
        return replace(self, **without)

    def check(self, *tasks: Task) -> None:
        """Refuse what means nothing to any of some tasks.

        Raises:
            ConfigError: such an option was given.
        """
        for name in _VARIANTS:
            value = getattr(self, name)
            if value is not None and not any(task.takes(name) for task in tasks):
                why = "has no spelling to restore" if name == "detokenise" else "is not read in windows"
                named = " and ".join(task.name for task in tasks)
                raise ConfigError(f"{name}: expected none for {named}, which {why}, got {value!r}")

    def filled(self, task: Task, n_ctx: int) -> Options:
        """With the task's and the model's own values where none was given.

        Raises:
            ConfigError: a window beyond n_ctx, a stride beyond the window, or what means nothing to the task.
        """
        self.check(task)
        window = n_ctx if self.window is None else self.window
        stride = window if self.stride is None else self.stride
        if window > n_ctx:
            raise ConfigError(f"window: expected at most n_ctx = {n_ctx}, got {window}")
        if stride > window:
            raise ConfigError(f"stride: expected at most the window, {window}, got {stride}")
        return replace(
            self,
            window=window,
            stride=stride,
            separate=task.separate if self.separate is None else self.separate,
            begin=True if self.begin is None else self.begin,
            detokenise=task.detokenise if self.detokenise is None else self.detokenise,
        ).fitting(task)


_VARIANTS = ("window", "stride", "separate", "begin", "detokenise")

_BY_TOKEN = Metric("token_perplexity", "perplexity, per token", "log_likelihood", "tokens", "perplexity")
_BY_WORD = Metric("word_perplexity", "perplexity, per original word", "log_likelihood", "words", "perplexity")
_BY_BYTE = Metric("bits_per_byte", "bits per byte", "log_likelihood", "bytes", "bits")
_BY_CHARACTER = Metric("bits_per_character", "bits per character", "log_likelihood", "characters", "bits")

_WINDOWS = (
    "Windows of n_ctx tokens without overlap (--window, --stride); every token is scored once. <|endoftext|> stands "
    "before the text (--no-begin leaves the first token unscored). The last window is filled up with context."
)
_WORDS = (
    "The loss of all tokens is divided by: GPT-2's tokens; the original's words, counting the end of each line as one, "
    "as is usual for this set; its bytes."
)
_INVERTIBLE = (
    "Natural spelling is restored by rules that can be undone (--as-is leaves the text alone). The rules are ours: the "
    "paper gives none of its own."
)


def _wikitext(folder: str) -> tuple[str, ...]:
    """The test set in its own folder, as its authors and Hugging Face name it: both sets' files have the same names."""
    return (
        f"{folder}/wiki.test.raw",
        f"{folder}-v1/test-00000-of-00001.parquet",
        f"{folder}-v1/test/0000.parquet",
    )


_TASKS = (
    Task(
        "lambada",
        "LAMBADA, OpenAI's file",
        "last_word",
        readers.passages,
        (
            Metric("last_token_accuracy", "accuracy, last token", "right_token"),
            Metric("last_token_perplexity", "perplexity, last token", "token_log_likelihood", "", "perplexity"),
            Metric("last_word_accuracy", "accuracy, whole last word", "right_word"),
            Metric("last_word_perplexity", "perplexity, whole last word", "log_likelihood", "", "perplexity"),
            Metric("filtered_accuracy", "accuracy, whole last word, no stop words", "right_filtered"),
        ),
        {
            "input": "The passage up to its last word; the word with the space before it is scored.",
            "accuracy": "Last token: whether the last of the word's tokens is the most probable one, behind those "
            "before it. Whole word: whether each of them is. No stop words: the same where tokens that spell a "
            "function word are passed over.",
            "perplexity": "exp of the mean loss per passage, of the whole word or of its last token.",
            "paper": "46 to 47 % for the smallest model is what others get for the last token on this file; for the "
            "whole word they get 32.6 % and a perplexity of 40.1. So the paper's accuracy is compared with that of the "
            "last token; which word list its stop-word filter had is unknown.",
        },
        files=("lambada_test.jsonl", "lambada_test_en.jsonl", "lambada_openai*.jsonl", "lambada_test*.parquet"),
    ),
    Task(
        "lambada-standard",
        "LAMBADA, the original file",
        "last_word",
        readers.passages,
        (),
        {
            "input": "As lambada, on the file of its authors: lower case, words cut by spaces.",
            "spelling": "As it is; --detokenise restores natural spelling as far as lower case allows.",
        },
        files=("lambada_test_plain_text.txt", "lambada_standard*.jsonl"),
        detokeniser="treebank",
        detokenise=False,
    ),
    Task(
        "cbt-cn",
        "Children's Book Test, common nouns",
        "choice",
        readers.clozes,
        (Metric("accuracy", "accuracy", "right"),),
        {
            "input": "Twenty sentences and the question up to the missing word; the candidate and the rest of the "
            "question behind it are scored, and the most probable of ten is the answer, as the paper says.",
            "spelling": _INVERTIBLE,
            "context": "What does not fit n_ctx is cut off at the beginning.",
        },
        files=(
            "cbtest_CN_test_2500ex.txt",
            "cbt*CN*test*.jsonl",
            "cbt*CN*test*.parquet",
            "CN/test-00000-of-00001.parquet",
            "CN/test/0000.parquet",
        ),
        detokeniser="treebank",
    ),
    Task(
        "cbt-ne",
        "Children's Book Test, named entities",
        "choice",
        readers.clozes,
        (Metric("accuracy", "accuracy", "right"),),
        {"input": "As cbt-cn, with names as the missing words."},
        files=(
            "cbtest_NE_test_2500ex.txt",
            "cbt*NE*test*.jsonl",
            "cbt*NE*test*.parquet",
            "NE/test-00000-of-00001.parquet",
            "NE/test/0000.parquet",
        ),
        detokeniser="treebank",
    ),
    Task(
        "wikitext2",
        "WikiText-2",
        "text",
        readers.articles,
        (_BY_TOKEN, _BY_WORD, _BY_BYTE),
        {
            "input": "The raw test set as one text; documents are its articles.",
            "windows": _WINDOWS,
            "spelling": _INVERTIBLE,
            "denominators": _WORDS,
            "paper": "29.4 for the smallest model is about the perplexity per token of GPT-2 (others get 29.9).",
        },
        files=(*_wikitext("wikitext-2-raw"), "wiki.test.raw", "wikitext-2-raw*test*.parquet"),
        detokeniser="wikitext",
        version=2,
    ),
    Task(
        "wikitext103",
        "WikiText-103",
        "text",
        readers.articles,
        (_BY_WORD, _BY_TOKEN, _BY_BYTE),
        {
            "input": "The raw test set, which is that of WikiText-2, as one text.",
            "windows": _WINDOWS,
            "spelling": _INVERTIBLE,
            "denominators": _WORDS,
            "paper": "37.5 for the smallest model is about the perplexity per original word (others get 37.4).",
        },
        files=(*_wikitext("wikitext-103-raw"), "wiki.test.raw", "wikitext-103-raw*test*.parquet"),
        detokeniser="wikitext",
        version=2,
    ),
    Task(
        "ptb",
        "Penn Treebank",
        "text",
        readers.framed_sentences,
        (_BY_WORD, _BY_TOKEN, _BY_BYTE),
        {
            "input": "Mikolov's test set as one text: lower case, no punctuation, N for numbers, <unk> for rare words; "
            "N and <unk> cannot be undone and are read as they stand.",
            "windows": _WINDOWS,
            "spelling": _INVERTIBLE,
            "denominators": _WORDS,
            "paper": "65.85 for the smallest model lies between what others get per token (52.5) and per word (79.7).",
        },
        files=("ptb.test.txt", "penn_treebank/test/0000.parquet", "ptb*test*.parquet"),
        detokeniser="ptb",
        version=2,
    ),
    Task(
        "enwik8",
        "enwik8",
        "text",
        functools.partial(readers.blocks, tail=(100_000_000, 5_000_000)),
        (_BY_BYTE, _BY_TOKEN),
        {
            "input": "The last 5,000,000 of 100,000,000 bytes, from the first whole character; another file is read "
            "whole.",
            "windows": _WINDOWS,
            "denominators": "The loss of all tokens in bits, divided by the bytes.",
        },
        files=("enwik8",),
        tail=(100_000_000, 5_000_000),
    ),
    Task(
        "text8",
        "text8",
        "text",
        functools.partial(readers.blocks, tail=(100_000_000, 5_000_000)),
        (_BY_CHARACTER, _BY_TOKEN),
        {
            "input": "The last 5,000,000 of 100,000,000 characters; another file is read whole.",
            "windows": _WINDOWS,
            "denominators": "The loss of all tokens in bits, divided by the characters.",
        },
        files=("text8",),
        tail=(100_000_000, 5_000_000),
    ),
    Task(
        "1bw",
        "One Billion Words",
        "text",
        readers.sentences,
        (_BY_WORD, _BY_TOKEN, _BY_BYTE),
        {
            "input": "Sentences that were shuffled by the set's makers, each read by itself behind <|endoftext|> "
            "(--joined reads them as one text). Which of the two the paper did is unknown.",
            "spelling": _INVERTIBLE,
            "denominators": _WORDS,
        },
        files=("news.en.heldout-00000-of-00050", "news.en.heldout-*"),
        detokeniser="1bw",
        separate=True,
        version=2,
    ),
    Task(
        "hellaswag",
        "HellaSwag, validation",
        "choice",
        readers.endings,
        (
            Metric("accuracy", "accuracy", "right"),
            Metric("accuracy_norm", "accuracy, by loss per character", "right_norm"),
        ),
        {
            "input": "The activity, the context, and each of four endings behind it.",
            "accuracy": "The ending with the highest log-likelihood; by loss per character: divided by the ending's "
            "characters, as lm-eval does.",
            "paper": "Not in the paper; others get 28.9 and 31.1 % for the smallest model.",
        },
        files=(
            "hellaswag_val.jsonl",
            "hellaswag_val_full.txt",
            "hellaswag*validation*.parquet",
            "*hellaswag/data/validation-00000-of-00001.parquet",
            "*hellaswag/validation-00000-of-00001.parquet",
            "*hellaswag/snapshots/*/data/validation-00000-of-00001.parquet",
        ),
    ),
    Task(
        "winograd",
        "Winograd schemas, WSC273",
        "choice",
        readers.schemas,
        (
            Metric("accuracy", "accuracy, partial", "right"),
            Metric("accuracy_full", "accuracy, full", "right_full"),
        ),
        {
            "input": "The sentence with each of two names in the pronoun's place.",
            "accuracy": "Partial: by the log-likelihood of what follows the name. Full: by that of the whole sentence "
            "(Trinh and Le 2018).",
            "paper": "Its figure 3 gives 70.70 % for the largest model; the way of scoring follows Trinh and Le.",
        },
        files=("winograd_wsc.jsonl", "wsc273.txt", "WSCollection.xml"),
    ),
    Task(
        "winogrande",
        "WinoGrande, validation",
        "choice",
        readers.schemas,
        (
            Metric("accuracy", "accuracy, partial", "right"),
            Metric("accuracy_full", "accuracy, full", "right_full"),
        ),
        {"input": "As winograd.", "paper": "Later than the paper."},
        files=(
            "winogrande.jsonl",
            "winogrande_xl/validation-00000-of-00001.parquet",
            "winogrande*validation*.parquet",
            "dev.jsonl",
        ),
    ),
    Task(
        "perplexity",
        "perplexity of a text",
        "text",
        readers.blocks,
        (_BY_TOKEN, replace(_BY_WORD, title="perplexity, per word"), _BY_BYTE, _BY_CHARACTER),
        {
            "input": "Any text in UTF-8; documents are blocks of about 4 KB.",
            "windows": _WINDOWS,
            "denominators": "The loss of all tokens, divided by GPT-2's tokens, by words between white space and ends "
            "of lines, by bytes, by characters.",
        },
        files=("*",),
        version=2,
    ),
)
_FIRST = {task.name: task for task in _TASKS}
TASKS: Mapping[str, Task] = {
    name: replace(task, metrics=task.metrics or _FIRST["lambada"].metrics) for name, task in _FIRST.items()
}
"""By name."""


def task_of(name: str) -> Task:
    """The task of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in TASKS:
        raise ConfigError(f"task: expected one of {', '.join(TASKS)}, got {name!r}")
    return TASKS[name]
