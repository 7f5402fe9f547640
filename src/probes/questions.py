"""Questions whose answers are compared by their likelihood: facts with five endings, pairs of sentences, pictures.

All endings of a question are whole sentences; a language model answers with the most likely one. No likelihood is
divided by a length: the endings of a fact are of one kind and about equally long, and those of a pair differ in a word.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from src.probes.files import read_probe

PAIRS = 100  # of each phenomenon


@dataclass(frozen=True)
class Question:
    """``sentences``: the first is right. ``kind``: of fact, or phenomenon."""

    kind: str
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """Categories of things in pictures that sentences tell apart.

    ``names``: words for each category; ``sentences``: by property and category, in the order of the names.
    """

    name: str
    names: Mapping[str, Sequence[str]]
    sentences: tuple[tuple[str, ...], ...]

    @cached_property
    def patterns(self) -> dict[str, re.Pattern]:
        """What finds a category in a caption in lower case."""
        return {category: re.compile(rf"\b({'|'.join(words)})\b") for category, words in self.names.items()}


def facts() -> list[Question]:
    """300 facts, each with five endings."""
    found = []
    for kind, entries in read_probe("cloze").items():
        for beginning, endings in entries.items():
            found.append(Question(kind, tuple(f"{beginning} {ending.strip()}." for ending in endings.split(","))))
    return found


def groups() -> list[Group]:
    """20 categories in groups, with ten properties each."""
    found = []
    for name, entry in read_probe("knowledge").items():
        sentences = (tuple(f"{start} {end}." for end in ends) for start, ends in entry["sentences"].items())
        found.append(Group(name, entry["names"], tuple(sentences)))
    return found


def minimal_pairs() -> list[Question]:
    """``PAIRS`` of each of twelve phenomena, the same ones always, spread over what the templates can make."""
    file = read_probe("grammar")
    words = {name: [str(entry).split("|") for entry in entries] for name, entries in file["words"].items()}
    found = []
    for kind, entry in file["phenomena"].items():
        templates = entry["pairs"]
        for place, template in enumerate(templates):
            wanted = PAIRS // len(templates) + (place < PAIRS % len(templates))
            pairs = sorted(set(_filled(template, entry["slots"], words)), key=_scattered)
            found += [Question(kind, pair) for pair in pairs[:wanted]]
    return found


def _filled(
    template: Sequence[str], slots: Mapping[str, str], words: Mapping[str, Sequence[Sequence[str]]]
) -> Iterator[tuple[str, str]]:
    """A template with all words in its slots; two slots of one list get different words."""
    used = [slot for slot in slots if f"{{{slot}" in "".join(template)]
    for chosen in itertools.product(*(words[slots[slot]] for slot in used)):
        forms = {slot: Forms(word) for slot, word in zip(used, chosen, strict=True)}
        if len({(slots[slot], str(forms[slot])) for slot in used}) == len(used):
            good, bad = (sentence.format(**forms) for sentence in template)
            yield good, bad


class Forms(list):
    """Of a word; written without a number it is the first."""

    def __str__(self) -> str:
        return self[0]

    def __format__(self, spec: str) -> str:
        return self[0]


def _scattered(pair: tuple[str, str]) -> bytes:
    """An order that has nothing to do with that of the word lists, the same on every machine."""
    return hashlib.sha256("\n".join(pair).encode()).digest()
