"""Bits per byte of a model beside other compressors: `python benchmarks/compress.py FILE... [--bytes 262144]`.

Each file's first bytes, compressed by `gpt2 compress` and by gzip -9, bzip2 -9, xz -9e and zstd -19 --long=27 (where
they are installed, as processes). Ours is expanded again and compared. Sizes are those of whole files, headers and all;
ours does not count the model, nor do the others count themselves.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import time
from pathlib import Path

from gpt2.compression import BLOCK, STREAMS, compress, decompress
from gpt2.language_model import open_model

OTHERS = {
    "gzip -9": ["gzip", "-9", "-n", "-c"],
    "bzip2 -9": ["bzip2", "-9", "-c"],
    "xz -9e": ["xz", "-9e", "-c"],
    "zstd -19": ["zstd", "-19", "--long=27", "-q", "-c"],
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--bytes", type=int, default=1 << 18)
    parser.add_argument("--model", default=None)
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--block", type=int, default=BLOCK)
    parser.add_argument("--streams", type=int, default=STREAMS)
    given = parser.parse_args()
    model = open_model(given.model, precision=given.precision, note=print)
    for path in given.files:
        with path.open("rb") as file:
            content = file.read(given.bytes)
        print(f"{path.name}, {len(content):,} bytes:", flush=True)
        made, back = io.BytesIO(), io.BytesIO()
        began = time.perf_counter()
        report = compress(io.BytesIO(content), made, model, block=given.block, streams=given.streams)
        middle = time.perf_counter()
        decompress(io.BytesIO(made.getvalue()), back, model)
        ended = time.perf_counter()
        assert back.getvalue() == content
        speeds = len(content) / (middle - began), len(content) / (ended - middle)
        print(
            f"  {'gpt2':<9} {report.compressed:>9,} bytes, {report.bits_per_byte:.3f} bits a byte, "
            f"{speeds[0]:,.0f} bytes/s, back {speeds[1]:,.0f} bytes/s, {report.tokens:,} tokens",
            flush=True,
        )
        for name, command in OTHERS.items():
            if shutil.which(command[0]):
                size = len(subprocess.run(command, input=content, capture_output=True, check=True).stdout)
                print(f"  {name:<9} {size:>9,} bytes, {8 * size / len(content):.3f} bits a byte", flush=True)


if __name__ == "__main__":
    main()
