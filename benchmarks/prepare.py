"""How fast is `prepare`, files to shards, beside tiktoken alone on the same text? `python benchmarks/prepare.py DIR`.

DIR has text files; without it, about 40 MB of random words are made. tiktoken encodes the texts that are already in
memory, one a file, with as many threads; ours reads, encodes, hashes and writes. In turns; the ratio is printed last.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import time
from pathlib import Path

import tiktoken

from gpt2.codec import default_codec
from gpt2.data.prepare import prepare


def main() -> None:
    """Measure, from the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("texts", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.texts or random_texts(Path(scratch) / "texts")
        texts = [path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.txt"))]
        megabytes = sum(len(text.encode()) for text in texts) / 1e6
        encoding: tiktoken.Encoding = default_codec()._encoding
        ours, theirs = [], []
        for n in range(arguments.rounds + 1):
            began = time.perf_counter()
            prepare([folder / "*.txt"], Path(scratch) / "out", workers=arguments.threads)
            middle = time.perf_counter()
            encoding.encode_ordinary_batch(texts, num_threads=arguments.threads)
            if n:  # the first round warms up
                ours.append(megabytes / (middle - began))
                theirs.append(megabytes / (time.perf_counter() - middle))
    print(f"{megabytes:.1f} MB in {len(texts)} files, {arguments.threads} threads, {arguments.rounds} rounds")
    print(f"gpt2 prepare                     {statistics.median(ours):6.1f} MB/s")
    print(f"tiktoken.encode_ordinary_batch   {statistics.median(theirs):6.1f} MB/s")
    print(f"ratio {statistics.median(a / b for a, b in zip(ours, theirs, strict=True)):.2f}")


def random_texts(folder: Path) -> Path:
    """Files of random words."""
    folder.mkdir()
    draw = random.Random(0)
    words = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(1, 9))) for _ in range(20_000)]
    for n in range(20):
        (folder / f"{n}.txt").write_text(" ".join(draw.choices(words, k=330_000)), encoding="utf-8")
    return folder


if __name__ == "__main__":
    main()
