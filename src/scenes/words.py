"""The words for the drawn world, beside the names of shapes, colours and backgrounds, which are words themselves.

``captions`` writes with them, ``reader`` reads them.
"""

from __future__ import annotations

from src.scenes.world import BACKGROUNDS, COLOURS, SHAPES

SIZE_WORDS = {"small": ("small", "little"), "large": ("big", "large")}
PLURALS = {shape: shape + ("es" if shape.endswith("s") else "s") for shape in SHAPES}
ANY_NOUNS = {"shape": "shapes", "object": "objects"}  # fit any thing
NUMBERS = ("one", "two", "three", "four")
RELATION_WORDS = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above",),
    "below": ("below", "under"),
}
BACK_WORDS = {"left": ("to its left",), "right": ("to its right",), "above": ("above it",), "below": ("under it",)}
GLUE = frozenset("a an the is are there and with on in of to it picture image showing including".split())

_KINDS = {
    "colour": frozenset(COLOURS),
    "shape": frozenset((*SHAPES, *PLURALS.values(), *ANY_NOUNS, *ANY_NOUNS.values())),
    "size": frozenset(word for words in SIZE_WORDS.values() for word in words),
    "count": frozenset((*NUMBERS, "alone")),
    "relation": frozenset(word for words in RELATION_WORDS.values() for said in words for word in said.split()) - GLUE,
    "background": frozenset(BACKGROUNDS),
}
KINDS = (*_KINDS, "other")


def word_kind(word: str) -> str:
    """What a single word of a caption speaks of, one of ``KINDS``; case and punctuation aside."""
    bare = word.lower().strip(" .,;:!?")
    return next((kind for kind, words in _KINDS.items() if bare in words), "other")
