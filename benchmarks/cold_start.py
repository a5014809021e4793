"""From the start of a process to its first token: `python benchmarks/cold_start.py`.

124M, the model built (ours) and everything in the page cache, a prompt of eight words; ours and transformers in turns.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys

from rivals import FOLDER, huggingface, timed

PROMPT = "Once upon a time there was a king"
PEER = f"""
import torch
from transformers import GPT2LMHeadModel, GPT2TokenizerFast
torch.set_num_threads(2)
model = GPT2LMHeadModel.from_pretrained({str(huggingface())!r}).eval()
encoded = GPT2TokenizerFast.from_pretrained({str(huggingface())!r})({PROMPT!r}, return_tensors="pt")
model.generate(**encoded, max_new_tokens=1, do_sample=False)
"""
OURS = """
from gpt2 import query_model
query_model({!r}, model={!r}, precision={!r}, max_tokens=1, temperature=0)
"""


def main() -> None:
    """Measure in turns and print."""
    env = {**os.environ, "GPT2_HOME": str(FOLDER / "home")}
    commands = {f"ours {p}": OURS.format(PROMPT, str(huggingface()), p) for p in ("int4", "int8", "float32")}
    commands["transformers float32"] = PEER
    found: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(6):
        for name, program in commands.items():
            command = [sys.executable, "-c", program]
            seconds = timed(lambda: subprocess.run(command, check=True, env=env, capture_output=True))  # noqa: B023
            if number:  # the first time the model is built
                found[name].append(seconds)
    medians = {name: statistics.median(values) for name, values in found.items()}
    for name, seconds in medians.items():
        print(f"{name:<22}{seconds:8.2f} s")
    for name in list(medians)[:3]:
        print(f"ratio {name} / transformers: {medians['transformers float32'] / medians[name]:.1f}")


if __name__ == "__main__":
    main()
