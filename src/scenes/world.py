"""The world of the drawn scenes: one to four coloured shapes on a dark or light background, and how they lie.

Positions are shares of the picture's side, x from the left and y from the top. A relation between two things is stated
only where nobody would argue (``STATED``) and accepted a little further (``ACCEPTED``).

The words for it are in ``words``; ``captions`` describes a scene, ``reader`` reads any caption back
into statements, ``check`` says which of them are true of a scene.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink")
SIZES = ("small", "large")
BACKGROUNDS = ("dark", "light")
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}  # of each relation


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


class Margin(NamedTuple):
    """A direction holds if the step along it is at least ``step`` and at least ``cone`` times the sideways step."""

    step: float
    cone: float


STATED = Margin(step=0.22, cone=1.7)  # within 30 degrees of the axis
ACCEPTED = Margin(step=0.12, cone=0.6)  # within 59 degrees


def relation_holds(relation: str, one: Thing, other: Thing, margin: Margin = ACCEPTED) -> bool:
    """Whether ``one`` is left (right, above, below) of ``other`` by at least the margin."""
    right, down = one.x - other.x, one.y - other.y
    along, aside = (right, down) if relation in ("left", "right") else (down, right)
    if relation in ("left", "above"):
        along = -along
    return along >= margin.step and along >= margin.cone * abs(aside)
