"""What a training run looks like: a picture of its loss, and one page that opens from disk without network or script.

It reads what a run writes into its folder (`run.json`, `metrics.jsonl`, `samples.jsonl` and the names in
`checkpoints/`) and knows nothing of models, TensorFlow or of how the run was made. A run that is still going, was
killed or has just begun has a report as well. matplotlib is imported when a report is written, by its objects alone:
pyplot keeps figures and settings for the whole process.
"""

from __future__ import annotations

import html
import io
import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gpt2 import store
from gpt2.atomic import atomic_file
from gpt2.errors import TrainingError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Numbers = np.ndarray

# Above this many points the training loss is drawn pale, and smoothed over it.
_SMOOTHED_FROM = 60
_MARKED_UP_TO = 40


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read a run's `metrics.jsonl`, with steps in increasing order and each step once.

    A run that was resumed went back to a checkpoint: a line takes the place of those before it with the same step or
    a later one. Half lines, which a kill leaves, are left out. A file that is not there has no lines yet.

        {"step": 10, ...} {"step": 20, ...} {"step": 30, ...} {"step": 20, ...}  ->  steps 10 and 20 (the second one)

    Raises:
        TrainingError: the file cannot be read.
    """
    entries: list[dict[str, Any]] = []
    for entry in read_lines(path):
        while entries and entries[-1]["step"] >= entry["step"]:
            entries.pop()
        entries.append(entry)
    return entries


def write_report(run: Path) -> Path:
    """Write `loss.png` and `report.html` into a run's folder, and return the page's path.

    Each takes the place of the one before it at once, so a page that is open can be loaded again at any time.

    Args:
        run: the run's folder. The page names its checkpoints by this path as it was given.

    Raises:
        TrainingError: there is no `run.json` in the folder, or a file of the run cannot be read.
        CheckpointError: a file cannot be written; what was there is untouched.
    """
    facts = _read_run(run / "run.json")
    entries = read_metrics(run / "metrics.jsonl")
    samples = _read_samples(run / "samples.jsonl")
    figures = _read_figures(run / "evaluations.jsonl")
    curves = _Curves.of(entries)
    with atomic_file(run / "loss.png") as new:
        _loss_figure(curves, _PICTURE, size=(9, 5)).savefig(new, format="png", dpi=150, facecolor=_PICTURE.page)
    page = _page(run, facts, entries, curves, samples, figures)
    with atomic_file(run / "report.html") as new:
        new.write_bytes(page.encode("utf-8", "replace"))  # a model may write half a surrogate pair
    return run / "report.html"


# --- What is on disk --------------------------------------------------------------------------------------------------


def _read_run(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TrainingError(f"{path}: expected a run's settings; cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise TrainingError(f"{path}: expected a run's settings as JSON: {error}") from error
    if not isinstance(facts, dict):
        raise TrainingError(f"{path}: expected a JSON object, found {type(facts).__name__}")
    return facts


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects with a step in a file of lines, in the file's order; half lines, which a kill leaves, are left out.

    Raises:
        TrainingError: the file cannot be read; one that is not there has no lines yet.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise TrainingError(f"{path}: cannot be read: {error.strerror or error}") from error
    found = (_object(line) for line in lines)
    return [entry for entry in found if entry is not None]


def _object(line: str) -> dict[str, Any] | None:
    # A resumed run may have gone on in the middle of a half line: the first brace from which the rest can be read.
    for brace in re.finditer("{", line):
        try:
            entry = json.loads(line[brace.start() :])
        except ValueError:
            continue
        step = entry.get("step") if isinstance(entry, dict) else None
        return entry if isinstance(step, int) and not isinstance(step, bool) else None
    return None


def _read_samples(path: Path) -> dict[str, dict[int, str]]:
    """The samples: prompt -> step -> text, prompts in the order they first came and steps increasing."""
    kept: list[tuple[int, str, str]] = []
    for entry in read_lines(path):
        step = entry["step"]
        while kept and kept[-1][0] > step:
            kept.pop()
        kept.append((step, str(entry.get("prompt", "")), str(entry.get("text", ""))))
    samples: dict[str, dict[int, str]] = {}
    for step, prompt, text in kept:
        samples.setdefault(prompt, {})[step] = text
    return samples


_Figures = dict[str, dict[int, Mapping[str, Any]]]
"""Of an evaluation: metric -> step -> line, the headline first."""


def _read_figures(path: Path) -> dict[str, _Figures]:
    """The evaluations at checkpoints, by name in the order they first came, steps increasing."""
    kept: list[dict[str, Any]] = []
    for line in read_lines(path):
        while kept and kept[-1]["step"] > line["step"]:
            kept.pop()
        kept.append(line)
    figures: dict[str, _Figures] = {}
    for line in kept:
        if not math.isnan(_number(line, "value")):
            metrics = figures.setdefault(str(line.get("name", "")), {})
            metrics.setdefault(str(line.get("title", "")), {})[line["step"]] = line
    return figures


# --- Numbers ----------------------------------------------------------------------------------------------------------


class _Curves(NamedTuple):
    """The columns of the metrics, [number of lines] each; what is missing or not finite is NaN."""

    step: Numbers
    tokens: Numbers
    loss: Numbers
    valid_loss: Numbers
    perplexity: Numbers
    learning_rate: Numbers
    gradient_norm: Numbers
    tokens_per_second: Numbers
    ceiling_share: Numbers

    @classmethod
    def of(cls, entries: Sequence[Mapping[str, Any]]) -> _Curves:
        columns = {
            name: np.array([_number(entry, name) for entry in entries], float)
            for name in cls._fields
            if name != "perplexity"
        }
        with np.errstate(over="ignore"):
            perplexity = np.exp(columns["valid_loss"])
        return cls(**columns, perplexity=np.where(np.isfinite(perplexity), perplexity, np.nan))

    @property
    def millions(self) -> Numbers:
        return self.tokens / 1e6

    @property
    def best(self) -> int | None:
        """The line with the lowest validation loss, the first of several."""
        return None if np.isnan(self.valid_loss).all() else int(np.nanargmin(self.valid_loss))


def _number(entry: Mapping[str, Any], name: str) -> float:
    value = entry.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value) if math.isfinite(value) else math.nan
    except OverflowError:  # a whole number beyond any float
        return math.nan


def _last(values: Numbers) -> float:
    """The last value that is a number, or NaN."""
    finite = values[~np.isnan(values)]
    return float(finite[-1]) if len(finite) else math.nan


def _smoothed(values: Numbers) -> Numbers:
    """The mean over about a fiftieth of the points, around each one: a trailing mean would lag behind them."""
    half = max(len(values) // 100, 1)
    there = ~np.isnan(values)
    total = np.concatenate([[0], np.cumsum(np.where(there, values, 0))])
    count = np.concatenate([[0], np.cumsum(there)])
    first = np.maximum(np.arange(len(values)) - half, 0)
    end = np.minimum(np.arange(len(values)) + half + 1, len(values))
    number = count[end] - count[first]
    return np.where(there, (total[end] - total[first]) / np.maximum(number, 1), np.nan)


# --- Charts -----------------------------------------------------------------------------------------------------------


class _Colours(NamedTuple):
    page: str
    ink: str
    soft: str
    grid: str
    first: str
    second: str


_PICTURE = _Colours(page="#ffffff", ink="#1b1f24", soft="#57606a", grid="#e3e6ea", first="#2457c5", second="#c2410c")
# In the page, colours are the style sheet's, light or dark: these stand for its names in what matplotlib writes.
_STAND_INS = _Colours(*(f"#0{index}0b0c" for index in range(len(_Colours._fields))))


def _figure(title: str, colours: _Colours, size: tuple[float, float]) -> tuple[Figure, Axes]:
    """An empty figure of `size` inches with one plot over tokens."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("none")
    axes.set_title(title, loc="left", color=colours.ink, fontsize=10)
    axes.tick_params(colors=colours.soft, labelcolor=colours.soft, labelsize=9, length=0, which="both")
    axes.grid(axis="y", color=colours.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(7))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(colours.grid)
    axes.set_xlabel("tokens seen (millions)", color=colours.soft, fontsize=9)
    return figure, axes


