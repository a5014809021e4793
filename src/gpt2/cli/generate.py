"""`gpt2 generate`: write text, to the terminal as it comes, as JSON, or in a conversation of continuations."""

from __future__ import annotations

import json
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpt2.atomic import atomic_file
from gpt2.cli.codec import read_stdin
from gpt2.cli.status import Status
from gpt2.errors import ConfigError, PromptError

if TYPE_CHECKING:
    from gpt2.continuation import Completion
    from gpt2.language_model import LanguageModel

SEPARATOR = "=" * 40


def generate(
    prompt: Annotated[
        str | None,
        typer.Argument(help="The text to continue; `-` or a pipe reads it from standard input.", show_default=False),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="A name in the store or a folder. [default: the bundled model]")
    ] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", help="Write at most this many tokens.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 always takes the most probable token.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Keep only the k most probable tokens; 0 keeps all.")] = 40,
    top_p: Annotated[float, typer.Option(help="Keep the most probable tokens that together reach p.")] = 1.0,
    min_p: Annotated[float, typer.Option(help="Drop tokens less than this times as probable as the best.")] = 0.0,
    typical_p: Annotated[float, typer.Option(help="Keep the tokens of most typical surprisal that reach p.")] = 1.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1, makes tokens of the text less likely.")] = 1.0,
    frequency_penalty: Annotated[float, typer.Option(help="Subtracted for each earlier use of a token.")] = 0.0,
    presence_penalty: Annotated[float, typer.Option(help="Subtracted once a token has been used.")] = 0.0,
    seed: Annotated[
        int | None, typer.Option(help="The same seed gives the same text.", show_default="a new one")
    ] = None,
    num_samples: Annotated[int, typer.Option("--num-samples", help="How many continuations.")] = 1,
    num_beams: Annotated[int, typer.Option("--num-beams", help="Above 1, beam search; nothing is sampled.")] = 1,
    length_penalty: Annotated[float, typer.Option(help="Beams: above 1 favours long ones, below 1 short ones.")] = 1.0,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", help="End where the text contains this; may be given several times.")
    ] = None,
    min_tokens: Annotated[int, typer.Option(help="Do not end the text before this many tokens.")] = 0,
    logprobs: Annotated[
        int | None, typer.Option(help="With --json: log-probabilities, and those of this many best tokens.")
    ] = None,
    regex: Annotated[str | None, typer.Option(help="A regular expression that the continuation has to match.")] = None,
    json_schema: Annotated[
        str | None, typer.Option(help="A JSON schema that the continuation has to fit: a file, or the schema itself.")
    ] = None,
    echo: Annotated[bool, typer.Option("--echo/--no-echo", help="Print the prompt before its continuation.")] = True,
    no_slide: Annotated[
        bool, typer.Option("--no-slide", help="Refuse what does not fit the context, instead of sliding a window.")
    ] = False,
    no_drafts: Annotated[
        bool, typer.Option("--no-drafts", help="One token at a time, also where the text repeats itself; only slower.")
    ] = False,
    draft_model: Annotated[
        str | None, typer.Option(help="A smaller model with the same vocabulary, to guess ahead; saves time alone.")
    ] = None,
    engine: Annotated[str, typer.Option(help="litert, keras, or auto for the fastest that can be used.")] = "auto",
    precision: Annotated[
        str, typer.Option(help="Of the weights: float32; or with litert int8 or int4, faster and a little less exact.")
    ] = "float32",
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Say on stderr which engine runs the model.")
    ] = False,
    receipt: Annotated[
        Path | None, typer.Option(help="Write to this file what it takes to repeat this: gpt2 replay FILE.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a sample, nothing else.")] = False,
    interactive: Annotated[
        bool, typer.Option("--interactive", "-i", help="Ask for prompts until an empty line or Ctrl-D.")
    ] = False,
) -> None:
    """Continue a prompt; without one, write unconditionally from <|endoftext|>.

    What comes out is synthetic text: label it as such where others read it.

    Examples: gpt2 generate "Once upon a time" --seed 1; echo "The king" | gpt2 generate -n 40; gpt2 generate --json
    """
    settings: dict[str, Any] = {
        **{"max_tokens": max_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p},
        **{"typical_p": typical_p, "repetition_penalty": repetition_penalty, "min_tokens": min_tokens},
        **{"frequency_penalty": frequency_penalty, "presence_penalty": presence_penalty, "stop": stop},
        **{"num_samples": num_samples, "num_beams": num_beams, "length_penalty": length_penalty},
        **{"seed": secrets.randbits(31) if seed is None else seed, "logprobs": logprobs},
        **{"echo": echo, "context": "error" if no_slide else "slide", "drafts": not no_drafts},
        **{"regex": regex, "json_schema": _schema(json_schema)},
    }
    from gpt2.config import GenerationConfig

    GenerationConfig.from_options(**settings)  # complain before the model is loaded
    options: dict[str, Any] = {"engine": engine, "precision": precision, "draft_model": draft_model}
    if interactive and receipt is not None:
        raise ConfigError("receipt: expected none in a conversation, got one")
    if interactive:
        _interact(_load(model, verbose=verbose, **options), settings)
        return
    if prompt == "-":
        prompt = read_stdin("prompt").removesuffix("\n")
    elif prompt is None and not sys.stdin.isatty():
        prompt = read_stdin("prompt").removesuffix("\n") or None
    if prompt == "":
        raise PromptError("prompt: expected text, got an empty one; leave it out for unconditional text")
    if prompt is None and not as_json:
        settings["echo"] = False  # <|endoftext|>, from which unconditional text begins, is no text to show
    loaded = _load(model, verbose=verbose, **options)
    done = (_print_json if as_json else _print_text)(loaded, prompt, settings)
    if receipt is not None:
        from gpt2 import receipts

        config = GenerationConfig.from_options(**settings)
        told = receipts.make(loaded, loaded.prompt_tokens(prompt), config, done)
        with atomic_file(receipt) as new:
            new.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _schema(given: str | None) -> str | None:
    if given is None or given.lstrip().startswith("{"):
        return given
    return Path(given).read_text(encoding="utf-8")


