"""nanoGPT's checkpoints: `ckpt.pt`, a file of `torch.save`, read without running anything of its pickle (`torch_zip`).

Read alone. Matrices are (out, in) there and are turned around; a compiled model's names begin with `_orig_mod.`; a
model without biases gets biases of zero, which compute the same. nanoGPT's GELU is the exact one, GPT-2's its
approximation by tanh: logits differ by that. Its vocabulary of characters (`meta.pkl`) is not read; such a model takes
and gives ids alone. Source: `model.py` and `train.py` of karpathy/nanoGPT.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from gpt2.checkpoints.contents import Contents, shown
from gpt2.checkpoints.names import Tensors, check_shapes, expected_shapes
from gpt2.checkpoints.single_file import begins_with, only_file
from gpt2.checkpoints.torch_zip import CODES, Tensor, TorchFile
from gpt2.codec import fitting_default
from gpt2.config import GPT2Config
from gpt2.errors import CheckpointFormatError, TensorMismatchError

SUFFIXES = (".pt", ".pth")
_ZIP = b"PK\3\4"
_CONFIG_KEYS = {
    **{"n_vocab": "vocab_size", "n_ctx": "block_size", "n_embd": "n_embd", "n_head": "n_head"},
    **{"n_layer": "n_layer"},
}
_OTHER_KEYS = ("bias", "dropout")
_TOP = {"wte": "wte.weight", "wpe": "wpe.weight", "ln_f/g": "ln_f.weight", "ln_f/b": "ln_f.bias"}
_GELU = "nanoGPT computes GELU exactly, GPT-2 by tanh; logits differ a little from nanoGPT's"
_VOCABULARY = "its own vocabulary (nanoGPT's meta.pkl) is not read; the model takes and gives token ids alone"


def matches(path: Path) -> bool:
    """Whether it is a file of torch's, or a folder with one; pickles that are none are refused when opened."""
    return begins_with(path, SUFFIXES, b"")


def open_checkpoint(path: Path, *, quick: bool = True) -> Contents:
    """Walk through the pickle and compare the tensors with the settings, which is always quick."""
    path = only_file(path, SUFFIXES, b"")
    if not begins_with(path, SUFFIXES, _ZIP):
        raise CheckpointFormatError(
            f"{path}: expected a zip as torch.save writes it; a bare pickle is refused, because loading one can run "
            "code that is hidden in it. docs/interchange.md shows how to export it where you trust it"
        )
    file = TorchFile(path)
    checkpoint = file.value
    if not isinstance(checkpoint, dict) or not all(
        isinstance(checkpoint.get(k), dict) for k in ("model", "model_args")
    ):
        raise CheckpointFormatError(f"{path}: expected the entries model and model_args, as nanoGPT saves them")
    config, bias = _config(checkpoint["model_args"], path)
    tensors = _canonical(checkpoint["model"], path)
    head = tensors.pop("lm_head", None)
    file.check(tensors if head is None else {**tensors, "lm_head": head})
    shapes = {name: t.shape[::-1] if name.endswith("/w") else t.shape for name, t in tensors.items()}
    expected = expected_shapes(config)
    absent = set() if bias else {name for name in expected if name.endswith("/b") and name not in shapes}
    check_shapes(config, shapes | {name: expected[name] for name in absent}, source=str(path))
    if head is not None and head != tensors["wte"]:
        _check_tied(file, head, tensors["wte"])

    def stream() -> Tensors:
        for name, shape in expected.items():
            if name in absent:
                yield name, np.zeros(shape, np.float32)
            else:
                array = file.load(name, tensors[name])
                yield name, array.T if name.endswith("/w") else array

    kinds = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    stored = sorted({kinds[CODES[tensor.storage.kind]] for tensor in tensors.values()})
    notes = (_GELU,) if fitting_default(config.n_vocab) else (_GELU, _VOCABULARY)
    return Contents(config, ", ".join(stored), stream, notes)


def _config(settings: dict[Any, Any], path: Path) -> tuple[GPT2Config, bool]:
    """The shape, and whether there are biases."""
    where = f"{path}: model_args"
    unknown = [key for key in settings if key not in (*_CONFIG_KEYS.values(), *_OTHER_KEYS)]
    if unknown:
        raise CheckpointFormatError(f"{where}: expected a GPT-2's settings, got {shown(unknown[0])}")
    bias = settings.get("bias", True)
    if not isinstance(bias, bool):
        raise CheckpointFormatError(f"{where}: bias: expected true or false, got {shown(bias)}")
    values = {ours: settings[theirs] for ours, theirs in _CONFIG_KEYS.items() if theirs in settings}
    wrong = next((name for name, value in values.items() if type(value) is not int), None)
    if wrong is not None:
        raise CheckpointFormatError(f"{where}: {_CONFIG_KEYS[wrong]}: expected an integer, got {shown(values[wrong])}")
    return GPT2Config.from_dict(values, source=f"{where} (vocab_size is n_vocab, block_size is n_ctx)"), bias


def _canonical(model: dict[Any, Any], path: Path) -> dict[str, Tensor]:
    """Canonical names; those that are no GPT-2's stay as they are, for the message that will list them."""
    ours_of = {theirs: ours for ours, theirs in _TOP.items()}
    renamed: dict[str, Tensor] = {}
    for given, tensor in model.items():
        if not isinstance(given, str) or not isinstance(tensor, Tensor):
            raise CheckpointFormatError(f"{path}: model: expected tensors by name, got {shown(given)}")
        name = given.removeprefix("_orig_mod.").removeprefix("transformer.")
        if re.fullmatch(r"h\.\d+\.attn\.bias", name):  # the causal mask, where there was no flash attention
            continue
        ours = "lm_head" if name == "lm_head.weight" else ours_of.get(name, given)
        layer = re.fullmatch(r"h\.(0|[1-9]\d{0,5})\.((?:attn|mlp)\.c_\w+|ln_[12])\.(weight|bias)", name)
        if layer:
            end = "b" if layer[3] == "bias" else "g" if layer[2].startswith("ln") else "w"
            ours = f"h{layer[1]}/{layer[2].replace('.', '/')}/{end}"
        if ours in renamed:
            raise TensorMismatchError(f"{path}: {ours} stands twice, with and without the prefix _orig_mod.")
        renamed[ours] = tensor
    return renamed


def _check_tied(file: TorchFile, head: Tensor, wte: Tensor) -> None:
    if head.shape != wte.shape or not np.array_equal(file.load("lm_head", head), file.load("wte", wte)):
        raise TensorMismatchError(
            f"{file.path}: expected lm_head.weight to equal wte.weight (the head is tied), got another"
        )
