"""Plots as inline SVG by matplotlib, in the colours of the page: light, dark and print in one.

Every arm keeps one colour (``--a0`` ... in report.css) and one marker shape throughout, so that neither colour alone
tells arms apart. Labels stand at the data; a table on the page holds every number that a plot shows.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle
from matplotlib.text import Annotation
from matplotlib.ticker import LogLocator
from matplotlib.transforms import Affine2D

from src.comparison.estimates import Cell
from src.comparison.figure import MARKERS, Row, rows
from src.reporting.numbers import number_text

WIDTH = 680
LEFT, RIGHT, TOP, BOTTOM = 64, 150, 16, 46  # margins in pixels; the right one holds the labels
LINE = 15  # pixels between labels
POINTS = 250  # of a curve; more cannot be told apart at this width
# matplotlib knows no variables of CSS: each is drawn in a colour that stands for it.
VARIABLES = {f"#00000{number}": name for number, name in enumerate(("ink", "soft", "rule", "paper"), 1)}
VARIABLES |= {f"#0000a{number}": f"a{number}" for number in range(8)}
INK, SOFT, RULE, PAPER, *ARMS = VARIABLES
EDGE = {"markeredgecolor": PAPER, "markeredgewidth": 0.7}  # between markers that lie on one another
KEPT = {"path": ("d", "id", "style"), "use": ("href", "x", "y", "style"), "text": ("x", "y", "style", "transform")}
STYLE = {"svg.fonttype": "none", "text.parse_math": False, "text.color": INK, "font.size": 12.5}
STYLE |= {"axes.labelcolor": SOFT, "axes.axisbelow": True, "axes.grid": True, "grid.color": RULE, "grid.linewidth": 1}
STYLE |= {f"axes.spines.{side}": False for side in ("left", "right", "top", "bottom")}
STYLE |= {"axes.xmargin": 0.07, "axes.ymargin": 0.07, "lines.linewidth": 2, "lines.markersize": 10}
STYLE |= {f"{axis}tick.{key}": value for axis in "xy" for key, value in (("labelcolor", SOFT), ("major.size", 0))}


@dataclass(frozen=True)
class Series:
    """One line: ``index`` is its arm's place in the comparison, which gives colour and marker."""

    index: int
    label: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Point:
    """One arm at x; its score is the other axis."""

    index: int
    label: str
    x: float
    cell: Cell


@matplotlib.rc_context(STYLE)
def forest(points: Sequence[Point], title: str) -> Markup:
    """One row per arm: mean, 95 % interval, every seed as a small tick; x is the score."""
    left = 12 + 7 * min(30, max(len(point.label) for point in points))
    axes = _axes(TOP + 30 * len(points) + BOTTOM, title, "", left, right=70)
    found = [Row(_short(point.label, 30), point.cell, *_look(point.index)) for point in points]
    tips = {}
    for number, (point, marks) in enumerate(zip(points, rows(axes, found), strict=True)):
        cell = point.cell
        marks.append(axes.text(1.02, number, number_text(cell.mean), va="center", transform=axes.get_yaxis_transform()))
        tip = f"{point.label}: {number_text(cell.mean)}, 95 % [{number_text(cell.low)}, {number_text(cell.high)}]"
        tips |= _tipped(point.index, tip, marks)
    axes.grid(False, axis="y")
    axes.tick_params("y", labelcolor=INK, pad=8)
    return _svg(axes, f"{title} of every arm with 95 % intervals", tips)


