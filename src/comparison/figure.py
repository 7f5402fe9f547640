"""A comparison as one picture: every arm's mean, its interval over images, and each of its seeds."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from src.comparison.arms import Comparison
from src.comparison.estimates import Cell
from src.comparison.runs import curves
from src.comparison.scores import direction
from src.errors import UserError

# Okabe and Ito 2008, "Color universal design": for all kinds of colour vision
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C8C")
MARKERS = "osD^vPpX<"  # one more than colours, so that the ninth curve shares no more than its colour
WIDE = 10  # ratio of largest to smallest value along a setting above which its axis is logarithmic


def draw(comparison: Comparison, along: str | None = None) -> bytes:
    """PNG with one panel per score: arms below one another, or as curves over the numeric setting ``along``.

    Raises UserError if the arms have no such setting, or not two numbers of it.
    """
    scores, n = comparison.scores, len(comparison.scores)
    if along is None:
        size = (1.5 + 3.6 * n, 1.1 + 0.34 * len(comparison.arms))
        figure, axes = plt.subplots(1, n, figsize=size, squeeze=False, sharey=True, layout="constrained")
        colours = [COLOURS[-1 if arm.label == comparison.baseline else 0] for arm in comparison.arms]
        for axis, score in zip(axes.flat, scores, strict=True):
            cells = [comparison.cells[arm.label, score] for arm in comparison.arms]
            rows(axis, [Row(arm.label, *found) for arm, *found in zip(comparison.arms, cells, colours, strict=True)])
            axis.tick_params("y", labelsize=9)
            axis.set_title(_titled(score), fontsize=10)
    else:
        lines = _lines(comparison, along)
        figure, axes = plt.subplots(1, n, figsize=(1 + 4.2 * n, 3.6), squeeze=False, layout="constrained")
        for axis, score in zip(axes.flat, scores, strict=True):
            _curves(axis, comparison, lines, score, along)
        figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside right center", fontsize=9, frameon=False)
    figure.supxlabel("wide: 95 % over images; small: each seed", fontsize=8)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    return _png(figure)


@dataclass(frozen=True)
class Row:
    """An arm in a forest plot; ``cell`` None: its row stays empty."""

    label: str
    cell: Cell | None
    colour: str
    marker: str = "o"


def rows(axes: Axes, arms: Sequence[Row]) -> list[list[Artist]]:
    """One row per arm, the first on top: mean, interval, every seed as a small tick. Returns the marks of each."""
    drawn = []
    for place, arm in enumerate(arms):
        marks = []
        if (cell := arm.cell) is not None:
            marks += axes.plot([cell.low, cell.high], [place, place], color=arm.colour, linewidth=2.5, alpha=0.6)
            marks += axes.plot(cell.per_seed, [place] * len(cell.per_seed), "|", color=arm.colour, markersize=11)
            marks += axes.plot(cell.mean, place, arm.marker, color=arm.colour)
        drawn.append(marks)
    axes.set_yticks(range(len(arms)), [arm.label for arm in arms])
    axes.set_ylim(len(arms) - 0.5, -0.5)
    return drawn


def _curves(
    axis: Axes, comparison: Comparison, lines: Mapping[str, Sequence[tuple[float, str]]], score: str, along: str
) -> None:
    everywhere = sorted({x for line in lines.values() for x, _ in line})
    for place, (label, line) in enumerate(lines.items()):
        there: list[tuple[float, Cell]] = [
            (x, cell) for x, arm in line if (cell := comparison.cells[arm, score]) is not None
        ]
        xs = [x for x, _ in there]
        colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
        axis.plot(xs, [cell.mean for _, cell in there], color=colour, marker=marker, markersize=6, label=label)
        axis.fill_between(
            xs, [cell.low for _, cell in there], [cell.high for _, cell in there], color=colour, alpha=0.15, linewidth=0
        )
        for x, cell in there:
            axis.plot([x] * len(cell.per_seed), cell.per_seed, "_", color=colour, markersize=8, alpha=0.8)
    if everywhere[0] > 0 and everywhere[-1] > WIDE * everywhere[0]:
        axis.set_xscale("log")
    axis.set_xticks(everywhere, [f"{x:g}" for x in everywhere], fontsize=8)
    axis.minorticks_off()
    axis.set_xlabel(along, fontsize=9)
    axis.set_title(_titled(score), fontsize=10)


def _titled(score: str) -> str:
    return f"{score} (less is better)" if direction(score) < 0 else score


def _lines(comparison: Comparison, along: str) -> dict[str, list[tuple[float, str]]]:
    """Of every curve (label): the setting's value and the arm that has it, by value."""
    lines = curves(comparison.arms, along)
    if len({x for line in lines.values() for x, _ in line}) < 2:
        raise UserError(f"along={along} needs a setting that is a number, with at least two values among the arms.")
    return lines


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, facecolor="white")
    plt.close(figure)
    return buffer.getvalue()
