"""NumPy memory that the Keras backend sees as a tensor, without a copy where the backend is TensorFlow."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np


def zeros(shape: tuple[int, ...]) -> np.ndarray:
    """float32 zeros that begin at a multiple of 64 bytes, as TensorFlow asks of memory that it shares.

    The system gives a page of it only when something else than 0 is written there.
    """
    size = math.prod(shape) * 4
    memory = np.zeros(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(np.float32).reshape(shape)


def as_tensor(array: np.ndarray) -> Any:
    """A view of an array from `zeros`, which follows what is written to it; for other backends the array itself."""
    if keras.backend.backend() != "tensorflow":
        return array
    import tensorflow as tf

    return tf.experimental.dlpack.from_dlpack(array.__dlpack__())
