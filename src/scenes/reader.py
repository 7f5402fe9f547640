"""What a caption says of a drawn scene, statement by statement, whether true or not.

mention      "a small red circle", "the big star", "a green shape": a singular noun phrase. Each of its words is a
             statement: the noun ("object": there is such a thing; "shape" and "object" fit any), every colour word
             ("colour") and every size word ("size"). Only "the" looks back, to the one earlier mention that it does
             not contradict; where none or several qualify it is a new mention.
count        "two circles", "three shapes": exactly so many things of the scene fit the phrase. "one circle" is a
             mention and the count one; "alone" is the count one of all things. A plural without a number says
             nothing definite and is a leftover.
relation     "A is left of B", "A above B", "A with B to its left": joins the phrase right before it with the phrase
             right after it; "it" and "its" are the phrase before the last one; after "and" the subject of the
             relation before is carried on. A relation without two mentions is false; so is one after "are".
background   "on a dark background".
leftover     every word that is none of these and not among the words that say nothing (``words.GLUE``).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from src.scenes.words import ANY_NOUNS, GLUE, NUMBERS, PLURALS, RELATION_WORDS, SIZE_WORDS
from src.scenes.world import BACKGROUNDS, COLOURS, SHAPES, SIZES, Thing

KINDS = ("object", "colour", "size", "count", "relation", "background")
WORD = re.compile(r"\w+")  # what counts as a word of the caption in lower case


@dataclass(frozen=True)
class Phrase:
    """What a noun phrase asks of a thing; ``shape`` is None for a noun that fits any."""

    shape: str | None = None
    colours: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ()

    @property
    def full(self) -> bool:
        """Whether shape, colour and size are all given."""
        return bool(self.shape and self.colours and self.sizes)

    def fits(self, thing: Thing) -> bool:
        """Whether the thing is all that the phrase asks."""
        return (
            self.shape in (None, thing.shape)
            and all(colour == thing.colour for colour in self.colours)
            and all(size == thing.size for size in self.sizes)
        )

    def allows(self, other: Phrase) -> bool:
        """Whether both phrases can speak of the same thing."""
        pairs = ((self.colours, other.colours), (self.sizes, other.sizes))
        return (None in (self.shape, other.shape) or self.shape == other.shape) and all(
            not mine or not theirs or set(mine) == set(theirs) for mine, theirs in pairs
        )

    def merged(self, other: Phrase) -> Phrase:
        """What two phrases about one thing say together."""
        return Phrase(self.shape or other.shape, self.colours or other.colours, self.sizes or other.sizes)


@dataclass(frozen=True)
class Statement:
    """One thing said. ``subject`` and ``object`` index the mentions of the reading; ``phrase`` is what a count counts.

    ``value`` is a shape (or "any"), colour, size, relation, background or number, by ``kind``.
    """

    kind: str
    value: str | int
    subject: int | None = None
    object: int | None = None
    phrase: Phrase | None = None


@dataclass(frozen=True)
class Reading:
    """A caption as it was understood: its mentions, all its statements, and the words that made no sense.

    ``told_at`` goes with the statements, ``leftovers_at`` with the leftovers: the numbers of the words that say it, 0
    for the caption's first (``WORD``). Captions that say the same in other places have equal readings.
    """

    mentions: tuple[Phrase, ...]
    statements: tuple[Statement, ...]
    leftovers: tuple[str, ...]
    told_at: tuple[tuple[int, ...], ...] = field(compare=False)
    leftovers_at: tuple[int, ...] = field(compare=False)


def _inverse(words: dict[str, Sequence[str]]) -> dict[str, str]:
    return {word: name for name, group in words.items() for word in group}


_SIZE_OF = _inverse(SIZE_WORDS)
_LEVEL_OF = _inverse({name: RELATION_WORDS[name] for name in ("above", "below")})
_SINGULAR = {**{shape: shape for shape in SHAPES}, **dict.fromkeys(ANY_NOUNS)}
_PLURAL = {**{plural: shape for shape, plural in PLURALS.items()}, **dict.fromkeys(ANY_NOUNS.values())}
_SHAPE_OF = {**_SINGULAR, **_PLURAL}


def _either(words: Sequence[str]) -> str:
    return "|".join(words)


# Every alternative takes whole words, and the last takes any word, so the matches tile the caption.
_SCAN = re.compile(
    rf"""
      (?P<background>(?:on\ )?(?:(?:a|the)\ )?(?P<tone>{_either(BACKGROUNDS)})\ background)\b
    | (?P<backward>to\ its\ (?P<back_side>left|right)|(?P<back_level>{_either(tuple(_LEVEL_OF))})\ it)\b
    | (?P<relation>(?:(?P<joined>and)\ )?(?:(?P<verb>is|are)\ )?
        (?:(?:(?:to|on)\ the\ )?(?P<side>left|right)\ of|(?P<level>{_either(tuple(_LEVEL_OF))})))\b
    | (?P<phrase>(?:(?P<article>a|an|the)\ )?(?:(?P<number>{_either(NUMBERS)})\ )?
        (?P<adjectives>(?:(?:{_either((*_SIZE_OF, *COLOURS))})\ )*)(?P<noun>{_either(tuple(_SHAPE_OF))}))\b
    | (?P<alone>alone)\b
    | (?P<word>\w+)
    """,
    re.VERBOSE,
)


class _Reader:
    """Turns the matches of ``_SCAN``, in order, into mentions and statements.

    There is a method for each kind of match, which also gets the numbers of the matched words, ``at``.
    """

    def __init__(self):
        self._mentions: list[Phrase] = []
        self._traits_at: list[dict[str, tuple[int, ...]]] = []  # for each mention, by colour, size or "noun"
        self._others: list[Statement] = []  # all but objects, colours and sizes, which follow from the mentions
        self._others_at: list[tuple[int, ...]] = []
        self._leftovers: list[str] = []
        self._leftovers_at: list[int] = []
        self._heard: list[int | None] = []  # the mention of each noun phrase so far; None for one that is counted
        self._open: tuple[str, int | None, range] | None = None  # a relation that waits for its object
        self._carried: int | None = None  # the subject of the last relation

    def read(self, caption: str) -> Reading:
        end = 0
        for match in _SCAN.finditer(" ".join(WORD.findall(caption.lower()))):
            start, end = end, end + match[0].count(" ") + 1
            getattr(self, f"_{match.lastgroup}")(match, range(start, end))
        self._close(None)
        statements, told_at = [], []
        for i, (phrase, at) in enumerate(zip(self._mentions, self._traits_at, strict=True)):
            statements += _own_statements(i, phrase)
            told_at += [at[trait] for trait in ("noun", *phrase.colours, *phrase.sizes)]
        return Reading(
            tuple(self._mentions),
            (*statements, *self._others),
            tuple(self._leftovers),
            (*told_at, *self._others_at),
            tuple(self._leftovers_at),
        )

    def _say(self, statement: Statement, at: Sequence[int]) -> None:
        self._others.append(statement)
        self._others_at.append(tuple(at))

    def _background(self, match: re.Match, at: range) -> None:
        self._say(Statement("background", match["tone"]), at)

    def _alone(self, match: re.Match, at: range) -> None:
        self._say(Statement("count", 1, phrase=Phrase()), at)

    def _word(self, match: re.Match, at: range) -> None:
        if match["word"] not in GLUE:
            self._leave(match["word"], at[0])

    def _leave(self, word: str, at: int) -> None:
        self._leftovers.append(word)
        self._leftovers_at.append(at)

    def _backward(self, match: re.Match, at: range) -> None:
        value = match["back_side"] or _LEVEL_OF[match["back_level"]]
        before, last = [None, None, *self._heard][-2:]
        self._say(Statement("relation", value, last, before), at)

    def _relation(self, match: re.Match, at: range) -> None:
        self._close(None)
        last = self._heard[-1] if self._heard else None
        subject = self._carried if match["joined"] and self._carried is not None else last
        self._carried = None if match["verb"] == "are" else subject
        self._open = match["side"] or _LEVEL_OF[match["level"]], self._carried, at

    def _phrase(self, match: re.Match, at: range) -> None:
        article, number, adjectives, noun = match.group("article", "number", "adjectives", "noun")
        adjectives_at = at[-1 - adjectives.count(" ") : -1]
        traits_at: dict[str, tuple[int, ...]] = {}
        for word, place in zip(adjectives.split(), adjectives_at, strict=True):
            trait = _SIZE_OF.get(word, word)
            traits_at[trait] = (*traits_at.get(trait, ()), place)
        colours = [trait for trait in traits_at if trait not in SIZES]
        sizes = [trait for trait in traits_at if trait in SIZES]
        phrase = Phrase(_SHAPE_OF[noun], tuple(colours), tuple(sizes))
        traits_at["noun"] = (at[-1],)
        mentioned = number == "one" and phrase.shape is not None if number else noun in _SINGULAR
        if number:
            count = Statement("count", NUMBERS.index(number) + 1, phrase=phrase)
            counted_at = at[1:] if article else at
            self._say(count, counted_at[:1] if mentioned else counted_at)
        elif not mentioned:
            self._leave(noun, at[-1])
        self._heard.append(self._mention(article, phrase, traits_at) if mentioned else None)
        self._close(self._heard[-1])

    def _mention(self, article: str | None, phrase: Phrase, traits_at: dict[str, tuple[int, ...]]) -> int:
        """Index of the mention that the phrase is: a new one, or an earlier one after "the"."""
        earlier = [i for i, old in enumerate(self._mentions) if old.allows(phrase)] if article == "the" else []
        if len(earlier) == 1:
            index = earlier[0]
            self._mentions[index] = self._mentions[index].merged(phrase)
            for trait, places in traits_at.items():
                self._traits_at[index][trait] = self._traits_at[index].get(trait, ()) + places
            return index
        self._mentions.append(phrase)
        self._traits_at.append(traits_at)
        return len(self._mentions) - 1

    def _close(self, mention: int | None) -> None:
        """Give the waiting relation, if any, its object."""
        if self._open is not None:
            value, subject, at = self._open
            self._say(Statement("relation", value, subject, mention), at)
            self._open = None


@lru_cache(maxsize=4096)
def _own_statements(mention: int, phrase: Phrase) -> tuple[Statement, ...]:
    """The statements that follow from a mention; kept, because captions share them and making them is slow."""
    return (
        Statement("object", phrase.shape or "any", mention),
        *(Statement("colour", colour, mention) for colour in phrase.colours),
        *(Statement("size", size, mention) for size in phrase.sizes),
    )


@lru_cache(maxsize=4096)
def parse(caption: str) -> Reading:
    """What a caption says, by the rules of the module's head. Reads any string; never raises."""
    return _Reader().read(caption)
