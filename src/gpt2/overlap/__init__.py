"""What a text shares with a training set: 8-grams of words as the paper counts them, and verbatim spans of tokens."""

from gpt2.overlap.sources import Texts, open_prepared, with_shards
from gpt2.overlap.spans import Memorized, Span, memorized
from gpt2.overlap.words import DocumentOverlap, Overlap, overlap, overlaps

__all__ = [
    "DocumentOverlap",
    "Memorized",
    "Overlap",
    "Span",
    "Texts",
    "memorized",
    "open_prepared",
    "overlap",
    "overlaps",
    "with_shards",
]
