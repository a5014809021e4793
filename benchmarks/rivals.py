"""Ours and the peers on the same weights, each in its own process, asked in turns: what the other benchmarks share.

GPT-2 124M with random weights (speed does not depend on them), written once in each one's format into a folder that is
kept between runs. A contender is a process that is told on its standard input what to do, and answers with seconds.
Peers that are not installed (`pip install '.[bench]'`) are left out, and said so.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpt2 import checkpoints
from gpt2.checkpoints.names import expected_shapes
from gpt2.codec import default_codec
from gpt2.config import SIZES

THREADS = 2
FOLDER = Path(os.environ.get("GPT2_BENCH", os.path.join(tempfile.gettempdir(), "gpt2-bench")))
CONFIG = SIZES["124M"]


def tensors() -> Iterator[tuple[str, np.ndarray]]:
    """Random weights, the same every time."""
    rng = np.random.default_rng(0)
    for name, shape in expected_shapes(CONFIG).items():
        array = rng.standard_normal(shape, dtype=np.float32) * 0.02
        yield name, np.ones(shape, np.float32) if name.endswith("/g") else array


def tokens(count: int, seed: int = 0) -> list[int]:
    """A prompt."""
    return [int(token) for token in np.random.default_rng(seed).integers(0, CONFIG.n_vocab, count)]


def kept(name: str, write: Callable[[Path], None]) -> Path:
    """A file or folder that is written when it is not there yet."""
    path = FOLDER / name
    if not path.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        new = FOLDER / f".{os.getpid()}-{name}"
        write(new)
        new.rename(path)
    return path


def huggingface() -> Path:
    """The weights as Hugging Face has them."""

    def write(path: Path) -> None:
        checkpoints.write(path, CONFIG, tensors(), format="huggingface", codec=default_codec())

    return kept("huggingface", write)


class Ours:
    """The litert engine of this package."""

    def __init__(self, precision: str) -> None:
        from gpt2.engines.litert import LiteRTEngine
        from gpt2.engines.litert_build import build

        path = kept(f"ours-{precision}", lambda path: build(path, CONFIG, tensors(), precision))
        self.engine = LiteRTEngine(path, threads=THREADS)

    def decode(self, past: int, steps: int) -> list[float]:
        """Seconds of each of some steps behind `past` tokens."""
        cache = self.engine.new_cache(1)
        self.engine.feed(cache, [tokens(past)])
        return [timed(lambda: self.engine.feed(cache, [[token]])) for token in tokens(steps, 1)]  # noqa: B023

    def prefill(self, count: int, seed: int) -> float:
        """Seconds until the logits behind `count` tokens that were never seen."""
        return timed(lambda: self.engine.feed(self.engine.new_cache(1), [tokens(count, seed)]))

    def batch(self, rows: int, past: int, steps: int) -> float:
        """Seconds a step of several rows."""
        cache = self.engine.new_cache(rows)
        self.engine.feed(cache, [tokens(past, row) for row in range(rows)])
        self.engine.feed(cache, [[1]] * rows)

        def run() -> None:
            for token in tokens(steps, 1):
                self.engine.feed(cache, [[token]] * rows)

        return timed(run) / steps


class Keras(Ours):
    """The reference engine of this package."""

    def __init__(self) -> None:
        from gpt2.engines.registry import open_engine

        self.engine = open_engine(huggingface(), "keras")  # type: ignore[assignment]


class LlamaCpp:
    """llama.cpp, by llama-cpp-python, on a GGUF file of the same weights."""

    def __init__(self, kind: str) -> None:
        import llama_cpp.llama
        from llama_cpp import Llama

        if os.environ.get("GPT2_BENCH_PLAIN"):  # its AMX kernels crash on a GPT-2 (0.3.36): do without repacked weights
            defaults = llama_cpp.llama_cpp.llama_model_default_params

            def plain() -> Any:
                parameters = defaults()
                parameters.use_extra_bufts = False
                return parameters

            llama_cpp.llama_cpp.llama_model_default_params = plain
        path = kept(f"{kind}.gguf", lambda path: write_gguf(path, kind))
        options = {"n_ctx": 1024, "n_batch": 512, "n_threads": THREADS, "n_threads_batch": THREADS, "verbose": False}
        self.model = Llama(str(path), **options)

    def decode(self, past: int, steps: int) -> list[float]:
        """As `Ours.decode`."""
        self.model.reset()
        self.model.eval(tokens(past))
        return [timed(lambda: self.model.eval([token])) for token in tokens(steps, 1)]  # noqa: B023

    def prefill(self, count: int, seed: int) -> float:
        """As `Ours.prefill`."""
        self.model.reset()
        return timed(lambda: self.model.eval(tokens(count, seed)))


class Transformers:
    """transformers on torch, float32."""

    def __init__(self) -> None:
        import torch
        from transformers import GPT2LMHeadModel

        torch.set_num_threads(THREADS)
        torch.set_grad_enabled(False)
        self.torch = torch
        self.model = GPT2LMHeadModel.from_pretrained(huggingface()).eval()

    def _feed(self, ids: list[list[int]], past: Any = None) -> Any:
        given = self.torch.tensor(ids)
        return self.model(given, past_key_values=past, use_cache=True, logits_to_keep=1).past_key_values

    def decode(self, past: int, steps: int) -> list[float]:
        """As `Ours.decode`."""
        cache = self._feed([tokens(past)])
        return [timed(lambda: self._feed([[token]], cache)) for token in tokens(steps, 1)]  # noqa: B023

    def prefill(self, count: int, seed: int) -> float:
        """As `Ours.prefill`."""
        return timed(lambda: self._feed([tokens(count, seed)]))

    def batch(self, rows: int, past: int, steps: int) -> float:
        """As `Ours.batch`."""
        cache = self._feed([tokens(past, row) for row in range(rows)])

        def run() -> None:
            for token in tokens(steps, 1):
                self._feed([[token]] * rows, cache)

        return timed(run) / steps


class CTranslate2:
    """CTranslate2, which gives text alone: a step is what each further token costs."""

    def __init__(self, kind: str) -> None:
        import ctranslate2
        from ctranslate2.converters import TransformersConverter

        def write(path: Path) -> None:
            TransformersConverter(str(huggingface())).convert(str(path), quantization=kind)

        path = kept(f"ctranslate2-{kind}", write)
        self.model = ctranslate2.Generator(str(path), intra_threads=THREADS, compute_type=kind)
        self.words = json.loads(default_codec().files("openai")["encoder.json"])
        self.words = {number: word for word, number in self.words.items()}

    def _seconds(self, rows: int, past: int, steps: int) -> float:
        prompts = [[self.words[token] for token in tokens(past, row)] for row in range(rows)]
        options = {"max_length": steps, "min_length": steps, "sampling_topk": 1, "include_prompt_in_result": False}
        return timed(lambda: self.model.generate_batch(prompts, max_batch_size=rows, **options))

    def decode(self, past: int, steps: int) -> list[float]:
        """As `Ours.decode`, but one average."""
        return [(self._seconds(1, past, steps + 1) - self._seconds(1, past, 1)) / steps]

    def prefill(self, count: int, seed: int) -> float:
        """As `Ours.prefill`."""
        return self._seconds(1, count, 1)

    def batch(self, rows: int, past: int, steps: int) -> float:
        """As `Ours.batch`."""
        return (self._seconds(rows, past, steps + 1) - self._seconds(rows, past, 1)) / steps


class KerasHub:
    """Keras Hub's GPT-2 on TensorFlow with XLA, which gives whole texts: a step is what each further token costs."""

    def __init__(self) -> None:
        import tensorflow
        from keras_hub.models import GPT2Backbone, GPT2CausalLM

        tensorflow.config.threading.set_intra_op_parallelism_threads(THREADS)
        backbone = GPT2Backbone(
            vocabulary_size=CONFIG.n_vocab,
            num_layers=CONFIG.n_layer,
            num_heads=CONFIG.n_head,
            hidden_dim=CONFIG.n_embd,
            intermediate_dim=4 * CONFIG.n_embd,
            max_sequence_length=CONFIG.n_ctx,
            dropout=0.0,
        )
        weights = {weight.path: weight for weight in backbone.weights}
        for path, array in self._named():
            weights[path].assign(array.reshape(weights[path].shape))
        self.model = GPT2CausalLM(backbone=backbone, preprocessor=None)
        self.model.compile(sampler="greedy")
        self._begun: set[tuple[int, ...]] = set()

    def _named(self) -> Iterator[tuple[str, np.ndarray]]:
        """The weights under the names that they have there."""
        outer = {"wte": "token_embedding/embeddings", "wpe": "position_embedding/embeddings"}
        outer |= {"ln_f/g": "layer_norm/gamma", "ln_f/b": "layer_norm/beta"}
        layers = {"ln_1": "self_attention_layer_norm", "attn/c_proj": "self_attention/attention_output"}
        layers |= {"ln_2": "feedforward_layer_norm"}
        layers |= {"mlp/c_fc": "feedforward_intermediate_dense", "mlp/c_proj": "feedforward_output_dense"}
        letters = {"w": "kernel", "b": "bias", "g": "gamma"}
        for name, array in tensors():
            if name in outer:
                yield outer[name], array
                continue
            layer, part = name.split("/", 1)
            part, letter = part.rsplit("/", 1)
            word = "beta" if part.startswith("ln") and letter == "b" else letters[letter]
            start = f"transformer_layer_{layer[1:]}"
            if part == "attn/c_attn":
                for third, values in zip(("query", "key", "value"), np.split(array, 3, axis=-1), strict=True):
                    yield f"{start}/self_attention/{third}/{word}", values
            else:
                yield f"{start}/{layers[part]}/{word}", array

    def _seconds(self, rows: int, past: int, length: int) -> float:
        """What it takes to write from `past` tokens on to `length`; it is compiled before, for each shape."""
        ids = np.zeros((rows, length), np.int32)
        ids[:, :past] = [tokens(past, row) for row in range(rows)]
        given = {"token_ids": ids, "padding_mask": np.arange(length) < past + np.zeros((rows, 1), np.int32)}

        def run() -> None:
            self.model.generate(given, stop_token_ids=None)

        if ids.shape not in self._begun:
            self._begun.add(ids.shape)
            run()
        return timed(run)

    def decode(self, past: int, steps: int) -> list[float]:
        """As `Ours.decode`, but one average."""
        return [self.batch(1, past, steps)]

    def prefill(self, count: int, seed: int) -> float:
        """As `Ours.prefill`."""
        return self._seconds(1, count, count + 1)

    def batch(self, rows: int, past: int, steps: int) -> float:
        """As `Ours.batch`."""
        length = past + steps + 1
        return (self._seconds(rows, past, length) - self._seconds(rows, past + steps, length)) / steps


