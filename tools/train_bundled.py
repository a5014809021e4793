"""Train the model that the package brings along: `python tools/train_bundled.py STORIES -o OUT`.

STORIES is a folder of public-domain books as text files with a `SOURCES.tsv` beside them, which is not part of this
repository; `docs/bundled-model.md` lists titles and Project Gutenberg numbers. OUT becomes the folder of a training
run (`gpt2.runs`); the same command goes on with one that was stopped. At the end OUT/bundled is the best checkpoint in
float16. Nothing here is imported by the package.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
from pathlib import Path

import numpy as np

from gpt2.codec import default_codec
from gpt2.config import GPT2Config, TrainingConfig
from gpt2.gpt import load_model, resume_training, save_model, train_model
from gpt2.live import LiveTable

CONFIG = GPT2Config(n_ctx=512, n_embd=256, n_head=4, n_layer=8)

LEFT_OUT = {
    "lang-yellow-fairy-book": "a book of the Children's Book Test",
    "carroll-alice-in-wonderland": "a book of the Children's Book Test",
    "kipling-jungle-book": "a book of the Children's Book Test",
    "lofting-story-of-doctor-dolittle": "racial stereotypes",
    "lofting-voyages-of-doctor-dolittle": "racial stereotypes",
    "boys-and-girls-bookshelf-2": "racial stereotypes",
    "kipling-just-so-stories": "a racial slur",
    "nesbit-story-of-the-treasure-seekers": "a racial slur",
    "junior-classics-6-old-fashioned-tales": "a racial slur",
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
    parser.add_argument("--eval-every", type=int, default=250)
    arguments = parser.parse_args()

    with (arguments.stories / "SOURCES.tsv").open(encoding="utf-8", newline="") as file:
        slugs = [row["slug"] for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]
    train_books = [slug for slug in slugs if slug not in LEFT_OUT and slug not in HELD_OUT]
    tokens, valid_tokens = (row_of_tokens(arguments.stories, books) for books in (train_books, HELD_OUT))
    print(f"{len(train_books)} books, {len(tokens):,} tokens; {len(HELD_OUT)} held out, {len(valid_tokens):,} tokens")
    data = {"data": tokens, "valid_data": valid_tokens}

    with LiveTable(arguments.steps) as table:
        told = {
            "on_log": lambda entry: table.update(dataclasses.asdict(entry)),
            "on_step": table.step,
            "note": table.note,
        }
        if (arguments.out / "run.json").exists():
            resume_training(arguments.out, **data, **told)
        else:
            training = TrainingConfig(
                steps=arguments.steps,
                batch_size=arguments.batch_size,
                learning_rate=arguments.learning_rate,
                final_learning_rate=0.02,
                warmup_steps=150,
                beta_2=0.98,
                precision="bfloat16",
                eval_every=arguments.eval_every,
                sample_prompts=("Once upon a time",),
            )
            train_model(config=CONFIG, training=training, run=arguments.out, **data, **told)
    save_model(load_model(arguments.out), arguments.out / "bundled", dtype="float16")


def row_of_tokens(folder: Path, slugs: list[str] | tuple[str, ...]) -> np.ndarray:
    """The books one after another, `<|endoftext|>` after each."""
    codec = default_codec()
    end = np.array([codec.end_of_text], dtype=np.uint16)
    books = [codec.encode_array((folder / f"{slug}.txt").read_text(encoding="utf-8").strip()) for slug in slugs]
    return np.concatenate([part for book in books for part in (book, end)])


if __name__ == "__main__":
    main()
