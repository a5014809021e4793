"""What `gpt2 inspect` shows in the terminal: tables of losses, expectations, heads, patching and induction."""

from __future__ import annotations

import json
import math
import sys
from typing import TYPE_CHECKING, Any

import typer

from gpt2.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

    from gpt2.inspection import Induction, Inspection

_PIPED_WIDTH = 500  # columns, where no terminal has to hold them


def show(seen: Inspection, what: str, where: tuple[int, int] | None, token: int) -> None:
    """One view of an inspection: `loss`, `lens` after a token, or attention, with `where` of one (layer, head)."""
    if seen.changes:
        typer.echo(f"not the model as it is: {seen.changed}")
    if what == "loss":
        _print_losses(seen)
    elif what == "lens":
        _print_lens(seen, token)
    elif where is None:
        _print_heads(seen.patterns)
    else:
        _print_head(seen, *where)


def _print_losses(seen: Inspection) -> None:
    last = seen.lens.predictions[-1]
    table = _table("n", "token", "loss", "p", "rank", "expected instead")
    for t, (text, loss) in enumerate(zip(seen.texts, seen.losses, strict=True)):
        if t == 0 or math.isnan(loss):
            table.add_row("0", word(text))
            continue
        rank, best = int(last.ranks[t - 1]), seen.vocabulary(int(last.top[t - 1, 0]))
        share = f"{word(best)} {last.top_probabilities[t - 1, 0]:.3f}" if rank else ""
        table.add_row(str(t), word(text), f"{loss:.3f}", f"{math.exp(-loss):.4f}", str(rank + 1), share)
    _show(table)
    if len(seen.ids) > 1:
        typer.echo(f"mean loss {seen.mean_loss:.4f} nats a token, perplexity {math.exp(seen.mean_loss):.2f}")


def _print_lens(seen: Inspection, token: int) -> None:
    T = len(seen.ids)
    if not -T <= token < T:
        raise ConfigError(f"--token: expected {-T} to {T - 1}, got {token}")
    table = _table("after", *(str(n + 1) for n in range(seen.lens.predictions[0].top.shape[1])))
    for stage, found in zip(seen.lens.stages, seen.lens.predictions, strict=True):
        pairs = zip(found.top[token], found.top_probabilities[token], strict=True)
        table.add_row(stage, *(f"{word(seen.vocabulary(int(best)))} {share:.3f}" for best, share in pairs))
    typer.echo(f"after token {token % T}, {word(seen.texts[token])}:")
    _show(table)


def _print_heads(patterns: np.ndarray) -> None:
    """What each head does on average: looks at the first token, the one before, itself; how far away."""
    import numpy as np

    T = patterns.shape[-1]
    table = _table("layer", "head", "first", "before", "itself", "mean distance")
    distance = np.subtract.outer(np.arange(T), np.arange(T))
    for layer, heads in enumerate(patterns):
        for head, pattern in enumerate(heads):
            before = pattern.diagonal(-1).mean() if T > 1 else 0.0
            numbers = (pattern[:, 0].mean(), before, pattern.diagonal().mean())
            far = (pattern * distance).sum(axis=1).mean()
            table.add_row(str(layer), str(head), *(f"{number:.2f}" for number in numbers), f"{far:.1f}")
    typer.echo("mean attention to the first token, to the one before, to itself")
    _show(table)


def _print_head(seen: Inspection, layer: int, head: int) -> None:
    L, H = seen.patterns.shape[:2]
    if not (0 <= layer < L and 0 <= head < H):
        raise ConfigError(f"--layer, --head: expected 0 to {L - 1} and 0 to {H - 1}, got {layer} and {head}")
    table = _table("n", "token", "looks at")
    for t, row in enumerate(seen.patterns[layer, head]):
        best = sorted(range(t + 1), key=lambda other: -row[other])[:3]
        table.add_row(str(t), word(seen.texts[t]), "  ".join(f"{n}:{word(seen.texts[n])} {row[n]:.2f}" for n in best))
    _show(table)


def show_effects(seen: Inspection, effects: np.ndarray, other: list[str]) -> None:
    """What the activations of another text do here: effects (layers, T), beside both texts' tokens."""
    table = _table("n", "token", "other", *(str(layer) for layer in range(len(effects))))
    for n, (ours, theirs) in enumerate(zip(seen.texts, other, strict=True)):
        shown = "" if theirs == ours else word(theirs)
        table.add_row(str(n), word(ours), shown, *(f"{effect:.2f}" for effect in effects[:, n]))
    typer.echo("effect of the other text's residual stream at one token, before layer 0 and so on:")
    typer.echo("1 foretells what the other text does, 0 what this one does")
    _show(table)


def show_induction(found: Induction) -> None:
    """The scores of all heads, and what silencing the best ones costs."""
    import numpy as np

    L, H = found.scores.shape
    table = _table("layer", *(f"head {head}" for head in range(H)))
    for layer in range(L):
        table.add_row(str(layer), *(f"{score:.3f}" for score in found.scores[layer]))
    typer.echo(f"{found.rows} sequences of {found.length} random tokens that come twice. Induction scores:")
    _show(table)
    names = ", ".join(f"{layer}.{head}" for layer, head in found.best.heads)
    if found.found:
        typer.echo(f"induction heads, LAYER.HEAD: {names}")
    else:
        typer.echo(
            f"no induction heads: the best scores are those of {names}; looking everywhere alike gives", nl=False
        )
        typer.echo(f" {found.chance:.3f}")
    typer.echo(
        f"having seen the tokens is worth {found.gain:.3f} nats each, in another order {found.shuffled_gain:.3f}"
    )
    losses = _table("mean loss (nats)", "first time", "second time")
    losses.add_row("whole model", f"{found.first_loss:.3f}", f"{found.second_loss:.3f}")
    losses.add_row(f"without {names}", f"{found.best.first_loss:.3f}", f"{found.best.second_loss:.3f}")
    if found.random:
        columns = np.array([(one.first_loss, one.second_loss) for one in found.random])
        for name, row in (
            ("mean", columns.mean(axis=0)),
            ("least", columns.min(axis=0)),
            ("most", columns.max(axis=0)),
        ):
            losses.add_row(
                f"without {len(found.best.heads)} others: {name} of {len(columns)} draws", *(f"{n:.3f}" for n in row)
            )
    _show(losses)


def word(text: str) -> str:
    """A token for the terminal: in quotes, nothing in it that a terminal would obey; a byte as `\\xe6`."""
    return json.dumps(text, ensure_ascii=not text.isprintable()).replace("\\\\", "\\")


def _table(*heads: str) -> Any:
    from rich.table import Table

    return Table(*heads, box=None, pad_edge=False)


def _show(table: Any) -> None:
    from rich.console import Console

    width = None if sys.stdout.isatty() else _PIPED_WIDTH
    Console(width=width, soft_wrap=True, markup=False, highlight=False, emoji=False).print(table)
