"""What loading a model costs: `python benchmarks/load_memory.py 124M 1558M`.

For each size a Hugging Face folder with random float32 weights is written, and loaded by a fresh process that reports
its peak memory (resident, `VmHWM`; Linux) and time. The ratio to the size of the weights is printed last. 1558M needs
7 GB of disk and 9 GB of memory; `--format openai` reads the file twice, first in a child process, and writing it
needs 15 GB.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gpt2 import checkpoints
from gpt2.checkpoints.names import expected_shapes
from gpt2.config import SIZES, GPT2Config, size_name

LOADER = """
import re, sys, time
import gpt2.gpt
def peak():  # VmHWM: unlike ru_maxrss, it begins anew with the program
    return re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]
before, started = peak(), time.monotonic()
model = gpt2.gpt.load_model(sys.argv[1])
seconds = time.monotonic() - started
loaded = peak()
text = model.generate([464, 3290], max_tokens=8, temperature=0)[0].tokens
print(before, loaded, peak(), seconds)
"""


def random_tensors(config: GPT2Config) -> Iterator[tuple[str, np.ndarray]]:
    """Random weights, one tensor at a time."""
    rng = np.random.default_rng(0)
    for name, shape in expected_shapes(config).items():
        yield name, rng.standard_normal(shape, dtype=np.float32) * np.float32(0.02)


def main() -> None:
    """Measure, from the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sizes", nargs="*", default=["124M"])
    parser.add_argument("--format", default="huggingface", choices=list(checkpoints.FORMATS))
    arguments = parser.parse_args()
    for size in map(size_name, arguments.sizes):
        config = SIZES[size]
        weights = 4 * config.num_parameters / 1e9
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / size
            started = time.monotonic()
            checkpoints.write(path, config, random_tensors(config), format=arguments.format)
            written = time.monotonic() - started
            peak_writing = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
            command = [sys.executable, "-c", LOADER, str(path)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        before, loaded, generated = (float(kilobytes) * 1024 / 1e9 for kilobytes in done.stdout.split()[:3])
        seconds = float(done.stdout.split()[3])
        print(f"{size} {arguments.format}: {weights:.2f} GB of weights; written in {written:.0f} s ", end="")
        print(f"(peak {peak_writing:.2f} GB); peak before loading {before:.2f} GB, loaded {loaded:.2f} GB ", end="")
        print(f"in {seconds:.1f} s, after 8 tokens {generated:.2f} GB; ", end="")
        print(f"ratio loaded/weights {loaded / weights:.2f}, after 8 tokens {generated / weights:.2f}", flush=True)


if __name__ == "__main__":
    main()
