"""Training on JAX: its kernels beside TensorFlow's, the tests of training again, and no TensorFlow needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.reference
pytest.importorskip("jax", reason="JAX is not installed (pip install .[jax])")

TESTS = Path(__file__).parent
rng = np.random.default_rng(0)


def run(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", **variables}
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("file", "chosen"),
    [("test_training.py", ""), ("test_training_reference.py", ""), ("test_runs.py", "not kill")],
)
def test_the_tests_of_training_pass_on_jax(file, chosen):
    done = run("-m", "pytest", str(TESTS / file), "-k", chosen, "-m", "not slow", "-p", "no:cacheprovider")
    assert done.returncode == 0, done.stdout[-5000:]


WITHOUT_TENSORFLOW = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "tensorflow":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
import numpy as np
from gpt2 import GPT2Config, TrainingConfig, load_model, resume_training, train_model
from gpt2.cli import main

folder = sys.argv[1]
text = folder + "/text.txt"
with open(text, "w") as file:
    file.write("The cat sat on the mat, and the dog sat on the cat. " * 30)
main(["train", text, "-o", folder + "/run", *"--n-layer 1 --n-embd 16 --n-head 2 --n-ctx 16".split(),
      *"--steps 4 --batch-size 2 --eval-every 2 --precision bfloat16".split(), "--sample", "The cat"])
"""


def test_it_trains_without_tensorflow(tmp_path):
    done = run("-c", WITHOUT_TENSORFLOW, str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run" / "checkpoints" / "step-00000004" / "model.safetensors").exists()
    assert "The cat" in (tmp_path / "run" / "samples.jsonl").read_text()


SAME = """
import json, sys
import numpy as np
from gpt2 import TrainingConfig, load_model, train_model

base, tokens, settings, out = sys.argv[1:]
losses = []
model = train_model(
    np.load(tokens), model=base, valid_data=np.load(tokens)[:200],
    training=TrainingConfig.from_dict(json.loads(settings)),
    on_log=lambda entry: losses.append([entry.loss, entry.valid_loss]),
)
np.savez(out, losses=np.array(losses), **model.parameters())
"""


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"accumulation_steps": 2, "cross_documents": False, "gradient_checkpointing": True},
        {"trainable": ["h1/*", "ln_f/*"]},
        {"lora_rank": 4, "learning_rate": 3e-2},
    ],
)
def test_training_is_tensorflows(tmp_path, changes):
    from gpt2.config import GPT2Config, TrainingConfig
    from gpt2.gpt import new_model, save_model

    shape = GPT2Config(n_vocab=50257, n_ctx=16, n_embd=16, n_head=2, n_layer=2)
    model = new_model(shape, seed=1)
    model.set_parameters((name, 5 * array) for name, array in model.parameters().items() if array.ndim > 1)
    save_model(model, tmp_path / "base")
    tokens = np.random.default_rng(0).zipf(1.5, 2000) % 300
    tokens[::50] = 50256
    np.save(tmp_path / "tokens.npy", tokens)
    values = {"steps": 10, "batch_size": 4, "learning_rate": 1e-2, "warmup_steps": 2, "eval_every": 1, **changes}
    settings = json.dumps(TrainingConfig.from_dict({**TrainingConfig().to_dict(), **values}).to_dict())
    found = []
    for backend in ("jax", "tensorflow"):
        arguments = [str(tmp_path / name) for name in ("base", "tokens.npy")] + [
            settings,
            str(tmp_path / f"{backend}.npz"),
        ]
        done = run("-c", SAME, *arguments, KERAS_BACKEND=backend)
        assert done.returncode == 0, done.stderr[-3000:]
        found.append(dict(np.load(tmp_path / f"{backend}.npz")))
    ours, expected = found
    np.testing.assert_allclose(ours["losses"], expected["losses"], atol=1e-4)
    assert expected["losses"][-1, 0] < expected["losses"][0, 0] - 0.05
    moved = [name for name in expected if name != "losses" and (expected[name] != model.parameters()[name]).any()]
    assert moved
    for name in expected:
        np.testing.assert_allclose(ours[name], expected[name], atol=2e-3, err_msg=name)