CONTENDERS: dict[str, tuple[type, tuple[Any, ...], str]] = {
    "ours int4": (Ours, ("int4",), ""),
    "ours int8": (Ours, ("int8",), ""),
    "ours float32": (Ours, ("float32",), ""),
    "our reference": (Keras, (), ""),
    "llama.cpp Q4_0": (LlamaCpp, ("Q4_0",), "llama_cpp"),
    "llama.cpp Q8_0": (LlamaCpp, ("Q8_0",), "llama_cpp"),
    "llama.cpp F32": (LlamaCpp, ("F32",), "llama_cpp"),
    "transformers float32": (Transformers, (), "transformers"),
    "ctranslate2 int8": (CTranslate2, ("int8",), "ctranslate2"),
    "ctranslate2 float32": (CTranslate2, ("float32",), "ctranslate2"),
    "keras-hub float32": (KerasHub, (), "keras_hub"),
}
"""Name: its class, what that is made with, and the package that it needs."""


class Process:
    """A contender in a process of its own."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.plain = False
        self._start()
        if self._ask("decode", past=8, steps=1) is None and name.startswith("llama.cpp"):
            self.plain = True
            self._start()
            self._ask("decode", past=8, steps=1)

    def ask(self, task: str, **arguments: Any) -> Any:
        """What a method of the contender gives."""
        answer = self._ask(task, **arguments)
        if answer is None:
            raise SystemExit(f"{self.name}: its process ended")
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()  # type: ignore[union-attr]
        self._process.wait()

    def _start(self) -> None:
        env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"} | ({"GPT2_BENCH_PLAIN": "1"} if self.plain else {})
        self._process = subprocess.Popen(
            [sys.executable, __file__, self.name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )

    def _ask(self, task: str, **arguments: Any) -> Any:
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps([task, arguments]), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()  # type: ignore[union-attr]
        return json.loads(line) if line else None


def start(names: Sequence[str]) -> dict[str, Process]:
    """Processes of those contenders that are installed."""
    processes = {}
    for name in names:
        package = CONTENDERS[name][2]
        if package and importlib.util.find_spec(package) is None:
            print(f"{name}: not installed")
            continue
        processes[name] = Process(name)
        if processes[name].plain:
            print(f"{name}: crashes with its AMX kernels on this machine; measured without repacked weights")
    return processes


def in_turns(processes: dict[str, Process], rounds: int, task: str, **arguments: Any) -> dict[str, float]:
    """The median over rounds of what each gives, of lists their median; each round asks everyone."""
    found: dict[str, list[float]] = {name: [] for name in processes}
    for number in range(rounds):
        for name, process in processes.items():
            answer = process.ask(
                task, **{key: value(number) if callable(value) else value for key, value in arguments.items()}
            )
            found[name].append(statistics.median(answer) if isinstance(answer, list) else answer)
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def ratios(rates: dict[str, float], pairs: Sequence[tuple[str, str]], what: str) -> None:
    """Print each rate, and then how many times the first of each pair is as fast as the second."""
    for name, rate in rates.items():
        print(f"  {name:<22}{rate:10,.1f} tokens/s")
    for mine, theirs in pairs:
        if mine in rates and theirs in rates:
            print(f"  ratio {mine} / {theirs}, {what}: {rates[mine] / rates[theirs]:.2f}", flush=True)


def timed(function: Callable[[], Any]) -> float:
    """Seconds that a call takes."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def write_gguf(path: Path, kind: str) -> None:
    """The weights as llama.cpp has them."""
    import gguf

    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_context_length(CONFIG.n_ctx)
    writer.add_embedding_length(CONFIG.n_embd)
    writer.add_feed_forward_length(4 * CONFIG.n_embd)
    writer.add_block_count(CONFIG.n_layer)
    writer.add_head_count(CONFIG.n_head)
    writer.add_layer_norm_eps(1e-5)
    words: dict[str, int] = json.loads(default_codec().files("openai")["encoder.json"])
    merges = default_codec().files("openai")["vocab.bpe"].decode().splitlines()[1:]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(sorted(words, key=words.__getitem__))
    writer.add_token_types([1] * (CONFIG.n_vocab - 1) + [3])
    writer.add_token_merges([merge for merge in merges if merge])
    names = {
        **{"wte": "token_embd.weight", "wpe": "position_embd.weight"},
        **{"ln_f/g": "output_norm.weight", "ln_f/b": "output_norm.bias"},
    }
    parts = {"ln_1": "attn_norm", "attn/c_attn": "attn_qkv", "attn/c_proj": "attn_output"}
    parts |= {"ln_2": "ffn_norm", "mlp/c_fc": "ffn_up", "mlp/c_proj": "ffn_down"}
    type = gguf.GGMLQuantizationType[kind]
    for name, given in tensors():
        if name in names:
            target, array = names[name], given
        else:
            layer, part = name.split("/", 1)
            part, letter = part.rsplit("/", 1)
            target = f"blk.{layer[1:]}.{parts[part]}.{'bias' if letter == 'b' else 'weight'}"
            array = np.ascontiguousarray(given.T) if letter == "w" else given
        if array.ndim == 2 and name != "wpe" and kind != "F32":
            writer.add_tensor(target, gguf.quants.quantize(array, type), raw_dtype=type)
        else:
            writer.add_tensor(target, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    """Be a contender: answer what is asked, one line for one line."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not be taken for answers
    kind, arguments, _ = CONTENDERS[sys.argv[1]]
    contender = kind(*arguments)
    for line in sys.stdin:
        task, given = json.loads(line)
        print(json.dumps(getattr(contender, task)(**given)), file=answers, flush=True)


if __name__ == "__main__":
    main()
