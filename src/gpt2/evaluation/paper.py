"""The paper's zero-shot results beside ours.

Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", table 3. Which protocol each column
had is not all known (`tasks.py` says what is); a column is compared with the figure of ours that comes nearest to what
others reproduced with OpenAI's weights, and the others are shown beside it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from gpt2 import store
from gpt2.config import SIZES, GPT2Config
from gpt2.evaluation.run import Result
from gpt2.evaluation.tasks import TASKS


@dataclass(frozen=True)
class Column:
    """A column of the table."""

    title: str
    task: str
    metrics: tuple[str, ...]
    """Ours: the one to be compared with first."""


COLUMNS = (
    Column("LAMBADA perplexity", "lambada", ("last_word_perplexity", "last_token_perplexity")),
    Column("LAMBADA accuracy", "lambada", ("last_token_accuracy", "last_word_accuracy", "filtered_accuracy")),
    Column("CBT-CN accuracy", "cbt-cn", ("accuracy",)),
    Column("CBT-NE accuracy", "cbt-ne", ("accuracy",)),
    Column("WikiText2 perplexity", "wikitext2", ("token_perplexity", "word_perplexity")),
    Column("PTB perplexity", "ptb", ("word_perplexity", "token_perplexity")),
    Column("enwik8 bits per byte", "enwik8", ("bits_per_byte",)),
    Column("text8 bits per character", "text8", ("bits_per_character",)),
    Column("WikiText103 perplexity", "wikitext2", ("word_perplexity",)),  # the two have one test set
    Column("1BW perplexity", "1bw", ("word_perplexity", "token_perplexity")),
)

PAPER: Mapping[str, tuple[str, tuple[float, ...]]] = {
    "124M": ("117M", (35.13, 45.99, 87.65, 83.4, 29.41, 65.85, 1.16, 1.17, 37.50, 75.20)),
    "355M": ("345M", (15.60, 55.48, 92.35, 87.1, 22.76, 47.33, 1.01, 1.06, 26.37, 55.72)),
    "774M": ("762M", (10.87, 60.12, 93.45, 88.0, 19.93, 40.31, 0.97, 1.02, 22.05, 44.575)),
    "1558M": ("1542M", (8.63, 63.24, 93.30, 89.05, 18.34, 35.76, 0.93, 0.98, 17.48, 42.16)),
}
"""Size -> what the paper calls it, and its row, in the order of `COLUMNS`."""


@dataclass(frozen=True)
class Line:
    """One of our figures beside the paper's."""

    column: str
    paper: float | None
    """None where the paper has no such model."""
    metric: str
    """In words; empty where we have none."""
    ours: float | None
    """None where we have none, or where it is not defined."""
    compared: bool
    """Whether it is the figure that the column is compared with."""
    low: float | None = None
    """Of the 95 % interval of ours."""
    high: float | None = None

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's."""
        return None if self.ours is None or self.paper is None or not self.compared else self.ours - self.paper


def size_of(config: GPT2Config) -> str | None:
    """The released size that has this shape."""
    return next((name for name, shape in SIZES.items() if shape == config), None)


def lines(config: GPT2Config, results: Iterable[Result]) -> Iterator[Line]:
    """The paper's row for a network of this shape beside our figures; a column without data has a line without ours."""
    size = size_of(config)
    row = PAPER[size][1] if size else (None,) * len(COLUMNS)
    found = {result.task: result for result in results}
    for column, paper in zip(COLUMNS, row, strict=True):
        result = found.get(column.task)
        if result is None:
            yield Line(column.title, paper, "", None, compared=True)
            continue
        titles = {metric.name: metric.label for metric in TASKS[column.task].metrics}
        for metric in column.metrics:
            ours = result.metrics[metric].to_dict()
            compared = metric == column.metrics[0]
            yield Line(column.title, paper, titles[metric], ours["value"], compared, ours["low"], ours["high"])


def origin(path: Path, config: GPT2Config) -> str:
    """Whose weights a model's folder holds, as far as it is known, in a sentence."""
    size = size_of(config)
    if size is None:
        return "This is not one of the paper's models: the paper has no row for it."
    try:
        known = json.loads((store.home() / "sha256.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    sources = [name for name in ("openai", "huggingface") if f"{size}/{name}" in known]
    if sources and path.resolve() == store.folder_of(size).resolve():
        return f"This model was downloaded from {' and '.join(sources)} as {size}; the paper calls it {PAPER[size][0]}."
    return (
        f"This model has the shape of {size} (the paper's {PAPER[size][0]}), but was not downloaded by gpt2 download: "
        "nothing shows that these are OpenAI's weights, without which the paper's figures cannot come out."
    )
