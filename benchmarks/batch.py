"""How fast 16 texts are written together: `python benchmarks/batch.py`.

64 tokens behind prompts of 64, all rows in step, two threads, ours and the peers in turns; ratios last.
"""

from __future__ import annotations

import argparse

from rivals import CONTENDERS, in_turns, ratios, start

PAIRS = [("ours int8", "ctranslate2 int8"), ("ours float32", "transformers float32")]


def main() -> None:
    """Measure in turns and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--steps", type=int, default=64)
    batching = [name for name, (kind, _, _) in CONTENDERS.items() if hasattr(kind, "batch")]
    parser.add_argument("--only", nargs="*", default=batching, help="contenders")
    given = parser.parse_args()
    processes = start(given.only)
    seconds = in_turns(processes, given.rounds, "batch", rows=given.rows, past=64, steps=given.steps)
    ratios({name: given.rows / value for name, value in seconds.items()}, PAIRS, f"{given.rows} rows")
    for process in processes.values():
        process.close()


if __name__ == "__main__":
    main()
