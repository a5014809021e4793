"""Natural spelling for texts that come cut into words by spaces, and the way back.

The test sets of WikiText, Penn Treebank and others write `he did n't , however ,` for `he didn't, however,`, which is
hardly what GPT-2 was trained on. A detokeniser closes the gaps and restores what was respelt (`@-@`, `-LRB-`, the two
kinds of quotes). It is invertible: `restore(detokenise(line)) == line` for every line. So the natural text is as
probable as the original, and its loss may be divided by the original's count of words.

How: words are joined into a chunk only where cutting the chunk by rules gives these words again. A word that the rules
would cut or misread even when it stands alone is written behind `ESCAPE`; that is rare, and `escapes` counts it.

The rules are ours. The paper says of its own no more than that they were invertible.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

ESCAPE = "\u2060"
"""Before a word that is to be taken as it is (U+2060, a joiner without width)."""

_SUFFIXES = ("n't", "'s", "'m", "'d", "'re", "'ve", "'ll")
_ABBREVIATION = re.compile(
    r"(?:[A-Za-z]\.)+|(?:Mr|Mrs|Ms|Dr|St|MR|MRS|DR|ST|Jr|Sr|Bros|Co|Corp|Inc|Ltd|Lt|Col|Gen|Sgt|Capt|Rev|Gov|Sen|Rep|Prof|No|vs|etc|"
    r"Jan|Feb|Mar|Apr|Aug|Sept|Oct|Nov|Dec)\."
)

_HALVES = {"``": "open", "`": "open", "''": "close", "-LRB-": "open", "-RRB-": "close"}
_REMEMBERED = 1 << 16


@dataclass(frozen=True)
class Detokeniser:
    """The habits of one set."""

    name: str
    closing: frozenset[str] = frozenset()
    """Written words that stand directly behind the one before them."""
    opening: frozenset[str] = frozenset()
    """Written words that stand directly before the next one."""
    inner: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Words that join both neighbours: how each is written, and the pattern of places where it is read back."""
    spelling: Mapping[str, str] = field(default_factory=dict)
    """Halves of pairs that are written otherwise, `-LRB-` as `(`."""
    pairs: frozenset[str] = frozenset()
    """Quotation marks that look the same on both sides: by turns opening and closing."""
    frame: tuple[str, str] = ("", "")
    """What every line begins and ends with, and which is left away."""
    blank: str = ""
    """An empty line."""
    replaced: tuple[str, str] = ("", "")
    """Letters within words, and how they are written."""

    def detokenise(self, line: str) -> str:
        """The natural form of a line, without its line feed."""
        if line == self.blank:
            return ""
        before, after = self.frame
        if not (line.startswith(before) and line.endswith(after) and len(line) >= len(before) + len(after)):
            return ESCAPE * 2 + line
        text = line[len(before) : len(line) - len(after)]
        written = " ".join(self._chunks(text.split(" ")))
        return ESCAPE * 2 + line if not written or written.startswith(ESCAPE * 2) else written

    def restore(self, text: str) -> str:
        """The line that `detokenise` was given."""
        if text.startswith(ESCAPE * 2):
            return text[2:]
        if not text:
            return self.blank
        words = [word for chunk in text.split(" ") for word in self._cut(chunk)]
        return self.frame[0] + " ".join(words) + self.frame[1]

    def _chunks(self, words: Sequence[str]) -> list[str]:
        chunks: list[str] = []
        run: list[tuple[str, str]] = []  # words that belong together, with their written forms
        open_quotes: set[str] = set()
        glued = False  # whether the next word joins what is before it
        for n, word in enumerate(words):
            written = self.inner[word][0] if word in self.inner else self.spelling.get(word, word)
            if self.replaced[0]:
                written = written.replace(*self.replaced)
            joins_left, joins_right = word in self.closing or written in self.closing, written in self.opening
            if word in self.inner:
                joins_left = joins_right = 0 < n < len(words) - 1
            elif word in self.spelling:
                joins_left, joins_right = _HALVES[word] == "close", _HALVES[word] == "open"
            elif word in self.pairs:
                possessive = word == "'" and word not in open_quotes and n > 0 and words[n - 1].endswith("s")
                joins_left = word in open_quotes or possessive
                joins_right = not joins_left
                open_quotes ^= set() if possessive else {word}
            if run and not (glued or joins_left):
                chunks += self._written(run)
                run = []
            run.append((word, written))
            glued = joins_right
        return chunks + self._written(run)

    def _written(self, run: Sequence[tuple[str, str]]) -> list[str]:
        """A run of words as one chunk if that can be cut again, else as few chunks as can."""
        first = 0
        chunks: list[str] = []
        while first < len(run):
            for last in range(len(run), first, -1):
                chunk = "".join(written for _, written in run[first:last])
                if self._cut(chunk) == [word for word, _ in run[first:last]]:
                    chunks.append(chunk)
                    break
            else:
                last = first + 1
                chunks.append(ESCAPE + run[first][0])
            first = last
        return chunks

    def _cut(self, chunk: str) -> list[str]:
        """The words of a chunk; known ones are remembered, since most chunks of a text are the same few."""
        known = self.__dict__.setdefault("_known", {})
        if chunk not in known:
            if len(known) >= _REMEMBERED:
                known.clear()
            known[chunk] = self._cut_anew(chunk)
        return known[chunk]

    def _cut_anew(self, chunk: str) -> list[str]:
        if chunk.startswith(ESCAPE):
            return [chunk[1:]]
        (opens, closes), (read_open, read_close, read) = self._tables
        before, after = [], []
        rest = chunk
        while found := next((mark for mark in opens if rest.startswith(mark) and len(rest) > len(mark)), None):
            before.append(read_open.get(found, found))
            rest = rest[len(found) :]
        while found := next((mark for mark in closes if rest.endswith(mark) and len(rest) > len(mark)), None):
            if found == "." and (_ABBREVIATION.fullmatch(rest) or rest.endswith("..")):
                break
            after.append(read_close.get(found, found))
            rest = rest[: -len(found)]
        words = [rest]
        for word, (written, pattern) in self.inner.items():
            words = [
                part
                for piece in words
                for n, between in enumerate(re.split(pattern, piece) if piece != written else [piece])
                for part in ([word, between] if n else [between])
            ]
        words = [read.get(word, word) for word in words]
        if self.replaced[0]:
            words = [word.replace(*self.replaced[::-1]) for word in words]
        return before + words + after[::-1]

    @property
    def _tables(self) -> tuple[tuple[list[str], list[str]], tuple[dict[str, str], dict[str, str], dict[str, str]]]:
        """The marks that are cut off a chunk, the longest first, and how written words read there and in the middle."""
        if "tables" not in self.__dict__:
            written = {kind: {self.spelling[word]: word for word in words} for kind, words in self._halves().items()}
            marks = (
                self.opening | self.pairs | set(written["open"]),
                self.closing | self.pairs | set(written["close"]),
            )
            self.__dict__["tables"] = (
                tuple(sorted(found, key=len, reverse=True) for found in marks),
                (written["open"], written["close"], written["close"] | written["open"]),
            )
        return self.__dict__["tables"]

    def _halves(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {"open": [], "close": []}
        for word in self.spelling:
            found[_HALVES[word]].append(word)
        return found


def escapes(text: str) -> int:
    """How often a detokenised text needed `ESCAPE`."""
    return text.count(ESCAPE)


_NUMBERS = {"@,@": (",", r"(?<=\d),(?=\d)"), "@.@": (".", r"(?<=\d)\.(?=\d)"), "@-@": ("-", r"(?<=.)-(?=.)")}
_QUOTES = {"``": '"', "''": '"', "-LRB-": "(", "-RRB-": ")"}
_STOPS = frozenset({".", ",", ";", ":", "!", "?", "%"})

DETOKENISERS: Mapping[str, Detokeniser] = {
    detokeniser.name: detokeniser
    for detokeniser in (
        Detokeniser("none"),
        Detokeniser(
            "wikitext",
            closing=frozenset({*_STOPS, ")", "]", *_SUFFIXES}),
            opening=frozenset({"(", "[", "$", "£"}),
            inner=_NUMBERS,
            pairs=frozenset({'"', "'"}),
            frame=(" ", " "),
            blank=" ",
        ),
        Detokeniser(
            "ptb",
            closing=frozenset({*_SUFFIXES, "'", "%"}),
            opening=frozenset({"$", "#"}),
            frame=(" ", " "),
            blank=" ",
            replaced=("\\/", "/"),
        ),
        Detokeniser(
            "1bw",
            closing=frozenset({*_STOPS, ")", "]", *_SUFFIXES}),
            opening=frozenset({"(", "[", "$", "£", "#"}),
            pairs=frozenset({'"', "'"}),
        ),
        Detokeniser(
            "treebank",
            closing=frozenset({*_STOPS, *_SUFFIXES, "'"}),
            opening=frozenset({"$"}),
            spelling=_QUOTES | {"`": "'"},  # and ' is a closing one, or an apostrophe
        ),
    )
}
"""By name. `treebank` is the spelling of the Children's Book Test and of LAMBADA's original file."""
