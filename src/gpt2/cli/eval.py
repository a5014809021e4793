"""`gpt2 eval`: figures of a model on test sets, beside the paper's, and comparisons of two runs."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpt2.atomic import atomic_file
from gpt2.cli.status import Status
from gpt2.errors import ConfigError, DownloadError, EvaluationError

COMPARE_RESAMPLES = 10_000

if TYPE_CHECKING:
    from gpt2.evaluation import Options, Result
    from gpt2.evaluation.paper import Line
    from gpt2.language_model import LanguageModel


def evaluate(
    tasks: Annotated[
        list[str] | None, typer.Argument(help="What to evaluate; gpt2 eval --list shows them.", show_default=False)
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="A name or a folder; may be given several times. [default: bundled]"),
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", "-d", help="The set's file, or a folder to look for it in.")
    ] = None,
    download: Annotated[bool, typer.Option("--download", help="Bring the sets first, where they are public.")] = False,
    paper: Annotated[bool, typer.Option("--paper", help="All of the paper's tasks, its figures beside ours.")] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="Compare two runs: the folders of both stand where tasks would.")
    ] = False,
    list_tasks: Annotated[bool, typer.Option("--list", help="Show the tasks, their figures and their data.")] = False,
    window: Annotated[int | None, typer.Option(help="Tokens read at once. [default: n_ctx]")] = None,
    stride: Annotated[
        int | None, typer.Option(help="Tokens from one window's end to the next. [default: the window]")
    ] = None,
    separate: Annotated[
        bool | None, typer.Option("--separate/--joined", help="Read a text's documents apart, or as one text.")
    ] = None,
    begin: Annotated[
        bool | None, typer.Option("--begin/--no-begin", help="Put <|endoftext|> before a text. [default: begin]")
    ] = None,
    detokenise: Annotated[
        bool | None, typer.Option("--detokenise/--as-is", help="Restore natural spelling, or read the set as it is.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only so many documents, the first ones.")] = None,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    resamples: Annotated[
        int | None, typer.Option(help="Of the bootstrap. [default: 1000; with --compare 10000]", show_default=False)
    ] = None,
    engine: Annotated[str, typer.Option(help="litert, keras, or auto for the fastest that can be used.")] = "auto",
    precision: Annotated[str, typer.Option(help="Of the weights: float32; with litert int8 or int4.")] = "float32",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where runs are kept. [default: in the store]")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Evaluate although the same run is there.")] = False,
    html: Annotated[Path | None, typer.Option(help="Also write a page to this file.")] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print JSON: an object a task, with --paper one a model too; one with --compare."),
    ] = False,
) -> None:
    """Evaluate a model: figures with intervals, each one traceable to data, weights, protocol and versions.

    A run that was stopped goes on where it was. Log-likelihoods of every document are kept as Parquet.

    Examples: gpt2 eval wikitext2 --data wiki.test.raw; gpt2 eval perplexity --data book.txt --stride 256; gpt2 eval
    --paper --data sets/ --html paper.html; gpt2 eval --compare RUN-A RUN-B
    """
    names = list(tasks or ())
    if list_tasks:
        _list(as_json)
        return
    if compare:
        others = {
            **{"model": model, "data": data, "download": download, "paper": paper, "window": window, "stride": stride},
            **{"separate": separate, "begin": begin, "detokenise": detokenise, "limit": limit, "output": output},
            **{"again": again, "engine": engine != "auto", "precision": precision != "float32"},
        }
        if unused := [name for name, value in others.items() if value not in (None, False, [])]:
            raise ConfigError(f"{unused[0]}: expected none with --compare, which takes two runs as they are")
        _compare(names, seed, COMPARE_RESAMPLES if resamples is None else resamples, html, as_json=as_json)
        return
    from gpt2.evaluation import Options, task_of
    from gpt2.evaluation.paper import COLUMNS

    if paper and names:
        raise ConfigError(f"tasks: expected none with --paper, got {', '.join(names)}")
    if not paper and not names:
        raise ConfigError("tasks: expected at least one, or --paper; gpt2 eval --list shows them")
    for name in names:
        task_of(name)
    options = Options(
        window=window, stride=stride, separate=separate, begin=begin, detokenise=detokenise, limit=limit, seed=seed,
        resamples=1000 if resamples is None else resamples,
    )  # fmt: skip
    if paper:
        names = list(dict.fromkeys(column.task for column in COLUMNS))
    options.check(*map(task_of, names))
    places = _places(names, data, download=download, lenient=paper)
    results: list[Result] = []
    papers: list[tuple[str, str, list[Line]]] = []
    for given in _models(model, paper=paper):
        opened = _open(given, engine, precision)
        found = [
            _one(opened, name, place, options.fitting(task_of(name)), output, again=again)
            for name, place in places.items()
        ]
        results += found
        if paper:
            papers.append(_paper(given, opened, found))
        if as_json:
            for result in found:
                typer.echo(json.dumps({**result.to_dict(), "run": str(result.folder)}, ensure_ascii=False))
            if paper:
                typer.echo(json.dumps(_paper_record(*papers[-1]), ensure_ascii=False))
        elif paper:
            _print_paper(*papers[-1])
            _print_runs(found)
        else:
            _print(opened.name, found)
    if html is not None:
        from gpt2.evaluation.pages import write_page

        with atomic_file(html) as new:
            new.write_text(write_page(results, papers), encoding="utf-8")


def _places(names: Sequence[str], data: Path | None, *, download: bool, lenient: bool) -> dict[str, Path]:
    """Where each task's data is; with `lenient`, tasks whose data is not there or cannot be brought are left out."""
    from gpt2.evaluation import find_data, sets, task_of

    places: dict[str, Path] = {}
    for name in names:
        try:
            if data is not None:
                find_data(task_of(name), data)
                places[name] = data
                if data.is_file() and len(names) > 1:
                    raise ConfigError(f"data: expected a folder for several tasks, got the file {data}")
            elif download:
                places[name] = _download(name)
            else:
                places[name] = sets.default_data(name)
        except (EvaluationError, DownloadError) as error:
            if not lenient:
                raise
            sys.stderr.write(f"gpt2: left out: {name}: {str(error).removeprefix(f'{name}: ')}\n")
    return places


