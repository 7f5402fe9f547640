"""The little language of the drawn scenes: what is true of a scene, how it is told, and how a telling is checked.

A scene is one to four coloured shapes on a dark or light background. ``describe`` words it, ``parse`` reads any caption
back into statements, ``check`` says which of them are true of a scene. Positions are shares of the picture's side, x
from the left and y from the top.

What a caption says
    mention      "a small red circle", "the big star", "a green shape": a singular noun phrase. Each of its words is a
                 statement: the noun ("object": there is such a thing; "shape" and "object" fit any), every colour word
                 ("colour") and every size word ("size").
    count        "two circles", "three shapes": exactly so many things of the scene fit the phrase. "one circle" is a
                 mention and the count one; "alone" is the count one of all things. A plural without a number says
                 nothing definite and is a leftover.
    relation     "A is left of B", "A above B", "A with B to its left": joins the phrase right before it with the phrase
                 right after it; "it" and "its" are the phrase before the last one; after "and" the subject of the
                 relation before is carried on. A relation without two mentions is false; so is one after "are".
    background   "on a dark background".
    leftover     every word that is none of these and not among the words that say nothing (``GLUE``).

What makes it true
    Mentions stand for different things: "a red circle and a red circle" needs two. Only "the" looks back, to the one
    earlier mention that it does not contradict; where none or several qualify it is a new mention. Which thing a
    mention stands for is chosen so that most nouns, colours and sizes are true and, among such choices, most
    relations: "a red circle" in a picture with one green circle has a true object and a false colour. Mentions beyond
    ``SPARE_MENTIONS`` more than there are things stand for nothing.
    A caption is entirely true if every statement is, nothing is left over, and at least one mention gives shape, colour
    and size; so neither "three shapes" nor an empty caption scores.
    A relation is stated only where nobody would argue (``STATED``) and accepted a little further (``ACCEPTED``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import NamedTuple, TypeVar

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink")
SIZES = ("small", "large")
BACKGROUNDS = ("dark", "light")
KINDS = ("object", "colour", "size", "count", "relation", "background")

SIZE_WORDS = {"small": ("small", "little"), "large": ("big", "large")}
PLURALS = {shape: shape + ("es" if shape.endswith("s") else "s") for shape in SHAPES}
ANY_NOUNS = {"shape": "shapes", "object": "objects"}
NUMBERS = ("one", "two", "three", "four")
RELATION_WORDS = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above",),
    "below": ("below", "under"),
}
BACK_WORDS = {"left": ("to its left",), "right": ("to its right",), "above": ("above it",), "below": ("under it",)}
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
GLUE = frozenset("a an the is are there and with on in of to it picture image showing including".split())


class Margin(NamedTuple):
    """A direction holds if the step along it is at least ``step`` and at least ``cone`` times the sideways step."""

    step: float
    cone: float


STATED = Margin(step=0.22, cone=1.7)  # within 30 degrees of the axis
ACCEPTED = Margin(step=0.12, cone=0.6)  # within 59 degrees
SPARE_MENTIONS = 2


# --------------------------------------------------------------------------------------------------------------------
# scenes
# --------------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Thing:
    """One shape; ``x``, ``y`` (its centre) and ``radius`` are shares of the picture's side."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """All that captions can speak of, and ``look``, the seed of what they cannot: shades, turns, background pattern."""

    things: tuple[Thing, ...]
    background: str
    look: int = 0

    def to_dict(self) -> dict:
        """Plain numbers, strings and lists, ready for JSON."""
        return {**vars(self), "things": [dict(vars(thing)) for thing in self.things]}

    @classmethod
    def from_dict(cls, record: dict) -> Scene:
        """The inverse of ``to_dict``. Raises KeyError or TypeError where fields are missing or unknown."""
        return cls(tuple(Thing(**thing) for thing in record["things"]), record["background"], record["look"])


def relation_holds(relation: str, one: Thing, other: Thing, margin: Margin = ACCEPTED) -> bool:
    """Whether ``one`` is left (right, above, below) of ``other`` by at least the margin."""
    right, down = one.x - other.x, one.y - other.y
    along, aside = (right, down) if relation in ("left", "right") else (down, right)
    if relation in ("left", "above"):
        along = -along
    return along >= margin.step and along >= margin.cone * abs(aside)


# --------------------------------------------------------------------------------------------------------------------
# reading
# --------------------------------------------------------------------------------------------------------------------
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
    """A caption as it was understood: its mentions, all its statements, and the words that made no sense."""

    mentions: tuple[Phrase, ...]
    statements: tuple[Statement, ...]
    leftovers: tuple[str, ...]


def _inverse(words: dict[str, Sequence[str]]) -> dict[str, str]:
    return {word: name for name, group in words.items() for word in group}


