"""data=scenes_interleaved: stories over several drawn scenes, in which only the right picture answers a sentence.

Every picture of a story shows one thing that all of them share in one trait and none in the other; each sentence names
the shared trait and tells the other one:

    <image> first the circle is red <eos>  <image> then the circle is blue <eos>  <image> now the circle is pink <eos>
    <image> first the red shape is a star <eos>  <image> then the red shape is a ring <eos>

So a model that looks at another picture of the story says something that is true there and false here. Scenes follow
from (seed, split, index) alone, as in ``data.scenes``; a second thing, unlike the asked one in both traits, is there to
distract.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Annotated

from src.contracts import Chunk, Document, Example
from src.data.scenes import SEEN_PAIRS, DrawnWorld, OnDemand, scene_of
from src.kinds import Count, Ge, Le, Seed, Size
from src.scenes.picks import pick
from src.scenes.world import COLOURS, SHAPES, SIZES

OPENINGS = ("first", "then", "now", "here", "next", "later")
KINDS = ("colour", "shape")


@dataclass(frozen=True)
class Question:
    """What one sentence asks: ``lead`` is given to the model, ``answer`` is what it should say."""

    kind: str
    lead: str
    answer: str


class ScenesInterleaved(DrawnWorld):
    """Stories of 2 to ``pictures`` scenes. ``train``, ``val``, ``test``: numbers of stories.

    Every document keeps its questions in ``extra["questions"]``, one per chunk, as plain dicts. Raises UserError for a
    negative number and for stories of fewer than two pictures or more than there are colours or shapes to tell apart.
    """

    interleaved = True
    task = "stories"

    def __init__(self, seed: Seed, pictures: Annotated[int, Ge(2), Le(5)], train: Size, val: Size, test: Count):
        lengths = {"train": train, "val": val, "test": test}
        groups = {split: OnDemand(n, partial(_told, seed, split, pictures)) for split, n in lengths.items()}
        super().__init__("scenes_interleaved", groups)


def _told(seed: int, split: str, pictures: int, index: int) -> Document:
    rng = Random(f"{seed}/stories/{split}/{index}")
    return tell(f"{split}-{index:06d}", 2 + int(rng.random() * (pictures - 1)), rng)


def tell(name: str, pictures: int, rng: Random) -> Document:
    """A story of ``pictures`` scenes about one shared trait."""
    kind = pick(KINDS, rng)
    shared, told = _traits(kind, pictures, rng)
    chunks, questions = [], []
    for number, trait in enumerate(told):
        colour, shape = (trait, shared) if kind == "colour" else (shared, trait)
        opening = pick(OPENINGS, rng)
        lead = f"{opening} the {shared} is" if kind == "colour" else f"{opening} the {shared} shape is a"
        scene = scene_of([(colour, shape, pick(SIZES, rng)), *_distraction(colour, shape, rng)], rng)
        chunks.append(Chunk(f"{lead} {trait}", Example(f"{name}/{number}", (), extra={"scene": scene.to_dict()})))
        questions.append(vars(Question(kind, lead, trait)))
    return Document(name, tuple(chunks), {"questions": questions})


def _traits(kind: str, pictures: int, rng: Random) -> tuple[str, list[str]]:
    """The shared trait, and as many different others that go with it."""
    shared = pick(SHAPES if kind == "colour" else COLOURS, rng)
    fitting = [c if kind == "colour" else s for c, s in SEEN_PAIRS if shared == (s if kind == "colour" else c)]
    return shared, sorted(fitting, key=lambda _: rng.random())[:pictures]


def _distraction(colour: str, shape: str, rng: Random) -> list[tuple[str, str, str]]:
    """With even odds a second thing of another colour and another shape."""
    if rng.random() < 0.5:
        return []
    others = [(c, s) for c, s in SEEN_PAIRS if c != colour and s != shape]
    return [(*pick(others, rng), pick(SIZES, rng))]