def _download(name: str) -> Path:
    from gpt2.evaluation import sets

    status = Status(name)

    def show(_: str, have: int, total: int | None) -> None:
        status.progress(have, total or have or 1)

    try:
        return sets.download(name, progress=show)
    finally:
        status.clear()


def _models(given: list[str] | None, *, paper: bool) -> list[str | None]:
    """What was named; for the paper's table all released sizes that the store has; else the bundled model."""
    from gpt2 import store
    from gpt2.config import SIZES

    if given:
        return list(given)
    here = [size for size in SIZES if store.folder_of(size).is_dir()] if paper else []
    return list(here) or [None]


def _open(name: str | None, engine: str, precision: str) -> LanguageModel:
    from gpt2.language_model import open_model

    status = Status(f"building for the fast engine, {precision}; once for each model")
    with status.waiting("preparing the engine; the first time on a machine takes some seconds"):
        return open_model(name, engine=engine, precision=precision, progress=status.progress)


def _one(model: LanguageModel, task: str, data: Path, options: Options, output: Path | None, *, again: bool) -> Result:
    from gpt2 import evaluation, store

    status = Status(f"{task}, {model.name}")
    result = evaluation.evaluate(
        model,
        task,
        data,
        options=options,
        folder=output or store.home() / "evaluations",
        again=again,
        command=["gpt2", *sys.argv[1:]],
        progress=status.progress,
    )
    status.clear()
    for warning in result.facts.get("warnings", ()):
        sys.stderr.write(f"gpt2: {task}: {warning}\n")
    return result


