"""GPT-2 on TensorFlow 2.17 and Keras 3.

The public face: `gpt2.gpt` (load_model, train_model, save_model), `gpt2.gpt_core_v2` (query_model and the rest of the
versioned API) and `gpt2.codec` (encode, decode). Their main names are handed on here, each imported when it is first
used, so `import gpt2` costs nothing and `gpt2.encode` never imports TensorFlow.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpt2.codec import decode, encode
    from gpt2.config import SIZES, GPT2Config, SamplingConfig, TrainingConfig
    from gpt2.errors import GPT2Error
    from gpt2.gpt import Model, load_model, resume_training, save_model, train_model
    from gpt2.gpt_core_v2 import query_model
    from gpt2.language_model import LanguageModel, open_model

__version__ = "0.1.0"

# TensorFlow's start-up chatter would drown what a command prints; whoever wants it sets the variable to 0.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

_HOMES = {
    "decode": "gpt2.codec",
    "encode": "gpt2.codec",
    "SIZES": "gpt2.config",
    "GPT2Config": "gpt2.config",
    "SamplingConfig": "gpt2.config",
    "TrainingConfig": "gpt2.config",
    "GPT2Error": "gpt2.errors",
    "Model": "gpt2.gpt",
    "LanguageModel": "gpt2.language_model",
    "load_model": "gpt2.gpt",
    "open_model": "gpt2.language_model",
    "resume_training": "gpt2.gpt",
    "save_model": "gpt2.gpt",
    "train_model": "gpt2.gpt",
    "query_model": "gpt2.gpt_core_v2",
}

__all__ = [
    "SIZES",
    "GPT2Config",
    "GPT2Error",
    "LanguageModel",
    "Model",
    "SamplingConfig",
    "TrainingConfig",
    "decode",
    "encode",
    "load_model",
    "open_model",
    "query_model",
    "resume_training",
    "save_model",
    "train_model",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'gpt2' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
