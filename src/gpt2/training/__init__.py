"""Training of a network on rows of tokens; text, files and run folders are `gpt2.gpt`'s and `gpt2.runs`' business.

`schedule` is the learning rate, `optimizer` AdamW, `lora` the low-rank adapters, `step` one update on one device or
several, and `loop` what happens from step to step. The step is a TensorFlow graph.
"""

from gpt2.training.loop import LogEntry, Progress, train

__all__ = ["LogEntry", "Progress", "train"]
