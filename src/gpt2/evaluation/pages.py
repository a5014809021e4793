"""Results for people: as text tables, and as one page that opens from disk without network or script."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from gpt2.evaluation.paper import Line
from gpt2.evaluation.run import Result, differing
from gpt2.evaluation.statistics import Difference
from gpt2.evaluation.tasks import TASKS
from gpt2.report import details, escape, page, table

UNDEFINED = "undefined"
HEADS = ("task", "figure", "value", "95 % interval")
PAPER_HEADS = ("paper's column", "paper", "ours", "95 % interval", "difference", "what ours is")
COMPARED_HEADS = ("figure", "first", "second", "difference", "95 % interval", "p")


def number(value: float | None) -> str:
    """A figure, to four digits or two decimals."""
    if value is None or math.isnan(value):
        return UNDEFINED
    return f"{value:,.0f}" if value >= 10_000 else f"{value:.2f}" if value >= 10 else f"{value:.4f}"


def rows(results: Iterable[Result]) -> list[tuple[str, str, str, str]]:
    """A row a figure, for `HEADS`."""
    found = []
    for result in results:
        titles = {metric.name: metric.label for metric in TASKS[result.task].metrics}
        for name, estimate in result.metrics.items():
            found.append(
                (result.task, titles.get(name, name), number(estimate.value), _interval(estimate.low, estimate.high))
            )
    return found


def paper_rows(lines: Iterable[Line]) -> list[tuple[str, ...]]:
    """A row a line, for `PAPER_HEADS`."""
    return [
        (
            line.column,
            "-" if line.paper is None else f"{line.paper:.2f}",
            number(line.ours) if line.metric else "no data",
            _interval(line.low, line.high) if line.metric else "",
            "" if line.difference is None else f"{line.difference:+.2f}",
            line.metric,
        )
        for line in lines
    ]


def compared_rows(task: str, found: Mapping[str, Difference]) -> list[tuple[str, ...]]:
    """A row a figure, for `COMPARED_HEADS`."""
    titles = {metric.name: metric.label for metric in TASKS[task].metrics}
    return [
        (
            titles[name],
            number(one.first),
            number(one.second),
            _signed(one.difference),
            _interval(one.low, one.high, _signed),
            UNDEFINED if math.isnan(one.p) else f"{one.p:.4f}",
        )
        for name, one in found.items()
    ]


def part(result: Result) -> str:
    """What part of its set a result is of, in words; empty: the whole."""
    limit = result.facts["options"]["limit"]
    return "" if limit is None else f"not the whole set, the first {limit:,} documents at most"


def write_page(results: Sequence[Result], papers: Sequence[tuple[str, str, Sequence[Line]]] = ()) -> str:
    """The page: figures, the paper's beside them, and for each task what is needed to trace it.

    Args:
        results: what was found.
        papers: for each model its name, whose weights it has in a sentence, and the lines.
    """
    models = sorted({result.facts["model"]["name"] for result in results})
    body = [
        f"<header>\n<h1>Evaluation</h1>\n<p class='soft'>{escape(', '.join(models))}</p>\n</header>\n",
        "<h2>Figures</h2>\n",
        *(f"<h3>{escape(model)}</h3>\n" + table(HEADS, rows(_of(results, model))) for model in models),
        *(_warnings(result) for result in results),
    ]
    for name, origin, lines in papers:
        body.append(f"<h2>Beside the paper: {escape(name)}</h2>\n<p>{escape(origin)}</p>\n")
        body.append(table(PAPER_HEADS, paper_rows(lines)))
    body.append("<h2>Where the figures come from</h2>\n")
    body += [_trace(result) for result in results]
    return page("Evaluation", "".join(body), "Written by gpt2 eval. The page needs no network.")


def write_comparison(first: Result, second: Result, found: Mapping[str, Difference], sampling: str) -> str:
    """The page of two runs: how they differ in each figure, and what is needed to trace both.

    Args:
        first: one run.
        second: the other.
        found: from `compare_runs`.
        sampling: how the intervals were drawn, in words.
    """
    names = [
        f"{facts['model']['name']} ({facts['engine']}, {facts['precision']})" for facts in (first.facts, second.facts)
    ]
    runs = (("first", first), ("second", second))
    others = [(name, str(a), str(b)) for name, (a, b) in differing(first.facts, second.facts).items()]
    body = [
        f"<header>\n<h1>Comparison</h1>\n<p class='soft'>first: {escape(names[0])}; second: {escape(names[1])}</p>\n"
        "</header>\n<h2>Figures</h2>\n",
        table(COMPARED_HEADS, compared_rows(first.task, found)),
        f"<p class='soft'>{escape(sampling)}</p>\n",
        *(_warnings(run, f"{word}: ") for word, run in runs),
        "<h2>In what the runs differ beside the weights</h2>\n",
        table(("", "first", "second"), others) if others else "<p>In nothing.</p>\n",
        "<h2>Where the figures come from</h2>\n",
        *(_trace(run, f"{word}: ") for word, run in runs),
    ]
    return page("Comparison", "".join(body), "Written by gpt2 eval. The page needs no network.")


def _of(results: Iterable[Result], model: str) -> list[Result]:
    return [result for result in results if result.facts["model"]["name"] == model]


def _warnings(result: Result, word: str = "") -> str:
    warnings = [*result.facts.get("warnings", ()), *filter(None, [part(result)])]
    return "".join(f"<p><strong>{escape(word + result.task)}: {escape(warning)}</strong></p>\n" for warning in warnings)


def _trace(result: Result, word: str = "") -> str:
    facts = result.facts
    told: list[tuple[str, Any]] = [
        ("task", f"{result.task}, version {facts['version']}"),
        *((f"protocol: {name}", text) for name, text in facts["protocol"].items()),
        ("detokeniser", facts["detokeniser"]),
        ("options", ", ".join(f"{name} {value}" for name, value in facts["options"].items() if value is not None)),
        *(
            (f"data: {entry['name']}", f"{entry['bytes']:,} bytes, SHA-256 {entry['sha256']}")
            for entry in facts["data"]
        ),
        ("counts", ", ".join(f"{value:,} {name}" for name, value in facts["counts"].items())),
        ("model", ", ".join(f"{name} {value}" for name, value in facts["model"].items())),
        ("weights' SHA-256", facts["weights_sha256"]),
        ("vocabulary's SHA-256", facts["vocabulary_sha256"]),
        ("engine", f"{facts['engine']}, {facts['precision']}"),
        ("versions", ", ".join(f"{name} {value}" for name, value in facts["versions"].items())),
        ("machine", ", ".join(f"{name} {value}" for name, value in facts["machine"].items())),
        ("when", f"{facts['started']}, {facts['seconds']:,} s, {facts['resumed_units']:,} units done before"),
        ("command", " ".join(facts["command"])),
        *([] if result.folder is None else [("run", result.folder.name)]),
        *([("SHA-256 of its documents' table", facts["documents"]["sha256"])] if "documents" in facts else []),
    ]
    return details(f"{word}{facts['title']}, {facts['model']['name']}", told)


def _signed(value: float) -> str:
    return UNDEFINED if math.isnan(value) else f"{value:+.4g}"


def _interval(low: float | None, high: float | None, shown: Callable[[Any], str] = number) -> str:
    ends = [shown(low), shown(high)]
    return "none" if UNDEFINED in ends else " to ".join(ends)
