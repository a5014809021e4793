"""How fast one text is written: `python benchmarks/decode.py`.

A token at a time behind 64, 448 and 896 tokens, two threads, ours and the peers in turns; ratios last.
"""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path

from rivals import CONTENDERS, in_turns, ratios, start

PAIRS = [
    ("ours int8", "llama.cpp Q8_0"),
    ("ours int8", "ctranslate2 int8"),
    ("ours int4", "llama.cpp Q4_0"),
    ("ours float32", "llama.cpp F32"),
    ("ours float32", "transformers float32"),
    ("ours float32", "keras-hub float32"),
]


def main() -> None:
    """Measure in turns and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--past", type=int, nargs="*", default=[64, 448, 896])
    parser.add_argument("--only", nargs="*", default=list(CONTENDERS), help="contenders")
    parser.add_argument("--machine", help="say what it is, and the results go to results.json, for chart.py")
    given = parser.parse_args()
    rates = {}
    processes = start(given.only)
    for past in given.past:
        print(f"behind {past} tokens:")
        seconds = in_turns(processes, given.rounds, "decode", past=past, steps=given.steps)
        rates[str(past)] = {name: 1 / value for name, value in seconds.items()}
        ratios(rates[str(past)], PAIRS, f"behind {past}")
    for process in processes.values():
        process.close()
    if given.machine:
        results = {"machine": given.machine, "date": datetime.date.today().isoformat(), "decode": rates}
        Path(__file__).with_name("results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
