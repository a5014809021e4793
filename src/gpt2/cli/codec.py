"""`gpt2 encode` and `gpt2 decode`: text to token ids and back, without TensorFlow."""

from __future__ import annotations

import json
import re
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from gpt2.errors import CodecError, PromptError

if TYPE_CHECKING:
    from gpt2.codec import Codec

ModelOption = Annotated[
    str | None, typer.Option("--model", "-m", help="Use the vocabulary of this model (name or folder).")
]


def read_stdin(what: str) -> str:
    """All of standard input as text; `what` names it in errors.

    Raises:
        PromptError: it is not UTF-8.
    """
    data = sys.stdin.buffer.read()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PromptError(
            f"{what} on standard input: expected UTF-8 text, got the byte {data[error.start]:#04x} at {error.start}"
        ) from None


def encode(
    text: Annotated[str | None, typer.Argument(help="The text; without it, standard input is read.")] = None,
    model: ModelOption = None,
    allow_special: Annotated[
        bool, typer.Option("--allow-special", help="Let <|endoftext|> in the text become the special token.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """Print the token ids of a text.

    Example: gpt2 encode "Hello world" prints 15496 995.
    """
    codec = codec_of(model)
    text = read_stdin("text") if text is None else text
    tokens = codec.encode(text, allowed_special=set(codec.special_tokens) if allow_special else ())
    typer.echo(json.dumps(tokens) if as_json else " ".join(map(str, tokens)))


def decode(
    tokens: Annotated[
        list[str] | None, typer.Argument(help="Token ids; without them, standard input is read.", show_default=False)
    ] = None,
    model: ModelOption = None,
) -> None:
    """Print the text of token ids, byte for byte.

    Ids may be separated by spaces, commas or lines, and a JSON list is understood. Example: gpt2 decode 15496 995
    prints Hello world.
    """
    codec = codec_of(model)
    words = re.split(r"[\s,\[\]]+", " ".join(tokens) if tokens else read_stdin("token ids"))
    ids = []
    for word in filter(None, words):
        if not re.fullmatch(r"[0-9]{1,10}", word):
            raise PromptError(f"tokens: expected token ids such as 15496 995, got {word[:40]!r}")
        ids.append(int(word))
    try:
        data = codec.decode_bytes(ids)
    except CodecError as error:
        raise PromptError(str(error)) from None
    sys.stdout.buffer.write(data + (b"\n" if sys.stdout.isatty() else b""))
    sys.stdout.buffer.flush()


def codec_of(model: str | None) -> Codec:
    """The vocabulary of a model, or GPT-2's own."""
    from gpt2 import checkpoints, store
    from gpt2.codec import default_codec

    if model is None:
        return default_codec()
    path = store.resolve(model)
    found = checkpoints.own_codec(path)
    if found is None:
        raise CodecError(f"{path}: expected a model with a vocabulary (vocab.bpe, merges.txt or tokenizer.json)")
    return found
