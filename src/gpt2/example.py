"""A first look: `python -m gpt2.example` asks the bundled model a few things through the API, version 2."""

from __future__ import annotations

import sys

from gpt2.gpt_core_v2 import query_model, stream_model

PROMPTS = (
    "Once upon a time",
    "The old king called his three sons and said:",
    '"Who is knocking at my door?" asked the',
)


def main() -> None:
    """Print a continuation of each sample prompt, then one that is written piece by piece."""
    write = sys.stdout.write
    write("Synthetic text, written by a small GPT-2 that was trained on old fairy tales.\n")
    for prompt in PROMPTS:
        # The same seed gives the same text every time; leave it out for a new one.
        answer = query_model(prompt, max_tokens=40, temperature=0.8, top_k=40, seed=1)
        write(f"\n{prompt}{answer}\n")
    write("\nStreamed: The wolf")
    for text in stream_model("The wolf", max_tokens=40, temperature=0.8, top_k=40, stop=["\n"], seed=2):
        write(text)
        sys.stdout.flush()
    write("\n")


if __name__ == "__main__":
    main()
