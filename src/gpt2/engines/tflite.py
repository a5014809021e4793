"""Writing LiteRT's file format (`.tflite`): small graphs of products, sums and normalisations, with their weights.

A file is a flatbuffer that describes the graphs, and behind it the weights, which it points to. It is written without
TensorFlow, and without ever holding more than one tensor: sizes are known beforehand, so every tensor has its place
before the first one comes. It knows nothing about GPT-2.

Source: LiteRT's schema, https://github.com/google-ai-edge/LiteRT (`schema.fbs`), by the classes that
`ai_edge_litert.schema_py_generated` makes of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from gpt2.engines.quantization import Scheme

_IDENTIFIER = b"TFL3"
_ALIGNMENT = 64
_ELSEWHERE = 1 << 40  # stands for an offset until it is known; never the default 0, which would not be stored
_OPS: Any = schema.BuiltinOperator
_OPTIONS: Any = schema.BuiltinOptions
_TYPES = {np.dtype(np.float32): 0, np.dtype(np.float16): 1, np.dtype(np.int32): 2}
_WEIGHTS = {"int8": schema.TensorType.INT8, "int4": schema.TensorType.INT4}
_VERSIONS = {"float32": 1, "int8": 9, "int4": 12}
"""Of FULLY_CONNECTED, by the type of its weights."""


class File:
    """A file in the making: add graphs, then write it with its weights."""

    def __init__(self) -> None:
        self.model = schema.ModelT()
        self.model.version = 3
        self.model.buffers = [schema.BufferT()]  # the first one stands for "no data"
        self.model.operatorCodes, self.model.subgraphs, self.model.signatureDefs = [], [], []
        self._codes: dict[tuple[int, int], int] = {}
        self._places: dict[str, list[Any]] = {}  # the buffers of each name, filled in when the weights come
        self._scales: dict[str, Any] = {}  # where the scales of a name are wanted once more
        self._small: list[tuple[Any, np.ndarray]] = []

    def operator(self, code: int, version: int) -> int:
        """The number of a kind of operation."""
        if (code, version) not in self._codes:
            entry = schema.OperatorCodeT()
            entry.builtinCode, entry.version = code, version
            entry.deprecatedBuiltinCode = min(code, 127)
            self._codes[code, version] = len(self.model.operatorCodes)
            self.model.operatorCodes.append(entry)
        return self._codes[code, version]

    def constant(self, array: np.ndarray) -> int:
        """The number of a buffer with these few numbers."""
        buffer = self._reserve(array.nbytes)
        self._small.append((buffer, array))
        return len(self.model.buffers) - 1

    def weights(self, name: str, *sizes: int) -> list[int]:
        """The numbers of buffers of `sizes` bytes, whose contents `write` is given under the name."""
        assert name not in self._places, name
        first = len(self.model.buffers)
        self._places[name] = [self._reserve(size) for size in sizes]
        return list(range(first, len(self.model.buffers)))

    @property
    def names(self) -> set[str]:
        """Of all weights that `write` needs."""
        return set(self._places)

    def scales(self, name: str, quantization: Any) -> None:
        """Where the scales of int8 weights belong, in the flatbuffer itself."""
        self._scales[name] = quantization

    def write(self, path: Path, weights: Iterable[tuple[str, Sequence[np.ndarray]]]) -> dict[str, list[int]]:
        """Write the file.

        Args:
            path: it is not written atomically; that is for the caller.
            weights: each name once, with the contents of its buffers.

        Returns:
            For each name where its buffers are, in bytes from the file's beginning.
        """
        end = _aligned(len(self._packed()))
        for buffer in self.model.buffers[1:]:
            buffer.offset, end = end, _aligned(end + buffer.size)
        with path.open("wb") as file:
            for buffer, array in self._small:
                _put(file, buffer, array)
            for name, arrays in weights:
                for buffer, array in zip(self._places[name], arrays, strict=True):
                    _put(file, buffer, array)
                if name in self._scales:
                    self._scales[name].scale = arrays[1]
            file.truncate(end)
            file.seek(0)
            file.write(self._packed())
        return {name: [buffer.offset for buffer in buffers] for name, buffers in self._places.items()}

    def _reserve(self, size: int) -> Any:
        buffer = schema.BufferT()
        buffer.offset, buffer.size = _ELSEWHERE, max(size, 1)
        self.model.buffers.append(buffer)
        return buffer

    def _packed(self) -> bytes:
        builder = flatbuffers.Builder(1 << 16)
        builder.Finish(self.model.Pack(builder), _IDENTIFIER)
        return bytes(builder.Output())


class Graph:
    """One graph of a file, run by its name. Its tensors are (M, N) float32 for any M.

    Args:
        file: which file.
        name: how it is called.
        inputs: names of the inputs and their N.
    """

    def __init__(self, file: File, name: str, **inputs: int) -> None:
        self.file, self.name = file, name
        self.graph = schema.SubGraphT()
        self.graph.name = name.encode()
        self.graph.tensors, self.graph.operators = [], []
        self.widths: dict[int, int] = {}
        self.inputs = {key: self._tensor(key, width) for key, width in inputs.items()}
        self.graph.inputs = list(self.inputs.values())
        file.model.subgraphs.append(self.graph)

    def outputs(self, **outputs: int) -> None:
        """Finish the graph: what it gives under which name."""
        self.graph.outputs = list(outputs.values())
        signature = schema.SignatureDefT()
        signature.signatureKey = self.name.encode()
        signature.subgraphIndex = self.file.model.subgraphs.index(self.graph)
        signature.inputs, signature.outputs = _named(self.inputs), _named(outputs)
        self.file.model.signatureDefs.append(signature)

    # Operations

    def linear(self, x: int, name: str, n_out: int, scheme: Scheme, bias: str | None) -> int:
        """x @ w.T + b with w (n_out, n_in) called `name`, of a scheme of `gpt2.engines.quantization`."""
        n_in = self.widths[x]
        scheme = scheme.fitting(n_in)
        layout = scheme.layout(n_out, n_in)
        buffers = self.file.weights(name, *(np.dtype(dtype).itemsize * math.prod(shape) for dtype, shape in layout))
        weights = schema.TensorT()
        weights.name, weights.shape, weights.buffer = name.encode(), [n_out, n_in], buffers[0]
        weights.type = _WEIGHTS.get(scheme.type, schema.TensorType.FLOAT32)
        if scheme.type != "float32":
            weights.quantization = schema.QuantizationParametersT()
            if scheme.block:
                details = schema.BlockwiseQuantizationT()
                details.blockSize, details.zeroPoints = scheme.block, -1
                details.scales = self._constant(name + "/scales", (n_out, n_in // scheme.block), 1, buffers[1])
                weights.quantization.detailsType = schema.QuantizationDetails.BlockwiseQuantization
                weights.quantization.details = details
            else:
                weights.quantization.scale = np.zeros(n_out, np.float32)
                weights.quantization.zeroPoint = np.zeros(n_out, np.int64)
                weights.quantization.quantizedDimension = 0
                self.file.scales(name, weights.quantization)
        self.graph.tensors.append(weights)
        inputs = [x, len(self.graph.tensors) - 1, -1]
        if bias is not None:
            (buffer,) = self.file.weights(bias, 4 * n_out)
            inputs[2] = self._constant(bias, (n_out,), 0, buffer)
        options = schema.FullyConnectedOptionsT()
        options.keepNumDims = True
        options.asymmetricQuantizeInputs = scheme.type != "float32"
        return self._add(_OPS.FULLY_CONNECTED, inputs, n_out, "FullyConnected", options, _VERSIONS[scheme.type])

    def layer_norm(self, x: int, scale: str, shift: str, epsilon: float) -> int:
        """(x - mean) / sqrt(variance + epsilon) * scale + shift over the last axis."""
        n = self.widths[x]
        axis = self._small(np.array([1], np.int32))
        centred = self._binary("Sub", x, self._mean(x, axis))
        variance = self._mean(self._binary("Mul", centred, centred), axis)
        variance = self._binary("Add", variance, self._small(np.array([epsilon], np.float32)))
        x = self._binary("Mul", centred, self._add(_OPS.RSQRT, [variance], 1))
        for name, kind in ((scale, "Mul"), (shift, "Add")):
            (buffer,) = self.file.weights(name, 4 * n)
            x = self._binary(kind, x, self._constant(name, (n,), 0, buffer))
        return x

    def gelu(self, x: int) -> int:
        """The tanh form of GELU."""
        options = schema.GeluOptionsT()
        options.approximate = True
        return self._add(_OPS.GELU, [x], self.widths[x], "Gelu", options)

    def add(self, x: int, y: int) -> int:
        """x + y."""
        return self._binary("Add", x, y)

    def _mean(self, x: int, axis: int) -> int:
        options = schema.ReducerOptionsT()
        options.keepDims = True
        return self._add(_OPS.MEAN, [x, axis], 1, "Reducer", options)

    def _binary(self, kind: str, x: int, y: int) -> int:
        options = getattr(schema, kind + "OptionsT")()
        return self._add(getattr(_OPS, kind.upper()), [x, y], self.widths[x], kind, options)

    def _add(
        self, code: int, inputs: list[int], width: int, kind: str = "", options: Any = None, version: int = 1
    ) -> int:
        operator = schema.OperatorT()
        operator.opcodeIndex = self.file.operator(code, version)
        operator.inputs = inputs
        if options is not None:
            operator.builtinOptionsType, operator.builtinOptions = getattr(_OPTIONS, kind + "Options"), options
        output = self._tensor(f"{len(self.graph.tensors)}", width)
        operator.outputs = [output]
        self.graph.operators.append(operator)
        return output

    # Tensors

    def _tensor(self, name: str, width: int) -> int:
        number = self._constant(name, (1, width), 0, 0)
        self.graph.tensors[number].shapeSignature = [-1, width]
        self.widths[number] = width
        return number

    def _small(self, array: np.ndarray) -> int:
        return self._constant("", array.shape, _TYPES[array.dtype], self.file.constant(array))

    def _constant(self, name: str, shape: Sequence[int], type: int, buffer: int) -> int:
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type, tensor.buffer = name.encode(), list(shape), type, buffer
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1


def _named(tensors: dict[str, int]) -> list[Any]:
    entries = []
    for name, number in tensors.items():
        entry = schema.TensorMapT()
        entry.name, entry.tensorIndex = name.encode(), number
        entries.append(entry)
    return entries


def _put(file: Any, buffer: Any, array: np.ndarray) -> None:
    data = np.ascontiguousarray(array)
    assert data.nbytes == buffer.size, (data.shape, data.dtype, buffer.size)
    file.seek(buffer.offset)
    file.write(data.data)


def _aligned(offset: int) -> int:
    return math.ceil(offset / _ALIGNMENT) * _ALIGNMENT
