"""Which words of a caption are true of a drawn scene, and which are not: the verdicts of ``check``, word by word.

TRUE      every statement that the word takes part in is true
FALSE     some statement that it takes part in is false
UNKNOWN   the reader made no sense of it, so the caption does not count as true
PLAIN     it says nothing by itself ("a", "with", spaces, punctuation)
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from src.text.scene_language import _SCAN, _SIZE_OF, NUMBERS, Reading, Scene, Statement, _Reader, check

PLAIN, TRUE, FALSE, UNKNOWN = range(4)


def marks(caption: str, scene: Scene) -> list[int]:
    """Runs of equal marks: [length, mark, length, mark, ...], lengths in code points, together the whole caption."""
    spans = _spans(caption)
    verdict = check(caption, scene)
    truth = dict(zip(map(id, verdict.reading.statements), verdict.truths, strict=True))
    found = [PLAIN] * len(caption)
    for number, statement in _told(caption, verdict.reading):
        mark = UNKNOWN if statement is None else TRUE if truth[id(statement)] else FALSE
        start, end = spans[number]
        found[start:end] = [max(mark, found[start], key=(PLAIN, TRUE, UNKNOWN, FALSE).index)] * (end - start)
    return _runs(found)


def _spans(caption: str) -> list[tuple[int, int]]:
    """Where the reader's words stand. It reads lower case, which for a few letters is longer (a Turkish capital I)."""
    origin = [place for place, letter in enumerate(caption) for _ in letter.lower()]
    return [(origin[word.start()], origin[word.end() - 1] + 1) for word in re.finditer(r"\w+", caption.lower())]


def _runs(found: list[int]) -> list[int]:
    runs: list[int] = []
    for mark in found:
        if runs and runs[-1] == mark:
            runs[-2] += 1
        else:
            runs += [1, mark]
    return runs


def _told(caption: str, reading: Reading) -> Iterator[tuple[int, Statement | None]]:
    """(number of a word, a statement that it takes part in); None for a word that made no sense.

    Takes the reader's own steps, one match at a time, because its result no longer knows where a statement was made.
    """
    said = " ".join(re.findall(r"\w+", caption.lower()))
    first = sum(statement.kind in ("object", "colour", "size") for statement in reading.statements)
    own, others = reading.statements[:first], reading.statements[first:]
    reader, waiting = _Reader(), None
    for match in _SCAN.finditer(said):
        before = len(reader.others), len(reader.leftovers)
        getattr(reader, f"_{match.lastgroup}")(match)
        for statement in others[before[0] : len(reader.others)]:
            late = statement.kind == "relation" and match.lastgroup != "backward"  # told by the words that opened it
            yield from _words(said, waiting if late else match, statement)
        if match.lastgroup == "relation":
            waiting = match
        if match.lastgroup == "phrase":
            yield from _traits(said, match, own, reader._heard[-1])
        if len(reader.leftovers) > before[1]:
            last = match.end("noun" if match.lastgroup == "phrase" else 0)
            yield said.count(" ", 0, last), None
    if len(others) > len(reader.others):  # a relation at the end, whose object never came
        yield from _words(said, waiting, others[-1])


def _words(said: str, match: re.Match, statement: Statement) -> Iterator[tuple[int, Statement]]:
    """The words by which a count, relation or background is told; of a mention with "one", the number alone."""
    start, end = match.span()
    if match.lastgroup == "phrase":
        alone = statement.phrase.shape and match["number"] == NUMBERS[0]
        start, end = match.start("number"), match.end("number" if alone else 0)
    first = said.count(" ", 0, start)
    for number, word in enumerate(said[start:end].split(" "), first):
        if word not in ("a", "the", "and", "is", "are"):
            yield number, statement


def _traits(
    said: str, match: re.Match, own: tuple[Statement, ...], mention: int | None
) -> Iterator[tuple[int, Statement]]:
    """The words of a mention: its noun, colours and sizes."""
    for statement in own if mention is not None else ():
        if statement.subject != mention:
            continue
        if statement.kind == "object":
            yield said.count(" ", 0, match.start("noun")), statement
        first = said.count(" ", 0, match.start("adjectives"))
        for number, word in enumerate(match["adjectives"].split(), first):
            if statement.value == _SIZE_OF.get(word, word):
                yield number, statement