_SIZE_OF = _inverse(SIZE_WORDS)
_LEVEL_OF = _inverse({name: RELATION_WORDS[name] for name in ("above", "below")})
_SINGULAR = {**{shape: shape for shape in SHAPES}, **dict.fromkeys(ANY_NOUNS)}
_PLURAL = {**{plural: shape for shape, plural in PLURALS.items()}, **dict.fromkeys(ANY_NOUNS.values())}


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
        (?P<adjectives>(?:(?:{_either((*_SIZE_OF, *COLOURS))})\ )*)(?P<noun>{_either((*_SINGULAR, *_PLURAL))}))\b
    | (?P<alone>alone)\b
    | (?P<word>\w+)
    """,
    re.VERBOSE,
)


class _Reader:
    """Turns the matches of ``_SCAN``, in order, into mentions and statements."""

    def __init__(self):
        self.mentions: list[Phrase] = []
        self.others: list[Statement] = []  # all but objects, colours and sizes, which follow from the mentions
        self.leftovers: list[str] = []
        self._heard: list[int | None] = []  # the mention of each noun phrase so far; None for one that is counted
        self._open: tuple[str, int | None] | None = None  # a relation that waits for its object
        self._carried: int | None = None  # the subject of the last relation

    def read(self, caption: str) -> Reading:
        for match in _SCAN.finditer(" ".join(re.findall(r"\w+", caption.lower()))):
            getattr(self, f"_{match.lastgroup}")(match)
        self._close(None)
        own = tuple(statement for i, phrase in enumerate(self.mentions) for statement in _own_statements(i, phrase))
        return Reading(tuple(self.mentions), own + tuple(self.others), tuple(self.leftovers))

    def _background(self, match: re.Match) -> None:
        self.others.append(Statement("background", match["tone"]))

    def _alone(self, match: re.Match) -> None:
        self.others.append(Statement("count", 1, phrase=Phrase()))

    def _word(self, match: re.Match) -> None:
        if match["word"] not in GLUE:
            self.leftovers.append(match["word"])

    def _backward(self, match: re.Match) -> None:
        value = match["back_side"] or _LEVEL_OF[match["back_level"]]
        before, last = [None, None, *self._heard][-2:]
        self.others.append(Statement("relation", value, last, before))

    def _relation(self, match: re.Match) -> None:
        self._close(None)
        last = self._heard[-1] if self._heard else None
        subject = self._carried if match["joined"] and self._carried is not None else last
        self._carried = None if match["verb"] == "are" else subject
        self._open = match["side"] or _LEVEL_OF[match["level"]], self._carried

    def _phrase(self, match: re.Match) -> None:
        adjectives = tuple(dict.fromkeys(match["adjectives"].split()))
        colours = tuple(word for word in adjectives if word not in _SIZE_OF)
        sizes = tuple(dict.fromkeys(_SIZE_OF[word] for word in adjectives if word in _SIZE_OF))
        noun, number = match["noun"], match["number"]
        phrase = Phrase({**_SINGULAR, **_PLURAL}[noun], colours, sizes)
        if number:
            self.others.append(Statement("count", NUMBERS.index(number) + 1, phrase=phrase))
        elif noun in _PLURAL:
            self.leftovers.append(noun)
        mentioned = number == "one" and phrase.shape is not None if number else noun in _SINGULAR
        self._heard.append(self._mention(match["article"], phrase) if mentioned else None)
        self._close(self._heard[-1])

    def _mention(self, article: str | None, phrase: Phrase) -> int:
        """Index of the mention that the phrase is: a new one, or an earlier one after "the"."""
        earlier = [i for i, old in enumerate(self.mentions) if old.allows(phrase)] if article == "the" else []
        if len(earlier) == 1:
            self.mentions[earlier[0]] = self.mentions[earlier[0]].merged(phrase)
            return earlier[0]
        self.mentions.append(phrase)
        return len(self.mentions) - 1

    def _close(self, mention: int | None) -> None:
        """Give the waiting relation, if any, its object."""
        if self._open is not None:
            value, subject = self._open
            self.others.append(Statement("relation", value, subject, mention))
            self._open = None


def _own_statements(index: int, phrase: Phrase) -> Iterator[Statement]:
    yield Statement("object", phrase.shape or "any", index)
    yield from (Statement("colour", colour, index) for colour in phrase.colours)
    yield from (Statement("size", size, index) for size in phrase.sizes)


@lru_cache(maxsize=4096)
def parse(caption: str) -> Reading:
    """What a caption says, by the rules of the module's head. Reads any string; never raises."""
    return _Reader().read(caption)


