"""`gpt2 convert`: a model from one format to another, tensor by tensor, checked by those it is for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from gpt2.cli.status import Status
from gpt2.errors import ConfigError


def convert(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="A name in the store, or a folder or file in any format that is read.")
    ],
    target: Annotated[Path, typer.Argument(metavar="DST", help="The folder to write; for gguf a file NAME.gguf.")],
    to: Annotated[
        str, typer.Option("--to", help="native, huggingface, openai, savedmodel, gguf, onnx, litert; or peft.")
    ],
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
    adapter: Annotated[
        Path | None,
        typer.Option("--adapter", help="A folder with LoRA adapters of PEFT's, merged into SRC on the way."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Write a model in another format, and have the programs that it is for compute with it.

    Example: gpt2 convert 124M my-model.gguf --to gguf --precision q8_0

    --to peft writes the adapters alone that a run with --lora-rank has trained: gpt2 convert ./my-run out --to peft
    """
    from gpt2 import exports, store

    if to == "peft":
        if adapter is not None or precision != "float32":
            raise ConfigError("to: peft takes neither --adapter nor --precision")
        written = exports.export_adapters(target, store.resolve(source), check=check)
        if as_json:
            typer.echo(json.dumps(written.to_dict()))
            return
        typer.echo(f"{target}: {written.adapters} adapters")
        typer.echo(f"checked by {written.parity}" if written.parity else f"not checked: {written.not_checked}")
        return
    precision = exports.check_options(to, precision)
    status = Status(f"building, {precision}")
    with status.waiting(f"writing {to}..."):
        report = exports.export(
            target,
            exports.from_folder(store.resolve(source), adapter),
            to,
            precision,
            check=check,
            progress=status.progress,
        )
    if as_json:
        typer.echo(json.dumps(report.to_dict()))
        return
    typer.echo(
        f"{target}: {report.num_parameters:,} parameters in the {to} format, {precision}, {report.bytes:,} bytes"
    )
    typer.echo(f"checked by {report.parity}" if report.parity else f"not checked: {report.not_checked}")
