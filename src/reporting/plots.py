"""Plots as inline SVG, drawn here because they take their colours from the page: light, dark and print in one.

Every arm keeps one colour (``arm-0`` ... in report.css) and one marker shape throughout, so that neither colour alone
tells arms apart. Labels stand at the data; a table on the page holds every number that a plot shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

COLOURS = 8  # in report.css
WIDTH = 680
LEFT, RIGHT, TOP, BOTTOM = 64, 150, 16, 46  # margins in pixels; the right one holds the labels
LINE = 15  # pixels between labels
POINTS = 250  # of a curve; more cannot be told apart at this width


@dataclass(frozen=True)
class Series:
    """One line: ``index`` is its arm's place in the comparison, which gives colour and marker."""

    index: int
    label: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Point:
    """One arm with an interval of y."""

    index: int
    label: str
    x: float
    y: float
    low: float
    high: float
    each: tuple[float, ...] = ()  # y of every seed


@dataclass(frozen=True)
class Axis:
    """Values to pixels, linear or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for steps in ((1,), (1, 3), (1, 2, 5), tuple(range(1, 10))):
                found = [s * 10.0**d for d in decades for s in steps if self.low <= s * 10.0**d <= self.high]
                if len(found) >= 3:
                    return found
            return found
        step = _nice((self.high - self.low) / 5)
        first = math.ceil(self.low / step - 1e-9)
        return [step * i for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def axis(values: Sequence[float], start: float, end: float, log: bool = False) -> Axis:
    """An axis with some room around the values; equal values get room as well."""
    low, high = min(values), max(values)
    if log:
        room = max((high / low) ** 0.08, 1.1)
        return Axis(low / room, high * room, start, end, True)
    room = 0.07 * (high - low) or abs(high) * 0.1 or 1.0
    return Axis(low - room if low < 0 or low - room > 0 else 0.0, high + room, start, end)


def forest(points: Sequence[Point], title: str) -> Markup:
    """One row per arm: mean, 95 % interval, every seed as a small tick; x is the score."""
    left, row = 12 + 7 * min(30, max(len(point.label) for point in points)), 30
    height = TOP + row * len(points) + BOTTOM
    values = [value for point in points for value in (point.low, point.high, *point.each)]
    x = axis(values, left, WIDTH - 70)
    parts = [_x_axis(x, TOP, height - BOTTOM, title)]
    for number, point in enumerate(points):
        y = TOP + row * (number + 0.5)
        marks = [_line(x(point.low), y, x(point.high), y, "interval")]
        marks += [
            _line(x(value), y - 6, x(value), y + 6, "seed") for value in point.each[: len(point.each) > 1 and None]
        ]
        marks += [_marker(point.index, x(point.y), y), _text(left - 10, y + 4, _short(point.label), "end")]
        marks.append(_text(WIDTH - 62, y + 4, number_text(point.y), "start", "value"))
        tip = f"{point.label}: {number_text(point.y)}, 95 % [{number_text(point.low)}, {number_text(point.high)}]"
        parts.append(_group(point.index, tip, marks))
    return _svg(height, f"{title} of every arm with 95 % intervals", parts)


def pareto(points: Sequence[Point], cost: str, score: str, better: int) -> Markup:
    """Score against cost; the arms that no other beats in both are joined. ``better``: 1 if more is better, or -1."""
    height = 380
    x = axis([p.x for p in points], LEFT, WIDTH - 30, log=max(p.x for p in points) > 4 * min(p.x for p in points) > 0)
    y = axis([value for p in points for value in (p.low, p.high)], height - BOTTOM, TOP)
    best = front(points, better)
    parts = [_x_axis(x, TOP, height - BOTTOM, cost), _y_axis(y, LEFT, WIDTH - 30, score)]
    parts.append(_path([(x(p.x), y(p.y)) for p in best], "front"))
    places = _free_places([(x(p.x), y(p.y), _short(p.label)) for p in points])
    for point, (at_x, at_y, anchor) in zip(points, places, strict=True):
        on = point in best
        marks = [
            _line(x(point.x), y(point.low), x(point.x), y(point.high), "interval"),
            _marker(point.index, x(point.x), y(point.y), "on-front" if on else ""),
            _text(at_x, at_y, _short(point.label), anchor, "strong" if on else ""),
        ]
        tip = f"{point.label}: {score} {number_text(point.y)}, {cost} {number_text(point.x)}"
        parts.append(_group(point.index, tip + (", on the front" if on else ""), marks))
    return _svg(height, f"{score} against {cost}; on the front: {', '.join(p.label for p in best)}", parts)


def front(points: Sequence[Point], better: int) -> list[Point]:
    """The points that none beats: cheaper or equal, and better or equal, and one of both strictly. By cost."""

    def beats(one: Point, other: Point) -> bool:
        mine, theirs = (one.x, -better * one.y), (other.x, -better * other.y)
        return mine != theirs and mine[0] <= theirs[0] and mine[1] <= theirs[1]

    return sorted((p for p in points if not any(beats(q, p) for q in points)), key=lambda p: (p.x, p.y))


def curves(series: Sequence[Series], x_name: str, y_name: str, log: bool = False, markers: bool = True) -> Markup:
    """Lines with their names at the end. Lines of one label (seeds of an arm) are named once."""
    series = [Series(s.index, s.label, _thinned(s.points)) for s in series]
    height = 340
    x = axis([point[0] for s in series for point in s.points], LEFT, WIDTH - RIGHT, log)
    y = axis([point[1] for s in series for point in s.points], height - BOTTOM, TOP)
    parts = [_x_axis(x, TOP, height - BOTTOM, x_name), _y_axis(y, LEFT, WIDTH - RIGHT, y_name)]
    named: dict[str, Series] = {}
    for one in series:
        named.setdefault(one.label, one)
        drawn = [(x(a), y(b)) for a, b in one.points]
        marks = [_path(drawn, "curve"), *(_marker(one.index, *place) for place in (drawn if markers else ()))]
        parts.append(_group(one.index, one.label, marks))
    ends = [y(one.points[-1][1]) for one in named.values()]
    for one, end, place in zip(named.values(), ends, _spread(ends, TOP + 4, height - BOTTOM), strict=True):
        at = x(one.points[-1][0])
        marks = [
            _path([(at + 5, end), (WIDTH - RIGHT + 14, place)], "leader"),
            _text(WIDTH - RIGHT + 18, place + 4, _short(one.label, 19), "start", "coloured"),
        ]
        parts.append(_group(one.index, one.label, marks))
    return _svg(height, f"{y_name} over {x_name}", parts)


# --------------------------------------------------------------------------------------------------------------------
# numbers and places
# --------------------------------------------------------------------------------------------------------------------
def number_text(value: float | None, digits: int = 3) -> str:
    """A number as people write it: .823 as 0.823, 2.81 M, 23.5 G; "-" for None."""
    if value is None:
        return "-"
    for factor, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= factor:
            scale = 1e3 if unit == "k" else factor
            return f"{value / scale:.{max(0, 2 - int(math.log10(abs(value) / scale)))}f} {unit}"
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:.0f}"
    return f"{value:.{digits}f}" if abs(value) < 10 else f"{value:.1f}"


def _tick_text(value: float, step: float) -> str:
    if abs(value) >= 1e4:
        text = number_text(value)
        return text.replace(".00", "").replace(".0 ", " ")
    return f"{value:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"


def _nice(step: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(s * power for s in (1, 2, 5, 10) if s * power >= step * (1 - 1e-9))


def _thinned(points: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """At most ``POINTS`` means of neighbours; a short curve as it is."""
    size = -(-len(points) // POINTS)
    groups = [points[first : first + size] for first in range(0, len(points), size)]
    return tuple((sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups)


def _spread(wanted: Sequence[float], low: float, high: float) -> list[float]:
    """Places near the wanted ones, in their order, at least ``LINE`` apart, and inside as far as there is room."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    places = [0.0] * len(wanted)
    last = low - LINE
    for i in order:
        last = places[i] = max(wanted[i], last + LINE)
    ceiling = high + LINE
    for i in reversed(order):
        ceiling = places[i] = min(places[i], ceiling - LINE)
    return places


