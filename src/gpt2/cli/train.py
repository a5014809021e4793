"""`gpt2 train`: train a model on text, fine-tune one, or go on with a run."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from gpt2.codec import Codec


def train(
    data: Annotated[
        list[str] | None,
        typer.Argument(metavar="DATA...", help="What `gpt2 prepare` reads, or a folder that it has made."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A new folder for the run.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the run in this folder instead.")] = None,
    base: Annotated[
        str | None, typer.Option("--from", help="Fine-tune this model: a name or a folder. [default: bundled]")
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="Begin anew with the shape of a released size, such as 124M.")
    ] = None,
    n_layer: Annotated[int | None, typer.Option(help="Begin anew with this many layers.")] = None,
    n_embd: Annotated[int | None, typer.Option(help="... of this width.")] = None,
    n_head: Annotated[int | None, typer.Option(help="... with this many heads.")] = None,
    n_ctx: Annotated[int | None, typer.Option(help="... that see this many tokens.")] = None,
    valid: Annotated[
        list[str] | None, typer.Option(help="Held-out text. [default: a part that `prepare` holds out]")
    ] = None,
    column: Annotated[
        str | None, typer.Option(help="The field with the text, in tables and .jsonl. [default: text]")
    ] = None,
    encoding: Annotated[str, typer.Option(help="Of text: utf-8, utf-16, latin-1 and so on.")] = "utf-8",
    steps: Annotated[int | None, typer.Option(help="Weight updates. [default: 1000]")] = None,
    epochs: Annotated[float | None, typer.Option(help="Instead of --steps: times through the text.")] = None,
    batch_size: Annotated[int, typer.Option(help="Sequences computed at once.")] = 8,
    accumulate: Annotated[int, typer.Option(help="Batches for one update.")] = 1,
    sequence_length: Annotated[int | None, typer.Option(help="Tokens in a sequence. [default: n_ctx]")] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", "--lr", help="[default: 6e-4; with --from 1e-4; with LoRA 1e-3]")
    ] = None,
    schedule: Annotated[str, typer.Option(help="cosine, linear, constant or inverse_sqrt.")] = "cosine",
    warmup: Annotated[int, typer.Option(help="Steps in which the learning rate rises.")] = 100,
    weight_decay: Annotated[float, typer.Option(help="On matrices and embeddings, not on biases and norms.")] = 0.1,
    dropout: Annotated[float, typer.Option(help="Share of activations dropped.")] = 0.0,
    precision: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, a quarter more time.")
    ] = False,
    separate_documents: Annotated[
        bool, typer.Option("--separate-documents", help="Do not attend across the end of a document.")
    ] = False,
    lora_rank: Annotated[int | None, typer.Option(help="Train adapters of this rank alone.")] = None,
    lora_targets: Annotated[
        str | None, typer.Option(help="Which matrices, separated by commas. [default: all four of a block]")
    ] = None,
    trainable: Annotated[
        str | None, typer.Option(help="Which parameters change: patterns such as 'h7/*,ln_f/*'. [default: all]")
    ] = None,
    eval_every: Annotated[int, typer.Option(help="Steps between two rows of the table.")] = 100,
    save_every: Annotated[int | None, typer.Option(help="Steps between checkpoints. [default: --eval-every]")] = None,
    patience: Annotated[
        int | None, typer.Option(help="Stop after so many rows without a better held-out loss.")
    ] = None,
    keep_last: Annotated[int, typer.Option(help="Checkpoints kept, besides the best.")] = 2,
    sample: Annotated[list[str] | None, typer.Option(help="A prompt to continue at each row; may be repeated.")] = None,
    monitor: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK=PATH", help="Evaluate at each checkpoint: a task of gpt2 eval. May be repeated."),
    ] = None,
    monitor_limit: Annotated[int | None, typer.Option(help="Of each such set only so many documents.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything drawn at random.")] = 0,
) -> None:
    """Train on text: a new model, or with --from an existing one.

    Text is prepared on the way, into RUN/data, as `gpt2 prepare` does it. Ctrl-C stops; `gpt2 train --resume RUN` goes
    on from the last checkpoint, exactly. Every checkpoint is a model: `gpt2 generate --model RUN "..."` takes the best
    one, RUN@100 the one after 100 steps.

    Examples:
      gpt2 train stories/ --from bundled -o my-run --steps 200 --batch-size 4 --sequence-length 128
      gpt2 train stories/ --monitor wikitext2=wiki.test.raw --monitor-limit 10 -o watched
      gpt2 train stories/ --n-layer 4 --n-embd 128 --n-head 4 --n-ctx 256 -o small --steps 2000
    """
    from gpt2 import store
    from gpt2.config import LORA_TARGETS, TrainingConfig, shape_of
    from gpt2.errors import ConfigError

    if resume is not None:
        if data or out is not None or base is not None or size is not None:
            raise ConfigError("--resume: expected nothing else, since the run knows its data and settings")
        _resume(resume)
        return
    if not data:
        raise ConfigError("DATA: expected text files, folders or a prepared folder, got none")
    if out is None:
        raise ConfigError("--out: expected a new folder for the run, got none")
    anew = any(value is not None for value in (size, n_layer, n_embd, n_head, n_ctx))
    if base is not None and anew:
        raise ConfigError("--from: expected no shape beside it, since the model has one; got both")
    if steps is not None and epochs is not None:
        raise ConfigError("--steps, --epochs: expected one of them, got both")
    config = shape_of(size, n_layer=n_layer, n_embd=n_embd, n_head=n_head, n_ctx=n_ctx) if anew else None
    training = TrainingConfig(
        steps=1000 if steps is None else steps,
        batch_size=batch_size,
        accumulation_steps=accumulate,
        sequence_length=sequence_length,
        learning_rate=learning_rate,
        schedule=schedule,
        warmup_steps=warmup,
        weight_decay=weight_decay,
        dropout=dropout,
        precision=precision,
        gradient_checkpointing=gradient_checkpointing,
        cross_documents=not separate_documents,
        lora_rank=lora_rank,
        lora_targets=_split(lora_targets) or LORA_TARGETS,
        trainable=_split(trainable),
        eval_every=eval_every,
        save_every=save_every,
        patience=patience,
        keep_last=keep_last,
        sample_prompts=tuple(sample or ()),
        seed=seed,
    )
    from gpt2 import gpt, runs
    from gpt2.codec import fitting_default
    from gpt2.monitors import Monitor, check_monitors
    from gpt2.training.devices import strategy_of_environment

    monitors = [Monitor.parse(text, monitor_limit) for text in monitor or ()]
    check_monitors(monitors)  # complain before the text is prepared
    strategy = strategy_of_environment()
    shape, codec = gpt.shape_and_codec(base) if config is None else (config, fitting_default(config.n_vocab))
    reading = (column, encoding, codec, strategy)
    data = _prepared(data, out / runs.DATA, 0.0 if valid else 0.05, *reading)
    if valid:
        valid = _prepared(valid, out / runs.VALID, 0.0, *reading)
    if epochs is not None:
        tokens, _ = gpt.read_data(data, None, codec)
        training = dataclasses.replace(training, steps=gpt.steps_of(epochs, tokens, training, shape))
    with _table(training.steps, strategy) as told:
        gpt.train_model(
            data,
            model=(base or store.BUNDLED) if config is None else None,
            config=config,
            valid_data=valid or None,
            training=training,
            run=out,
            monitors=monitors,
            strategy=strategy,
            **told,
        )
    _say_how_to_use(out, strategy)


def _prepared(
    data: list[str],
    folder: Path,
    valid_fraction: float,
    column: str | None,
    encoding: str,
    codec: Codec | None,
    strategy: Any,
) -> list[str]:
    """The data themselves if they are a prepared folder, else `folder`, into which they are prepared."""
    from gpt2 import store
    from gpt2.cli.prepare import progress_bar, say_what_was_prepared
    from gpt2.data.prepare import prepare
    from gpt2.data.shards import is_prepared
    from gpt2.errors import ConfigError

    if (len(data) == 1 and is_prepared(data[0])) or store.is_run(folder.parent):  # which is refused later, with a hint
        return data
    if getattr(strategy, "cluster_resolver", None) is not None:
        raise ConfigError(f"DATA: expected a folder made by `gpt2 prepare`, which the workers share; got {data[0]}")
    with progress_bar() as on_progress:
        options: dict[str, Any] = {"column": column, "encoding": encoding, "valid_fraction": valid_fraction}
        prepared = prepare(data, folder, codec=codec, on_progress=on_progress, **options)
    say_what_was_prepared(prepared, folder)
    return [str(folder)]


def _resume(run: Path) -> None:
    from gpt2 import gpt
    from gpt2.runs import Run
    from gpt2.training.devices import strategy_of_environment

    strategy = strategy_of_environment()
    with _table(Run.open(run, typer.echo).facts["training"]["steps"], strategy) as told:
        gpt.resume_training(run, strategy=strategy, **told)
    _say_how_to_use(run, strategy)


@contextlib.contextmanager
def _table(steps: int, strategy: Any) -> Iterator[dict[str, Any]]:
    """What training tells what happens: a table, in the one process that writes the run; the others are silent."""
    from gpt2.live import LiveTable
    from gpt2.training.devices import is_chief

    if not is_chief(strategy):
        typer.echo("training; the first worker writes the run and says how it goes", err=True)
        yield {}
        return
    with LiveTable(steps) as table:
        if strategy is not None:
            table.note(f"{strategy.num_replicas_in_sync} devices train together")
        yield {
            "on_log": lambda entry: table.update(dataclasses.asdict(entry)),
            "on_step": table.step,
            "note": table.note,
        }


def _split(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip()) if text else ()


def _say_how_to_use(run: Path, strategy: Any) -> None:
    from gpt2.training.devices import is_chief

    if is_chief(strategy):
        name = str(run) if "/" in str(run) else f"./{run}"
        typer.echo(f'report: {run / "report.html"}\nuse it: gpt2 generate "Once upon a time" --model {name}')
