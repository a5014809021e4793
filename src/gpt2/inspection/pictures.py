"""An inspection as a picture, SVG or PNG: losses, the logit lens, a head's attention or that of all heads, induction.

matplotlib is imported when one is drawn, by its objects alone: pyplot keeps figures and settings for the whole process.
Its font has no Chinese, Japanese or Korean; tokens in these come out as boxes (the page of `gpt2.inspection.page` has
them).
"""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gpt2.errors import ConfigError
from gpt2.inspection.induction import Induction
from gpt2.inspection.reading import Inspection

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, SOFT, GRID, LOOK, LOSS = "#1b1f24", "#57606a", "#d8dce1", "#2457c5", "#c2410c"
MOST_TOKENS = 80
"""Beyond, the words in a picture could not be read."""
_DARK_FROM = 0.75  # of 1; on what is darker, words are white


def as_bytes(figure: Figure, format: str) -> bytes:
    """A figure as a file of `svg` or `png`."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(buffer, format=format, dpi=150, facecolor="#ffffff")
    return buffer.getvalue()


def loss_figure(inspection: Inspection) -> Figure:
    """The loss of each token as a bar, in nats.

    Raises:
        ConfigError: more tokens than can be read; so for the next two.
    """
    T = _checked(inspection)
    figure, axes = _figure(0.8 + 0.28 * max(T, 12), 3.4, "Loss of each token (nats)")
    axes.bar(range(T), np.nan_to_num(inspection.losses), color=LOSS, width=0.8)
    _words(axes.xaxis, inspection)
    axes.set_xlim(-0.6, T - 0.4)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    _say_changes(figure, inspection)
    return figure


def lens_figure(inspection: Inspection) -> Figure:
    """For each token (across) and layer (the last on top) the word that is expected next, the bluer the surer."""
    T = _checked(inspection)
    stages = inspection.lens.predictions
    shares = np.array([stage.top_probabilities[:, 0] for stage in stages])  # (S, T)
    figure, axes = _figure(1.4 + 0.85 * max(T, 4), 1.2 + 0.32 * len(stages), "What each layer expects after a token")
    axes.imshow(shares, cmap=_colours(), vmin=0, vmax=1, aspect="auto", origin="lower")
    for s, stage in enumerate(stages):
        for t in range(T):
            word = spelled(inspection.vocabulary(int(stage.top[t, 0])))
            colour = "#ffffff" if shares[s, t] > _DARK_FROM else INK
            axes.text(t, s, word[:10], ha="center", va="center", color=colour, fontsize=7, parse_math=False)
    axes.set_yticks(range(len(stages)), inspection.lens.stages)
    _words(axes.xaxis, inspection)
    _say_changes(figure, inspection)
    return figure


def head_figure(inspection: Inspection, layer: int, head: int) -> Figure:
    """A head's attention, from the token at the left to the token at the bottom.

    Raises:
        ConfigError: no such head.
    """
    T = _checked(inspection)
    L, H = inspection.patterns.shape[:2]
    for name, value, count in (("layer", layer, L), ("head", head, H)):
        if not 0 <= value < count:
            raise ConfigError(f"{name}: expected 0 to {count - 1}, got {value}")
    side = 1.6 + 0.24 * max(T, 10)
    figure, axes = _figure(side, side, f"Layer {layer}, head {head}")
    axes.imshow(np.sqrt(inspection.patterns[layer, head]), cmap=_colours(), vmin=0, vmax=1)
    _words(axes.xaxis, inspection)
    _words(axes.yaxis, inspection)
    axes.set_ylabel("looks", fontsize=9, color=SOFT)
    axes.set_xlabel("is looked at", fontsize=9, color=SOFT)
    _say_changes(figure, inspection)
    return figure


def heads_figure(inspection: Inspection) -> Figure:
    """The attention of all heads, a row for each layer; rows of each picture look, columns are looked at."""
    from matplotlib.figure import Figure

    L, H = inspection.patterns.shape[:2]
    figure = Figure(figsize=(0.8 + 1.1 * H, 0.6 + 1.1 * L), layout="constrained")
    for (layer, head), axes in np.ndenumerate(figure.subplots(L, H, squeeze=False)):
        axes.imshow(np.sqrt(inspection.patterns[layer, head]), cmap=_colours(), vmin=0, vmax=1)
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_color(GRID)
        if layer == 0:
            axes.set_title(f"head {head}", fontsize=8, color=SOFT)
        if head == 0:
            axes.set_ylabel(f"layer {layer}", fontsize=8, color=SOFT)
    _say_changes(figure, inspection)
    return figure


def effects_figure(inspection: Inspection, effects: np.ndarray, other: Sequence[str] = ()) -> Figure:
    """What `gpt2.inspection.patch_effects` gives by position, for the text that is patched.

    Args:
        inspection: of that text.
        effects: (L, T).
        other: what the other text's tokens spell; where they differ they stand above.
    """
    _checked(inspection)
    L, T = effects.shape
    figure, axes = _figure(1.4 + 0.4 * max(T, 10), 1.4 + 0.32 * L, "Effect of one activation of the other text")
    axes.imshow(effects, cmap=_colours(), vmin=0, vmax=1, aspect="auto")
    for (layer, t), effect in np.ndenumerate(effects):
        colour = "#ffffff" if effect > _DARK_FROM else INK
        axes.text(t, layer, f"{effect:.2f}", ha="center", va="center", fontsize=6, color=colour)
    axes.set_yticks(range(L), [f"before layer {n}" for n in range(L)])
    _words(axes.xaxis, inspection)
    if other:
        theirs = ["" if a == b else spelled(b)[:16] for a, b in zip(inspection.texts, other, strict=True)]
        above = axes.secondary_xaxis("top")
        above.set_ticks(range(T), theirs, parse_math=False, rotation=90)
        above.tick_params(length=0, labelsize=8, labelcolor=LOOK)
        above.spines["top"].set_visible(False)
        above.set_xlabel("the other text, where it differs", fontsize=9, color=LOOK, loc="left")
    return figure


def induction_figure(induction: Induction) -> Figure:
    """The induction score of each head."""
    L, H = induction.scores.shape
    title = f"Induction scores (a head that looks everywhere alike: {induction.chance:.3f})"
    figure, axes = _figure(max(5.5, 1.2 + 0.62 * H), 1.2 + 0.42 * L, title)
    axes.imshow(induction.scores, cmap=_colours(), vmin=0, vmax=1, aspect="auto")
    for (layer, head), score in np.ndenumerate(induction.scores):
        colour = "#ffffff" if score > _DARK_FROM else INK
        axes.text(head, layer, f"{score:.3f}", ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(range(H))
    axes.set_yticks(range(L))
    axes.set_xlabel("head", fontsize=9, color=SOFT)
    axes.set_ylabel("layer", fontsize=9, color=SOFT)
    return figure


def spelled(text: str) -> str:
    """A token as one word on one line: spaces as `·`, line breaks as `⏎`."""
    return text.replace(" ", "·").replace("\n", "⏎").replace("\t", "⇥").replace("\r", "␍") or "∅"


def _figure(width: float, height: float, title: str) -> tuple[Figure, Any]:
    """A figure of so many inches with one plot."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.tick_params(length=0, labelsize=8, labelcolor=INK)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure, axes


def _say_changes(figure: Figure, inspection: Inspection) -> None:
    """Below the plot what hooks changed, if anything, so that it is not taken for the model as it is."""
    if inspection.changes:
        letters = int(figure.get_figwidth() * 14)  # so many of that size stand on a line
        said = textwrap.fill(f"Not the model as it is: {inspection.changed}", letters)
        figure.supxlabel(said, x=0.01, ha="left", fontsize=8, color=LOSS, parse_math=False)


def _words(axis: Any, inspection: Inspection) -> None:
    """The tokens as an axis' labels; a `$` in one is no formula."""
    labels = [spelled(text)[:16] for text in inspection.texts]
    axis.set_ticks(range(len(labels)), labels, parse_math=False, **({"rotation": 90} if axis.axis_name == "x" else {}))


def _colours() -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("look", ["#ffffff", LOOK])


def _checked(inspection: Inspection) -> int:
    T = len(inspection.ids)
    if T > MOST_TOKENS:
        raise ConfigError(
            f"text: expected at most {MOST_TOKENS} tokens for a picture, got {T}; a page (.html) takes more"
        )
    return T
