"""Each format's own runtime, run in a process of its own and asked what `gpt2.exports.parity` compares.

A runtime is a function of a job; it imports what it needs and takes nothing from the one who wrote the model.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from gpt2.checkpoints import child


@dataclass(frozen=True)
class Job:
    """What is asked."""

    path: str
    format: str
    text: str | None
    ids: list[int]
    steps: int
    end_of_text: int | None
    base: str | None = None
    """For adapters, the model that they were trained on, in the huggingface format."""


@dataclass(frozen=True)
class Answer:
    """What a runtime says."""

    runtime: str
    """Its name and version."""
    logits: list[np.ndarray]
    """(T, V) for each way in which the format computes them."""
    greedy: list[int]
    """The most probable continuation."""
    text_ids: list[int] | None
    """The text's tokens, where the format carries a vocabulary."""


def missing(format: str) -> str:
    """What has to be installed before a format can be checked, as a person would write it, or nothing."""
    modules, install = _NEEDS[format]
    return install if any(importlib.util.find_spec(module) is None for module in modules) else ""


def main() -> None:
    """In the child: read the job from the folder that is named, write the answer there."""
    child.end_with_parent()
    folder = Path(sys.argv[1])
    job = Job(**json.loads((folder / "job.json").read_text(encoding="utf-8")))
    answer = _RUNTIMES[job.format](job)
    np.save(folder / "logits.npy", np.stack([logits.astype(np.float32) for logits in answer.logits]))
    found = {"runtime": answer.runtime, "greedy": answer.greedy, "text_ids": answer.text_ids}
    (folder / "answer.json").write_text(json.dumps(found), encoding="utf-8")


def _by_engine(job: Job, name: str, runtime: str) -> Answer:
    from gpt2.codec import Codec
    from gpt2.engines.registry import open_engine
    from gpt2.exports.parity import greedy

    engine = open_engine(Path(job.path), name)
    codec = Codec.from_folder(job.path)
    logits = engine.logits(np.array([job.ids], np.int32))[0]
    tokens = greedy(engine, job.ids, job.steps, job.end_of_text)
    return Answer(runtime, [logits], tokens, codec.encode(job.text) if codec and job.text is not None else None)


def _native(job: Job) -> Answer:
    return _by_engine(job, "keras", "this package's reference engine")


def _litert(job: Job) -> Answer:
    return _by_engine(job, "litert", f"LiteRT {metadata.version('ai-edge-litert')}")


def _openai(job: Job) -> Answer:
    """TensorFlow's `Saver`, as OpenAI's code restores the variables, and the reference network with what it gives."""
    import tensorflow as tf

    from gpt2.checkpoints.names import expected_shapes
    from gpt2.codec import Codec
    from gpt2.config import GPT2Config
    from gpt2.engines.keras import KerasEngine
    from gpt2.exports.parity import greedy
    from gpt2.model import GPT2

    config = GPT2Config(**json.loads(Path(job.path, "hparams.json").read_text(encoding="utf-8")))
    checkpoint = tf.train.latest_checkpoint(job.path)
    network = GPT2(config, initialize=False)
    for name, shape in expected_shapes(config).items():
        stored = (1, *shape) if len(shape) == 2 and name.endswith("/w") else shape
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            with tf.compat.v1.variable_scope("model"):
                variable = tf.compat.v1.get_variable(name, stored, use_resource=False)
            tf.compat.v1.train.Saver([variable]).restore(session, checkpoint)
            array = session.run(variable).reshape(shape)
        network.set_tensors([(name, array)])
    engine, codec = KerasEngine(network), Codec.from_folder(job.path)
    logits = engine.logits(np.array([job.ids], np.int32))[0]
    tokens = greedy(engine, job.ids, job.steps, job.end_of_text)
    ids = codec.encode(job.text) if codec and job.text is not None else None
    return Answer(f"TensorFlow {tf.__version__}'s Saver", [logits], tokens, ids)


def _huggingface(job: Job) -> Answer:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(job.path, local_files_only=True)
    text_ids = None
    if job.text is not None:
        text_ids = transformers.AutoTokenizer.from_pretrained(job.path, local_files_only=True)(job.text)["input_ids"]
    return Answer(f"transformers {transformers.__version__}", *_by_torch(model, job), text_ids)


def _peft(job: Job) -> Answer:
    import peft
    import transformers

    base = transformers.AutoModelForCausalLM.from_pretrained(job.base, local_files_only=True)
    model = peft.PeftModel.from_pretrained(base, job.path)
    return Answer(f"peft {peft.__version__}", *_by_torch(model, job), None)


