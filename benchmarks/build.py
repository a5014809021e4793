"""How long the fast engine's build takes, and how much memory: `python benchmarks/build.py [SIZE]`.

From safetensors with random weights, 124M unless another size is named, each precision in a process of its own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import rivals

from gpt2 import checkpoints
from gpt2.config import SIZES

PROGRAM = """
import sys, time
from pathlib import Path
from gpt2 import checkpoints
from gpt2.engines.litert_build import build
started = time.perf_counter()
config, tensors = checkpoints.read(sys.argv[1])
build(Path(sys.argv[2]), config, tensors, sys.argv[3])
print("built", time.perf_counter() - started)
status = open("/proc/self/status").read()
print("peak", int(status.split("VmHWM:")[1].split()[0]) / 1024)
if len(sys.argv) > 4:
    from gpt2.engines.litert import LiteRTEngine
    started = time.perf_counter()
    engine = LiteRTEngine(Path(sys.argv[2]))
    cache = engine.new_cache(1)
    engine.feed(cache, [[1, 2, 3]])
    print("first", time.perf_counter() - started)
    started = time.perf_counter()
    for _ in range(8):
        engine.feed(cache, [[1]])
    print("step", (time.perf_counter() - started) / 8)
"""


def main() -> None:
    """Measure and print."""
    size = sys.argv[1] if len(sys.argv) > 1 else "124M"
    rivals.CONFIG = SIZES[size]

    def write(path: Path) -> None:
        checkpoints.write(path, rivals.CONFIG, rivals.tensors(), format="huggingface")

    source = rivals.kept(f"huggingface-{size}", write)
    whole = 4 * rivals.CONFIG.num_parameters / 2**20
    print(f"{size}: {whole:,.0f} MiB in float32")
    for precision in ("float32", "int8", "int4"):
        target = rivals.FOLDER / f"build-{size}-{precision}"
        shutil.rmtree(target, ignore_errors=True)
        command = [sys.executable, "-c", PROGRAM, str(source), str(target), precision, "run"]
        said = subprocess.run(command, check=True, capture_output=True, text=True, env=dict(os.environ)).stdout
        facts = {name: float(value) for name, value in re.findall(r"(\w+) ([\d.]+)", said)}
        print(
            f"  {precision:<8} built in {facts['built']:5.1f} s, peak {facts['peak']:6,.0f} MiB "
            f"({facts['peak'] / whole:.2f} of float32); loaded, first token in {facts['first']:.2f} s; "
            f"{1 / facts['step']:.1f} tokens/s",
            flush=True,
        )
        shutil.rmtree(target)


if __name__ == "__main__":
    main()
