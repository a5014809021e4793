"""How fast a prompt of 512 tokens is read: `python benchmarks/prefill.py`. Ours and the peers in turns; ratios last."""

from __future__ import annotations

import argparse

from rivals import CONTENDERS, in_turns, ratios, start

PAIRS = [
    ("ours int8", "llama.cpp Q8_0"),
    ("ours int4", "llama.cpp Q4_0"),
    ("ours float32", "llama.cpp F32"),
    ("ours float32", "transformers float32"),
]


def main() -> None:
    """Measure in turns and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--only", nargs="*", default=list(CONTENDERS), help="contenders")
    given = parser.parse_args()
    processes = start(given.only)
    seconds = in_turns(processes, given.rounds, "prefill", count=given.tokens, seed=lambda number: 100 + number)
    ratios({name: given.tokens / value for name, value in seconds.items()}, PAIRS, f"{given.tokens} tokens")
    for process in processes.values():
        process.close()


if __name__ == "__main__":
    main()
