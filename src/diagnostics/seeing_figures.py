"""The figures of ``src.seeing``: by kind of word, over depth, and captions whose words are shaded by what they see."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from src.diagnostics.figures import save
from src.diagnostics.seeing import Sight, Word

COLUMNS = 84  # letters of a line of a shaded caption
SHOWN = 0.05  # nats from which on a number stands below a word


def draw(sight: Sight, told: Mapping, pixels: Mapping[str, Tensor], folder: Path) -> list[Path]:
    """All figures that there are. ``told``: as in seeing.json; ``pixels``: (3, size, size), of captions to be shown."""
    figures = {"kinds": by_kind(told), "depth": depth_curves({"": told}), "captions": shaded(sight, pixels)}
    return [save(figure, folder / f"{name}.png") for name, figure in figures.items() if figure is not None]


def by_kind(told: Mapping) -> Figure:
    """What a word of each kind sees, and what a word at each place in the caption sees, with intervals."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.4), layout="constrained")
    names = list(told["by_kind"])
    _intervals(left, list(told["by_kind"].values()))
    left.set_xticks(range(len(names)), [f"{name}\nn={told['by_kind'][name]['n']}" for name in names], fontsize=8)
    left.set(ylabel="nats that a word sees", title="by kind of word")
    often = {place: row for place, row in told["by_position"].items() if row["n"] >= told["captions"] / 4}
    _intervals(right, list(often.values()))
    right.set_xticks(range(len(often)), [str(int(place) + 1) for place in often], fontsize=8)
    right.set(xlabel="word of the caption (those that a quarter of the captions have)", title="by position")
    return figure


def _intervals(axis: Axes, rows: list[dict]) -> None:
    seen, low, high = (np.array([row[name] for row in rows]) for name in ("seen", "low", "high"))
    axis.bar(range(len(rows)), seen, color="#7aa6d6", width=0.7)
    axis.errorbar(range(len(rows)), seen, (seen - low, high - seen), fmt="none", ecolor="black", capsize=3, lw=1)
    axis.axhline(0, color="black", lw=0.8)


def depth_curves(runs: Mapping[str, Mapping]) -> Figure | None:
    """Over depth: what has entered, what is lost without a single site, what a swapped one moves; None without sites.

    ``runs``: as in seeing.json by name; the name of a single one may be empty.
    """
    shown = {name: told for name, told in runs.items() if told["sites"] and not told["blind"]}
    if not shown:
        return None
    swaps = any(None not in told["patching"]["effects"] for told in shown.values() if told.get("patching"))
    figure, axes = plt.subplots(1, 2 + swaps, figsize=(4.6 * (2 + swaps), 3.8), layout="constrained", squeeze=False)
    for name, told in shown.items():
        _curves(axes[0], name, told)
    titles = ("entered up to here", "lost when cut here alone", "of a recoloured thing, by a swap here alone")
    for axis, title in zip(axes[0], titles, strict=False):
        axis.axhline(0, color="grey", lw=0.6)
        axis.set(xlim=(-0.03, 1.03), xlabel="depth (0 input, 1 last layer)", title=title)
    for axis in axes[0][:2]:  # where little is seen in all, intervals of shares are wide without end
        low, high = axis.get_ylim()
        axis.set_ylim(max(low, -0.5), min(high, 1.5))
    axes[0][0].axhline(0.5, color="grey", lw=0.6, ls=":")
    axes[0][0].set_ylabel("share of the nats that words see")
    if any(shown):
        axes[0][0].legend(fontsize=8)
    return figure


def _curves(axes: np.ndarray, name: str, told: Mapping) -> None:
    depths = [site["depth"] for site in told["sites"]]
    lines = [[site[what] for site in told["sites"]] for what in ("entered", "lost")]
    if told.get("patching"):
        lines.append(told["patching"]["effects"])
    for axis, rows in zip(axes, lines, strict=False):
        if None in rows:  # what was swapped made no difference
            continue
        share, low, high = (np.array([row[part] for row in rows]) for part in ("share", "low", "high"))
        (line,) = axis.plot(depths, share, "o-", ms=4, label=name)
        axis.fill_between(depths, low, high, color=line.get_color(), alpha=0.15, lw=0)


def shaded(sight: Sight, pixels: Mapping[str, Tensor]) -> Figure | None:
    """Pictures and their captions; the darker a word, the more it sees; red where it would do better without."""
    if not pixels:
        return None
    captions = {id: list(words) for id, words in groupby(sight.words, lambda word: word.id) if id in pixels}
    most = max(np.quantile([word.seen for word in sight.words], 0.98), 1e-6)
    shape = {"figsize": (11.5, 1 + len(captions)), "width_ratios": (1, 10), "layout": "constrained"}
    figure, axes = plt.subplots(len(captions), 2, squeeze=False, **shape)
    for (id, words), (left, right) in zip(captions.items(), axes, strict=True):
        left.imshow(pixels[id].permute(1, 2, 0).numpy())
        _shade(right, words, float(most))
        left.axis("off")
        right.axis("off")
    figure.suptitle(f"nats that each word sees; darkest: {most:.1f} and more", fontsize=10)
    return figure


def _shade(axis: Axes, words: list[Word], most: float) -> None:
    axis.set(xlim=(0, COLUMNS), ylim=(0, 4))
    x, y = 0.0, 3.0
    for word in words:
        wide = max(len(word.word), 4) + 0.8
        if x + wide > COLUMNS:
            x, y = 0.0, y - 2
        share = min(abs(word.seen) / most, 1.0)
        colour = plt.get_cmap("Blues" if word.seen >= 0 else "Reds")(0.85 * share)
        box = {"boxstyle": "round,pad=0.15", "facecolor": colour, "edgecolor": "none"}
        ink = "white" if share > 0.6 else "black"
        middle: dict = {"ha": "center", "va": "center"}
        axis.text(x + wide / 2, y, word.word, family="monospace", fontsize=9, color=ink, bbox=box, **middle)
        if abs(word.seen) >= SHOWN:
            axis.text(x + wide / 2, y - 0.85, f"{word.seen:.1f}", fontsize=7, color="dimgrey", **middle)
        x += wide + 0.4
