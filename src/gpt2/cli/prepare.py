"""`gpt2 prepare`: text files to a folder of tokens, without TensorFlow."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpt2.cli.codec import codec_of

if TYPE_CHECKING:
    from gpt2.data.prepare import Progress
    from gpt2.data.shards import Prepared


def prepare(
    inputs: Annotated[
        list[str], typer.Argument(metavar="INPUT...", help="Files, folders, patterns in quotes, or - for stdin.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write; an earlier one is replaced.")],
    column: Annotated[
        str | None, typer.Option(help="The field with the text, in tables and .jsonl. [default: text]")
    ] = None,
    encoding: Annotated[str, typer.Option(help="Of text: utf-8, utf-16, latin-1 and so on.")] = "utf-8",
    valid: Annotated[float, typer.Option(help="Share of the documents held out.")] = 0.05,
    seed: Annotated[int, typer.Option(help="Of the choice of what is held out.")] = 0,
    keep_duplicates: Annotated[
        bool, typer.Option("--keep-duplicates", help="Keep documents that are exactly as an earlier one.")
    ] = False,
    shard_tokens: Annotated[int, typer.Option(help="Tokens in a file at most.")] = 100_000_000,
    workers: Annotated[int | None, typer.Option(help="Threads. [default: one a core]")] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Use the vocabulary of this model. [default: GPT-2's]")
    ] = None,
) -> None:
    """Encode texts for `gpt2 train`: .txt .md .jsonl .csv .tsv .parquet, also with .gz or .zst after it.

    A text file is one document, a row of the others is one. <|endoftext|> goes between documents, exact duplicates are
    left out, and a twentieth of the documents is held out to measure the loss on.

    Example: gpt2 prepare stories/ -o data && gpt2 train data -o my-run
    """
    from gpt2 import store
    from gpt2.data.prepare import prepare as run

    began = time.monotonic()
    with progress_bar() as on_progress:
        result = run(
            inputs,
            out,
            codec=codec_of(None if model == store.BUNDLED else model),
            column=column,
            encoding=encoding,
            valid_fraction=valid,
            seed=seed,
            deduplicate=not keep_duplicates,
            shard_tokens=shard_tokens,
            workers=workers,
            on_progress=on_progress,
        )
    say_what_was_prepared(result, out)
    typer.echo(f"{result.manifest['characters'] / 1e6 / (time.monotonic() - began):.1f} M characters a second")


@contextlib.contextmanager
def progress_bar() -> Iterator[Callable[[Progress], None] | None]:
    """What `prepare` tells its progress to: a bar on standard error where that is a terminal, which then goes away."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("preparing"),
        progress.BarColumn(),
        progress.TaskProgressColumn(),
        progress.TextColumn("{task.fields[counts]}"),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None, counts="")

        def on_progress(state: Progress) -> None:
            counts = f"{state.documents:,} documents, {state.characters / 1e6:,.1f} M characters"
            bar.update(task, total=state.bytes_total, completed=state.bytes_read, counts=counts)

        yield on_progress


def say_what_was_prepared(prepared: Prepared, out: Path) -> None:
    """Print the counts of a prepared folder."""
    facts = prepared.manifest
    train, held_out = (facts["splits"][split] for split in ("train", "valid"))
    typer.echo(f"{out}: {train['tokens']:,} tokens of {train['documents']:,} documents to train on")
    if facts["valid_from"] == "documents":
        typer.echo(f"held out: {held_out['tokens']:,} tokens of {held_out['documents']:,} documents")
    elif facts["valid_from"] == "tail":
        typer.echo(f"held out: {held_out['tokens']:,} tokens, the end of the last document")
    if facts["duplicates"] or facts["empty"]:
        typer.echo(f"left out: {facts['duplicates']:,} duplicates, {facts['empty']:,} without text")
    if facts["forced_cuts"]:
        typer.echo(f"{facts['forced_cuts']:,} stretches of a million characters without a space were cut")