def _line(axes: Axes, x: Numbers, y: Numbers, colour: str, label: str = "", marked: bool = False) -> None:
    """Draw a line through the points that there are; a few of them are marked, as one alone has no line."""
    there = ~(np.isnan(x) | np.isnan(y))
    marker = "o" if there.sum() <= (_MARKED_UP_TO if marked else 2) else ""
    axes.plot(x[there], y[there], color=colour, linewidth=1.6, marker=marker, markersize=3.5, label=label)


def _say(axes: Axes, text: str, colours: _Colours) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=colours.soft, fontsize=10)
    axes.set_yticks([])


def _log_scale(axes: Axes, values: Numbers) -> None:
    """A logarithmic axis with plain numbers on it, also where it spans less than a decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    shown = values[values > 0]
    if not len(shown):
        return
    span = float(shown.max() / shown.min())
    axes.set_yscale("log")
    if span < 6:
        axes.yaxis.set_major_locator(MaxNLocator(5))
    else:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if span < 300 else (1,), numticks=9))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _loss_figure(curves: _Curves, colours: _Colours, size: tuple[float, float]) -> Figure:
    figure, axes = _figure("Loss (nats a token)", colours, size)
    x, loss = curves.millions, curves.loss
    if np.isnan(loss).all() and np.isnan(curves.valid_loss).all():
        _say(axes, "nothing measured yet", colours)
        return figure
    if len(loss) > _SMOOTHED_FROM:
        axes.plot(x, loss, color=colours.first, linewidth=0.8, alpha=0.3)
        _line(axes, x, _smoothed(loss), colours.first, "training, smoothed")
    else:
        _line(axes, x, loss, colours.first, "training")
    if curves.best is not None:
        _line(axes, x, curves.valid_loss, colours.second, "validation", marked=True)
        axes.plot(
            x[[curves.best]],
            curves.valid_loss[[curves.best]],
            color=colours.second,
            linestyle="",
            marker="D",
            markersize=6,
            label=f"best validation, {curves.valid_loss[curves.best]:.3f} at step {int(curves.step[curves.best]):,}",
        )
    axes.legend(frameon=False, labelcolor=colours.ink, fontsize=9)
    return figure


class _Chart(NamedTuple):
    """One of the small charts: a column of the metrics against tokens."""

    column: str
    title: str
    log: bool = False
    validation: bool = False


_CHARTS = (
    _Chart("perplexity", "Validation perplexity (log scale)", log=True, validation=True),
    _Chart("tokens_per_second", "Tokens a second"),
    _Chart("learning_rate", "Learning rate"),
    _Chart("gradient_norm", "Gradient norm (log scale)", log=True),
)


def _chart_figure(chart: _Chart, curves: _Curves, colours: _Colours, size: tuple[float, float]) -> Figure:
    figure, axes = _figure(chart.title, colours, size)
    values: Numbers = getattr(curves, chart.column)
    if np.isnan(values).all():
        _say(axes, "not measured", colours)
        return figure
    _line(axes, curves.millions, values, colours.second if chart.validation else colours.first, marked=chart.validation)
    if chart.log:
        _log_scale(axes, values)
    else:
        axes.set_ylim(bottom=0)
    return figure


def _svg(figure: Figure, name: str, description: str) -> str:
    """A figure as an SVG element to stand in a page, in the page's colours.

    What goes is what a file of its own needs and a page does not: the document type, the name spaces and the metadata
    (all of which name addresses on the network), a style sheet that would hold for the whole page, and fixed sizes.
    Names in it begin with `name`, as each may be there but once in a page.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sid="', f' id="{name}-', svg)
    svg = re.sub(r'(?:xlink:)?href="#', f'href="#{name}-', svg)
    svg = svg.replace("url(#", f"url(#{name}-")
    view = re.search(r'viewBox="[^"]*"', svg)
    assert view is not None
    opening = f'<svg {view[0]} role="img" aria-label="{escape(description)}">'
    svg = opening + svg[svg.index(">") + 1 :]
    for field, stand_in in zip(_Colours._fields, _STAND_INS, strict=True):
        svg = svg.replace(stand_in, f"var(--{field})")
    return re.sub(r"\n\s*", "\n", svg).strip()