def _load(model: str | None, *, precision: str, verbose: bool, **options: Any) -> LanguageModel:
    from gpt2.language_model import open_model

    status = Status(f"building for the fast engine, {precision}; once for each model")
    with status.waiting("preparing the engine; the first time on a machine takes some seconds"):
        return open_model(
            model,
            precision=precision,
            **options,
            note=status.say if verbose else None,
            progress=status.progress,
        )


def _print_json(model: LanguageModel, prompt: str | None, settings: dict[str, Any]) -> list[Completion]:
    done = model.generate(prompt, **settings)
    for completion in done:
        record = {
            "text": completion.text,
            "tokens": completion.tokens,
            "finish_reason": completion.finish_reason,
            "prompt_tokens": completion.prompt_tokens,
            "sample": completion.sample,
            "model": model.name,
            "seed": settings["seed"],
            "synthetic": True,
        }
        if settings["logprobs"] is not None:
            record["log_probabilities"] = completion.log_probabilities
            record["top_log_probabilities"] = completion.top_log_probabilities
        typer.echo(json.dumps(record, ensure_ascii=False))
    return done


def _print_text(model: LanguageModel, prompt: str | None, settings: dict[str, Any]) -> list[Completion]:
    from gpt2.continuation import Completion

    count = settings["num_samples"]
    if count == 1 and settings["num_beams"] == 1:
        single = Completion(prompt=0, sample=0)
        for piece in model.stream(prompt, **settings):
            single.add(piece)
            _write(piece.text)
        _write("\n")
        return [single]
    done = model.generate(prompt, **settings)
    for completion in done:
        if count > 1:
            _write(f"{SEPARATOR} SAMPLE {completion.sample + 1} {SEPARATOR}\n")
        _write(completion.text + "\n")
    return done


def _interact(loaded: LanguageModel, settings: dict[str, Any]) -> None:
    """Prompt after prompt; each is continued by itself, with the next seed."""
    sys.stderr.write(
        f"{loaded.name}: {loaded.num_parameters:,} parameters. Type the beginning of a text; an empty line ends.\n"
    )
    for turn in range(sys.maxsize):
        sys.stderr.write(">>> ")
        sys.stderr.flush()
        line = sys.stdin.readline()
        if not line.strip():
            break
        _print_text(loaded, line.rstrip("\n"), {**settings, "seed": settings["seed"] + turn})


def _write(text: str) -> None:
    """Text to stdout at once, in UTF-8 whatever the terminal's locale is."""
    sys.stdout.buffer.write(text.encode("utf-8", errors="replace"))
    sys.stdout.buffer.flush()