# --------------------------------------------------------------------------------------------------------------------
# checking
# --------------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Verdict:
    """A caption held against a scene. ``truths`` goes with the reading's statements.

    ``mentioned`` is the share of the scene's things that a phrase with a shape word describes without a mistake.
    """

    reading: Reading
    truths: tuple[bool, ...]
    mentioned: float

    @property
    def entirely_true(self) -> bool:
        """Every statement is true, every word was understood, and at least one mention is full."""
        return all(self.truths) and not self.reading.leftovers and any(m.full for m in self.reading.mentions)


def check(caption: str, scene: Scene) -> Verdict:
    """Hold a caption against a scene, statement by statement. Raises ValueError for a scene without things."""
    if not scene.things:
        raise ValueError("a scene without things has nothing to be said about")
    reading = parse(caption)
    places = _best_places(reading, scene)
    truths = tuple(_holds(statement, scene, places) for statement in reading.statements)
    return Verdict(reading, truths, len(_described(reading, truths, scene, places)) / len(scene.things))


Places = tuple[int | None, ...]  # for each mention the index of the thing that it stands for


def _holds(statement: Statement, scene: Scene, places: Places) -> bool:
    kind, value = statement.kind, statement.value
    if kind == "background":
        return value == scene.background
    if kind == "count":
        return value == sum(statement.phrase.fits(thing) for thing in scene.things)
    one = _thing(statement.subject, scene, places)
    if kind == "relation":
        other = _thing(statement.object, scene, places)
        return one is not None and other is not None and relation_holds(value, one, other)
    if one is None:
        return False
    if kind == "object":
        return value in ("any", one.shape)
    return value == (one.colour if kind == "colour" else one.size)


def _thing(mention: int | None, scene: Scene, places: Places) -> Thing | None:
    place = None if mention is None else places[mention]
    return None if place is None else scene.things[place]


def _best_places(reading: Reading, scene: Scene) -> Places:
    """Which thing each mention stands for, by the rule of the module's head; the first such choice on ties."""
    traits = [statement for statement in reading.statements if statement.kind in ("object", "colour", "size")]
    relations = [statement for statement in reading.statements if statement.kind == "relation"]
    tried = min(len(reading.mentions), len(scene.things) + SPARE_MENTIONS)
    silent = (None,) * (len(reading.mentions) - tried)
    best, most = silent, (-1, -1)
    for chosen in _placements(tried, tuple(range(len(scene.things)))):
        places = chosen + silent
        score = tuple(sum(_holds(claim, scene, places) for claim in claims) for claims in (traits, relations))
        if score > most:
            best, most = places, score
        if most == (len(traits), len(relations)):
            break
    return best


def _placements(mentions: int, free: tuple[int, ...]) -> Iterator[Places]:
    """All ways to give each mention its own thing or none."""
    if not mentions:
        yield ()
        return
    for place in (*free, None):
        for rest in _placements(mentions - 1, tuple(other for other in free if other != place)):
            yield (place, *rest)


def _described(reading: Reading, truths: Sequence[bool], scene: Scene, places: Places) -> set[int]:
    """Indices of the things that some phrase with a shape word describes without a mistake."""
    named = zip(reading.mentions, places, strict=True)
    described = {i for phrase, i in named if phrase.shape and i is not None and phrase.fits(scene.things[i])}
    for statement, true in zip(reading.statements, truths, strict=True):
        if true and statement.kind == "count" and statement.phrase.shape:
            described |= {i for i, thing in enumerate(scene.things) if statement.phrase.fits(thing)}
    return described


# --------------------------------------------------------------------------------------------------------------------
# telling
# --------------------------------------------------------------------------------------------------------------------
# {a} {b} {c}: things; {relation}: of a to b; {back}: of b to a; {group}: things that share a shape or colour; {n}: how
# many things in all. Every wording mentions a thing in full and says one thing more, be it only the background:
# "there is a small red circle" is true of too many pictures. No wording lets a relation reach two phrases at once.
_ONE = (
    "a {a} on a {tone} background",
    "there is a {a} on a {tone} background",
    "a picture of a {a} on a {tone} background",
    "a {tone} background with a {a}",
    "one shape, a {a}, on a {tone} background",
    "an image showing one object, a {a}",
    "a {a} alone on a {tone} background",
)
_TWO = (
    "a {a} and a {b}",
    "there is a {a} and a {b}",
    "a picture of a {a} and a {b}",
    "two shapes, a {a} and a {b}",
    "there are two objects, a {a} and a {b}",
    "a {a} and a {b} on a {tone} background",
    "an image showing a {a} and a {b}",
)
_TWO_RELATED = (
    "a {a} {relation} a {b}",
    "a {a} is {relation} a {b}",
    "the {a} is {relation} the {b}",
    "there is a {a} {relation} a {b}",
    "a {a} with a {b} {back}",
    "a picture of a {a} {relation} a {b}",
    "two shapes with a {a} {relation} a {b}",
)
_MANY = (
    "{n} shapes including a {a} and a {b}",
    "there are {n} objects including a {a} and a {b}",
    "a picture of {n} shapes with a {a} and a {b}",
    "an image showing a {a} and a {b}",
    "a {a}, a {b} and a {c}",
    "{n} shapes on a {tone} background with a {a}",
)
_MANY_RELATED = (
    "a {a} is {relation} a {b}",
    "there are {n} shapes and the {a} is {relation} the {b}",
    "{n} objects with a {a} {relation} a {b}",
    "a picture of {n} shapes with a {a} {relation} a {b}",
    "a {a} with a {b} {back}",
)
_GROUPED = ("{group} and a {a}", "a picture of {group} and a {a}")
CAPTIONS = 5
# Of the five, where some relation is beyond doubt. A small model learns relations long after colours and shapes; were
# they in most captions, a short training would end with relations guessed in every sentence.
_RELATED_CAPTIONS = 2

