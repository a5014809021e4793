"""ONNX: two graphs over one file of weights, for ONNX Runtime and whatever else reads ONNX; needs `onnx`.

    model.onnx           input_ids, attention_mask, position_ids, past_key_values.N.key, .value
                                                                        -> logits, present.N.key, .value
    model_no_cache.onnx  input_ids                                      -> logits
    model.onnx_data      the weights of both

with input_ids (B, T) int64, attention_mask (B, P + T) int64 (0 hides a position), position_ids (B, T) int64, past keys
and values (B, H, P, D) float32, where P may be 0, logits (B, T, V) float32, and the present ones (B, H, P + T, D).
Names and meanings are those that Hugging Face's Optimum gives a GPT-2 with a cache.

The graphs are written here node by node; one tensor at a time is in memory. float16 halves the file and computes in
float32. int8 rounds the matrices with a scale for each column, and what is multiplied with them as it comes, with a
scale for each row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpt2.checkpoints import huggingface
from gpt2.checkpoints.names import Tensors, expected_shapes
from gpt2.codec import Codec
from gpt2.config import LAYER_NORM_EPSILON, GPT2Config
from gpt2.errors import CheckpointFormatError

GRAPH = "model.onnx"
PLAIN_GRAPH = "model_no_cache.onnx"
WEIGHTS = "model.onnx_data"
MARK = WEIGHTS
FILES = (GRAPH, PLAIN_GRAPH, WEIGHTS, *huggingface.SIDE_FILES)
DTYPES = ("float32", "float16", "int8")

_OPSET = 20  # the first with Gelu; ONNX Runtime 1.17 and later
_IR_VERSION = 9
_ALIGNMENT = 4096  # so that a reader can map the file
_HIDDEN = -1e9  # added to the scores of what may not be looked at


def write(folder: Path, config: GPT2Config, tensors: Tensors, codec: Codec | None, dtype: str) -> None:
    """Fill an empty folder.

    Args:
        folder: the folder.
        config: the shape.
        tensors: all of them under canonical names, in the order of `names.expected_shapes`.
        codec: the vocabulary to write beside it, as Hugging Face has it, or None.
        dtype: of the matrices, one of `DTYPES`.

    Raises:
        CheckpointFormatError: a number beyond float16.
    """
    import onnx

    weights = _write_weights(folder / WEIGHTS, tensors, dtype)
    assert {name.partition(":")[0] for name in weights} == set(expected_shapes(config))
    for file, with_cache in ((GRAPH, True), (PLAIN_GRAPH, False)):
        onnx.save(_Graph(config, weights, dtype, with_cache).model(), folder / file)
    huggingface.write_side_files(folder, config, codec, "float32" if dtype == "int8" else dtype)


def _write_weights(path: Path, tensors: Tensors, dtype: str) -> dict[str, Any]:
    """Write the numbers, and give what refers to them: name -> TensorProto."""
    import onnx

    found: dict[str, Any] = {}
    with path.open("wb") as file:
        for name, array in tensors:
            for stored_name, stored in _stored(name, array, dtype):
                file.write(b"\0" * (-file.tell() % _ALIGNMENT))
                proto = onnx.TensorProto(
                    name=stored_name,
                    data_type=onnx.helper.np_dtype_to_tensor_dtype(stored.dtype),
                    dims=stored.shape,
                    data_location=onnx.TensorProto.EXTERNAL,
                )
                for key, value in (("location", path.name), ("offset", file.tell()), ("length", stored.nbytes)):
                    proto.external_data.add(key=key, value=str(value))
                file.write(stored.data.cast("B"))
                found[stored_name] = proto
    return found


def _stored(name: str, array: np.ndarray, dtype: str) -> Iterator[tuple[str, np.ndarray]]:
    """What stands in the file for a tensor: itself, rounded, or its integers and their scales."""
    if dtype == "float32" or array.ndim == 1 or (dtype == "int8" and name == "wpe"):
        yield name, np.ascontiguousarray(array)
    elif dtype == "float16":
        with np.errstate(over="ignore"):
            half = array.astype(np.float16)
        if not np.isfinite(half).all():
            raise CheckpointFormatError(f"{name} holds numbers beyond float16 (65504); save it as float32")
        yield name, half
    else:
        axis = 1 if name == "wte" else 0  # a scale for each output: a token's row, or a matrix' column
        scale = np.maximum(np.abs(array).max(axis), np.finfo(np.float32).tiny) / np.float32(127)
        rounded = np.rint(array / np.expand_dims(scale, axis)).astype(np.int8)
        yield f"{name}:int8", rounded
        yield f"{name}:scale", scale


class _Graph:
    """One graph as it is written, node by node; values are named by what makes them."""

    def __init__(self, config: GPT2Config, weights: dict[str, Any], dtype: str, with_cache: bool) -> None:
        self.config, self.weights, self.dtype, self.with_cache = config, weights, dtype, with_cache
        self.nodes: list[Any] = []
        self.used: dict[str, Any] = {}
        self.taken: set[str] = set()

    def model(self) -> Any:
        """The whole graph as a ModelProto, whose numbers are elsewhere."""
        from onnx import TensorProto, helper

        config, cached = self.config, self.with_cache
        H, D, V = config.n_head, config.head_size, config.n_vocab
        inputs = [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "time"])]
        outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "time", V])]
        if cached:
            inputs += [
                helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", "past + time"]),
                helper.make_tensor_value_info("position_ids", TensorProto.INT64, ["batch", "time"]),
            ]
            for n in range(config.n_layer):
                for part in ("key", "value"):
                    kind, name = TensorProto.FLOAT, f"{n}.{part}"
                    inputs.append(
                        helper.make_tensor_value_info(f"past_key_values.{name}", kind, ["batch", H, "past", D])
                    )
                    outputs.append(
                        helper.make_tensor_value_info(f"present.{name}", kind, ["batch", H, "past + time", D])
                    )
        self._network()
        graph = helper.make_graph(self.nodes, "gpt2", inputs, outputs, list(self.used.values()))
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", _OPSET)],
            ir_version=_IR_VERSION,
            producer_name="gpt2",
        )

    def _network(self) -> None:
        """The forward pass of `gpt2.model`, which the tests compare it with."""
        config = self.config
        shape = self.node("Shape", "input_ids", name="shape")  # (2,): B, T
        B, T = (self.node("Gather", shape, self.integers(n), name=f"shape/{n}") for n in (0, 1))  # (1,) each
        positions = "position_ids" if self.with_cache else self._arange(T, "positions")  # (B, T) or (T,)
        x = self.node("Add", self._embedding("wte", "input_ids"), self._embedding("wpe", positions), name="embedded")
        hidden = self._hidden(B, T)
        for n in range(config.n_layer):
            x = self._block(n, x, hidden)
        x = self._layer_norm(x, "ln_f")
        self._head(x)

    def _hidden(self, B: str, T: str) -> str:
        """What is added to the scores, (B or 1, 1, T, P + T): 0, or a large negative number for what is not seen."""
        total = T
        if self.with_cache:
            mask_shape = self.node("Shape", "attention_mask", name="mask/shape")
            total = self.node("Gather", mask_shape, self.integers(1), name="mask/total")  # (1,): P + T
        past = self.node("Sub", total, T, name="mask/past")
        rows = self.node("Add", self._arange(T, "mask/rows"), past, name="mask/rows_after_past")
        rows = self.node("Unsqueeze", rows, self.integers(1), name="mask/rows_column")  # (T, 1)
        visible = self.node("GreaterOrEqual", rows, self._arange(total, "mask/columns"), name="mask/causal")
        if self.with_cache:
            given = self.node("Cast", "attention_mask", name="mask/given", to=9)  # to bool
            given = self.node("Unsqueeze", given, self.integers(1, 2), name="mask/given_rows")  # (B, 1, 1, P + T)
            visible = self.node("And", visible, given, name="mask/both")
        return self.node("Where", visible, self.number(0.0), self.number(_HIDDEN), name="mask/added")

    def _block(self, n: int, x: str, hidden: str) -> str:
        C, D = self.config.n_embd, self.config.head_size
        h = f"h{n}"
        qkv = self._linear(self._layer_norm(x, f"{h}/ln_1"), f"{h}/attn/c_attn")  # (B, T, 3 C)
        parts = [f"{h}/attn/{part}" for part in "qkv"]
        self.add("Split", [qkv, self.integers(C, C, C)], parts, axis=-1)
        q, k, v = (self._heads(part) for part in parts)  # (B, H, T, D)
        if self.with_cache:
            for part, new in (("key", k), ("value", v)):
                self.add("Concat", [f"past_key_values.{n}.{part}", new], [f"present.{n}.{part}"], axis=2)
            k, v = f"present.{n}.key", f"present.{n}.value"
        keys = self.node("Transpose", k, name=f"{h}/attn/keys", perm=(0, 1, 3, 2))
        scores = self.node("MatMul", q, keys, name=f"{h}/attn/products")
        scores = self.node("Mul", scores, self.number(1 / math.sqrt(D)), name=f"{h}/attn/scaled")
        scores = self.node("Add", scores, hidden, name=f"{h}/attn/scores")
        y = self.node("MatMul", self.node("Softmax", scores, name=f"{h}/attn/weights", axis=-1), v, name=f"{h}/attn/y")
        y = self.node("Transpose", y, name=f"{h}/attn/back", perm=(0, 2, 1, 3))
        y = self.node("Reshape", y, self.integers(0, 0, C), name=f"{h}/attn/joined")
        x = self.node("Add", x, self._linear(y, f"{h}/attn/c_proj"), name=f"{h}/attn/added")
        m = self._linear(self._layer_norm(x, f"{h}/ln_2"), f"{h}/mlp/c_fc")
        m = self.node("Gelu", m, name=f"{h}/mlp/gelu", approximate="tanh")
        return self.node("Add", x, self._linear(m, f"{h}/mlp/c_proj"), name=f"{h}/mlp/added")

    def _heads(self, x: str) -> str:
        """(B, T, C) to (B, H, T, D)."""
        shape = self.integers(0, 0, self.config.n_head, self.config.head_size)
        return self.node(
            "Transpose", self.node("Reshape", x, shape, name=f"{x}/cut"), name=f"{x}/heads", perm=(0, 2, 1, 3)
        )

    def _layer_norm(self, x: str, name: str) -> str:
        g, b = self.weight(f"{name}/g"), self.weight(f"{name}/b")
        return self.node("LayerNormalization", x, g, b, name=f"{name}/normed", axis=-1, epsilon=LAYER_NORM_EPSILON)

    def _linear(self, x: str, name: str) -> str:
        if self.dtype == "int8":
            y = self._int8_product(x, self.weight(f"{name}/w:int8"), self.weight(f"{name}/w:scale"), f"{name}/y")
        else:
            y = self.node("MatMul", x, self._as_float32(f"{name}/w"), name=f"{name}/y")
        return self.node("Add", y, self.weight(f"{name}/b"), name=f"{name}/out")

    def _head(self, x: str) -> None:
        C, V = self.config.n_embd, self.config.n_vocab
        if self.dtype == "int8":
            wte = self.node("Transpose", self.weight("wte:int8"), name="head/wte", perm=(1, 0))
            y = self._int8_product(x, wte, self.weight("wte:scale"), "head/y")
            self.add("Identity", [y], ["logits"])
            return
        rows = self.node("Reshape", x, self.integers(-1, C), name="head/rows")  # (B T, C)
        y = self.node("Gemm", rows, self._as_float32("wte"), name="head/y", transB=1)
        shape = self.node("Concat", "shape", self.integers(V), name="head/shape", axis=0)
        self.add("Reshape", [y, shape], ["logits"])

    def _embedding(self, name: str, ids: str) -> str:
        if self.dtype == "int8" and name == "wte":
            rows = self.node("Gather", self.weight("wte:int8"), ids, name="wte/rows", axis=0)
            rows = self.node("Cast", rows, name="wte/floats", to=1)
            scales = self.node("Gather", self.weight("wte:scale"), ids, name="wte/scales", axis=0)
            return self.node(
                "Mul", rows, self.node("Unsqueeze", scales, self.integers(-1), name="wte/column"), name="wte/out"
            )
        rows = self.node("Gather", self.weight(name), ids, name=f"{name}/rows", axis=0)
        return self.node("Cast", rows, name=f"{name}/floats", to=1) if self.dtype == "float16" else rows

    def _int8_product(self, x: str, w: str, scale: str, name: str) -> str:
        """x @ w for w in int8 with a scale for each column; x is rounded to int8 with a scale for each row.

        ONNX' own DynamicQuantizeLinear has one scale for all rows, so that a row would depend on its neighbours.
        """
        size = self.node("Abs", x, name=f"{name}/size")
        largest = self.node("ReduceMax", size, self.integers(-1), name=f"{name}/largest", keepdims=1)
        largest = self.node("Max", largest, self.number(1e-30), name=f"{name}/not_zero")
        row_scale = self.node("Mul", largest, self.number(1 / 127), name=f"{name}/row_scale")  # (B, T, 1)
        rounded = self.node("Round", self.node("Div", x, row_scale, name=f"{name}/quotient"), name=f"{name}/rounded")
        y = self.node("MatMulInteger", self.node("Cast", rounded, name=f"{name}/x", to=3), w, name=f"{name}/integers")
        y = self.node("Cast", y, name=f"{name}/floats", to=1)
        y = self.node("Mul", y, row_scale, name=f"{name}/rows_scaled")
        return self.node("Mul", y, scale, name=name)

    def _as_float32(self, name: str) -> str:
        weight = self.weight(name)
        return self.node("Cast", weight, name=f"{name}/float32", to=1) if self.dtype == "float16" else weight

    def _arange(self, length: str, name: str) -> str:
        """0, 1, ... for a length (1,)."""
        scalar = self.node("Squeeze", length, name=f"{name}/length")
        zero, one = self.constant("zero", 0), self.constant("one", 1)
        return self.node("Range", zero, scalar, one, name=name)

    def weight(self, name: str) -> str:
        """A tensor from the file of weights."""
        self.used[name] = self.weights[name]
        return name

    def integers(self, *values: int) -> str:
        """A list of int64."""
        return self.constant("integers/" + ",".join(map(str, values)), np.array(values, np.int64))

    def number(self, value: float) -> str:
        """A float32."""
        return self.constant(f"number/{value!r}", np.array(value, np.float32))

    def constant(self, name: str, value: Any) -> str:
        """Something small that stands in the graph itself."""
        from onnx import numpy_helper

        if name not in self.used:
            self.used[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def node(self, kind: str, *inputs: str, name: str, **attributes: Any) -> str:
        """Add a node with one output, which has its name; a name that is taken is the same node."""
        if name not in self.taken:
            self.add(kind, inputs, [name], **attributes)
        return name

    def add(self, kind: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> None:
        """Add a node."""
        from onnx import helper

        self.taken.update(outputs)
        self.nodes.append(helper.make_node(kind, list(inputs), list(outputs), name=outputs[0], **attributes))
