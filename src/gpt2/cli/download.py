"""`gpt2 download`: a released model into the store."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from gpt2.errors import ConfigError


def download(
    size: Annotated[str, typer.Argument(help="124M, 355M, 774M or 1558M (or small, medium, large, xl).")],
    source: Annotated[str, typer.Option("--from", help="openai, or huggingface.")] = "openai",
    base_url: Annotated[
        str | None, typer.Option("--base-url", help="A mirror: the address under which the model's files are.")
    ] = None,
    from_folder: Annotated[
        Path | None, typer.Option("--from-folder", help="Take the files from this folder; nothing is downloaded.")
    ] = None,
    sha256: Annotated[
        list[str] | None, typer.Option("--sha256", help="FILE=HASH that a file must have; may be given several times.")
    ] = None,
    accept_new_hashes: Annotated[
        bool, typer.Option("--accept-new-hashes", help="Forget the hashes remembered from an earlier download.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Bring it again although the model is there.")] = False,
) -> None:
    """Bring a released GPT-2 into the store; stopped, it goes on where it was.

    Files are checked by length, kind and SHA-256. OpenAI publishes no hashes for the weights: those of the first
    download are remembered, and a later one must have the same.

    Examples: gpt2 download 124M; gpt2 download xl --from huggingface; gpt2 download 124M --from-folder ~/models/124M
    """
    from gpt2 import store
    from gpt2.checkpoints import download as downloads

    pins = {}
    for pin in sha256 or []:
        name, equals, value = pin.partition("=")
        if not equals:
            raise ConfigError(f"--sha256: expected FILE=HASH, got {pin!r}")
        pins[name] = value
    spec = downloads.released(size, source=source, base_url=base_url)
    if from_folder is not None:
        path = downloads.import_folder(
            from_folder.expanduser(), spec, sha256=pins, accept_new_hashes=accept_new_hashes, force=force
        )
    elif not force and downloads.is_here(spec):
        typer.echo(f"{spec.name}: is here already, in {store.folder_of(spec.name)} (--force downloads it again)")
        return
    else:
        with _Bars() as bars:
            path = downloads.download(
                spec, sha256=pins, accept_new_hashes=accept_new_hashes, force=force, progress=bars.update
            )
    typer.echo(f"{spec.name}: {spec.config.num_parameters:,} parameters in {path}")


class _Bars:
    """A progress bar a file on a terminal, nothing elsewhere."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self._progress = Progress(
            *(TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> _Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, name: str, have: int, total: int | None) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total)
        self._progress.update(self._tasks[name], completed=have, total=total)
