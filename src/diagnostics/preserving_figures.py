"""The figure of ``src.preserve``: what was forgotten by domain, what was answered, what is known through pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from src.diagnostics.figures import save

LINEAR = 0.1  # nats a token up to which the axis of forgetting is linear; logarithmic beyond
COLOURS = {"start": "0.65", "weights": "#0072B2", "absent": "#009E73", "irrelevant": "#D55E00"}


def draw(told: Mapping, folder: Path) -> Path:
    """``told``: as in preserve.json."""
    return save(panels(told), folder / "preserve.png")


def panels(told: Mapping) -> Figure:
    """Prose, facts, grammar, and, where pictures show it, knowledge."""
    known = "by_group" in told["knowledge"]
    figure, axes = plt.subplots(1, 3 + known, figsize=(4.2 * (3 + known), 4.6), layout="constrained")
    _prose(axes[0], told["prose"])
    for axis, name in zip(axes[1:3], ("cloze", "grammar"), strict=True):
        _answers(axis, name, told[name])
    if known:
        _knowledge(axes[3], told["knowledge"])
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    named = {label: line for axis in axes[:2] for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(named.values(), named, loc="outside lower center", ncols=len(named), fontsize=9, frameon=False)
    return figure


def _prose(axis: Axes, prose: Mapping) -> None:
    """Forgetting by domain and in all, or the nats themselves of a start that knew nothing."""
    rows = {**prose["by_domain"], "all": prose}
    if prose["forgetting"] is not None:
        bent(axis)
    ways = [way for way in prose["nats"] if way != "start"]
    for number, way in enumerate(ways):
        x = np.arange(len(rows)) + 0.22 * (number - 1)
        if prose["forgetting"] is None:
            axis.plot(x, [row["nats"][way] for row in rows.values()], "o", color=COLOURS[way], label=way)
            continue
        own = [row["forgetting"][way] for row in rows.values()]
        axis.plot(x, [one["nats"] for one in own], "o", color=COLOURS[way], label=way)
        axis.vlines(x, [one["low"] for one in own], [one["high"] for one in own], color=COLOURS[way], lw=1.5)
    if prose["forgetting"] is not None:
        axis.axhline(0, color="black", lw=0.8)
    axis.set_xticks(range(len(rows)), list(rows))
    axis.set_title(f"{'forgotten' if prose['forgetting'] else 'found'}: nats a token of prose", fontsize=10)


def bent(axis: Axes) -> None:
    """An axis of forgetting, on which the least and the most can be read; before anything is drawn."""
    axis.set_yscale("symlog", linthresh=LINEAR)
    axis.yaxis.set_major_formatter("{x:g}")


def _answers(axis: Axes, name: str, told: Mapping) -> None:
    """Share of each kind that is right, at the start and now."""
    rows = told["by_kind"]
    for way, colour in COLOURS.items():
        if way in told["right"]:
            share = [row[way] / row["n"] for row in rows.values()]
            size = 9 if way == "start" else 5
            axis.plot(share, range(len(rows)), "o", color=colour, ms=size, label=way, zorder=3 if size < 9 else 2)
    axis.set_yticks(range(len(rows)), list(rows), fontsize=8)
    axis.set(xlim=(-0.03, 1.03), ylim=(len(rows) - 0.5, -0.5))
    axis.set_title(f"{name}: share that is right", fontsize=10)


def _knowledge(axis: Axes, known: Mapping) -> None:
    rows = {**known["by_group"], "all": known}
    for place, one in enumerate(rows.values()):
        axis.plot([one["low"], one["high"]], [place] * 2, color=COLOURS["irrelevant"], lw=1.5)
        axis.plot(one["nats"], place, "o", color=COLOURS["irrelevant"])
    axis.axvline(0, color="black", lw=0.8)
    labels = [f"{name}\n{one['pictures']} pictures" for name, one in rows.items()]
    axis.set_yticks(range(len(rows)), labels, fontsize=8)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_title("knowledge through pictures: nats a pair", fontsize=10)
