"""`gpt2 convert`: a model from one format to another, tensor by tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gpt2.cli.status import Status
from gpt2.errors import ConfigError


def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A name in the store, or a folder in any format.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="The folder to write.")],
    to: Annotated[str, typer.Option("--to", help="native, huggingface, openai or litert.")],
    dtype: Annotated[
        str, typer.Option("--dtype", help="float32 or float16 (native and huggingface alone).")
    ] = "float32",
    precision: Annotated[str, typer.Option("--precision", help="For litert: float32, int8 or int4.")] = "float32",
) -> None:
    """Write a model in another format, or for litert what the fast engine runs.

    Numbers are not changed (float32 to float32 is bit for bit). Example: gpt2 convert 124M my-model --to huggingface
    """
    from gpt2 import checkpoints, store
    from gpt2.codec import codec_for

    path = store.resolve(source)
    config, tensors = checkpoints.read(path)
    codec = codec_for(path, config.n_vocab)
    if precision != "float32" and to != "litert":
        raise ConfigError(f"precision: expected float32 for the {to} format, got {precision!r}; only litert has others")
    if to == "litert":
        from gpt2.engines import litert_build

        if dtype != "float32":
            raise ConfigError(f"dtype: expected none for litert, got {dtype!r}; it has --precision")
        status = Status(f"building, {precision}")
        litert_build.build(target, config, tensors, precision, codec=codec, progress=status.progress)
        status.clear()
        to = f"litert, {precision},"
    else:
        checkpoints.write(target, config, tensors, format=to, codec=codec, dtype=dtype)
    typer.echo(f"{target}: {config.num_parameters:,} parameters in the {to} format")