def _paper(given: str | None, model: LanguageModel, found: Sequence[Result]) -> tuple[str, str, list[Line]]:
    from gpt2 import store
    from gpt2.evaluation import paper

    origin = paper.origin(store.resolve(given), model.config)
    return model.name, origin, list(paper.lines(model.config, found))


def _print(name: str, results: Sequence[Result]) -> None:
    from gpt2.evaluation import pages

    typer.echo(f"{name} ({results[0].facts['engine']}, {results[0].facts['precision']})")
    _table(pages.HEADS, pages.rows(results))
    _print_runs(results)


def _print_runs(results: Sequence[Result]) -> None:
    from gpt2.evaluation import pages

    for result in results:
        counts = ", ".join(f"{value:,} {key}" for key, value in result.facts["counts"].items())
        facts = filter(None, [counts, pages.part(result), f"{result.facts['seconds']:,.1f} s", f"run: {result.folder}"])
        typer.echo(f"{result.task}: {'; '.join(facts)}")


def _print_paper(name: str, origin: str, lines: Sequence[Line]) -> None:
    from gpt2.evaluation import pages

    typer.echo(f"{name}. {origin}")
    _table(pages.PAPER_HEADS, pages.paper_rows(lines))


def _paper_record(name: str, origin: str, lines: Sequence[Line]) -> dict[str, Any]:
    return {
        "model": name,
        "origin": origin,
        "paper": [{**dataclasses.asdict(line), "difference": line.difference} for line in lines],
    }


def _compare(folders: Sequence[str], seed: int, resamples: int, html: Path | None, *, as_json: bool) -> None:
    from gpt2.evaluation import Result, compare_runs, differing, pages

    if len(folders) != 2:
        raise ConfigError(f"tasks: expected the folders of two runs with --compare, got {len(folders)}")
    first, second = (Result.read(Path(folder)) for folder in folders)
    found = compare_runs(Path(folders[0]), Path(folders[1]), seed=seed, resamples=resamples)
    others = differing(first.facts, second.facts)
    sampling = f"95 % intervals over documents and p by {resamples:,} resamplings, seed {seed}."
    if html is not None:
        with atomic_file(html) as new:
            new.write_text(pages.write_comparison(first, second, found, sampling), encoding="utf-8")
    if as_json:
        told: dict[str, Any] = {
            **{"figures": {name: difference.to_dict() for name, difference in found.items()}},
            **{"seed": seed, "resamples": resamples, "differing": others},
            **{word: {**run.to_dict(), "run": str(run.folder)} for word, run in (("first", first), ("second", second))},
        }
        typer.echo(json.dumps(told, ensure_ascii=False))
        return
    for word, run in (("first", first), ("second", second)):
        facts = run.facts
        how = f"{facts['engine']}, {facts['precision']}, weights {facts['weights_sha256'][:12]}"
        typer.echo(f"{word}: {facts['model']['name']} ({how}), {run.folder}")
    for name, (a, b) in others.items():
        typer.echo(f"they differ in {name}: {a}, {b}")
    _table(pages.COMPARED_HEADS, pages.compared_rows(first.task, found))
    typer.echo(sampling)


def _list(as_json: bool) -> None:
    from gpt2.evaluation import TASKS, sets

    if as_json:
        for task in TASKS.values():
            told: dict[str, Any] = {
                **{"task": task.name, "title": task.title, "version": task.version, "protocol": dict(task.protocol)},
                "metrics": {metric.name: metric.label for metric in task.metrics},
                "data": sets.instruction(task.name),
                "hash": sets.known_hash(task.name),
            }
            typer.echo(json.dumps(told, ensure_ascii=False))
        return
    for task in TASKS.values():
        typer.echo(f"{task.name}: {task.title} (version {task.version})")
        typer.echo(f"    figures: {'; '.join(metric.label for metric in task.metrics)}")
        for name, text in task.protocol.items():
            typer.echo(f"    {name}: {text}")
        typer.echo(f"    data: {sets.instruction(task.name)}")
        if known := sets.known_hash(task.name):
            typer.echo(f"    hash: {known}")


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*heads, box=None)
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
