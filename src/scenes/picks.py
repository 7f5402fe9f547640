"""Random choices that stay the same with every version of Python.

Built on ``random()`` alone, whose sequence Python promises to keep; ``choice`` and ``shuffle`` may change.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TypeVar

Item = TypeVar("Item")


def pick(options: Sequence[Item], rng: Random) -> Item:
    """One of the options."""
    return options[int(rng.random() * len(options))]


def shuffled(items: Sequence[Item], rng: Random) -> list[Item]:
    """The items in random order."""
    return [item for _, item in sorted(((rng.random(), i), item) for i, item in enumerate(items))]
