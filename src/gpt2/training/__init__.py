"""Training of a network on rows of tokens; text, files and run folders are `gpt2.gpt`'s and `gpt2.runs`' business.

`schedule` is the learning rate, `lora` the low-rank adapters, `step` one update, and `loop` what happens from step to
step. `tensorflow_step` (with `optimizer`, its AdamW) and `jax_step` compute the update; neither is imported unless the
Keras backend is its own.
"""

from gpt2.training.loop import LogEntry, Progress, train

__all__ = ["LogEntry", "Progress", "train"]
