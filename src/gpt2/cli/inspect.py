"""`gpt2 inspect`: look into the network, in the terminal, as a page, as a picture or as JSON."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpt2.atomic import atomic_file
from gpt2.cli import inspect_tables
from gpt2.cli.codec import read_stdin
from gpt2.cli.status import Status
from gpt2.errors import ConfigError, PromptError

if TYPE_CHECKING:
    from gpt2.gpt import Model
    from gpt2.inspection import Hooks, Induction, Inspection

VIEWS = ("loss", "lens", "attention", "patch", "induction")
FORMATS = (".html", ".svg", ".png", ".json")
_HEAD, _NEURON = ("--ablate", "head", "5.1"), ("--ablate-neuron", "neuron", "5.100")  # option, unit, example


def inspect(
    text: Annotated[
        str | None, typer.Argument(help="The text; `-` or a pipe reads it from standard input.", show_default=False)
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="A name in the store or a folder. [default: the bundled model]")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="A page to open in a browser (.html), a picture (.svg, .png), or .json."),
    ] = None,
    what: Annotated[
        str,
        typer.Option(
            help="In the terminal or a picture: loss, lens, attention, patch, or induction, which takes no text."
        ),
    ] = "loss",
    layer: Annotated[int | None, typer.Option(help="Attention: of this layer's --head; else of all.")] = None,
    head: Annotated[int | None, typer.Option(help="Attention: of this head.")] = None,
    token: Annotated[
        int | None,
        typer.Option(
            help="Lens in the terminal: after which token; negative numbers count from the end. [default: -1]",
            show_default=False,
        ),
    ] = None,
    ablate: Annotated[
        list[str] | None,
        typer.Option(metavar="LAYER.HEAD", help="Silence a head; may be given several times."),
    ] = None,
    ablate_neuron: Annotated[
        list[str] | None,
        typer.Option(metavar="LAYER.NEURON", help="Silence a neuron of an MLP; may be given several times."),
    ] = None,
    steer: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Add what two texts differ by to this activation of every token, such as blocks.3.hook_resid_pre.",
        ),
    ] = None,
    toward: Annotated[str | None, typer.Option(metavar="TEXT", help="Steer: to what this text ends with.")] = None,
    away: Annotated[str | None, typer.Option(metavar="TEXT", help="Steer: from what this text ends with.")] = None,
    strength: Annotated[
        float | None, typer.Option(help="Steer: how many times it is added. [default: 1]", show_default=False)
    ] = None,
    save: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Keep this activation, such as blocks.3.hook_resid_pre; `*` stands for anything; may be given several "
            "times.",
        ),
    ] = None,
    arrays: Annotated[
        Path | None, typer.Option(metavar="FILE.npz", help="Save: the file to write, of NumPy arrays.")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(help="Patch: another text of as many tokens, whose activations are put into this one."),
    ] = None,
    start: Annotated[
        bool, typer.Option("--start", help="Put <|endoftext|> before the text, as before documents in training.")
    ] = False,
    seed: Annotated[
        int | None,
        typer.Option(help="Induction: of the random tokens and heads. [default: 0]", show_default=False),
    ] = None,
    length: Annotated[
        int | None, typer.Option(help="Induction: how many tokens come twice. [default: 50]", show_default=False)
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print one JSON object, nothing else, or write it to an --output in .json."),
    ] = False,
) -> None:
    """Show the loss of each token, what each layer expects next, and where the heads look.

    The page shows all of that at once; layers, heads and tokens count from 0.

    Examples: gpt2 inspect "Once upon a time there was a king" -o king.html; gpt2 inspect "The king" --what lens; gpt2
    inspect "The king" --save "blocks.*.hook_resid_post" --arrays king.npz; gpt2 inspect --what induction
    """
    ending = None if output is None else output.suffix.lower()
    if what not in VIEWS:
        raise ConfigError(f"--what: expected one of {', '.join(VIEWS)}, got {what!r}")
    if ending is not None and ending not in FORMATS:
        raise ConfigError(f"--output: expected a name that ends in one of {', '.join(FORMATS)}, got {str(output)!r}")
    if as_json and ending not in (None, ".json"):
        raise ConfigError(f"--json: expected no --output, or one that ends in .json, got {str(output)!r}")
    if (layer is None) != (head is None):
        raise ConfigError("--layer, --head: expected both or neither")
    if layer is not None and (what != "attention" or as_json or ending in (".html", ".json")):
        raise ConfigError("--layer, --head: expected none but for --what attention in the terminal or a picture")
    if token is not None and (what != "lens" or as_json or output is not None):
        raise ConfigError("--token: expected none but for --what lens in the terminal")
    if what != "induction" and (seed is not None or length is not None):
        raise ConfigError("--seed, --length: expected none but for --what induction")
    if what == "induction" and start:
        raise ConfigError("--start: expected none with --what induction, whose tokens begin so anyway")
    if (what == "patch") != (against is not None):
        raise ConfigError("--what patch: expected --against with another text, and --against only there")
    if (steer is None) != (not toward) or (steer is None) != (not away) or (steer is None and strength is not None):
        raise ConfigError("--steer: expected --toward and --away with a text each, and these and --strength only there")
    if strength is not None and not math.isfinite(strength):
        raise ConfigError(f"--strength: expected a finite number, got {strength}")
    if bool(save) != (arrays is not None):
        raise ConfigError("--save: expected --arrays with a file, and --arrays only there")
    if arrays is not None and arrays.suffix.lower() != ".npz":
        raise ConfigError(f"--arrays: expected a name that ends in .npz, got {str(arrays)!r}")
    if what in ("patch", "induction") and (ablate or ablate_neuron or steer or save or ending == ".html"):
        raise ConfigError(f"--what {what}: expected no --ablate, --ablate-neuron, --steer, --save, and no page")
    heads = [_unit(given, *_HEAD) for given in ablate or ()]
    neurons = [_unit(given, *_NEURON) for given in ablate_neuron or ()]
    if what == "induction":
        if text is not None:
            raise ConfigError("--what induction: expected no text, since it makes its own tokens")
        _show_induction(model, ending, output, as_json, 50 if length is None else length, seed or 0)
        return
    if text == "-" or (text is None and not sys.stdin.isatty()):
        text = read_stdin("text").removesuffix("\n")
    if not text:
        raise PromptError("text: expected some to look at, got none")
    from gpt2.inspection import ablate_heads, ablate_neurons
    from gpt2.inspection import inspect as look

    loaded = _load(model)
    begin = loaded.prompt_tokens(None)[0] if start else []
    ids = _tokens(loaded, begin, text, "text")
    _check_units(heads, loaded.config.n_layer, loaded.config.n_head, *_HEAD)
    _check_units(neurons, loaded.config.n_layer, 4 * loaded.config.n_embd, *_NEURON)
    hooks: list[Hooks] = [ablate_heads(heads), ablate_neurons(neurons)]
    if steer and toward and away:
        hooks.append(_steering(loaded, steer, begin, toward, away, 1.0 if strength is None else strength))
    seen = look(loaded, ids, *hooks)
    if arrays is not None and save:
        _save(loaded, seen, hooks, save, arrays)
    where = None if layer is None or head is None else (layer, head)
    if against is not None:
        _show_patching(loaded, seen, _tokens(loaded, begin, against, "--against"), output, as_json)
    elif as_json or ending == ".json":
        _write(output, json.dumps(_record(seen), ensure_ascii=False) + "\n")
    elif output is None:
        inspect_tables.show(seen, what, where, -1 if token is None else token)
    elif ending == ".html":
        from gpt2.inspection.page import attention_html

        _write(output, attention_html(seen))
    else:
        from gpt2.inspection import pictures

        if what == "attention":
            figure = pictures.heads_figure(seen) if where is None else pictures.head_figure(seen, *where)
        else:
            figure = {"loss": pictures.loss_figure, "lens": pictures.lens_figure}[what](seen)
        _write(output, pictures.as_bytes(figure, output.suffix[1:].lower()))


def _show_induction(
    model: str | None, ending: str | None, output: Path | None, as_json: bool, length: int, seed: int
) -> None:
    from gpt2.inspection import find_induction

    loaded = _load(model)
    with Status("").waiting("silencing heads, some at a time"):
        found = find_induction(loaded, length=length, seed=seed)
    if as_json or ending == ".json":
        _write(output, json.dumps({**_model_record(loaded), **_induction_record(found)}) + "\n")
    elif output is not None:
        from gpt2.inspection import pictures

        _write(output, pictures.as_bytes(pictures.induction_figure(found), output.suffix[1:].lower()))
    else:
        inspect_tables.show_induction(found)


def _show_patching(loaded: Model, seen: Inspection, other: list[int], output: Path | None, as_json: bool) -> None:
    from gpt2.inspection import patch_effects, pictures

    effects = patch_effects(loaded, seen.ids, other)
    texts = [seen.vocabulary(token) for token in other]
    if as_json or (output is not None and output.suffix.lower() == ".json"):
        record = {**_model_record(loaded), "tokens": seen.texts, "other": texts, "effects": effects.tolist()}
        _write(output, json.dumps(record, ensure_ascii=False) + "\n")
    elif output is not None:
        figure = pictures.effects_figure(seen, effects, texts)
        _write(output, pictures.as_bytes(figure, output.suffix[1:].lower()))
    else:
        inspect_tables.show_effects(seen, effects, texts)


def _load(model: str | None) -> Model:
    with Status("").waiting("loading TensorFlow and the model"):
        from gpt2.gpt import load_model

        return load_model(model)


def _tokens(loaded: Model, begin: list[int], text: str, argument: str) -> list[int]:
    """What a text is for the network, if it fits into its context."""
    ids = [*begin, *loaded.prompt_tokens(text)[0]]
    if len(ids) > loaded.config.n_ctx:
        raise PromptError(f"{argument}: expected at most n_ctx = {loaded.config.n_ctx} tokens, got {len(ids)}")
    return ids


def _unit(given: str, option: str, unit: str, example: str) -> tuple[int, int]:
    layer, dot, number = given.partition(".")
    if not (dot and layer.isdecimal() and number.isdecimal()):
        raise ConfigError(f"{option}: expected LAYER.{unit.upper()} such as {example}, got {given!r}")
    return int(layer), int(number)


def _check_units(pairs: list[tuple[int, int]], layers: int, units: int, option: str, unit: str, example: str) -> None:
    for layer, number in pairs:
        if layer >= layers or number >= units:
            expected = f"layers 0 to {layers - 1} and {unit}s 0 to {units - 1}"
            raise ConfigError(f"{option}: expected {expected}, got {layer}.{number}")


def _steering(loaded: Model, name: str, begin: list[int], toward: str, away: str, strength: float) -> Hooks:
    """Hooks that steer by what the model as it is makes of two texts, and say so."""
    from gpt2.inspection import direction_between, steer
    from gpt2.inspection.interventions import Change
    from gpt2.inspection.names import of_tokens

    site = of_tokens(name, loaded.config, "--steer")
    ends = _tokens(loaded, begin, toward, "--toward"), _tokens(loaded, begin, away, "--away")
    table = steer(site.name, direction_between(loaded, site.name, *ends), strength)
    way = " to ".join(map(inspect_tables.word, (away, toward)))
    said = f"steered at {site.name} by {strength:g} times the way from {way}"
    return Change(table, **{**table.record, "said": said, "toward": toward, "away": away, "strength": strength})


def _save(loaded: Model, seen: Inspection, hooks: list[Hooks], names: list[str], arrays: Path) -> None:
    """Activations by name, the tokens, and as JSON what they are of; all that `numpy.load` reads without pickle."""
    import numpy as np

    from gpt2.inspection import run_with_cache
    from gpt2.inspection.names import matching

    chosen = [site.name for site in matching(names, loaded.config, "--save")]
    _, kept = run_with_cache(loaded, seen.ids, *hooks, names=chosen)
    about = json.dumps({"tokens": seen.texts, **_model_record(loaded), "changes": seen.changes})
    with atomic_file(arrays) as new, new.open("wb") as file:
        np.savez(file, ids=kept.ids, about=np.array(about), **kept)
    sys.stderr.write(f"wrote {arrays}\n")


def _write(output: Path | None, content: str | bytes) -> None:
    """To a file, or without one to stdout, in UTF-8 whatever the terminal's locale is."""
    data = content.encode("utf-8", "replace") if isinstance(content, str) else content
    if output is None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    with atomic_file(output) as new:
        new.write_bytes(data)
    sys.stderr.write(f"wrote {output}\n")


