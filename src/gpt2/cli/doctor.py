"""`gpt2 doctor`: what is installed, what it runs on, and where things are; the first thing to send with a problem."""

from __future__ import annotations

import platform
import sys
from importlib import metadata
from typing import Annotated

import typer

from gpt2 import machine

PACKAGES = (
    *("tensorflow", "keras", "numpy", "ai-edge-litert", "numba", "tiktoken", "safetensors", "typer", "rich"),
    *("platformdirs", "jax", "torch"),
)


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Show versions, devices and folders, and whether a model runs."""
    facts: dict[str, str] = {"python": platform.python_version(), "system": platform.platform()}
    facts["processors"] = str(machine.cores())
    for package in ("gpt2", *PACKAGES):
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            facts[package] = "not installed"

    from gpt2 import checkpoints, store

    facts["models in"] = str(store.models_folder())
    try:
        described = checkpoints.describe(store.bundled_path())
        facts["bundled model"] = f"{described.config.num_parameters:,} parameters, {described.dtype}"
    except Exception as error:  # whatever it is, it belongs into the report
        facts["bundled model"] = f"broken: {error}"
    try:
        import keras
        import tensorflow as tf

        facts["keras backend"] = keras.backend.backend()
        facts["devices"] = ", ".join(device.name for device in tf.config.list_physical_devices())
        from gpt2.language_model import open_model

        def said(text: str) -> None:
            kind, colon, rest = text.partition(": ")
            if colon and kind == "engine":
                facts["engine"] = rest

        open_model(note=said).generate("Once", max_tokens=2, temperature=0)
        facts["generation"] = "works"
    except Exception as error:
        facts["generation"] = f"broken: {type(error).__name__}: {error}"
    if as_json:
        import json

        typer.echo(json.dumps(facts))
    else:
        for name, value in facts.items():
            typer.echo(f"{name:<15}{value}")
    if any(value.startswith("broken") for value in facts.values()):
        sys.exit(1)