Item = TypeVar("Item")


def pick(options: Sequence[Item], rng: Random) -> Item:
    """One of the options. Built on ``random()``, whose sequence Python promises to keep; ``choice`` may change."""
    return options[int(rng.random() * len(options))]


def shuffled(items: Sequence[Item], rng: Random) -> list[Item]:
    """The items in random order, by the same promise as ``pick``."""
    return [item for _, item in sorted(((rng.random(), i), item) for i, item in enumerate(items))]


def describe(scene: Scene, rng: Random) -> tuple[str, ...]:
    """Five captions of the scene, each worded differently, all entirely true; 7 to 19 words each.

    Things are told as people tell them: the large ones first, each row of equals from left to right. Raises ValueError
    if the scene does not have one to four things.
    """
    if not 1 <= len(scene.things) <= len(NUMBERS):
        raise ValueError(f"captions are made for one to {len(NUMBERS)} things, not {len(scene.things)}")
    told = sorted(scene.things, key=lambda thing: (thing.size != "large", thing.x))
    related = _clear_relations(told)
    groups = _groups(told) if len(told) > 2 else []
    wordings = _wordings(len(told), bool(related), bool(groups), rng)
    return tuple(_worded(wording, scene, told, related, groups, rng) for wording in wordings)


def _wordings(count: int, related: bool, grouped: bool, rng: Random) -> list[str]:
    """Five different wordings that suit the scene, in random order."""
    plain, tied = {1: (_ONE, ()), 2: (_TWO, _TWO_RELATED)}.get(count, (_MANY, _MANY_RELATED))
    if grouped:
        plain = plain + _GROUPED
    if not related:
        return shuffled(plain, rng)[:CAPTIONS]
    chosen = shuffled(tied, rng)[:_RELATED_CAPTIONS] + shuffled(plain, rng)[: CAPTIONS - _RELATED_CAPTIONS]
    return shuffled(chosen, rng)


def _clear_relations(things: Sequence[Thing]) -> list[tuple[Thing, Thing, str]]:
    """All (one, other, relation) that may be stated, where ``one`` comes earlier in the telling."""
    return [
        (one, other, relation)
        for i, one in enumerate(things)
        for other in things[i + 1 :]
        for relation in RELATION_WORDS
        if relation_holds(relation, one, other, STATED)
    ]


def _groups(things: Sequence[Thing]) -> list[tuple[str, list[Thing]]]:
    """Counted phrases for things that share a shape or a colour, each with the things outside, of which there are some.

    Of a red circle, a blue circle and a red star: "two circles" with the star, "two red shapes" with the blue circle.
    """
    found = []
    for trait, noun in (("shape", PLURALS.get), ("colour", "{} shapes".format)):
        for value in dict.fromkeys(getattr(thing, trait) for thing in things):
            outside = [thing for thing in things if getattr(thing, trait) != value]
            inside = len(things) - len(outside)
            if inside > 1 and outside:
                found.append((f"{NUMBERS[inside - 1]} {noun(value)}", outside))
    return found


def _worded(wording: str, scene: Scene, told: Sequence[Thing], related: list, groups: list, rng: Random) -> str:
    """The wording filled in for this scene."""
    fields = {"n": NUMBERS[len(told) - 1], "tone": scene.background}
    named = told
    if "{relation}" in wording or "{back}" in wording:
        one, other, relation = pick(related, rng)
        named = (one, other)
        fields["relation"] = pick(RELATION_WORDS[relation], rng)
        fields["back"] = pick(BACK_WORDS[OPPOSITE[relation]], rng)
    elif "{group}" in wording:
        fields["group"], named = pick(groups, rng)
    fields.update((letter, _noun_phrase(thing, rng)) for letter, thing in zip("abc", named, strict=False))
    return wording.format_map(fields)


def _noun_phrase(thing: Thing, rng: Random) -> str:
    return f"{pick(SIZE_WORDS[thing.size], rng)} {thing.colour} {thing.shape}"
