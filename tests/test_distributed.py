"""Two replicas and two processes train to the weights of one; a run goes on after a worker was killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from gpt2.config import GPT2Config, TrainingConfig
from gpt2.data.prepare import prepare
from gpt2.errors import ConfigError
from gpt2.gpt import load_model, train_model
from gpt2.training.devices import is_chief, strategy_of_environment

SHAPE = GPT2Config(n_vocab=300, n_ctx=8, n_embd=8, n_head=2, n_layer=1)
TOKENS = np.random.default_rng(0).integers(0, 300, 700).astype(np.uint16)
STEPS = 20

REPLICAS = """
import sys
import numpy as np
import tensorflow as tf
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0],
                                           [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
"""
TRAIN = """
from pathlib import Path
from gpt2.config import GPT2Config, TrainingConfig
from gpt2.gpt import train_model
assert strategy.num_replicas_in_sync == 2
run, accumulation = Path(sys.argv[1]), int(sys.argv[2])
tokens = np.random.default_rng(0).integers(0, 300, 700).astype(np.uint16)
shape = GPT2Config(n_vocab=300, n_ctx=8, n_embd=8, n_head=2, n_layer=1)
training = TrainingConfig(steps=20, batch_size=4, accumulation_steps=accumulation, learning_rate=1e-2,
                          warmup_steps=2, eval_every=5)
train_model(tokens, config=shape, training=training, run=run, strategy=strategy)
"""


def expected(accumulation: int = 1) -> dict[str, np.ndarray]:
    """What one process with one device comes to."""
    training = TrainingConfig(
        steps=STEPS, batch_size=4, accumulation_steps=accumulation, learning_rate=1e-2, warmup_steps=2, eval_every=5
    )
    return train_model(TOKENS, config=SHAPE, training=training).parameters()


def assert_close(run: Path, weights: dict[str, np.ndarray]) -> None:
    ours = load_model(f"{run}@{STEPS}").parameters()
    for name, array in weights.items():
        atol = np.full(array.shape, 2e-5)
        if name.endswith("attn/c_attn/b"):
            # The keys' biases: the gradient is zero, and what rounding leaves of it Adam makes as large as any other.
            atol[SHAPE.n_embd : 2 * SHAPE.n_embd] = 2e-4
        np.testing.assert_array_less(np.abs(ours[name] - array), atol, err_msg=name)


@pytest.mark.parametrize("accumulation", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_two_replicas_come_to_the_weights_of_one(tmp_path, accumulation):
    command = [sys.executable, "-c", REPLICAS + TRAIN, str(tmp_path / "run"), str(accumulation)]
    subprocess.run(command, check=True, capture_output=True, timeout=200)
    assert_close(tmp_path / "run", expected(accumulation))


@pytest.mark.parametrize(
    ("jobs", "task", "writes"),
    [
        (("worker",), ("worker", 0), True),
        (("worker",), ("worker", 1), False),
        (("chief", "worker"), ("chief", 0), True),
        (("chief", "worker"), ("worker", 0), False),
    ],
)
def test_one_process_alone_writes(jobs: tuple[str, ...], task: tuple[str, int], writes: bool) -> None:
    """Of a cluster with a chief, its first worker wrote too."""
    spec = tf.train.ClusterSpec({job: [f"127.0.0.1:{n + 1}", f"127.0.0.1:{n + 3}"] for n, job in enumerate(jobs)})
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(spec, task_type=task[0], task_id=task[1])
    assert is_chief(SimpleNamespace(cluster_resolver=resolver)) == writes
    assert is_chief(None)


def start_workers(*arguments: str) -> list[subprocess.Popen[str]]:
    """Two processes of `gpt2 train`, as a cluster would start them."""
    ports = []
    for _ in range(2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    workers = [f"127.0.0.1:{port}" for port in ports]
    processes = []
    for index in range(2):
        cluster = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
        environment = {**os.environ, "TF_CONFIG": json.dumps(cluster), "GRPC_ENABLE_FORK_SUPPORT": "0"}
        command = [sys.executable, "-c", "from gpt2.cli import main; main()", "train", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        processes.append(subprocess.Popen(command, env=environment, **pipes))
    return processes


def stop(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.mark.timeout(280)
def test_two_processes_come_to_the_weights_of_one_also_after_one_was_killed(tmp_path):
    (tmp_path / "text.txt").write_text("The cat sat on the mat, and the dog sat on the cat. " * 60)
    data, run = str(tmp_path / "data"), str(tmp_path / "run")
    prepare([tmp_path / "text.txt"], data)
    shape = {"n_ctx": 8, "n_embd": 8, "n_head": 2, "n_layer": 1}
    values = {"steps": STEPS, "batch_size": 4, "learning_rate": 1e-2, "eval_every": 5}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in (shape | values).items()]
    processes = start_workers(data, "-o", run, *options)
    try:
        assert processes[0].stdout is not None
        for line in processes[0].stdout:
            if line.startswith("checkpoint step-00000010"):
                break
        else:
            pytest.fail("the first worker ended before its second checkpoint")
        processes[1].send_signal(signal.SIGKILL)
        processes[1].wait()
    finally:
        stop(processes)  # the other cannot go on alone: a cluster is started anew as a whole
    processes = start_workers("--resume", run)
    try:
        outputs = [process.communicate(timeout=200)[0] for process in processes]
    finally:
        stop(processes)
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert "2 devices train together" in outputs[0]
    assert "step 5/20" not in outputs[0]
    assert "step 20/20" in outputs[0]
    assert "the first worker writes the run" in outputs[1]
    assert "step 20/20" not in outputs[1]
    alone = train_model(data, config=GPT2Config(**shape), training=TrainingConfig(**values)).parameters()
    assert_close(tmp_path / "run", alone)


def test_a_cluster_is_asked_for_prepared_text(tmp_path):
    (tmp_path / "text.txt").write_text("The cat sat on the mat. " * 20)
    processes = start_workers(str(tmp_path / "text.txt"), "-o", str(tmp_path / "run"))
    try:
        outputs = [process.communicate(timeout=200)[0] for process in processes]
    finally:
        stop(processes)
    assert [process.returncode for process in processes] == [2, 2]
    assert all("DATA: expected a folder made by `gpt2 prepare`" in output for output in outputs), outputs


def test_a_broken_tf_config_is_named(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", "worker-0")
    with pytest.raises(ConfigError, match="TF_CONFIG: expected JSON with a cluster and a task, got worker-0"):
        strategy_of_environment()
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": {"worker": ["127.0.0.1:1"]}}))
    assert strategy_of_environment() is None  # one worker is no cluster
