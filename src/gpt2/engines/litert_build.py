"""From a model's weights to a folder that the fast engine runs: `model.tflite`, `config.json` and the vocabulary.

The graphs hold what is done to each token by itself: layer norms, the products with weights, GELU. Attention, which
looks from token to token, lies between them (`gpt2.engines.attention`), so a layer is cut in two there:

    first      x           -> qkv                 ln_1 and c_attn of layer 0
    block n    x, y        -> x, qkv              attention's c_proj and the MLP of layer n, ln_1 and c_attn of the next
    last       x, y        -> hidden              the same of the last layer, and ln_f
    head       hidden      -> logits

with x the residual stream (M, C), y attention's sums (M, C), qkv (M, 3 C), for any number of tokens M, of one row or of
many. Neither writing nor running it needs TensorFlow.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from gpt2 import checkpoints
from gpt2.atomic import atomic_folder
from gpt2.checkpoints.names import Tensors, check_shapes, expected_shapes
from gpt2.codec import Codec
from gpt2.config import LAYER_NORM_EPSILON, GPT2Config
from gpt2.engines.quantization import Scheme
from gpt2.engines.tflite import File, Graph
from gpt2.errors import CheckpointFormatError, ConfigError

VERSION = 1
FILES = ("config.json", "model.tflite", "vocab.bpe", "encoder.json")
"""Of what is built; what was built by another version is built anew."""

PRECISIONS: dict[str, tuple[Scheme, Scheme]] = {
    "float32": (Scheme("float32"), Scheme("float32")),
    "int8": (Scheme("int8"), Scheme("int8")),
    "int4": (Scheme("int4", 32), Scheme("int4", 32)),
}
"""How the layers' matrices are stored, and how the token embedding, which is the head too."""


def versions() -> dict[str, Any]:
    """What the result depends on beside the weights."""
    return {"build": VERSION, "ai-edge-litert": metadata.version("ai-edge-litert")}


def build(
    folder: Path,
    config: GPT2Config,
    tensors: Tensors,
    precision: str,
    *,
    codec: Codec | None = None,
    source: Any = None,
    progress: Callable[[int, int], None] | None = None,
    check: Callable[[Path], None] | None = None,
) -> None:
    """Write the folder, atomically; one tensor after another is in memory.

    Args:
        folder: where; what was built there before is replaced, unless other files are beside it.
        config: the shape.
        tensors: all of them under canonical names.
        precision: of the weights, one of `PRECISIONS`.
        codec: the vocabulary, or None.
        source: anything that JSON can hold, kept as it is: what it was made from.
        progress: told how many of how many parameters are done.
        check: called with the new folder before it takes its place, which an error from it prevents.

    Raises:
        ConfigError: no such precision.
        CheckpointError: the tensors cannot be read, or the folder cannot be written.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
    layers, embedding = PRECISIONS[precision]
    shapes = expected_shapes(config)
    seen: dict[str, tuple[int, ...]] = {}
    file = _graphs(config, layers, embedding)
    digest = hashlib.sha256()

    def packed() -> Iterator[tuple[str, tuple[np.ndarray, ...]]]:
        done, total = 0, config.num_parameters
        for name, array in tensors:
            seen[name] = array.shape
            if array.shape != shapes.get(name):
                check_shapes(config, {**shapes, name: array.shape}, source="build")
            digest.update(name.encode())  # as gpt2.checkpoints.names.weights_sha256 does
            digest.update(np.ascontiguousarray(array, "<f4").data)
            if name == "wte":
                yield name, embedding.fitting(config.n_embd).pack(array)
            elif name.endswith("/w"):
                yield name, layers.fitting(len(array)).pack(array.T)
            else:
                yield name, (array,)
            done += array.size
            if progress is not None:
                progress(done, total)
        check_shapes(config, seen, source="build")

    with atomic_folder(folder, replaceable=_is_build) as new:
        places = file.write(new / "model.tflite", packed())
        settings = {
            "format": checkpoints.BUILT_FORMAT,
            "version": VERSION,
            **config.to_dict(),
            "precision": precision,
            "weights_sha256": digest.hexdigest(),
            "places": {"wte": places["wte"], "wpe": places["wpe"]},
            "bytes": (new / "model.tflite").stat().st_size,
            "versions": versions(),
            "source": source,
        }
        (new / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        if codec is not None:
            for name, data in codec.files("openai").items():
                (new / name).write_bytes(data)
        if check is not None:
            check(new)


def _is_build(folder: Path) -> bool:
    """Whether a folder holds a build and nothing else, so that it may be replaced."""
    return checkpoints.is_built(folder) and {entry.name for entry in folder.iterdir()} <= set(FILES)


def read_settings(folder: Path) -> dict[str, Any]:
    """The `config.json` of a built model.

    Raises:
        CheckpointFormatError: it is none, or its weights are missing or cut short.
    """
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        size = (folder / "model.tflite").stat().st_size
    except (OSError, ValueError) as error:
        raise CheckpointFormatError(f"{folder}: expected a built model, got: {error}") from None
    if (
        not isinstance(settings, dict)
        or settings.get("format") != checkpoints.BUILT_FORMAT
        or settings.get("version") != VERSION
    ):
        raise CheckpointFormatError(f"{folder}: expected a built model of version {VERSION}; build it again")
    if size != settings.get("bytes"):
        raise CheckpointFormatError(f"{folder}: expected {settings.get('bytes')} bytes of weights, got {size}")
    return settings


def _graphs(config: GPT2Config, layers: Scheme, embedding: Scheme) -> File:
    file = File()
    V, C, L = config.n_vocab, config.n_embd, config.n_layer

    def qkv(graph: Graph, x: int, n: int) -> int:
        x = graph.layer_norm(x, f"h{n}/ln_1/g", f"h{n}/ln_1/b", LAYER_NORM_EPSILON)
        return graph.linear(x, f"h{n}/attn/c_attn/w", 3 * C, layers, f"h{n}/attn/c_attn/b")

    graph = Graph(file, "first", x=C)
    graph.outputs(qkv=qkv(graph, graph.inputs["x"], 0))
    for n in range(L):
        graph = Graph(file, "last" if n == L - 1 else f"block{n}", x=C, y=C)
        y = graph.linear(graph.inputs["y"], f"h{n}/attn/c_proj/w", C, layers, f"h{n}/attn/c_proj/b")
        x = graph.add(graph.inputs["x"], y)
        m = graph.layer_norm(x, f"h{n}/ln_2/g", f"h{n}/ln_2/b", LAYER_NORM_EPSILON)
        m = graph.gelu(graph.linear(m, f"h{n}/mlp/c_fc/w", 4 * C, layers, f"h{n}/mlp/c_fc/b"))
        x = graph.add(x, graph.linear(m, f"h{n}/mlp/c_proj/w", C, layers, f"h{n}/mlp/c_proj/b"))
        if n < L - 1:
            graph.outputs(x=x, qkv=qkv(graph, x, n + 1))
        else:
            graph.outputs(hidden=graph.layer_norm(x, "ln_f/g", "ln_f/b", LAYER_NORM_EPSILON))
    graph = Graph(file, "head", hidden=C)
    graph.outputs(logits=graph.linear(graph.inputs["hidden"], "wte", V, embedding, None))
    file.weights("wpe", 4 * config.n_ctx * C)  # no graph has it; the engine reads it from the file
    assert set(expected_shapes(config)) == file.names
    return file
