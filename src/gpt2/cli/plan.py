"""`gpt2 plan`: what a training will need, before it is begun."""

from __future__ import annotations

from typing import Annotated

import typer


def plan(
    size: Annotated[str | None, typer.Option(help="A released size. [default: 124M]")] = None,
    n_layer: Annotated[int | None, typer.Option(help="Layers, instead.")] = None,
    n_embd: Annotated[int | None, typer.Option(help="Width.")] = None,
    n_head: Annotated[int | None, typer.Option(help="Heads.")] = None,
    n_ctx: Annotated[int | None, typer.Option(help="Context.")] = None,
    steps: Annotated[int, typer.Option(help="Weight updates.")] = 1000,
    batch_size: Annotated[int, typer.Option(help="Sequences computed at once.")] = 8,
    accumulate: Annotated[int, typer.Option(help="Batches for one update.")] = 1,
    sequence_length: Annotated[int | None, typer.Option(help="Tokens in a sequence. [default: n_ctx]")] = None,
    precision: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    gradient_checkpointing: Annotated[bool, typer.Option("--gradient-checkpointing", help="As in train.")] = False,
    lora_rank: Annotated[int | None, typer.Option(help="As in train.")] = None,
    memory: Annotated[float | None, typer.Option(help="GB that may be used. [default: what this machine has]")] = None,
) -> None:
    """Forecast memory and time of `gpt2 train` from a short measurement, and propose settings that fit.

    Example: gpt2 plan --size 124M --batch-size 8 --sequence-length 256 --precision bfloat16 --memory 4
    """
    from rich.console import Console
    from rich.table import Table

    from gpt2 import machine
    from gpt2.config import TrainingConfig, shape_of
    from gpt2.errors import ConfigError
    from gpt2.plan import fitting

    config = shape_of(size, n_layer=n_layer, n_embd=n_embd, n_head=n_head, n_ctx=n_ctx)
    training = TrainingConfig(
        steps=steps,
        batch_size=batch_size,
        accumulation_steps=accumulate,
        sequence_length=sequence_length,
        precision=precision,
        gradient_checkpointing=gradient_checkpointing,
        lora_rank=lora_rank,
    )
    if memory is None:
        memory = (machine.memory() or 8e9) / 1e9
    elif memory <= 0:
        raise ConfigError(f"--memory: expected a number of GB above 0, got {memory}")
    with Console(stderr=True).status("measuring"):
        found = fitting(config, training, memory * 1e9)
    table = Table("batch", "accumulate", "checkpointing", "memory", "a step", "tokens/s", "in all", box=None)
    for row in found:
        t = row.training
        table.add_row(
            str(t.batch_size),
            str(t.accumulation_steps),
            "yes" if t.gradient_checkpointing else "no",
            f"{row.memory / 1e9:.1f} GB",
            f"{row.seconds_per_step:.2f} s",
            f"{row.tokens_per_second:,.0f}",
            f"{row.seconds / 3600:.1f} h",
        )
    typer.echo(f"{config.num_parameters:,} parameters, {steps:,} steps; {memory:.1f} GB of memory")
    Console(soft_wrap=True).print(table)
    best = found[-1]
    if best.memory > memory * 1e9:
        typer.echo("none of these fits: take a smaller model, a shorter sequence, or --lora-rank")
        raise typer.Exit(1)
    if len(found) > 1:
        checkpointing = " --gradient-checkpointing" if best.training.gradient_checkpointing else ""
        t = best.training
        typer.echo(f"fits: --batch-size {t.batch_size} --accumulate {t.accumulation_steps}{checkpointing}")
