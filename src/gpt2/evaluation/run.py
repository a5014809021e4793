"""Evaluate a model on a task, and compare two evaluations.

    result = evaluate(model, "wikitext2", "data/eval")          # a LanguageModel, or a gpt2.gpt.Model in training
    print(result.metrics["token_perplexity"].value)

With a folder a run is written down as it goes: killed, the same call goes on; done, it returns what was found. Whatever
could change a figure is in the result: task and its version, protocol, options, hashes of data and weights, engine,
precision, versions.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from gpt2 import machine
from gpt2.codec import Codec
from gpt2.data.prepare import codec_hash
from gpt2.engines import Engine
from gpt2.errors import EvaluationError
from gpt2.evaluation import journal as journals
from gpt2.evaluation.detokenisers import DETOKENISERS
from gpt2.evaluation.readers import Item
from gpt2.evaluation.scoring import Scorer
from gpt2.evaluation.statistics import Difference, Estimate, compare, estimate
from gpt2.evaluation.tasks import Metric, Options, Task, task_of
from gpt2.evaluation.work import Columns, Unit, work_for
from gpt2.hashing import sha256_of

Progress = Callable[[int, int], None]
_FEW = 10  # documents
_MANY_ESCAPES = 0.01  # for each word; real sets need less than a tenth of that


class Evaluated(Protocol):
    """What can be evaluated: a `LanguageModel` is, and a `gpt2.gpt.Model`."""

    @property
    def engine(self) -> Engine:
        """What runs the network."""

    @property
    def codec(self) -> Codec | None:
        """What its tokens mean."""

    @property
    def name(self) -> str:
        """For people."""


@dataclass(frozen=True)
class Result:
    """What came of an evaluation."""

    task: str
    metrics: Mapping[str, Estimate]
    """By name, the headline first."""
    facts: Mapping[str, Any]
    """Everything else that can be told of it, as JSON holds it: see `to_dict`."""
    folder: Path | None = None
    """Where the run is kept."""
    documents: Columns = field(repr=False, default_factory=dict)
    """The table of documents; empty where the result was read from a folder."""

    @property
    def headline(self) -> Estimate:
        """The first metric."""
        return next(iter(self.metrics.values()))

    def to_dict(self) -> dict[str, Any]:
        """As plain values: task, protocol, options, metrics, counts, data, model, engine, versions and so on."""
        metrics = {name: found.to_dict() for name, found in self.metrics.items()}
        return {"task": self.task, "metrics": metrics, **self.facts}

    @classmethod
    def read(cls, folder: Path) -> Result:
        """The result of a finished run.

        Raises:
            EvaluationError: there is none.
        """
        values = journals.read_result(folder)
        facts = {name: value for name, value in values.items() if name not in ("task", "metrics")}
        try:
            metrics = {name: Estimate.from_dict(found) for name, found in values["metrics"].items()}
        except (KeyError, TypeError, ValueError):
            raise EvaluationError(f"{folder / journals.RESULT}: expected value, low and high of each figure") from None
        return cls(values["task"], metrics, facts, folder)


def evaluate(
    model: Evaluated,
    task: str | Task,
    data: str | os.PathLike[str],
    *,
    options: Options | None = None,
    folder: Path | None = None,
    again: bool = False,
    command: Sequence[str] = (),
    progress: Progress | None = None,
) -> Result:
    """Evaluate a model.

    Args:
        model: what is evaluated.
        task: a task, or its name.
        data: the set's file, or a folder in which it is looked for.
        options: variants of the protocol.
        folder: where the run is kept; None keeps nothing.
        again: forget what is in the folder.
        command: noted in the result.
        progress: told how much of how much is done, in bytes of a text or in items.

    Raises:
        EvaluationError: the data is not there or cannot be read, the model has no vocabulary, or its logits are no
            numbers.
        ConfigError: no such task, or options that do not fit it.
    """
    task = task_of(task) if isinstance(task, str) else task
    engine, codec = model.engine, model.codec
    if codec is None:
        raise EvaluationError(f"model: expected one with a vocabulary, since test sets are text; {model.name} has none")
    filled = (options or Options()).filled(task, engine.config.n_ctx)
    paths = find_data(task, Path(data))
    files = [{"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in paths]
    key = {
        "task": task.name,
        "version": task.version,
        "options": asdict(filled),
        "data": files,
        "weights_sha256": engine.weights_sha256,
        "vocabulary_sha256": codec_hash(codec),
        "engine": engine.name,
        "precision": engine.precision,
        "versions": machine.versions(),
    }
    target = None if folder is None else folder / folder_name(model.name, key)
    if target is not None and not again and (target / journals.RESULT).is_file():
        return Result.read(target)
    started, now = time.time(), time.perf_counter()
    work = work_for(task, codec, filled)
    journal = journals.Journal(target, key)
    with journal.open(again=again):
        known = len(journal.records)
        total = _total(task, paths, filled) if progress is not None else 0
        scorer = Scorer(engine, excluded=work.excluded)
        scored = _run(scorer, work, _items(task, paths, filled), journal, total, progress)
        table = work.table(journal.records)
        seconds = time.perf_counter() - now
        if not len(table["document"]) or not np.sum(table["tokens"]):
            raise EvaluationError(f"{paths[0]}: expected at least one document with a token to score, got none")
        metrics = {metric.name: _estimate(metric, table, filled) for metric in task.metrics}
        counts = {"documents": len(table["document"]), **_sums(table), **work.notes}
        facts = {
            **{name: value for name, value in key.items() if name != "task"},
            "title": task.title,
            "protocol": dict(task.protocol),
            "detokeniser": task.detokeniser if filled.detokenise else "none",
            "model": {"name": model.name, "parameters": engine.config.num_parameters, **engine.config.to_dict()},
            "counts": counts,
            "warnings": _warnings(counts, task, metrics),
            "machine": {"system": platform.system(), "processor": platform.machine(), "cores": machine.cores()},
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
            "seconds": round(seconds, 3),
            "tokens_per_second": round(scored / seconds, 1),
            "resumed_units": known,
            "command": list(command),
        }
        if target is not None:
            facts["documents"] = journals.write_documents(target, table)
        result = Result(task.name, metrics, facts, target, table)
        if target is not None:
            journals.write_result(target, result.to_dict())
    return result


def _run(
    scorer: Scorer, work: Any, items: Iterator[Item], journal: journals.Journal, total: int, progress: Progress | None
) -> int:
    """Do what the journal does not have yet; how many tokens were scored."""
    waiting: list[Unit] = []
    done = scored = 0

    def requests() -> Iterator[Any]:
        nonlocal done
        for unit in work.units(items):
            if unit.number in journal.records:
                done += unit.size
                continue
            waiting.append(unit)
            yield unit.request

    for scores in scorer.score(requests()):
        unit = waiting.pop(0)
        journal.add([(unit.number, work.record(unit, scores))])
        scored += sum(len(score.tokens) for score in scores)
        done += unit.size
        if progress is not None:
            progress(min(done, total), total)
    return scored


def find_data(task: Task, path: Path) -> list[Path]:
    """The files of a task's set.

    Args:
        task: which.
        path: a file, or a folder in which the names that the set has are looked for, at any depth. A name with folders
            in it is compared with the end of a file's whole path, so that the folder itself may be one of them.

    Raises:
        EvaluationError: there is none.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise EvaluationError(f"{path}: expected a file or a folder with the data of {task.name}, found nothing")
    if task.files == ("*",):
        raise EvaluationError(f"{path}: expected a file for {task.name}, got a folder")
    entries = sorted(path.rglob("*"))
    for pattern in task.files:
        for entry in entries:
            if entry.absolute().match(pattern) and entry.is_file():
                return [entry]
    raise EvaluationError(f"{path}: expected {' or '.join(task.files)} for {task.name}, found none of them")


