"""Which statements of a caption are true of a drawn scene.

Mentions stand for different things: "a red circle and a red circle" needs two. Which thing a mention stands for is
chosen so that most nouns, colours and sizes are true and, among such choices, most relations: "a red circle" in a
picture with one green circle has a true object and a false colour. Mentions beyond ``SPARE_MENTIONS`` more than there
are things stand for nothing.

A caption is entirely true if every statement is, nothing is left over, and at least one mention gives shape, colour and
size; so neither "three shapes" nor an empty caption scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from src.scenes.reader import Reading, Statement, parse
from src.scenes.world import Scene, Thing, relation_holds

SPARE_MENTIONS = 2


@dataclass(frozen=True)
class Verdict:
    """A caption held against a scene. ``truths`` goes with the reading's statements.

    ``described``: how many of the scene's ``things`` a phrase with a shape word describes without a mistake.
    """

    reading: Reading
    truths: tuple[bool, ...]
    described: int
    things: int

    @property
    def mentioned(self) -> float:
        """The share of the scene's things that are described."""
        return self.described / self.things

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
    return Verdict(reading, truths, len(_described(reading, truths, scene, places)), len(scene.things))


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
