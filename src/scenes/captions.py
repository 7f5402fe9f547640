"""Captions of a drawn scene: five true sentences, each worded differently."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from src.scenes.picks import pick, shuffled
from src.scenes.words import BACK_WORDS, NUMBERS, PLURALS, RELATION_WORDS, SIZE_WORDS
from src.scenes.world import OPPOSITE, STATED, Scene, Thing, relation_holds

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