def folder_name(model: str, key: Mapping[str, Any]) -> str:
    """The name of a run's folder: one for everything that could change a figure."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    plain = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in Path(model).name)[:40]
    return f"{key['task']}-{plain}-{key['engine']}-{key['precision']}-{digest[:12]}"


def compare_runs(first: Path, second: Path, *, seed: int = 0, resamples: int = 10_000) -> dict[str, Difference]:
    """How two runs differ in each figure of their task.

    Args:
        first: the folder of a finished run.
        second: of another one, of the same task, version, spelling and data. Other options may differ, which may be
            what is asked about; `differing` says which.
        seed: of the resampling.
        resamples: how often.

    Raises:
        EvaluationError: a folder holds no finished run, or the two are not of the same documents.
        ConfigError: a seed below 0, or fewer than 2 resamplings.
    """
    Options(seed=seed, resamples=resamples)
    results = [journals.read_result(folder) for folder in (first, second)]
    for name in ("task", "version", "detokeniser"):
        if results[0].get(name) != results[1].get(name):
            raise EvaluationError(
                f"{name}: expected the same in both runs, got {results[0].get(name)} and {results[1].get(name)}"
            )
    hashes = [[entry["sha256"] for entry in result["data"]] for result in results]
    if hashes[0] != hashes[1]:
        raise EvaluationError(f"data: expected the same files in both runs, got those of {first} and {second}")
    tables = [journals.read_documents(folder) for folder in (first, second)]
    if not np.array_equal(tables[0]["document"], tables[1]["document"]):
        counts = [len(table["document"]) for table in tables]
        raise EvaluationError(f"documents: expected the same in both runs, got {counts[0]} and {counts[1]}")
    return {
        metric.name: compare(
            metric, _columns(metric, tables[0]), _columns(metric, tables[1]), seed=seed, resamples=resamples
        )
        for metric in task_of(results[0]["task"]).metrics
    }


def differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """In what two results (as `Result.to_dict` has them) differ beside the weights: option or fact -> both values.

    >>> differing({"engine": "litert", "options": {"window": 8}}, {"engine": "litert", "options": {"window": 16}})
    {'window': (8, 16)}
    """
    facts = ("vocabulary_sha256", "engine", "precision", "versions")
    pairs = {name: (first.get(name), second.get(name)) for name in facts}
    options = [result.get("options", {}) for result in (first, second)]
    pairs |= {name: (options[0].get(name), options[1].get(name)) for name in {**options[0], **options[1]}}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1] and name not in ("seed", "resamples")}


def _items(task: Task, paths: Sequence[Path], options: Options) -> Iterator[Item]:
    detokeniser = DETOKENISERS[task.detokeniser if options.detokenise else "none"]
    items = itertools.chain.from_iterable(task.read(path, detokeniser) for path in paths)
    return itertools.islice(items, options.limit)


def _total(task: Task, paths: Sequence[Path], options: Options) -> int:
    """How much there is to do, in the units of `Unit.size`."""
    if task.kind == "text":
        whole, last = task.tail
        sizes = [path.stat().st_size for path in paths]
        return sum(last if size == whole else size for size in sizes)
    return sum(1 for _ in _items(task, paths, options))


def _estimate(metric: Metric, table: Columns, options: Options) -> Estimate:
    return estimate(metric, *_columns(metric, table), seed=options.seed, resamples=options.resamples)


def _columns(metric: Metric, table: Columns) -> tuple[np.ndarray, np.ndarray]:
    top = np.asarray(table[metric.top], np.float64)
    bottom = np.asarray(table[metric.bottom], np.float64) if metric.bottom else np.ones(len(top))
    return top, bottom


def _warnings(counts: Mapping[str, int], task: Task, metrics: Mapping[str, Estimate]) -> list[str]:
    """What makes figures doubtful, in words."""
    found = []
    words, escapes = counts.get("words", 0), counts.get("escapes", 0)
    if escapes > _MANY_ESCAPES * words:
        found.append(
            f"{escapes:,} marks for {words:,} words were needed to keep words as they are: the text is not cut into "
            "words as this set is, and the figures are not those of the set"
        )
    if (documents := counts["documents"]) < 2:
        found.append("one document, over which no interval can be drawn")
    elif documents < _FEW:
        found.append(f"{documents} documents: an interval that is drawn over so few is too narrow")
    for metric in task.metrics:
        if math.isnan(metrics[metric.name].value):
            found.append(f"{metric.title}: not defined here, or too large for a number")
    return found


def _sums(table: Columns) -> dict[str, int]:
    return {name: int(np.sum(table[name])) for name in ("tokens", "words", "characters", "bytes") if name in table}