def _by_torch(model: Any, job: Job) -> tuple[list[np.ndarray], list[int]]:
    import torch

    model, ids = model.float().eval(), torch.tensor([job.ids])
    with torch.no_grad():
        logits = model(ids).logits[0].numpy()
        options = {"max_new_tokens": job.steps, "do_sample": False, "pad_token_id": job.end_of_text or 0}
        text = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
    return [logits], text[0, len(job.ids) :].tolist()


def _savedmodel(job: Job) -> Answer:
    import tensorflow as tf

    signatures = tf.saved_model.load(job.path).signatures
    ids = tf.constant([job.ids])
    logits = signatures["logits"](ids=ids)["logits"][0].numpy()
    options = {"max_tokens": job.steps, "temperature": 0.0, "top_k": 0, "top_p": 1.0, "seed": 0}
    found = signatures["generate_ids"](
        ids=ids, lengths=tf.constant([len(job.ids)]), **{name: tf.constant(value) for name, value in options.items()}
    )
    greedy = found["ids"][0, : int(found["lengths"][0])].numpy().tolist()
    text_ids = None
    if job.text is not None:
        text_ids = signatures["encode"](texts=tf.constant([job.text]))["ids"][0].numpy().tolist()
    return Answer(f"TensorFlow {tf.__version__}", [logits], greedy, text_ids)


def _gguf(job: Job) -> Answer:
    import llama_cpp

    _without_repacking(llama_cpp)
    length = len(job.ids) + job.steps
    float32 = 0  # ggml's number for it; the cache is float16 otherwise
    model: Any = llama_cpp.Llama(
        job.path, n_ctx=length, n_batch=length, logits_all=True, verbose=False, type_k=float32, type_v=float32
    )
    model.eval(job.ids)
    logits = np.array(model.scores[: len(job.ids)])
    model.reset()
    greedy: list[int] = []
    for token in model.generate(job.ids, temp=0.0, repeat_penalty=1.0):
        greedy.append(int(token))
        if len(greedy) == job.steps or token == job.end_of_text:
            break
    text_ids = None
    if job.text is not None:
        text_ids = model.tokenize(job.text.encode("utf-8"), add_bos=False, special=False)
    return Answer(f"llama-cpp-python {llama_cpp.__version__}", [logits], greedy, text_ids)


def _without_repacking(llama_cpp: Any) -> None:
    """Have llama.cpp use the weights as they are: with its kernels for AMX, 0.3.36 crashes on a GPT-2."""
    library = llama_cpp.llama_cpp
    defaults = library.llama_model_default_params

    def plain() -> Any:
        parameters = defaults()
        parameters.use_extra_bufts = False
        return parameters

    library.llama_model_default_params = plain


def _onnx(job: Job) -> Answer:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    plain = onnxruntime.InferenceSession(str(Path(job.path, "model_no_cache.onnx")), settings)
    logits = plain.run(None, {"input_ids": np.array([job.ids], np.int64)})[0][0]
    del plain
    session = onnxruntime.InferenceSession(str(Path(job.path, "model.onnx")), settings)
    past = {
        each.name: np.zeros((1, each.shape[1], 0, each.shape[3]), np.float32)
        for each in session.get_inputs()
        if each.name.startswith("past_key_values.")
    }
    greedy: list[int] = []
    cached, length, ids = None, 0, job.ids
    while True:
        positions = np.arange(length, length + len(ids))[None]
        length += len(ids)
        given = {
            "input_ids": np.array([ids]),
            "attention_mask": np.ones((1, length), np.int64),
            "position_ids": positions,
        }
        found, *present = session.run(None, {**given, **past})
        cached = found[0] if cached is None else cached
        past = dict(zip(past, present, strict=True))
        greedy.append(int(found[0, -1].argmax()))
        ids = greedy[-1:]
        if len(greedy) == job.steps or ids[0] == job.end_of_text:
            return Answer(f"onnxruntime {onnxruntime.__version__}", [logits, cached], greedy, None)


_RUNTIMES: dict[str, Callable[[Job], Answer]] = {
    "native": _native,
    "huggingface": _huggingface,
    "openai": _openai,
    "litert": _litert,
    "savedmodel": _savedmodel,
    "gguf": _gguf,
    "onnx": _onnx,
    "peft": _peft,
}
_NEEDS: dict[str, tuple[tuple[str, ...], str]] = {
    "native": ((), ""),
    "huggingface": (("torch", "transformers"), "torch and transformers (pip install 'gpt2[reference]')"),
    "openai": ((), ""),
    "litert": (("ai_edge_litert", "numba"), "ai-edge-litert and numba"),
    "savedmodel": ((), ""),
    "gguf": (("llama_cpp",), "llama-cpp-python (pip install 'gpt2[llama]')"),
    "onnx": (("onnxruntime",), "onnxruntime (pip install 'gpt2[onnx]')"),
    "peft": (("torch", "transformers", "peft"), "torch, transformers and peft (pip install 'gpt2[reference]')"),
}
