"""Which words of a caption are true of a drawn scene, and which are not: the verdicts of ``check``, word by word.

TRUE      every statement that the word takes part in is true
FALSE     some statement that it takes part in is false
UNKNOWN   the reader made no sense of it, so the caption does not count as true
PLAIN     it says nothing by itself ("a", "with", spaces, punctuation)
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from src.scenes.check import Verdict, check
from src.scenes.reader import WORD
from src.scenes.world import Scene

PLAIN, TRUE, FALSE, UNKNOWN = range(4)
SILENT = ("a", "the", "and", "is", "are")  # plain even as parts of "and is to the left of" or "on a dark background"


def marks(caption: str, scene: Scene) -> list[int]:
    """Runs of equal marks: [length, mark, length, mark, ...], lengths in code points, together the whole caption."""
    mark_of = _marks_of_words(check(caption, scene))
    found = [PLAIN] * len(caption)
    for number, (word, start, end) in enumerate(_words(caption)):
        if word not in SILENT:
            found[start:end] = [mark_of.get(number, PLAIN)] * (end - start)
    return [part for mark, run in groupby(found) for part in (len(list(run)), mark)]


def _marks_of_words(verdict: Verdict) -> dict[int, int]:
    """By number of the word; of a word's several marks the gravest, FALSE before UNKNOWN before TRUE."""
    told = list(zip(verdict.reading.told_at, verdict.truths, strict=True))
    return {
        **{number: TRUE for numbers, true in told if true for number in numbers},
        **dict.fromkeys(verdict.reading.leftovers_at, UNKNOWN),
        **{number: FALSE for numbers, true in told if not true for number in numbers},
    }


def _words(caption: str) -> Iterator[tuple[str, int, int]]:
    """The reader's words and where they stand. In lower case a few letters are longer (a Turkish capital I)."""
    origin = [place for place, letter in enumerate(caption) for _ in letter.lower()]
    for word in WORD.finditer(caption.lower()):
        yield word[0], origin[word.start()], origin[word.end() - 1] + 1