def test_a_strategy_of_tensorflow_is_refused():
    code = (
        "from gpt2 import GPT2Config, TrainingConfig, train_model; import numpy as np\n"
        "train_model(np.arange(99), config=GPT2Config(n_vocab=99, n_ctx=8, n_embd=8, n_head=2, n_layer=1),"
        " training=TrainingConfig(steps=1), strategy=object())"
    )
    done = run("-c", code)
    assert "strategy: expected none with KERAS_BACKEND=jax" in done.stderr


# The kernels, in this process: they are JAX alone


def both(name: str, *arrays: np.ndarray, rest: tuple = (), **options: object):
    """Value and gradients of a function of both modules, the value weighed so that every element counts."""
    import jax
    import jax.numpy as jnp
    import tensorflow as tf

    from gpt2 import jax_kernels, kernels

    tensors = [tf.constant(a) for a in arrays]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        plain = getattr(kernels, name)(*tensors, *rest, **options)
        weights = np.cos(np.arange(int(tf.size(plain)))).reshape(plain.shape).astype(np.float32)
        total = tf.reduce_sum(plain * weights)
    expected = [plain, *map(tf.convert_to_tensor, tape.gradient(total, tensors))]

    def weighed(*values):
        y = getattr(jax_kernels, name)(*values, *rest, **options)
        return jnp.sum(y * weights), y

    gradients, value = jax.grad(weighed, argnums=tuple(range(len(arrays))), has_aux=True)(*map(jnp.asarray, arrays))
    return [np.asarray(a) for a in (value, *gradients)], [e.numpy() for e in expected]


def assert_close(ours: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for mine, theirs in zip(ours, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


def normal(*shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("segments", [None, np.sort(rng.integers(0, 3, (2, 11))).astype(np.int32)])
def test_attention(segments):
    assert_close(*both("attention", normal(2, 11, 24), rest=(2, segments)))


def test_linear_layers_gelu_and_layer_norm():
    assert_close(*both("linear", normal(5, 7), normal(7, 3), normal(3)))
    assert_close(*both("linear_of_gelu", 4 * normal(5, 7), normal(7, 3), normal(3)))
    assert_close(*both("gelu", 4 * normal(5, 7)))
    assert_close(*both("layer_norm", normal(5, 7), normal(7), normal(7), rest=("float32",)))


def test_cross_entropy_in_blocks_the_last_not_full(monkeypatch):
    from gpt2 import jax_kernels

    monkeypatch.setattr(jax_kernels, "LOSS_BLOCK", 7)
    targets = rng.integers(0, 33, 17).astype(np.int32)
    x, wte = normal(17, 16), normal(33, 16)
    ours, expected = both("cross_entropy", x, wte, rest=(targets,))
    assert_close(ours, expected)
    measured = jax_kernels.cross_entropy(x, wte, targets, measure_only=True)
    assert float(measured) == pytest.approx(float(ours[0]), rel=1e-6)


def test_dropout_in_attention_has_the_gradient_of_what_it_computes():
    import jax
    import jax.numpy as jnp

    from gpt2 import jax_kernels

    qkv, direction, weights = normal(1, 9, 24), normal(1, 9, 24), normal(1, 9, 8)
    key = np.array([1, 2], np.int32)

    def value(x):
        return jnp.sum(jax_kernels.attention(x, 2, None, 0.3, key) * weights)

    slope = float(jnp.sum(jax.grad(value)(qkv) * direction))
    measured = float(value(qkv + 1e-2 * direction) - value(qkv - 1e-2 * direction)) / 2e-2
    assert slope == pytest.approx(measured, rel=0.02, abs=0.02)
    plain = jnp.sum(jax_kernels.attention(qkv, 2) * weights)
    assert abs(float(plain - value(qkv))) > 1e-3


def test_dropout_keeps_the_mean():
    from gpt2 import jax_kernels

    dropped = np.asarray(jax_kernels.dropout(np.ones((100, 100), np.float32), 0.25, np.array([0, 1], np.int32)))
    assert set(np.unique(dropped.round(4))) == {0.0, np.float32(1.3333)}
    assert dropped.mean() == pytest.approx(1, abs=0.02)