def _free_places(labels: Sequence[tuple[float, float, str]]) -> list[tuple[float, float, str]]:
    """(x, y, anchor) of each label, beside its point, where it covers the fewest points and labels before it."""
    taken = [(x - 7, y - 7, x + 7, y + 7) for x, y, _ in labels]
    places = []
    for x, y, text in labels:
        width = 7.2 * len(text)
        options = []
        for dx, dy, anchor in ((11, 4, "start"), (-11, 4, "end"), (9, -9, "start"), (9, 17, "start"),
                               (-9, -9, "end"), (-9, 17, "end"), (0, -24, "middle"), (0, 32, "middle")):  # fmt: skip
            left = x + dx - {"start": 0, "end": width, "middle": width / 2}[anchor]
            box = (left, y + dy - 11, left + width, y + dy + 3)
            outside = box[0] < LEFT or box[2] > WIDTH or box[1] < 0
            options.append(
                (outside * 9 + sum(_overlap(box, other) for other in taken), len(options), box, dx, dy, anchor)
            )
        _, _, box, dx, dy, anchor = min(options)
        taken.append(box)
        places.append((x + dx, y + dy, anchor))
    return places


def _overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _short(label: str, length: int = 30) -> str:
    return label if len(label) <= length else label[: length - 1] + "…"


