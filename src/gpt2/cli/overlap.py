"""`gpt2 overlap` and `gpt2 memorized`: what texts share with the text that a model was trained on."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpt2.cli.codec import codec_of
from gpt2.cli.status import Status

if TYPE_CHECKING:
    from gpt2.codec import Codec
    from gpt2.overlap import Memorized

Files = Annotated[list[str], typer.Argument(metavar="FILE...", help="Files, folders, patterns, or - for stdin.")]
Training = Annotated[
    list[str],
    typer.Option(
        "--in", "-i", help="The training text: one folder made by gpt2 prepare; or files and folders, may be repeated."
    ),
]
ColumnOption = Annotated[
    str | None, typer.Option(help="The field with the text, in tables and .jsonl. [default: text]")
]
EncodingOption = Annotated[str, typer.Option(help="Of text files: utf-8, utf-16, latin-1 and so on.")]
ModelOption = Annotated[
    str | None, typer.Option("--model", "-m", help="Use the vocabulary of this model. [default: GPT-2's]")
]


def overlap(
    files: Files,
    training: Training,
    n: Annotated[int, typer.Option("--n", help="Words of a gram.")] = 8,
    column: ColumnOption = None,
    training_column: Annotated[str | None, typer.Option(help="The same, of the training text.")] = None,
    encoding: EncodingOption = "utf-8",
    model: ModelOption = None,
    documents: Annotated[bool, typer.Option("--documents", help="Tell it of each document, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, nothing else.")] = False,
) -> None:
    """Say how much of an evaluation set stands in a training set: the share of its 8-grams of words, as in the paper.

    Words are lower-cased and alphanumeric; the count is exact. Each FILE is a set by itself.

    Example: gpt2 overlap wiki.test.raw --in data
    """
    from gpt2.overlap import Texts, overlaps

    codec = _codec(model)
    status = Status("reading the training text")
    sets = [Texts([file], column=column, encoding=encoding, codec=codec) for file in files]
    source = Texts(training, column=training_column, encoding=encoding, codec=codec)

    def on_progress() -> None:
        if source.total:
            status.progress(source.done, source.total)

    results: dict[str, Any] = {}
    found = overlaps(sets, source, n=n, on_progress=on_progress)
    status.clear()
    for file, one in zip(files, found, strict=True):
        facts = {**dataclasses.asdict(one), "percent": one.percent, "touched": one.touched}
        each = facts.pop("documents")
        results[file] = {**facts, "documents": each if documents else len(each)}
        if as_json:
            continue
        if one.percent is None:
            typer.echo(f"{file}: no document has {n} words, so there is nothing to compare")
            continue
        typer.echo(
            f"{file}: {one.percent:.2f} % of {one.grams:,} {n}-grams ({one.distinct_found:,} of {one.distinct:,} "
            f"different ones), in {one.touched:,} of {len(one.documents):,} documents"
        )
        for document in one.documents if documents else ():
            typer.echo(f"  {document.source}: {document.found:,} of {document.grams:,}")
    if as_json:
        typer.echo(json.dumps(results))


def memorized(
    files: Files,
    training: Training,
    min_tokens: Annotated[int, typer.Option(help="Tokens of a span at least.")] = 32,
    column: ColumnOption = None,
    training_column: Annotated[str | None, typer.Option(help="The same, of the training text.")] = None,
    encoding: EncodingOption = "utf-8",
    model: ModelOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object for each text, nothing else.")] = False,
) -> None:
    """Find what of some texts stands verbatim in a training set: the longest spans, token for token, and where.

    Example: gpt2 generate "Once upon a time" -n 400 --json > out.jsonl; gpt2 memorized out.jsonl --in data
    """
    from gpt2.data.documents import find_files, read_documents
    from gpt2.overlap import memorized, with_shards

    codec = _codec(model)
    names, texts = [], []
    for document in read_documents(find_files(files), column=column, encoding=encoding):
        names.append(document.source)
        texts.append(codec.encode("".join(document.pieces)))
    status = Status("reading the training text")
    with with_shards(training, codec, column=training_column, encoding=encoding) as tokens:
        found = memorized(
            texts, tokens, end_of_text=codec.end_of_text, shortest=min_tokens, on_progress=status.progress
        )
    status.clear()
    for name, text, result in zip(names, texts, found, strict=True):
        spans = _spans(result, text, codec)
        facts = {"source": name, "tokens": result.tokens, "covered": result.covered, "longest": result.longest}
        facts["min_tokens"] = min_tokens
        if as_json:
            typer.echo(json.dumps({**facts, "spans": spans}))
            continue
        typer.echo(
            f"{name}: {result.covered:,} of {result.tokens:,} tokens stand in the training text in spans of at "
            f"least {min_tokens:,}" + (f", the longest has {result.longest:,}" if spans else "")
        )
        for span in spans:
            places = f"{span['places']:,} places" if span["places"] > 1 else "1 place"
            typer.echo(
                f"  {span['last'] - span['first']:,} tokens from {span['first']:,}, {places}, first in document "
                f"{span['document']:,} at token {span['offset']:,}: {json.dumps(span['text'], ensure_ascii=False)}"
            )


def _spans(result: Memorized, text: list[int], codec: Codec) -> list[dict[str, Any]]:
    return [{**dataclasses.asdict(span), "text": codec.decode(text[span.first : span.last])} for span in result.spans]


def _codec(model: str | None) -> Codec:
    from gpt2 import store

    return codec_of(None if model == store.BUNDLED else model)