@matplotlib.rc_context(STYLE)
def pareto(points: Sequence[Point], cost: str, score: str, better: int) -> Markup:
    """Score against cost; the arms that no other beats in both are joined. ``better``: 1 if more is better, or -1."""
    axes, tips = _axes(380, cost, score, right=30), {}
    best, costs = front(points, better), [point.x for point in points]
    if max(costs) > 4 * min(costs) > 0:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(costs) < 50 * min(costs) else (1,)))
        axes.minorticks_off()
    axes.plot([point.x for point in best], [point.cell.mean for point in best], "--", color=SOFT, linewidth=1.5)
    for point in points:
        colour, marker = _look(point.index)
        marks = axes.plot([point.x] * 2, [point.cell.low, point.cell.high], color=colour)
        marks += axes.plot(point.x, point.cell.mean, marker, color=colour, **EDGE)
        tip = f"{point.label}: {score} {number_text(point.cell.mean)}, {cost} {number_text(point.x)}"
        tips |= _tipped(point.index, tip + (", on the front" if point in best else ""), marks)
    weight = {point.label: "bold" if point in best else "normal" for point in points}
    for label, text in _labels(axes, [(point.label, (point.x, point.cell.mean)) for point in points]):
        text.set_weight(weight[label])
    return _svg(axes, f"{score} against {cost}; on the front: {', '.join(p.label for p in best)}", tips)


def front(points: Sequence[Point], better: int) -> list[Point]:
    """The points that none beats: cheaper or equal, and better or equal, and one of both strictly. By cost."""

    def beats(one: Point, other: Point) -> bool:
        mine, theirs = (one.x, -better * one.cell.mean), (other.x, -better * other.cell.mean)
        return mine != theirs and mine[0] <= theirs[0] and mine[1] <= theirs[1]

    return sorted((p for p in points if not any(beats(q, p) for q in points)), key=lambda p: (p.x, p.cell.mean))


@matplotlib.rc_context(STYLE)
def curves(series: Sequence[Series], x_name: str, y_name: str, log: bool = False, markers: bool = True) -> Markup:
    """Lines with their names at the end. Lines of one label (seeds of an arm) are named once."""
    axes, tips = _axes(340, x_name, y_name), {}
    if log:
        axes.set_xscale("log")
        axes.set_xticks(places := sorted({x for one in series for x, _ in one.points}), [f"{x:g}" for x in places])
        axes.minorticks_off()
    named: dict[str, tuple[float, float]] = {}
    colours = {one.label: _look(one.index)[0] for one in series}
    for one in series:
        xs, ys = zip(*_thinned(one.points), strict=True)
        named.setdefault(one.label, (xs[-1], ys[-1]))
        marker = _look(one.index)[1] if markers else None
        line = axes.plot(xs, ys, marker=marker, color=colours[one.label], **EDGE)
        tips |= _tipped(one.index, one.label, line)
    for label, text in _labels(axes, [*named.items()], column=WIDTH - RIGHT + 18):
        text.set(color=colours[label], weight="bold", gid="name")
        text.arrow_patch.set_color(colours[label])
    return _svg(axes, f"{y_name} over {x_name}", tips)


# --------------------------------------------------------------------------------------------------------------------
# places
# --------------------------------------------------------------------------------------------------------------------
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


def _labels(
    axes: Axes, labels: Sequence[tuple[str, tuple[float, float]]], column: float | None = None
) -> Iterator[tuple[str, Annotation]]:
    """Each label at the height of its point or near it, joined by a line, so that none covers another: all at
    ``column`` pixels from the left, else beside their points. Fixes the limits of the axes first."""
    axes.autoscale_view()
    for axis, limit, low in (
        (axes.xaxis, axes.set_xlim, axes.dataLim.x0),
        (axes.yaxis, axes.set_ylim, axes.dataLim.y0),
    ):
        start, end = axis.get_view_interval()
        limit(max(start, 0) if low >= 0 and axis.get_scale() == "linear" else start, end)  # no room below zero
        if end >= 1e4:
            axis.set_major_formatter(lambda value, _: re.sub(r"\.0+(?= |$)", "", number_text(value)))
    at = axes.transData.transform([point for _, point in labels])
    top = axes.figure.bbox.height - TOP - 4
    line = {"arrowstyle": "-", "color": SOFT, "alpha": 0.5, "shrinkA": 2, "shrinkB": 5}
    for (label, point), (x, _), y in zip(labels, at, _spread(at[:, 1], BOTTOM, top), strict=True):
        left = column is not None or x < WIDTH / 2  # where the label begins; else it ends there
        place = (column or (x + 12 if left else x - 12), y)
        yield (
            label,
            axes.annotate(
                _short(label, 30 if column is None else 19),
                point,
                place,
                textcoords="figure pixels",
                ha="left" if left else "right",
                va="center",
                arrowprops={**line, "relpos": (0 if left else 1, 0.5)},
            ),
        )


