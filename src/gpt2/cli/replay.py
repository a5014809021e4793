"""`gpt2 replay`: write the texts of a receipt again, and see whether they come out the same."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from gpt2.errors import ConfigError


def replay(
    receipt: Annotated[Path, typer.Argument(help="From gpt2 generate --receipt.")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="A name or a folder, where it is not the receipt's.")
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Print the texts, too.")] = False,
) -> None:
    """Repeat what a receipt tells, with the same weights and engine, and compare.

    Exit status 0: token for token the same. 1: not the same.
    """
    from gpt2 import machine, receipts, store
    from gpt2.language_model import open_model

    try:
        told = json.loads(receipt.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{receipt}: expected a receipt in JSON: {error}") from None
    receipts.settings_of(told)
    name = model or (None if told.get("model") == store.BUNDLED else told.get("model"))
    opened = open_model(name, engine=str(told.get("engine")), precision=str(told.get("precision")))
    differences = receipts.replay(told, opened)
    if show:
        for entry in told["completions"]:
            typer.echo(entry["text"])
    now, then = machine.versions(), dict(told.get("versions") or {})
    changed = [
        f"{key} {then.get(key)} then, {now.get(key)} now"
        for key in sorted({*now, *then})
        if now.get(key) != then.get(key)
    ]
    for line in changed:
        sys.stderr.write(f"note: {line}\n")
    if differences:
        for line in differences:
            typer.echo(line)
        sys.exit(1)
    typer.echo(
        f"the same: {len(told['completions'])} texts, {sum(len(e['tokens']) for e in told['completions'])} tokens"
    )
