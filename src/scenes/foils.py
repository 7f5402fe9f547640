"""Captions of a drawn scene with one word changed, so that they are not true of it any more."""

from __future__ import annotations

from random import Random

from src.scenes.check import check
from src.scenes.picks import shuffled
from src.scenes.words import SIZE_WORDS
from src.scenes.world import BACKGROUNDS, COLOURS, OPPOSITE, SHAPES, SIZES, Scene

_OPPOSITES = {**OPPOSITE, "under": "above"}
_SIZES = {word: SIZE_WORDS[other] for one, other in (SIZES, SIZES[::-1]) for word in SIZE_WORDS[one]}


def foil(caption: str, scene: Scene, rng: Random) -> str | None:
    """``caption`` with another colour, shape, size, background or relation, false of the scene; None where none is."""
    words = caption.split()
    for place in shuffled(range(len(words)), rng):
        for other in shuffled(_others(words[place].strip(",")), rng):
            changed = [*words[:place], words[place].replace(words[place].strip(","), other), *words[place + 1 :]]
            if not check(" ".join(changed), scene).entirely_true:
                return " ".join(changed)
    return None


def _others(word: str) -> list[str]:
    for group in (COLOURS, SHAPES, BACKGROUNDS):
        if word in group:
            return [one for one in group if one != word]
    return [*_SIZES.get(word, ()), *([_OPPOSITES[word]] if word in _OPPOSITES else [])]
