"""What a conversion costs: `python benchmarks/convert_memory.py 1558M`.

A Hugging Face folder with random float32 weights is written, and converted to each format by a fresh process that
reports its peak memory (resident, `VmHWM`; Linux) and time, without the check; with `--check` also with it, which does
not count what the runtime's own process needs meanwhile; with `--back` what was written is also converted to native.
The ratio is that of the peak to the larger of source and target. Formats whose libraries are not installed are left
out, and said so. 1558M needs 20 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from load_memory import random_tensors

from gpt2 import checkpoints, exports
from gpt2.codec import default_codec
from gpt2.config import SIZES, size_name
from gpt2.errors import ConfigError

READ = ("native", "huggingface", "openai", "gguf")
CONVERTER = """
import json, re, sys, time
from pathlib import Path
from gpt2 import exports
source, target, format, precision, check = sys.argv[1:]
started = time.monotonic()
report = exports.export(
    Path(target), exports.from_folder(Path(source)), format, precision, check=True if check == "check" else False
)
print(json.dumps({
    "seconds": time.monotonic() - started,
    "peak": 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]),
    "bytes": report.bytes,
    "parity": None if report.parity is None else str(report.parity),
}))
"""


def convert(source: Path, target: Path, format: str, precision: str, *, check: bool = False) -> dict[str, Any]:
    """Convert in a process of its own: seconds, peak bytes, the target's bytes, and its report."""
    command = [sys.executable, "-c", CONVERTER]
    arguments = [str(source), str(target), format, precision, "check" if check else "no"]
    done = subprocess.run([*command, *arguments], capture_output=True, check=False, text=True)
    if done.returncode:
        raise SystemExit(f"{format}, {precision}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure, from the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("size", nargs="?", default="124M")
    parser.add_argument("--formats", nargs="*", default=list(exports.PRECISIONS))
    parser.add_argument("--check", action="store_true", help="also with the check")
    parser.add_argument("--back", action="store_true", help="also back, from the formats that are read")
    arguments = parser.parse_args()
    size = size_name(arguments.size)
    config = SIZES[size]
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, size), Path(folder, "target", "model.gguf")
        checkpoints.write(source, config, random_tensors(config), format="huggingface", codec=default_codec())
        held = sum(path.stat().st_size for path in source.iterdir())
        print(f"{size}: {held / 1e9:.2f} GB; peak memory and its ratio to the larger of source and target")
        for format in arguments.formats:
            for precision in exports.PRECISIONS[format]:
                try:
                    exports.check_options(format, precision)
                except ConfigError as error:
                    print(f"{format}: {error}")
                    continue
                for check in (False, True) if arguments.check else (False,):
                    found = convert(source, target, format, precision, check=check)
                    ratio = found["peak"] / max(held, found["bytes"])
                    print(
                        f"{format:12}{precision:9}{found['bytes'] / 1e9:6.2f} GB  peak {found['peak'] / 1e9:6.2f} GB  "
                        f"ratio {ratio:.2f}  {found['seconds']:.0f} s" + (f"  {found['parity']}" if check else ""),
                        flush=True,
                    )
                    if arguments.back and not check and format in READ:
                        back = convert(target, Path(folder, "back"), "native", "float32")
                        size_back = max(found["bytes"], back["bytes"])
                        print(
                            f"  and back to native: peak {back['peak'] / 1e9:6.2f} GB  ratio "
                            f"{back['peak'] / size_back:.2f}  {back['seconds']:.0f} s",
                            flush=True,
                        )
                        shutil.rmtree(Path(folder, "back"))
                    shutil.rmtree(target.parent)


if __name__ == "__main__":
    main()
