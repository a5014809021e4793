"""`gpt2 serve`: models over HTTP. `gpt2 keys`: who may ask them."""

from __future__ import annotations

from typing import Annotated

import typer

keys_app = typer.Typer(
    help="Make, list and remove the server's API keys.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)


def serve(
    host: Annotated[str, typer.Option(help="The address to listen on; others than this machine's need a key.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="0 takes any free one.")] = 8000,
    model: Annotated[str | None, typer.Option("--model", "-m", help="The model for requests that name none.")] = None,
    engine: Annotated[str, typer.Option(help="litert, keras or auto.")] = "auto",
    precision: Annotated[str, typer.Option(help="float32, int8 or int4.")] = "float32",
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A name by which the server may be called; may be repeated.")
    ] = None,
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="A page that may call it, as https://example.org; may be repeated.")
    ] = None,
    max_models: Annotated[int, typer.Option(help="Models that are open at once.")] = 2,
    max_waiting: Annotated[int, typer.Option(help="Texts that wait; more are refused (429).")] = 256,
    requests_per_minute: Annotated[int | None, typer.Option(help="Of each key or address. [default: any]")] = None,
) -> None:
    """Serve models over HTTP: OpenAI's /v1/completions, and /v2 (see /docs on the server).

    Requests are logged to stderr as JSON lines, without prompts and keys. SIGTERM lets what is being answered end.

    Examples:
      gpt2 serve
      gpt2 keys create me; gpt2 serve --host 0.0.0.0 --allow-host gpt2.example.org
    """
    from gpt2.server.run import serve as run
    from gpt2.server.settings import Settings

    run(
        Settings(
            host=host,
            port=port,
            model=model,
            engine=engine,
            precision=precision,
            allowed_hosts=tuple(allow_host or ()),
            allowed_origins=tuple(allow_origin or ()),
            max_models=max_models,
            max_waiting=max_waiting,
            requests_per_minute=requests_per_minute,
        ),
        lambda text: typer.echo(text, err=True),
    )


@keys_app.command("create")
def create(
    name: Annotated[str, typer.Argument(help="What it is for.")],
    scope: Annotated[str, typer.Option(help="query, train (also trains) or admin (everything).")] = "query",
) -> None:
    """Make a key and print it; it is not shown again."""
    from gpt2.server.keys import Keys

    typer.echo(Keys().create(name, scope))


@keys_app.command("list")
def list_keys() -> None:
    """List the keys: id, scope and name."""
    from gpt2.server.keys import Keys

    for key in Keys().all():
        typer.echo(f"{key.id}  {key.scope:<6} {key.name}")


@keys_app.command("remove")
def remove(key: Annotated[str, typer.Argument(help="Its name or id.")]) -> None:
    """Remove a key; it opens nothing from then on, on a running server too."""
    from gpt2.server.keys import Keys

    removed = Keys().remove(key)
    typer.echo(f"removed {removed.name}")
