"""`gpt2 models`: what is in the store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

models_app = typer.Typer(
    help="List, show, add, verify and remove models; clear the fast engine's builds.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@models_app.command("list")
def list_models(as_json: JsonOption = False) -> None:
    """List the bundled model and those in the store."""
    from gpt2 import store

    rows = [_facts(name) for name in (store.BUNDLED, *store.list_models())]
    if as_json:
        typer.echo(json.dumps(rows))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "format", "parameters", "on disk", box=None, pad_edge=False)
    for row in rows:
        parameters = f"{row['parameters']:,}" if "parameters" in row else row["error"]
        table.add_row(row["name"], row.get("format", "?"), parameters, f"{row.get('bytes', 0) / 1e6:,.1f} MB")
    Console(soft_wrap=True).print(table)


@models_app.command("show")
def show(
    name: Annotated[str, typer.Argument(help="A name in the store, a folder or a file.")], as_json: JsonOption = False
) -> None:
    """Show what a model is: its shape, format, size and folder."""
    from gpt2 import checkpoints, store

    path = store.resolve(name)
    found = checkpoints.describe(path, quick=True)
    facts: dict[str, Any] = {"name": name, "folder": str(path), "format": found.format, "dtype": found.dtype}
    facts |= {"parameters": found.config.num_parameters, "bytes": found.bytes, **found.config.to_dict()}
    if as_json:
        typer.echo(json.dumps(facts | {"notes": found.notes}))
        return
    for key, value in facts.items():
        typer.echo(f"{key:<12}{value:,}" if isinstance(value, int) else f"{key:<12}{value}")
    for note in found.notes:
        typer.echo(f"{'note':<12}{note}")


@models_app.command("add")
def add(
    path: Annotated[Path, typer.Argument(help="A model's folder or file, in any format; it is copied.")],
    name: Annotated[
        str | None, typer.Option("--name", help="What to call it. [default: the name of the folder or file]")
    ] = None,
) -> None:
    """Copy a model into the store, after a check that it is one.

    Files of a released model that are already at hand are imported by: gpt2 download 124M --from-folder FOLDER
    """
    from gpt2 import checkpoints, store
    from gpt2.checkpoints import manifest

    def hashed(copy: Path) -> None:
        if not manifest.verify(copy):  # it has none of its own
            manifest.write(copy)

    found = checkpoints.describe(path.expanduser())
    added = store.add(path, name, folders=checkpoints.folders_of(found.format), finish=hashed)
    typer.echo(f"{added.name}: {found.config.num_parameters:,} parameters, {found.format} format")
    for note in found.notes:
        typer.echo(f"note: {note}", err=True)


@models_app.command("verify")
def verify(
    name: Annotated[str, typer.Argument(help="A name in the store, a folder or a file.")],
    reference: Annotated[
        str | None, typer.Option("--reference", help="Another model, which has to compute the same logits.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option("--tolerance", help="The largest difference of logits that is right.")
    ] = 1e-3,
    as_json: JsonOption = False,
) -> None:
    """Check a model: its files' hashes, its shapes and numbers, its vocabulary, and what it computes.

    The exit status is 1 if anything is wrong. Example: gpt2 models verify mine.gguf --reference 124M --tolerance 0.5
    """
    from gpt2 import store
    from gpt2.verification import verify

    other = None if reference is None else store.resolve(reference)
    found = verify(store.resolve(name), other, tolerance=tolerance)
    if as_json:
        typer.echo(json.dumps(found.to_dict()))
    else:
        typer.echo(f"{found.path}: {found.format}, {found.parameters:,} parameters, all of them finite")
        typer.echo("files: " + ("as their manifest says" if found.manifest else "no manifest to compare with"))
        typer.echo(f"vocabulary: {'sound' if found.codec else 'none'}")
        typer.echo(f"weights: SHA-256 {found.weights_sha256}")
        if found.reference is not None:
            typer.echo(
                f"logits: {'agree' if found.holds else 'DIFFER'}, by {found.largest_difference:.3g} at most "
                f"(allowed {found.tolerance:g}) at {found.positions} positions; the weights are "
                f"{'the same' if found.same_weights else 'others'}"
            )
    if not found.holds:
        raise typer.Exit(1)


@models_app.command("remove")
def remove(
    name: Annotated[str, typer.Argument(help="A name in the store.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove a model from the store and from the disk."""
    from gpt2 import store

    folder = store.folder_of(name)
    if not yes and folder.is_dir():
        typer.confirm(f"Remove {folder}?", abort=True, err=True)
    store.remove(name)
    typer.echo(f"{name}: removed")


@models_app.command("clean")
def clean() -> None:
    """Remove what was built from models for the fast engine; it is built again when it is needed."""
    from gpt2 import store

    size = sum(entry.stat().st_size for entry in store.builds_folder().rglob("*") if entry.is_file())
    typer.echo(f"{store.remove_builds()} builds removed, {size / 1e6:,.1f} MB")


def _facts(name: str) -> dict[str, Any]:
    from gpt2 import checkpoints, store
    from gpt2.errors import GPT2Error

    try:
        found = checkpoints.describe(store.resolve(name), quick=True)
    except GPT2Error as error:
        return {"name": name, "error": str(error)}
    return {
        **{"name": name, "format": found.format, "dtype": found.dtype},
        **{"parameters": found.config.num_parameters, "bytes": found.bytes},
    }