def _short(label: str, length: int) -> str:
    label = _printable(label)
    return label if len(label) <= length else label[: length - 1] + "…"


def _printable(text: str) -> str:
    """Without letters that XML cannot hold."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


# --------------------------------------------------------------------------------------------------------------------
# matplotlib and SVG
# --------------------------------------------------------------------------------------------------------------------
def _look(index: int) -> tuple[str, str]:
    """An arm's colour and marker."""
    return ARMS[index % len(ARMS)], MARKERS[index % len(MARKERS)]


def swatch(index: int) -> Markup:
    """An arm's marker in its colour, to stand before its name in tables."""
    marker = MarkerStyle(MARKERS[index % len(MARKERS)])
    (outline,) = marker.get_path().transformed(marker.get_transform() + Affine2D().scale(11, -11)).to_polygons()
    shape = Markup(
        '<svg class="swatch" viewBox="-8 -8 16 16" aria-hidden="true"><polygon fill="var(--a{})" points="{}"/></svg>'
    )
    return shape.format(index % len(ARMS), " ".join(f"{x:.1f},{y:.1f}" for x, y in outline))


def _axes(height: float, x_name: str, y_name: str, left: float = LEFT, right: float = RIGHT) -> Axes:
    """Axes in a figure of ``WIDTH`` by ``height`` pixels, 72 of which are an inch: lengths in points are pixels too."""
    figure = Figure((WIDTH / 72, height / 72), dpi=72)
    across, up = (WIDTH - left - right) / WIDTH, (height - TOP - BOTTOM) / height
    axes = figure.add_axes((left / WIDTH, BOTTOM / height, across, up), xlabel=x_name, ylabel=y_name)
    for part in (figure, axes):
        part.patch.set_visible(False)
    axes.locator_params(nbins=6)
    return axes


def _tipped(index: int, tip: str, marks: Iterable[Artist]) -> Mapping[str, str]:
    """Give the marks of an arm a name in the SVG; returns what is shown where the mouse is on them."""
    for mark in marks:
        mark.set_gid(f"arm-{index}")
    return {f"arm-{index}": tip}


def _svg(axes: Axes, title: str, tips: Mapping[str, str]) -> Markup:
    """The figure as an element of a page: the page's colours and font, ids that no other plot has, nothing clipped."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": title}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        axes.figure.savefig(buffer, format="svg", metadata=nothing)
    drawn = ElementTree.fromstring(buffer.getvalue())
    root = ElementTree.Element("svg", {"viewBox": drawn.get("viewBox"), "role": "img", "aria-label": _printable(title)})
    root.append(drawn.find("*[@id='figure_1']"))
    for node in [*root.iter()][1:]:
        given = {name.rpartition("}")[2]: value for name, value in node.attrib.items()}
        node.tag, node.text, node.tail = node.tag.rpartition("}")[2], (node.text or "").strip(), None
        node.attrib = {name: _plain(given[name]) for name in KEPT.get(node.tag, ()) if name in given}
        name = given.get("id") if node.tag == "g" else None
        if name == "name" or name in tips:
            node.set("class", name)
        if name in tips:
            tip = ElementTree.Element("title")
            tip.text = _printable(tips[name])
            node.insert(0, tip)
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _plain(value: str) -> str:
    """An attribute as the page needs it: its colours, its font, and a tenth of a pixel."""
    value = re.sub("|".join(VARIABLES), lambda found: f"var(--{VARIABLES[found[0]]})", value)
    value = re.sub(r"font-(family|size): [^;]*; |(; )?stroke-linecap: square", "", value)
    return value if value.startswith("#") else " ".join(re.sub(r"(\.\d)\d+", r"\1", value).split())