# --------------------------------------------------------------------------------------------------------------------
# SVG
# --------------------------------------------------------------------------------------------------------------------
def _svg(height: float, title: str, parts: Sequence[Markup]) -> Markup:
    opening = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(WIDTH, height, title)
    return opening + Markup("").join(parts) + Markup("</svg>")


def _group(index: int, tip: str, marks: Sequence[Markup]) -> Markup:
    inside = Markup("").join(marks)
    return Markup('<g class="arm arm-{}"><title>{}</title>{}</g>').format(index % COLOURS, tip, inside)


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    shape = Markup('<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" class="{}"/>')
    return shape.format(x1, y1, x2, y2, kind)


def _path(points: Sequence[tuple[float, float]], kind: str) -> Markup:
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return Markup('<polyline points="{}" class="{}"/>').format(places, kind)


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> Markup:
    shape = Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}" class="{}">{}</text>')
    return shape.format(x, y, anchor, kind, text)


def _circle(r: float) -> str:
    return f"M{-r},0a{r},{r} 0 1,0 {2 * r},0a{r},{r} 0 1,0 {-2 * r},0z"


def _polygon(*points: tuple[float, float]) -> str:
    return "M" + "L".join(f"{x},{y}" for x, y in points) + "z"


MARKERS: tuple[str, ...] = (  # one more than colours, so that the ninth arm shares no more than its colour
    _circle(5),
    _polygon((-4.6, -4.6), (4.6, -4.6), (4.6, 4.6), (-4.6, 4.6)),
    _polygon((0, -6), (5.6, 4.4), (-5.6, 4.4)),
    _polygon((0, -6.4), (6.4, 0), (0, 6.4), (-6.4, 0)),
    _polygon((0, 6), (5.6, -4.4), (-5.6, -4.4)),
    _polygon(
        (-2, -6), (2, -6), (2, -2), (6, -2), (6, 2), (2, 2), (2, 6), (-2, 6), (-2, 2), (-6, 2), (-6, -2), (-2, -2)
    ),
    _polygon((-3, -5.5), (3, -5.5), (6, 0), (3, 5.5), (-3, 5.5), (-6, 0)),
    _polygon((-6, -3), (6, -3), (6, 3), (-6, 3)),
    _polygon((-3, -6), (3, -6), (3, 6), (-3, 6)),
)


def _marker(index: int, x: float, y: float, kind: str = "") -> Markup:
    shape = Markup('<path d="{}" transform="translate({:.1f} {:.1f})" class="marker {}"/>')
    return shape.format(MARKERS[index % len(MARKERS)], x, y, kind)


def swatch(index: int) -> Markup:
    """An arm's marker in its colour, to stand before its name in tables."""
    shape = Markup(
        '<svg class="swatch arm arm-{}" viewBox="-8 -8 16 16" aria-hidden="true"><path d="{}" class="marker"/></svg>'
    )
    return shape.format(index % COLOURS, MARKERS[index % len(MARKERS)])


def _x_axis(x: Axis, top: float, bottom: float, name: str) -> Markup:
    def tick(value: float, text: str) -> Markup:
        return _line(x(value), top, x(value), bottom, "grid") + _text(x(value), bottom + 16, text, "middle", "tick")

    return _ticks(x, tick) + _text((x.start + x.end) / 2, bottom + 36, name, "middle", "axis")


def _y_axis(y: Axis, left: float, right: float, name: str) -> Markup:
    def tick(value: float, text: str) -> Markup:
        return _line(left, y(value), right, y(value), "grid") + _text(left - 8, y(value) + 4, text, "end", "tick")

    turned = Markup('<text transform="translate(14 {:.1f}) rotate(-90)" text-anchor="middle" class="axis">{}</text>')
    return _ticks(y, tick) + turned.format((y.start + y.end) / 2, name)


def _ticks(scale: Axis, tick: Callable[[float, str], Markup]) -> Markup:
    values = scale.ticks()
    if scale.log or len(values) < 2:
        return Markup("").join(
            tick(value, f"{value:g}" if value < 1e4 else _tick_text(value, value)) for value in values
        )
    return Markup("").join(tick(value, _tick_text(value, values[1] - values[0])) for value in values)
