"""Many clients at once against a real server: errors, speed against one client's alone, /health's delay, memory.

    python benchmarks/load.py                 20 clients for 2 minutes on the bundled model
    python benchmarks/load.py --minutes 30
    python benchmarks/load.py --size 124M --precision int8

A request asks for 64 tokens without an end; half of them are streamed. Memory is measured from when the cache of keys
and values is full, which long prompts see to beforehand. Nothing is asserted; it prints what it found.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from servers import Running

TOKENS = 64


def ask(client: httpx.Client, seed: int, errors: list[str]) -> int:
    """One request; the tokens that came."""
    body = {"prompt": f"Once upon a time {seed}", "max_tokens": TOKENS, "logit_bias": {"50256": -100}, "seed": seed}
    try:
        if seed % 2:
            answer = client.post("/v1/completions", json=body)
            answer.raise_for_status()
            return int(answer.json()["usage"]["completion_tokens"])
        with client.stream("POST", "/v1/completions", json=body | {"stream": True}) as stream:
            stream.raise_for_status()
            lines = [line for line in stream.iter_lines() if line.startswith("data: {")]
        assert json.loads(lines[-1][6:])["choices"][0]["finish_reason"] == "length"
        return TOKENS
    except (httpx.HTTPError, AssertionError, ValueError) as error:
        errors.append(repr(error))
        return 0


def load(url: str, clients: int, seconds: float, errors: list[str]) -> float:
    """Tokens a second that some clients get together."""
    end = time.monotonic() + seconds
    counts = [0] * clients

    def client(number: int) -> None:
        with httpx.Client(base_url=url, timeout=120) as session:
            seed = number
            while time.monotonic() < end:
                counts[number] += ask(session, seed, errors)
                seed += clients

    threads = [threading.Thread(target=client, args=(n,)) for n in range(clients)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.monotonic() - started)


def fill(url: str, rows: int = 72) -> None:
    """Have so many prompts read that each are as long as can be: more than the cache keeps."""
    with httpx.Client(base_url=url, timeout=600) as session:
        info = session.get("/tokenizer_info").raise_for_status().json()
        rng = random.Random(0)
        for _ in range(0, rows, 8):
            prompts = [[rng.randrange(50256) for _ in range(info["model_max_length"] - 1)] for _ in range(8)]
            session.post("/v1/completions", json={"prompt": prompts, "max_tokens": 1}).raise_for_status()


def watch(url: str, delays: list[float], stop: threading.Event) -> None:
    """Ask /health all the time."""
    with httpx.Client(base_url=url, timeout=60) as session:
        while not stop.wait(0.05):
            started = time.perf_counter()
            session.get("/health").raise_for_status()
            delays.append(time.perf_counter() - started)


def resident(pid: int) -> float:
    """A process's memory, MB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=2)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--size", help="random weights of this size instead of the bundled model")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ["GPT2_HOME"] = home
        options = ["--precision", given.precision]
        if given.size:
            from gpt2.gpt import new_model, save_model

            save_model(new_model(given.size), Path(home) / "models" / "random", dtype="float16")
            options += ["--model", "random"]
        process = subprocess.Popen(
            [sys.executable, "-m", "gpt2", "serve", "--port", "0", *options], stderr=subprocess.PIPE, text=True
        )
        server = Running(process)
        try:
            errors: list[str] = []
            start = resident(process.pid)
            fill(server.url)
            load(server.url, given.clients, 10, errors)  # warm
            alone = statistics.median(load(server.url, 1, 5, errors) for _ in range(3))
            before = resident(process.pid)
            delays: list[float] = []
            stop = threading.Event()
            watcher = threading.Thread(target=watch, args=(server.url, delays, stop))
            watcher.start()
            together = load(server.url, given.clients, 60 * given.minutes, errors)
            stop.set()
            watcher.join()
            grown = resident(process.pid) - before
        finally:
            status = server.stop()
    delays.sort()
    print(f"{given.size or 'bundled'}, {given.precision}, {given.clients} clients, {given.minutes:g} minutes")
    print(f"  errors {len(errors)} {errors[:3]}; exit status {status}")
    print(f"  /health p50 {1e3 * delays[len(delays) // 2]:.1f} ms, p99 {1e3 * delays[int(0.99 * len(delays))]:.1f} ms")
    print(f"  memory grew by {grown:.0f} MB from {before:.0f} MB with a full cache; {start:.0f} MB at the start")
    print(f"  one client {alone:.0f} tokens/s, together {together:.0f} tokens/s: {together / alone:.2f} x")


if __name__ == "__main__":
    main()
