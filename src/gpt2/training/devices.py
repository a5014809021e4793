"""Which devices and machines train together, from what TensorFlow sees and what a cluster says in `TF_CONFIG`."""

from __future__ import annotations

import json
import os
from typing import Any

import keras

from gpt2.errors import ConfigError


def strategy_of_environment() -> Any:
    """A strategy of `tf.distribute` for all machines that `TF_CONFIG` names, or for all GPUs here; None for one device.

    To be called before anything else is asked of TensorFlow. It waits for the other machines.

    Raises:
        ConfigError: `TF_CONFIG` is not what TensorFlow understands.
    """
    if keras.backend.backend() != "tensorflow":
        return None
    workers = _workers(os.environ.get("TF_CONFIG"))
    import tensorflow as tf

    if workers > 1:
        return tf.distribute.MultiWorkerMirroredStrategy()
    return tf.distribute.MirroredStrategy() if len(tf.config.list_physical_devices("GPU")) > 1 else None


def _workers(text: str | None) -> int:
    """How many processes `TF_CONFIG` makes train; 0 without one."""
    if not text:
        return 0
    try:
        jobs = json.loads(text).get("cluster", {})
        return sum(len(jobs.get(job, ())) for job in ("chief", "worker"))
    except (ValueError, AttributeError, TypeError):
        raise ConfigError(f"TF_CONFIG: expected JSON with a cluster and a task, got {text:.80}") from None


def is_chief(strategy: Any) -> bool:
    """Whether this process is the one that writes: the cluster's chief, or its first worker where it has none."""
    resolver = getattr(strategy, "cluster_resolver", None)
    if resolver is None or not resolver.task_type:
        return True
    chief = "chief" if "chief" in resolver.cluster_spec().jobs else "worker"
    return (resolver.task_type, resolver.task_id) == (chief, 0)
