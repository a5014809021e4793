"""How fast is a training step, and how much memory does it need, beside PyTorch? `python benchmarks/train.py`.

The same step of the same network with random weights: forward, backward, clipping, AdamW. Each measurement is a process
of its own; ours and PyTorch's take turns, so that a machine that slows down slows both. PyTorch has its fused AdamW and
its fused attention. The ratios of the median steps are printed last. With KERAS_BACKEND=jax our step is JAX's, which is
the way to an NVIDIA GPU: there is no PyTorch beside it then, and TensorFlow is not needed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

TESTS = Path(__file__).resolve().parent.parent / "tests"


def main() -> None:
    """Measure, from the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="124M")
    parser.add_argument("--shapes", nargs="+", default=["4x256", "1x1024"], help="batch x tokens")
    parser.add_argument("--precisions", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6, help="a process; the first two are not counted")
    parser.add_argument("--child", choices=["ours", "torch"])
    arguments = parser.parse_args()
    if arguments.child:
        (measure_ours if arguments.child == "ours" else measure_torch)(arguments)
        return
    ratios = []
    for precision in arguments.precisions:
        for shape in arguments.shapes:
            on_jax = os.environ.get("KERAS_BACKEND") == "jax"
            runs: dict[str, list[dict[str, Any]]] = {"ours": []} if on_jax else {"ours": [], "torch": []}
            for _ in range(arguments.rounds):
                for who, found in runs.items():
                    options = ["--size", arguments.size, "--shapes", shape, "--precisions", precision]
                    command = [sys.executable, __file__, "--child", who, "--steps", str(arguments.steps), *options]
                    found.append(json.loads(subprocess.run(command, capture_output=True, check=True).stdout))
            B, T = map(int, shape.split("x"))
            speed = {}
            for who, found in runs.items():
                seconds = statistics.median(s for run in found for s in run["seconds"][2:])
                speed[who] = B * T / seconds
                first = statistics.median(run["seconds"][0] for run in found)
                peak = max(run["peak"] for run in found)
                row = (
                    f"{precision:9} {shape:7} {who:6} {speed[who]:6.0f} tokens/s  first step {first:5.1f} s  {peak} GB"
                )
                share = [run["flops"] * speed[who] / run["ceiling"] for run in found if "ceiling" in run]
                print(row + (f"  {statistics.median(share):.0%} of the ceiling" if share else ""))
            if "torch" in speed:
                ratios.append(f"{precision} {shape}: {speed['ours'] / speed['torch']:.2f}")
    if ratios:
        print("ratio  " + "   ".join(ratios))


def batches(arguments: argparse.Namespace) -> list[np.ndarray]:
    """Windows of random tokens, (B, T + 1) each."""
    B, T = map(int, arguments.shapes[0].split("x"))
    rng = np.random.default_rng(0)
    return [rng.integers(0, 50257, (B, T + 1)).astype(np.int32) for _ in range(arguments.steps)]


def report(seconds: list[float], **more: float) -> None:
    """Print what was measured for the parent."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps({"seconds": seconds, "peak": round(peak, 2), **more}))


def measure_ours(arguments: argparse.Namespace) -> None:
    """Take steps with this package."""
    from gpt2.config import SIZES, TrainingConfig
    from gpt2.model import GPT2
    from gpt2.training.loop import flops_per_token
    from gpt2.training.step import new_stepper

    windows = batches(arguments)
    shape = SIZES[arguments.size]
    config = TrainingConfig(batch_size=len(windows[0]), precision=arguments.precisions[0])
    stepper = new_stepper(GPT2(shape), config)
    seconds = []
    for number, window in enumerate(windows, start=1):
        began = time.perf_counter()
        stepper.step(number, [(window[:, :-1], window[:, 1:])], 6e-4)
        seconds.append(time.perf_counter() - began)
    flops = flops_per_token(shape, windows[0].shape[1] - 1)
    report(seconds, flops=flops, ceiling=stepper.ceiling())


def measure_torch(arguments: argparse.Namespace) -> None:
    """Take steps with PyTorch."""
    import torch

    sys.path.insert(0, str(TESTS))
    from gpt2.config import SIZES
    from torch_gpt2 import TorchGPT2

    windows = batches(arguments)
    model = TorchGPT2(**SIZES[arguments.size].to_dict())
    optimizer = model.optimizer(0.1, (0.9, 0.95))
    seconds = []
    for window in windows:
        began = time.perf_counter()
        x, y = torch.tensor(window[:, :-1]).long(), torch.tensor(window[:, 1:]).long()
        model.step(optimizer, x, y, 6e-4, bf16=arguments.precisions[0] == "bfloat16")
        seconds.append(time.perf_counter() - began)
    report(seconds)


if __name__ == "__main__":
    main()
