"""`gpt2 convert`: a model from one format to another, tensor by tensor, checked by those it is for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from gpt2.cli.status import Status


def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A name in the store, or a folder in any format.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="The folder to write; for gguf a file NAME.gguf.")],
    to: Annotated[str, typer.Option("--to", help="native, huggingface, openai, savedmodel, gguf, onnx or litert.")],
    precision: Annotated[
        str,
        typer.Option(
            "--precision",
            "--dtype",
            help="float32; float16 (native, huggingface, gguf, onnx); int8 (onnx, litert); int4 (litert); q8_0 or q4_0 "
            "(gguf).",
        ),
    ] = "float32",
    check: Annotated[
        bool | None,
        typer.Option(
            "--check/--no-check",
            help="Compare with what the format's own runtime computes, before DST is replaced. By default where the "
            "runtime is installed.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Write a model in another format, and have the programs that it is for compute with it.

    Example: gpt2 convert 124M my-model.gguf --to gguf --precision q8_0
    """
    from gpt2 import exports, store

    precision = exports.check_options(to, precision)
    status = Status(f"building, {precision}")
    with status.waiting(f"writing {to}..."):
        report = exports.export(
            target, exports.from_folder(store.resolve(source)), to, precision, check=check, progress=status.progress
        )
    if as_json:
        typer.echo(json.dumps(report.to_dict()))
        return
    typer.echo(
        f"{target}: {report.num_parameters:,} parameters in the {to} format, {precision}, {report.bytes:,} bytes"
    )
    typer.echo(f"checked by {report.parity}" if report.parity else f"not checked: {report.not_checked}")
