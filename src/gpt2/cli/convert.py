"""`gpt2 convert`: a model from one format to another, tensor by tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A name in the store, or a folder in any format.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="The folder to write.")],
    to: Annotated[str, typer.Option("--to", help="native, huggingface or openai.")],
    dtype: Annotated[str, typer.Option("--dtype", help="float32 or float16 (not for openai).")] = "float32",
) -> None:
    """Write a model in another format.

    Numbers are not changed (float32 to float32 is bit for bit). Example: gpt2 convert 124M my-model --to huggingface
    """
    from gpt2 import checkpoints, store
    from gpt2.codec import codec_for

    path = store.resolve(source)
    config, tensors = checkpoints.read(path)
    codec = codec_for(path, config.n_vocab)
    checkpoints.write(target, config, tensors, format=to, codec=codec, dtype=dtype)
    typer.echo(f"{target}: {config.num_parameters:,} parameters in the {to} format")
