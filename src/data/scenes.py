"""data=scenes: an unlimited drawn world with known truth, made of nothing but a seed.

A picture shows one to four shapes on a muted background. Scene and captions follow from (seed, split, index) alone, the
pixels from the scene alone; nothing is stored. Splits:

    train, val, test   one distribution, in which the colour-shape pairs of ``HELD_OUT`` never occur
    compositional      only pairs of ``HELD_OUT``: familiar colours and shapes, joined as never before

Every example keeps its scene in ``extra["scene"]`` (``Scene.to_dict``), so that whatever a caption says can be checked.

Shapes are drawn as signed distance fields: the coverage of a pixel is 0.5 minus the distance of its centre to the
outline, clipped to 0..1, in pixels; that is the antialiasing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from random import Random

import numpy as np
import torch
from torch import Tensor

from src.contracts import Document, Example, UserError
from src.kinds import Checked, Count, Seed, Size
from src.scenes.captions import describe
from src.scenes.foils import foil
from src.scenes.picks import pick
from src.scenes.world import BACKGROUNDS, COLOURS, SHAPES, SIZES, Scene, Thing

HELD_OUT = frozenset(
    {
        ("red", "star"),
        ("orange", "ring"),
        ("yellow", "cross"),
        ("green", "circle"),
        ("blue", "triangle"),
        ("purple", "square"),
        ("pink", "star"),
    }
)
PAIRS = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
SEEN_PAIRS = tuple(pair for pair in PAIRS if pair not in HELD_OUT)
UNSEEN_PAIRS = tuple(pair for pair in PAIRS if pair in HELD_OUT)
COUNT_SHARES = (0.2, 0.4, 0.25, 0.15)  # of pictures with one, two, three, four things
MOST_LARGE = 2  # more large things than this leave too little room for the others
RADII = {"small": (0.1, 0.115), "large": (0.175, 0.2)}  # shares of the side
GAP = 0.03  # between the circles around two things, and to the edge of the picture
SMALLEST = 32  # pixels; below this a small star and a small circle look the same


# --------------------------------------------------------------------------------------------------------------------
# scenes
# --------------------------------------------------------------------------------------------------------------------
def sample_scene(rng: Random, pairs: Sequence[tuple[str, str]] = SEEN_PAIRS) -> Scene:
    """A random scene whose (colour, shape) pairs are among ``pairs``; no two of its things share all three traits."""
    return scene_of(sample_traits(rng, pairs), rng)


def sample_traits(rng: Random, pairs: Sequence[tuple[str, str]] = SEEN_PAIRS) -> list[tuple[str, str, str]]:
    """(colour, shape, size) of the things of a random scene."""
    draw = rng.random()
    count = 1 + sum(draw >= math.fsum(COUNT_SHARES[:i]) for i in range(1, len(COUNT_SHARES)))
    traits: list[tuple[str, str, str]] = []
    while len(traits) < count:
        size = pick(SIZES, rng)
        if size == "large" and sum(other[2] == "large" for other in traits) == MOST_LARGE:
            size = "small"
        trait = (*pick(pairs, rng), size)
        if trait not in traits:
            traits.append(trait)
    return traits


def scene_of(traits: Sequence[tuple[str, str, str]], rng: Random) -> Scene:
    """A scene of things with these (colour, shape, size), at random places on a random background."""
    radii = [_between(*RADII[size], rng) for _, _, size in traits]
    things = tuple(
        Thing(shape, colour, size, x, y, radius)
        for (colour, shape, size), radius, (x, y) in zip(traits, radii, _places(radii, rng), strict=True)
    )
    return Scene(things, pick(BACKGROUNDS, rng), int(rng.random() * 2**32))


def _between(low: float, high: float, rng: Random) -> float:
    return low + (high - low) * rng.random()


def _places(radii: Sequence[float], rng: Random) -> list[tuple[float, float]]:
    """Centres at which circles of these radii keep ``GAP`` from each other and from the edge."""
    while True:
        places: list[tuple[float, float]] = []
        for radius in radii:
            edge = radius + GAP
            for _ in range(8):  # then start over, as the things placed so far may leave no room
                x, y = _between(edge, 1 - edge, rng), _between(edge, 1 - edge, rng)
                if all(math.hypot(x - p, y - q) >= edge + r for (p, q), r in zip(places, radii, strict=False)):
                    places.append((x, y))
                    break
            else:
                break
        if len(places) == len(radii):
            return places


# --------------------------------------------------------------------------------------------------------------------
# drawing
# --------------------------------------------------------------------------------------------------------------------
RGB = {
    "red": (0.86, 0.10, 0.12),
    "orange": (1.00, 0.55, 0.05),
    "yellow": (0.98, 0.90, 0.15),
    "green": (0.13, 0.62, 0.20),
    "blue": (0.13, 0.32, 0.90),
    "purple": (0.50, 0.14, 0.66),
    "pink": (1.00, 0.55, 0.76),
}
SHADE = 0.035  # how far each channel of a thing strays from its colour
LIGHTNESS = {"dark": (0.14, 0.27), "light": (0.70, 0.82)}
TINT = 0.035  # how far the channels of a background stray from grey
TURN = {"square": 12, "triangle": 15, "star": 36, "cross": 14}  # degrees to either side; more would make a diamond

Field = np.ndarray  # float32


def _star(points: int, waist: float) -> Callable[[Field, Field], Field]:
    """Distance to a star of radius 1 with its inner corners at radius ``waist``; 3 points and waist 0.5: a triangle.

    The plane is folded onto one half of one point, where the outline is a straight line from tip to inner corner.
    """
    wedge = math.pi / points
    tip, corner = (1.0, 0.0), (waist * math.cos(wedge), waist * math.sin(wedge))
    length = math.dist(tip, corner)
    normal_x, normal_y = corner[1] / length, (tip[0] - corner[0]) / length

    def distance(u: Field, v: Field) -> Field:
        angle = np.abs((np.arctan2(u, -v) + wedge) % (2 * wedge) - wedge)  # 0 at a tip; one tip points up
        radius = np.hypot(u, v)
        return (radius * np.cos(angle) - 1) * normal_x + radius * np.sin(angle) * normal_y

    return distance


def _circle(u: Field, v: Field) -> Field:
    return np.hypot(u, v) - 0.92


def _ring(u: Field, v: Field) -> Field:
    return np.abs(np.hypot(u, v) - 0.74) - 0.22


def _square(u: Field, v: Field) -> Field:
    return np.maximum(np.abs(u), np.abs(v)) - 0.78


def _cross(u: Field, v: Field) -> Field:
    u, v = np.abs(u), np.abs(v)
    return np.minimum(np.maximum(u - 0.94, v - 0.3), np.maximum(u - 0.3, v - 0.94))


# Signed distances, negative inside, in units of the thing's radius, from coordinates in the same units (v downwards).
_DISTANCES = {
    "circle": _circle,
    "square": _square,
    "triangle": _star(3, 0.5),
    "star": _star(5, 0.45),
    "cross": _cross,
    "ring": _ring,
}


def draw(scene: Scene, size: int) -> np.ndarray:
    """The picture, uint8 (3, size, size)."""
    rng = Random(scene.look)
    canvas = _background(scene.background, size, rng)
    for thing in scene.things:
        _paint(canvas, thing, rng)
    return (canvas * 255 + 0.5).astype(np.uint8)


def _background(tone: str, size: int, rng: Random) -> Field:
    """Canvas (3, size, size): a pattern between two muted colours of one tone."""
    one, other = _muted(tone, rng), _muted(tone, rng)
    return one[:, None, None] + (other - one)[:, None, None] * pick(_PATTERNS, rng)(size, rng)


def _muted(tone: str, rng: Random) -> Field:
    lightness = _between(*LIGHTNESS[tone], rng)
    return np.array([lightness + TINT * (2 * rng.random() - 1) for _ in range(3)], np.float32)


@lru_cache(maxsize=8)
def _centres(size: int) -> Field:
    """Where the pixels of one axis have their centres, as shares of the side."""
    return (np.arange(size, dtype=np.float32) + 0.5) / size


def _ramp(size: int, rng: Random) -> Field:
    """Position along a random direction, (size, size), from -0.5 to 0.5 at most."""
    turn = 2 * math.pi * rng.random()
    centred = (_centres(size) - 0.5) * np.float32(0.7)
    return centred * np.float32(math.cos(turn)) + (centred * np.float32(math.sin(turn)))[:, None]


def _plain(size: int, rng: Random) -> Field:
    return np.zeros((size, size), np.float32)


def _gradient(size: int, rng: Random) -> Field:
    return _ramp(size, rng) + 0.5


def _stripes(size: int, rng: Random) -> Field:
    waves = 2 * math.pi * _between(4, 9, rng)
    return np.clip(1.5 * np.sin(_ramp(size, rng) * waves) + 0.5, 0, 1)  # steep but not sharp: no jagged edges


def _checks(size: int, rng: Random) -> Field:
    wave = np.sin(_centres(size) * (2 * math.pi * _between(2, 4, rng)) + 2 * math.pi * rng.random())
    wave = np.clip(3 * wave, -1, 1)
    return 0.5 + 0.5 * wave * wave[:, None]


def _clouds(size: int, rng: Random) -> Field:
    """Soft noise: a few slow waves in random directions."""
    waves = [np.cos(_ramp(size, rng) * (2 * math.pi * _between(1, 3, rng)) + 2 * math.pi * rng.random()) for _ in "123"]
    return 0.5 + sum(waves) / 6


_PATTERNS = (_plain, _gradient, _stripes, _checks, _clouds)


def _paint(canvas: Field, thing: Thing, rng: Random) -> None:
    """Blend a thing into the canvas (3, size, size), within the square around it."""
    size = canvas.shape[-1]
    rgb = np.array([min(1, max(0, c + SHADE * (2 * rng.random() - 1))) for c in RGB[thing.colour]], np.float32)
    turn = math.radians(TURN.get(thing.shape, 0)) * (2 * rng.random() - 1)
    cos, sin = np.float32(math.cos(turn) / thing.radius), np.float32(math.sin(turn) / thing.radius)
    rows, columns = _window(thing.y, thing.radius, size), _window(thing.x, thing.radius, size)
    x = _centres(size)[columns] - np.float32(thing.x)
    y = (_centres(size)[rows] - np.float32(thing.y))[:, None]
    distance = _DISTANCES[thing.shape](cos * x + sin * y, cos * y - sin * x)
    coverage = np.clip(0.5 - distance * np.float32(thing.radius * size), 0, 1)
    patch = canvas[:, rows, columns]
    patch += coverage * (rgb[:, None, None] - patch)


def _window(centre: float, radius: float, size: int) -> slice:
    """The pixels that a circle can touch along one axis."""
    return slice(max(0, int((centre - radius) * size) - 1), int((centre + radius) * size) + 2)


# --------------------------------------------------------------------------------------------------------------------
# the source
# --------------------------------------------------------------------------------------------------------------------
class OnDemand(Sequence):
    """``length`` examples, each made from its index when asked for: ``make`` is a function of nothing else."""

    def __init__(self, length: int, make: Callable[[int], Example | Document]):
        self._length, self._make = length, make

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int | slice):
        if isinstance(index, slice):
            return [self[i] for i in range(self._length)[index]]
        return self._make(range(self._length)[index])  # counts from the end and raises IndexError as lists do


def _drawn(seed: int, split: str, index: int) -> Example:
    rng = Random(f"{seed}/{split}/{index}")  # of a string: the same in every process
    scene = sample_scene(rng, UNSEEN_PAIRS if split == "compositional" else SEEN_PAIRS)
    return Example(f"{split}-{index:06d}", describe(scene, rng), extra={"scene": scene.to_dict()})


class DrawnWorld(Checked, group="data.source"):
    """What sources of drawn pictures share. ``groups``: split -> examples, made when asked for."""

    has_images = True
    interleaved = False
    task = "caption"

    def __init__(self, name: str, groups: dict[str, Sequence]):
        self.name, self._groups = name, groups

    def splits(self) -> tuple[str, ...]:
        return tuple(self._groups)

    def examples(self, split: str) -> Sequence:
        """The examples of a split, by index. Raises UserError for a split that does not exist."""
        if split not in self._groups:
            raise UserError(f"The {self.name} have no split {split!r}, only {', '.join(self._groups)}.")
        return self._groups[split]

    def foil(self, example: Example, caption: str, chance: Random) -> str | None:
        """The caption with a word changed that makes it false; None where there is none."""
        return foil(caption, Scene.from_dict(example.extra["scene"]), chance)

    def pixels(self, example: Example, size: int) -> Tensor:
        """uint8 RGB tensor (3, size, size). Raises UserError where the shapes would be too small to tell apart."""
        if size < SMALLEST:
            raise UserError(f"Scenes are drawn {SMALLEST} pixels wide or wider, not {size}.")
        return torch.from_numpy(draw(Scene.from_dict(example.extra["scene"]), size))


class Scenes(DrawnWorld):
    """The drawn world as a data source (``contracts.Source``); see the head of this file for its splits.

    ``train``, ``val``, ``test`` and ``compositional`` are numbers of pictures. A longer split begins with the pictures
    of a shorter one.
    """

    def __init__(
        self, seed: Seed = 0, train: Size = 50_000, val: Size = 500, test: Count = 1_000, compositional: Count = 500
    ):
        lengths = {"train": train, "val": val, "test": test, "compositional": compositional}
        super().__init__("scenes", {split: OnDemand(n, partial(_drawn, seed, split)) for split, n in lengths.items()})

    def classes(self) -> Mapping[str, Sequence[str]]:
        return {"shape": SHAPES, "colour": COLOURS}

    def labels(self, example: Example) -> Mapping[str, frozenset[str]]:
        things = Scene.from_dict(example.extra["scene"]).things
        return {kind: frozenset(getattr(thing, kind) for thing in things) for kind in self.classes()}
