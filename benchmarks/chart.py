"""The README's picture of `decode.py`'s results: `python benchmarks/chart.py`, `results.json` to `docs/speed.svg`."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"


def main() -> None:
    """Draw."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    shown = {past: rates for past, rates in results["decode"].items() if past in ("64", "896")}
    names = sorted(shown["64"], key=lambda name: shown["64"][name])
    plt.rcParams["svg.hashsalt"] = "gpt2"
    figure, axes = plt.subplots(1, len(shown), figsize=(9, 3.6), sharey=True)
    for axis, (past, rates) in zip(axes, shown.items(), strict=True):
        values = [rates[name] for name in names]
        colours = ["#c8553d" if name.startswith("our") else "#9aa5b1" for name in names]
        axis.barh(names, values, color=colours)
        for place, value in enumerate(values):
            axis.text(value, place, f" {value:.0f}", va="center", fontsize=9)
        axis.set_title(f"behind {past} tokens", fontsize=10)
        axis.set_xlim(0, 1.15 * max(values))
        axis.set_xlabel("tokens a second")
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"GPT-2 124M, one text, {results['machine']}, {results['date']}", fontsize=10)
    figure.tight_layout()
    figure.savefig(HERE.parent / "docs" / "speed.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