# --- The page ---------------------------------------------------------------------------------------------------------

# No script, no picture and no address on the network can be used by the page, whatever a sample says.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

_STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --panel: #f6f7f9; --ink: #1b1f24; --soft: #57606a; --grid: #d8dce1;
  --first: #2457c5; --second: #c2410c; --warn: #9a1c1c; --warn-page: #fdeeee; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14171b; --panel: #1d2126; --ink: #e8eaed; --soft: #a4adb8; --grid: #363c44; --first: #82aaff;
    --second: #ffa26b; --warn: #ffb4ab; --warn-page: #3b1f1e; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", sans-serif; }
main { max-width: 66rem; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 3rem 0 1rem; padding-bottom: .4rem;
  border-bottom: 1px solid var(--grid); }
h3 { font-size: 1rem; margin: 1.75rem 0 .5rem; overflow-wrap: anywhere; }
p { margin: .5rem 0; max-width: 46rem; }
.soft { color: var(--soft); }
.warn { color: var(--warn); background: var(--warn-page); border-left: 4px solid; padding: .6rem 1rem;
  margin: 1.25rem 0 0; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(14.5rem, 1fr)); gap: .75rem;
  margin: 1.75rem 0 0; }
.facts > div { background: var(--panel); border-radius: .5rem; padding: .8rem 1rem; }
dt { color: var(--soft); font-size: .85rem; }
dd { margin: .1rem 0 0; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
dd strong { display: block; font-size: 1.2rem; font-weight: 600; line-height: 1.35; }
dd small { color: var(--soft); font-size: .85rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: 1.5rem 2rem; }
.charts:not(.alike) > :first-child { grid-column: 1 / -1; }
svg { display: block; width: 100%; height: auto; }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .93rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: 0 0 .35rem; }
th, td { text-align: left; vertical-align: top; padding: .3rem 1.5rem .3rem 0; border-bottom: 1px solid var(--grid);
  overflow-wrap: anywhere; }
