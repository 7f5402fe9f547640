"""data=scenes_questions: questions about drawn scenes with known answers, an unlimited number, from nothing but a seed.

Of every question the kind, its words and its answer are drawn first, each answer that the words allow as often as the
other ones, and then a scene of which it is true. So the words tell nothing of the answer, and whoever does not look is
right one time in as many as there are answers. A question that names a thing names one that is there exactly once.

    exists     is there a red circle?                            yes, no: half of the no's show both, but not together
    count      how many circles are there?                       zero to three
    colour     what colour is the circle?                        those that go with circles
    shape      what shape is the red one?                        those that come in red
    size       is the red circle larger than the blue square?    yes, no: the one that is named is the smaller
    relation   is the red circle above the blue square?          yes, no: it is below
    same       are the circle and the square the same colour?    yes, no
    more       are there more circles than squares?              yes, no

Splits as in ``data.scenes``; "compositional" has the pairs of colour and shape that training never shows, so that what
colour goes with a shape there is what it never was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from random import Random

from src.contracts import Example
from src.data.scenes import MOST_LARGE, SEEN_PAIRS, UNSEEN_PAIRS, DrawnWorld, OnDemand, sample_traits, scene_of
from src.kinds import Count, Seed, Size
from src.scenes.picks import pick, shuffled
from src.scenes.words import NUMBERS, PLURALS, RELATION_WORDS
from src.scenes.world import COLOURS, OPPOSITE, SHAPES, SIZES, STATED, Scene, Thing, relation_holds

ANSWERS = ("no", "yes")
COUNTS = ("zero", *NUMBERS[:3])
OTHERS = 2  # things at most beside the two that are compared

Pair = tuple[str, str]  # colour, shape
Trait = tuple[str, str, str]  # colour, shape, size
Asked = tuple[str, str, Scene]  # question, answer, scene
Pairs = Sequence[Pair]


# --------------------------------------------------------------------------------------------------------------------
# questions about what there is
# --------------------------------------------------------------------------------------------------------------------
def exists(pairs: Pairs, rng: Random) -> Asked:
    colour, shape = pick(pairs, rng)
    there, apart = rng.random() < 0.5, rng.random() < 0.5
    others = [pair for pair in pairs if pair != (colour, shape)]
    apart &= any(one == colour for one, _ in others) and any(one == shape for _, one in others)  # what can be

    def fits(things: Sequence[Trait]) -> bool:
        if there:
            return any(thing[:2] == (colour, shape) for thing in things)
        halves = any(thing[0] == colour for thing in things) and any(thing[1] == shape for thing in things)
        return halves == apart and all(thing[:2] != (colour, shape) for thing in things)

    return f"is there a {colour} {shape}?", ANSWERS[there], _scene(fits, pairs, rng)


def count(pairs: Pairs, rng: Random) -> Asked:
    place = int(rng.random() < 0.5)  # of the trait that is counted: colour or shape
    value = pick((COLOURS, SHAPES)[place], rng)
    most = len(SIZES) * sum(pair[place] == value for pair in pairs)  # no two things are alike
    number = int(rng.random() * min(len(COUNTS), most + 1))
    noun = PLURALS[value] if place else f"{value} shapes"
    scene = _scene(lambda things: sum(thing[place] == value for thing in things) == number, pairs, rng)
    return f"how many {noun} are there?", COUNTS[number], scene


def colour(pairs: Pairs, rng: Random) -> Asked:
    shape = pick(SHAPES, rng)
    answer = pick([one for one, other in pairs if other == shape], rng)
    scene = _scene(lambda things: [thing[0] for thing in things if thing[1] == shape] == [answer], pairs, rng)
    return f"what colour is the {shape}?", answer, scene


def shape(pairs: Pairs, rng: Random) -> Asked:
    colour = pick(COLOURS, rng)
    answer = pick([other for one, other in pairs if one == colour], rng)
    scene = _scene(lambda things: [thing[1] for thing in things if thing[0] == colour] == [answer], pairs, rng)
    return f"what shape is the {colour} one?", answer, scene


def more(pairs: Pairs, rng: Random) -> Asked:
    one, other = shuffled(SHAPES, rng)[:2]
    right = rng.random() < 0.5

    def fits(things: Sequence[Trait]) -> bool:
        here, there = (sum(thing[1] == shape for thing in things) for shape in (one, other))
        return (here > there) == right and here + there > 0

    return f"are there more {PLURALS[one]} than {PLURALS[other]}?", ANSWERS[right], _scene(fits, pairs, rng)


def same(pairs: Pairs, rng: Random) -> Asked | None:
    one, other = shuffled(SHAPES, rng)[:2]
    right = rng.random() < 0.5
    of_one, of_other = ([colour for colour, shape in pairs if shape == name] for name in (one, other))
    if not set(of_one) & set(of_other):
        return None  # they never are

    def fits(things: Sequence[Trait]) -> bool:
        found = [[thing[0] for thing in things if thing[1] == shape] for shape in (one, other)]
        return all(len(colours) == 1 for colours in found) and (found[0] == found[1]) == right

    return f"are the {one} and the {other} the same colour?", ANSWERS[right], _scene(fits, pairs, rng)


def _scene(fits: Callable[[Sequence[Trait]], bool], pairs: Pairs, rng: Random) -> Scene:
    """A random scene whose things are as wanted."""
    while not fits(things := sample_traits(rng, pairs)):
        pass
    return scene_of(things, rng)


# --------------------------------------------------------------------------------------------------------------------
# questions about two things
# --------------------------------------------------------------------------------------------------------------------
def size(pairs: Pairs, rng: Random) -> Asked:
    one, other = shuffled(pairs, rng)[:2]
    word, right = pick(("larger", "smaller"), rng), rng.random() < 0.5
    sizes = ("large", "small") if (word == "larger") == right else ("small", "large")
    scene = scene_of(_beside([(*one, sizes[0]), (*other, sizes[1])], pairs, rng), rng)
    return f"is the {' '.join(one)} {word} than the {' '.join(other)}?", ANSWERS[right], scene


def relation(pairs: Pairs, rng: Random) -> Asked:
    one, other = shuffled(pairs, rng)[:2]
    asked, right = pick(tuple(OPPOSITE), rng), rng.random() < 0.5
    holds = asked if right else OPPOSITE[asked]
    while True:
        scene = scene_of(_beside([(*pair, pick(SIZES, rng)) for pair in (one, other)], pairs, rng), rng)
        a, b = (next(thing for thing in scene.things if _pair(thing) == pair) for pair in (one, other))
        if relation_holds(holds, a, b, STATED):
            words = pick(RELATION_WORDS[asked], rng)
            return f"is the {' '.join(one)} {words} the {' '.join(other)}?", ANSWERS[right], scene


def _beside(named: Sequence[Trait], pairs: Pairs, rng: Random) -> list[Trait]:
    """The things that are named, in random order with up to ``OTHERS`` that differ from them in colour or shape."""
    others = [pair for pair in pairs if pair not in [thing[:2] for thing in named]]
    chosen = shuffled(others, rng)[: int(rng.random() * (OTHERS + 1))]
    things = [*named, *((*pair, pick(SIZES, rng)) for pair in chosen)]
    large = [thing for thing in things if thing[2] == "large"]
    kept = [thing for thing in things if thing in named or thing not in large[MOST_LARGE:]]  # else there is no room
    return shuffled(kept, rng)


def _pair(thing: Thing) -> Pair:
    return thing.colour, thing.shape


# --------------------------------------------------------------------------------------------------------------------
# the source
# --------------------------------------------------------------------------------------------------------------------
KINDS: dict[str, Callable[[Pairs, Random], Asked | None]] = {
    ask.__name__: ask for ask in (exists, count, colour, shape, size, relation, same, more)
}


class ScenesQuestions(DrawnWorld):
    """``train``, ``val``, ``test`` and ``compositional`` are numbers of questions, each about a picture of its own.

    A longer split begins with the questions of a shorter one. Every example keeps its kind in ``extra["kind"]``.
    """

    task = "vqa"

    def __init__(
        self, seed: Seed = 0, train: Size = 50_000, val: Size = 500, test: Count = 1_000, compositional: Count = 500
    ):
        lengths = {"train": train, "val": val, "test": test, "compositional": compositional}
        super().__init__(
            "scenes_questions", {split: OnDemand(n, partial(_made, seed, split)) for split, n in lengths.items()}
        )


@lru_cache(maxsize=2**15)  # a millisecond each, in every epoch
def _made(seed: int, split: str, index: int) -> Example:
    rng = Random(f"{seed}/questions/{split}/{index}")
    kind, (question, answer, scene) = ask(UNSEEN_PAIRS if split == "compositional" else SEEN_PAIRS, rng)
    about = {"scene": scene.to_dict(), "kind": kind}
    return Example(f"{split}-{index:06d}", (answer,), extra=about, question=question)


def ask(pairs: Pairs, rng: Random) -> tuple[str, Asked]:
    """A kind, and a question of it with its answer and its scene; those that ``pairs`` cannot answer do not come."""
    while True:
        kind = pick(tuple(KINDS), rng)
        if asked := KINDS[kind](pairs, rng):
            return kind, asked
