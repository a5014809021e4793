"""GPT-2's byte-pair encoding in TensorFlow's own operations, so that a graph can take and give strings.

It needs no tensorflow_text and no lookup table that has to be initialised. What it does is `gpt2.codec`'s: a text is
cut into words, and in each word the pair of lowest rank is merged until none is left. Both steps run over all bytes of
a text at once: the cut from the class of each character and its neighbours (TensorFlow's regular expressions have no
lookahead), the merging with one merge in every word a round.

What is a letter or a number is what TensorFlow's RE2 takes for one; for characters that Unicode added lately it may
differ from `tiktoken`. Bytes that are not UTF-8 become U+FFFD. Special tokens are never made from text.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from gpt2.codec import Codec

# White space as tiktoken has it; RE2's \s is ASCII alone.
_SPACE = "[\\t\\n\\x0b\\f\\r \\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}]"
_SHORT, _LONG = ("s", "d", "m", "t"), ("ll", "ve", "re")


class StringCodec:
    """A codec's tables as constants, and the two directions as graphs."""

    def __init__(self, codec: Codec) -> None:
        self.size = codec.n_vocab
        tokens = [b""] * self.size
        for token, id in codec.ranks.items():
            tokens[id] = token
        for text, id in codec.special_tokens.items():
            tokens[id] = text.encode("utf-8")
        self.tokens = tokens
        self.bytes = np.array([codec.ranks[bytes([byte])] for byte in range(256)], np.int32)
        ranks = codec.ranks
        # Every way to cut a token in two tokens: some are no merge, but their product has the same rank as in tiktoken,
        # which looks up the bytes that two parts give together.
        pairs = sorted(
            (ranks[token[:n]] * self.size + ranks[token[n:]], id)
            for token, id in ranks.items()
            for n in range(1, len(token))
            if token[:n] in ranks and token[n:] in ranks
        )
        self.pairs = np.array([pair for pair, _ in pairs], np.int64)
        self.merged = np.array([id for _, id in pairs], np.int32)

    def encode(self, texts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Token ids (B, T), 0 behind the end of each row, and how many there are in each (B,)."""
        spec = tf.RaggedTensorSpec([None], tf.int32, ragged_rank=0)
        rows = tf.map_fn(self._encode_one, texts, fn_output_signature=spec)
        return rows.to_tensor(), tf.cast(rows.row_lengths(), tf.int32)

    def decode(self, ids: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
        """The bytes of rows of ids (B, T) up to their lengths (B,); ids beyond the vocabulary have none."""
        parts = tf.gather(tf.constant([*self.tokens, b""]), tf.minimum(ids, self.size))
        parts = tf.where(tf.sequence_mask(lengths, tf.shape(ids)[1]), parts, b"")
        return tf.strings.reduce_join(parts, axis=1)

    def _encode_one(self, text: tf.Tensor) -> tf.Tensor:
        text = tf.strings.unicode_transcode(text, "UTF-8", "UTF-8", errors="replace")
        characters = tf.strings.unicode_split(text, "UTF-8")
        starts = _word_starts(characters)
        # From characters to bytes: a word starts with the first byte of its first character. Where that is, the bytes
        # tell: of the split characters, noncharacters such as U+10FFFF have become U+FFFD, which has another length.
        octets = tf.cast(tf.io.decode_raw(text, tf.uint8), tf.int32)  # (N,)
        places = tf.cumsum(tf.cast(octets & 0xC0 != 0x80, tf.int32)) - 1  # (N,): the number of each byte's character
        words = tf.gather(tf.cumsum(tf.cast(starts, tf.int32)), places)  # (N,): the number of each byte's word
        ids = tf.gather(tf.constant(self.bytes), octets)
        return self._merge(ids, words)

    def _merge(self, ids: tf.Tensor, words: tf.Tensor) -> tf.Tensor:
        pairs, merged = tf.constant(self.pairs), tf.constant(self.merged)
        none = tf.constant(2**31 - 1)

        def ranks(ids: tf.Tensor, words: tf.Tensor) -> tf.Tensor:
            """For each token what it becomes with the next one (N - 1,), or `none`."""
            wanted = tf.cast(ids[:-1], tf.int64) * self.size + tf.cast(ids[1:], tf.int64)
            place = tf.minimum(tf.searchsorted(pairs, wanted), len(self.pairs) - 1)
            found = (tf.gather(pairs, place) == wanted) & (words[:-1] == words[1:])
            return tf.where(found, tf.gather(merged, place), none)

        def going_on(ids: tf.Tensor, words: tf.Tensor, rank: tf.Tensor) -> tf.Tensor:
            return tf.reduce_any(rank < none)

        def step(ids: tf.Tensor, words: tf.Tensor, rank: tf.Tensor) -> tuple[tf.Tensor, ...]:
            # In each word the pair of lowest rank, and of several such the first.
            count = tf.reduce_max(words) + 1
            lowest = tf.math.unsorted_segment_min(rank, words[:-1], count)
            is_lowest = (rank < none) & (rank == tf.gather(lowest, words[:-1]))
            place = tf.range(tf.size(rank))
            first = tf.math.unsorted_segment_min(tf.where(is_lowest, place, none), words[:-1], count)
            chosen = is_lowest & (place == tf.gather(first, words[:-1]))
            ids = tf.where(tf.concat([chosen, [False]], 0), tf.concat([rank, [0]], 0), ids)
            kept = ~tf.concat([[False], chosen], 0)
            ids, words = ids[kept], words[kept]
            return ids, words, ranks(ids, words)

        if not len(self.pairs):
            return ids
        row = tf.TensorShape([None])
        ids, _, _ = tf.while_loop(going_on, step, (ids, words, ranks(ids, words)), shape_invariants=(row, row, row))
        return ids


def _word_starts(characters: tf.Tensor) -> tf.Tensor:
    """Whether a word starts at each character (N,), as GPT-2's pattern cuts text.

    The pattern is: a contraction; letters, numbers or other signs, each with at most one space before; white space,
    whose last character is left to what follows. See `gpt2.codec`.
    """
    space = tf.strings.regex_full_match(characters, _SPACE)
    letter = tf.strings.regex_full_match(characters, r"\pL")
    number = tf.strings.regex_full_match(characters, r"\pN")
    kind = tf.where(space, 0, tf.where(letter, 1, tf.where(number, 2, 3)))  # (N,)
    blank = characters == " "
    before, after = _shifted(kind, 1, -1), _shifted(kind, -1, -1)  # of the neighbours; -1 where there is none
    after_blank = _shifted(blank, 1, False)

    # A contraction is one where the apostrophe itself would start a word.
    apostrophe = (characters == "'") & (before != 3) & ~after_blank
    second, third = _shifted(characters, -1, ""), _shifted(characters, -2, "")
    is_short = apostrophe & tf.reduce_any(second[:, None] == tf.constant(_SHORT), axis=1)
    is_long = apostrophe & tf.reduce_any((second + third)[:, None] == tf.constant(_LONG), axis=1)
    inside = _shifted(is_short | is_long, 1, False)
    behind = _shifted(is_short, 2, False) | _shifted(is_long, 3, False)

    new = kind != before
    of_spaces = new | ((after > 0) & (before == 0))  # a run's first, and its last one before a word
    of_others = new & ~after_blank
    return (tf.where(space, of_spaces, of_others) & ~inside) | behind


def _shifted(values: tf.Tensor, by: int, fill: object) -> tf.Tensor:
    """The values (N,) moved towards the end by some places, or towards the beginning; what is left is filled."""
    filling = tf.fill([tf.minimum(abs(by), tf.size(values))], tf.constant(fill, values.dtype))
    return tf.concat([filling, values[:-by]], 0) if by > 0 else tf.concat([values[-by:], filling], 0)