thead th { color: var(--soft); font-weight: 500; font-size: .85rem; }
tbody th { font-weight: 400; color: var(--soft); white-space: nowrap; }
td.number, th.number { text-align: right; }
.settings { columns: 20rem; column-gap: 2.5rem; }
.settings table { width: 100%; margin: 0 0 2rem; break-inside: auto; }
.settings tr { break-inside: avoid; }
figure { margin: .75rem 0; }
figcaption { color: var(--soft); font-size: .85rem; font-variant-numeric: tabular-nums; }
pre, code { font-family: ui-monospace, "Cascadia Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: .88rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; background: var(--panel);
  margin: .25rem 0 0; padding: .8rem 1rem; border-radius: .5rem; border-left: 3px solid var(--second); }
pre .prompt { color: var(--soft); }
details { margin: .75rem 0; }
summary { cursor: pointer; color: var(--first); }
footer { margin-top: 3rem; color: var(--soft); font-size: .85rem; }
@media print { main { max-width: none; padding: 0; } .facts > div, pre { border: 1px solid var(--grid); } }
"""

# Characters that HTML cannot hold are shown by the pictures that Unicode has of them.
_VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {127: 0x2421}


def escape(text: object) -> str:
    """Text as HTML shows it."""
    return html.escape(str(text).translate(_VISIBLE))


def _page(
    run: Path,
    facts: Mapping[str, Any],
    entries: Sequence[Mapping[str, Any]],
    curves: _Curves,
    samples: Mapping[str, Mapping[int, str]],
    figures: Mapping[str, _Figures],
) -> str:
    name = escape(run.resolve().name or run)
    sections = (
        _header(name, facts, entries, curves),
        _charts(curves),
        _evaluations(curves),
        _monitors(figures),
        _sample_section(samples),
        _checkpoint_section(run, curves),
        _settings(facts),
    )
    return page(
        f"{name}: training run",
        "".join(sections),
        "Written by gpt2 from the files of this run. The page needs no network and can be passed on as it is.",
    )


def page(title: str, body: str, footer: str) -> str:
    """A page that opens from disk without network or script; all three are HTML already."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
{body}
<footer>{footer}</footer>
</main>
</body>
</html>
"""


def _header(name: str, facts: Mapping[str, Any], entries: Sequence[Mapping[str, Any]], curves: _Curves) -> str:
    cards = "".join(
        f"<div><dt>{escape(term)}</dt><dd><strong>{escape(value)}</strong><small>{escape(note)}</small></dd></div>\n"
        for term, value, note in _cards(facts, entries, curves)
    )
    bad = [int(step) for step, loss in zip(curves.step, curves.loss, strict=True) if np.isnan(loss)]
    warning = ""
    if bad:
        warning = f'<p class="warn">The training loss was not a number at step {bad[0]:,}'
        warning += f" and {len(bad) - 1:,} more.</p>\n" if len(bad) > 1 else ".</p>\n"
    left = _number(entries[-1], "seconds_left") if entries else math.nan
    if not entries:
        state = "Nothing measured yet."
    elif left > 0:
        state = f"At step {_count(curves.step[-1])}, with about {_duration(left)} left when this was written."
    else:
        state = f"Finished at step {_count(curves.step[-1])}."
    return f'<header>\n<h1>{name}</h1>\n<p class="soft">A training run of GPT-2. {state}</p>\n{warning}' + (
        f'<dl class="facts">\n{cards}</dl>\n</header>\n'
    )


def _cards(
    facts: Mapping[str, Any], entries: Sequence[Mapping[str, Any]], curves: _Curves
) -> list[tuple[str, str, str]]:
    """The main facts of a run: term, value, and a note in small."""
    model, data = _mapping(facts, "model"), _mapping(facts, "data")
    total, trained = _number(facts, "parameters"), _number(facts, "trainable_parameters")
    base = facts.get("base")
    last, best = (entries[-1] if entries else {}), curves.best
    share = f"{_count(trained)} trained"
    if trained == total:
        share = "all of them trained"
    elif total > 0 and trained >= 0:
        share += f", {trained / total:.1%}"
    final = curves.loss[-1] if entries else math.nan
    corpus = _number(data, "train_tokens")
    seen = _number(last, "tokens")
    rounds = f"{seen / corpus:.2f} times the training data" if corpus > 0 and not math.isnan(seen) else ""
    ceiling = curves.ceiling_share[~np.isnan(curves.ceiling_share)]
    speed = curves.tokens_per_second[~np.isnan(curves.tokens_per_second)]
    return [
        (
            "Model",
            f"{_plain(model.get('n_layer'))} layers, {_plain(model.get('n_embd'))} wide",
            f"{_plain(model.get('n_head'))} heads, context {_plain(model.get('n_ctx'))}, "
            f"vocabulary {_count(_number(model, 'n_vocab'))}",
        ),
        ("Parameters", _count(total), share),
        (
            "Started from",
            "random weights" if base is None else "the bundled model" if base == "bundled" else str(base),
            "" if base is None else "fine-tuned",
        ),
        ("Tokens seen", _count(seen), rounds),
        ("Time", _duration(_number(last, "seconds")), f"{_count(_number(last, 'step'))} steps"),
        (
            "Speed, median",
            f"{_count(float(np.median(speed)))} tokens/s" if len(speed) else "not measured",
            f"{np.median(ceiling):.0%} of the machine's measured ceiling" if len(ceiling) else "",
        ),
        (
            "Best validation loss",
            "not measured" if best is None else f"{curves.valid_loss[best]:.4f}",
            ""
            if best is None
            else f"perplexity {_perplexity(curves.perplexity[best])} at step {curves.step[best]:,.0f}",
        ),
        (
            "Final loss",
            _decimal(_last(curves.valid_loss)) if best is not None else _decimal(final) if entries else "not measured",
            "training" if best is None else f"validation; training {_decimal(final)}",
        ),
    ]


def _charts(curves: _Curves) -> str:
    figure = _loss_figure(curves, _STAND_INS, (10.4, 4.2))
    drawn = [_svg(figure, "loss", "Training and validation loss against tokens seen")]
    for chart in _CHARTS:
        figure = _chart_figure(chart, curves, _STAND_INS, (5.2, 2.9))
        drawn.append(_svg(figure, chart.column, f"{chart.title} against tokens seen"))
    return f'<h2>Curves</h2>\n<div class="charts">\n{"".join(f"<div>{svg}</div>" for svg in drawn)}</div>\n'


def _evaluations(curves: _Curves) -> str:
    """The numbers behind the curves, for those who cannot see them or want to copy them."""
    rows = [
        (f"{step:,.0f}", _count(tokens), _decimal(loss), _decimal(valid), _perplexity(perplexity))
        for step, tokens, loss, valid, perplexity in zip(
            curves.step, curves.tokens, curves.loss, curves.valid_loss, curves.perplexity, strict=True
        )
        if not np.isnan(valid)
    ]
    if not rows:
        return ""
    heads = ("step", "tokens", "training loss", "validation loss", "perplexity")
    return f"<details><summary>The {len(rows):,} evaluations as a table</summary>\n{table(heads, rows)}</details>\n"


def _monitors(figures: Mapping[str, _Figures]) -> str:
    """What the model can do beside what it is trained on: a chart of each evaluation's headline, and all numbers."""
    if not figures:
        return ""
    charts, tables = [], []
    for number, (name, metrics) in enumerate(figures.items()):
        headline = next(iter(metrics))
        figure, axes = _figure(f"{name}: {headline}", _STAND_INS, (5.2, 2.9))
        steps = np.array(list(metrics[headline]), float)
        values = np.array([_number(line, "value") for line in metrics[headline].values()])
        _line(axes, steps, values, _STAND_INS.second, marked=True)
        axes.set_xlabel("step", color=_STAND_INS.soft, fontsize=9)
        charts.append(_svg(figure, f"monitor{number}", f"{name}: {headline} against steps"))
        rows = []
        for title, lines in metrics.items():
            first, last = (lines[step] for step in (min(lines), max(lines)))
            change = _number(last, "value") - _number(first, "value")
            rows.append(
                (title, *(_interval(lines[step]) if step in lines else "" for step in _some(lines)), f"{change:+.4g}")
            )
        heads = (name, *(f"step {step:,}" for step in _some(metrics[headline])), "change")
        tables.append(table(heads, rows) + _origin(name, metrics[headline]))
    return (
        '<h2>Evaluations at the checkpoints</h2>\n<p class="soft">The value, and its 95 % interval '
        f'over documents.</p>\n<div class="charts alike">\n{"".join(f"<div>{svg}</div>" for svg in charts)}</div>\n'
        + "".join(tables)
    )