def _model_record(loaded: Model) -> dict[str, Any]:
    return {"model": loaded.name, "weights_sha256": loaded.engine.weights_sha256}


def _record(seen: Inspection) -> dict[str, Any]:
    """An inspection for programs; lists by layer, head and token."""
    return {
        "model": seen.model,
        "weights_sha256": seen.weights_sha256,
        "changes": seen.changes,
        "tokens": [
            {"id": int(token), "text": text, "loss": None if math.isnan(loss) else float(loss)}
            for token, text, loss in zip(seen.ids, seen.texts, seen.losses, strict=True)
        ],
        "mean_loss": None if math.isnan(seen.mean_loss) else seen.mean_loss,
        "lens": [
            {
                "stage": stage,
                "top": [
                    [{"id": int(token), "text": seen.vocabulary(int(token)), "p": float(p)} for token, p in pairs]
                    for pairs in (
                        zip(tokens, shares, strict=True)
                        for tokens, shares in zip(found.top, found.top_probabilities, strict=True)
                    )
                ],
                "rank_of_next": [None if rank < 0 else int(rank) for rank in found.ranks],
                "entropy": [float(entropy) for entropy in found.entropies],
            }
            for stage, found in zip(seen.lens.stages, seen.lens.predictions, strict=True)
        ],
        "attention": seen.patterns.tolist(),
    }


def _induction_record(found: Induction) -> dict[str, Any]:
    from dataclasses import asdict

    return {**asdict(found), "scores": found.scores.tolist()}
