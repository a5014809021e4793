"""Train the model that the package brings along: `python tools/train_bundled.py STORIES -o OUT`.

STORIES is a folder of public-domain books as text files with a `SOURCES.tsv` beside them, which is not part of this
repository; `docs/bundled-model.md` lists titles and Project Gutenberg numbers. OUT receives `log.jsonl` (a line each
`--eval-every` steps) and `model.safetensors` in float16 (written anew at each of those lines, so that a run cut short
leaves something). Nothing here is imported by the package.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
from pathlib import Path

import keras
import numpy as np
from safetensors.numpy import save_file

from gpt2.codec import default_codec
from gpt2.config import GPT2Config, TrainingConfig
from gpt2.model import GPT2
from gpt2.training import LogEntry, train

CONFIG = GPT2Config(n_ctx=512, n_embd=256, n_head=4, n_layer=8)

LEFT_OUT = {
    "lang-yellow-fairy-book": "a book of the Children's Book Test",
    "carroll-alice-in-wonderland": "a book of the Children's Book Test",
    "kipling-jungle-book": "a book of the Children's Book Test",
    "lofting-story-of-doctor-dolittle": "racial stereotypes",
    "lofting-voyages-of-doctor-dolittle": "racial stereotypes",
    "boys-and-girls-bookshelf-2": "racial stereotypes",
}
HELD_OUT = ("lang-olive-fairy-book", "nesbit-book-of-dragons", "baum-glinda-of-oz", "jacobs-indian-fairy-tales")


def main() -> None:
    """Train, from the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stories", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--eval-every", type=int, default=100)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    with (arguments.stories / "SOURCES.tsv").open(encoding="utf-8", newline="") as file:
        slugs = [row["slug"] for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]
    train_books = [slug for slug in slugs if slug not in LEFT_OUT and slug not in HELD_OUT]
    tokens, valid_tokens = (row_of_tokens(arguments.stories, books) for books in (train_books, HELD_OUT))
    print(f"{len(train_books)} books, {len(tokens):,} tokens; {len(HELD_OUT)} held out, {len(valid_tokens):,} tokens")

    config = TrainingConfig(
        steps=arguments.steps,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        final_learning_rate=0.02,
        warmup_steps=150,
        beta_2=0.98,
        precision="bfloat16",
        eval_every=arguments.eval_every,
    )
    keras.utils.set_random_seed(config.seed)  # of the first weights; `train` sets it again for the rest
    network = GPT2(CONFIG, dtype="mixed_bfloat16")

    def on_log(entry: LogEntry) -> None:
        line = json.dumps(dataclasses.asdict(entry))
        print(line, flush=True)
        with (arguments.out / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(line + "\n")
        arrays = {name: np.asarray(v.numpy(), dtype=np.float16) for name, v in network.tensors().items()}
        save_file(arrays, arguments.out / "model.safetensors")

    train(network, tokens, config, valid_tokens=valid_tokens, on_log=on_log)


def row_of_tokens(folder: Path, slugs: list[str] | tuple[str, ...]) -> np.ndarray:
    """The books one after another, `<|endoftext|>` after each."""
    codec = default_codec()
    end = np.array([codec.end_of_text], dtype=np.uint16)
    books = [codec.encode_array((folder / f"{slug}.txt").read_text(encoding="utf-8").strip()) for slug in slugs]
    return np.concatenate([part for book in books for part in (book, end)])


if __name__ == "__main__":
    main()