def _origin(name: str, lines: Mapping[int, Mapping[str, Any]]) -> str:
    """How an evaluation was made and on what, and the hash of the weights at each step."""
    last = lines[max(lines)]
    protocol, options = _mapping(last, "protocol"), _mapping(last, "options")
    rows = [
        ("task", f"{last.get('task', '')}, version {last.get('version', '')}"),
        *((f"protocol: {key}", str(text)) for key, text in protocol.items()),
        ("options", ", ".join(f"{key} {value}" for key, value in options.items() if value is not None)),
        ("detokeniser", str(last.get("detokeniser", ""))),
        ("engine", f"{last.get('engine', '')}, {last.get('precision', '')}"),
        ("SHA-256 of the data", str(last.get("data_sha256", ""))),
        ("SHA-256 of the vocabulary", str(last.get("vocabulary_sha256", ""))),
        *((f"SHA-256 of the weights, step {step:,}", str(lines[step].get("weights_sha256", ""))) for step in lines),
    ]
    return details(f"How {name} was made", rows)


def details(title: str, rows: Sequence[tuple[str, Any]]) -> str:
    """Facts under a title that unfolds them, as HTML: each a head and what it says."""
    body = "".join(f'<tr><th scope="row">{escape(head)}</th><td>{escape(cell)}</td></tr>\n' for head, cell in rows)
    return (
        f"<details><summary>{escape(title)}</summary>\n"
        f'<div class="scroll"><table><tbody>\n{body}</tbody></table></div></details>\n'
    )


def _some(lines: Mapping[int, object]) -> list[int]:
    """Up to eight of the steps, evenly, with the first and the last."""
    steps = sorted(lines)
    return [steps[place] for place in sorted({round(n) for n in np.linspace(0, len(steps) - 1, 8)})]


def _interval(line: Mapping[str, Any]) -> str:
    low, high = _number(line, "low"), _number(line, "high")
    value = f"{_number(line, 'value'):.4g}"
    return value if math.isnan(low) or math.isnan(high) else f"{value} ({low:.4g} to {high:.4g})"


_NO_NUMBER = ("no data", "undefined", "none")  # in place of one


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of plain texts as HTML; columns with words stand to the left, those with numbers to the right."""
    kinds = [
        "" if any(row[n][:1].isalpha() and row[n] not in _NO_NUMBER for row in rows) else ' class="number"'
        for n in range(len(heads))
    ]
    head = "".join(f'<th scope="col"{kind}>{escape(text)}</th>' for text, kind in zip(heads, kinds, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{escape(cell)}</td>" for cell, kind in zip(row, kinds, strict=True)) + "</tr>\n"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>\n'


def _sample_section(samples: Mapping[str, Mapping[int, str]]) -> str:
    if not samples:
        return ""
    parts = [
        "<h2>Samples</h2>\n",
        '<p class="soft">Synthetic text: the model wrote it during training. Nothing in it is a statement of fact, and '
        "names in it are chance.</p>\n",
    ]
    for prompt, texts in samples.items():
        heading = f"Prompt: <q>{escape(prompt)}</q>" if prompt else "Without a prompt"
        figures = [_sample(step, prompt, text) for step, text in texts.items()]
        between = figures[1:-1]
        if len(between) > 1:
            summary = f"<summary>{len(between):,} samples between the first and the last</summary>\n"
            figures = [figures[0], f"<details>{summary}{''.join(between)}</details>\n", figures[-1]]
        parts += [f"<h3>{heading}</h3>\n", *figures]
    return "".join(parts)


def _sample(step: int, prompt: str, text: str) -> str:
    shown = escape(text)
    if prompt and text.startswith(prompt):
        shown = f'<span class="prompt">{escape(prompt)}</span>{escape(text[len(prompt) :])}'
    # HTML takes away a line break right after the opening of a `pre`: one more is for it to take.
    return f'<figure><figcaption>step {step:,}, synthetic</figcaption><pre dir="auto">\n{shown}</pre></figure>\n'


def _checkpoint_section(run: Path, curves: _Curves) -> str:
    try:
        steps = store.checkpoint_steps(run)
    except OSError as error:
        raise TrainingError(f"{run / 'checkpoints'}: cannot be read: {error.strerror or error}") from error
    if not steps:
        return '<h2>Checkpoints</h2>\n<p class="soft">None saved yet.</p>\n'
    valid = {int(step): loss for step, loss in zip(curves.step, curves.valid_loss, strict=True) if not np.isnan(loss)}
    measured = [valid[step] for step in steps if step in valid]
    rows = ""
    for step in steps:
        loss = valid.get(step, math.nan)
        best = " (best saved)" if measured and loss == min(measured) else ""
        command = f"gpt2 generate --model {shlex.quote(f'{run}@{step}')}"
        rows += f'<tr><td class="number">{step:,}</td><td>{_decimal(loss)}{best}</td>'
        rows += f"<td><code>{escape(command)}</code></td></tr>\n"
    return (
        '<h2>Checkpoints</h2>\n<div class="scroll"><table><thead><tr><th scope="col" class="number">step</th>'
        '<th scope="col">validation loss</th><th scope="col">to write text with it</th></tr></thead>\n'
        f"<tbody>\n{rows}</tbody></table></div>\n"
    )


def _settings(facts: Mapping[str, Any]) -> str:
    tables = ""
    for key, caption in (("training", "Training"), ("model", "Model"), ("data", "Data"), ("versions", "Versions")):
        rows = "".join(
            f'<tr><th scope="row">{escape(name)}</th><td>{escape(_plain(value))}</td></tr>\n'
            for name, value in _mapping(facts, key).items()
        )
        if rows:
            tables += f"<table><caption>{caption}</caption><tbody>\n{rows}</tbody></table>\n"
    return f'<h2>Settings</h2>\n<div class="settings">\n{tables}</div>\n' if tables else ""


# --- Numbers as text --------------------------------------------------------------------------------------------------


def _mapping(facts: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = facts.get(key)
    return value if isinstance(value, dict) else {}


def _plain(value: Any) -> str:
    """A setting as it would be typed: `null` is `none`, text has no quotation marks."""
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _count(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:,.0f}"


def _decimal(value: float) -> str:
    return "not a number" if math.isnan(value) else f"{value:.4f}"


def _perplexity(value: float) -> str:
    if math.isnan(value):
        return "beyond measure"
    return f"{value:.2f}" if value < 1000 else f"{value:,.0f}" if value < 1e9 else f"{value:.1e}"


def _duration(seconds: float) -> str:
    """Seconds as a person says them: 45 s, 12 min, 3 h 20 min, 2 d 4 h."""
    if math.isnan(seconds):
        return "unknown"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"
