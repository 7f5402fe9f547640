"""Runs of ``src.preserve`` as arms: what each sees and what that cost, a mean over seeds with Student's interval."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from src.comparison.figure import COLOURS, MARKERS
from src.comparison.gains import blind_runs
from src.comparison.numbers import MISSING, brackets, number, signed
from src.comparison.runs import Run, find_runs, group
from src.comparison.scores import GAIN, GAP, LOSS
from src.comparison.seeds import t_interval
from src.diagnostics.preserving_figures import bent
from src.diagnostics.preserving_summary import verdict_over_seeds

FORGOTTEN = ("preserve/weights", "preserve/absent", "preserve/irrelevant")
COLUMNS = (GAIN, GAP, *FORGOTTEN, "preserve/cloze", "preserve/grammar", "preserve/knowledge")


def arms(found: Mapping[Path, Mapping]) -> list[dict]:
    """One row an arm: ``label``, ``seeds``, every column's ``mean`` with ``low`` and ``high`` (None with one seed) and
    ``per_seed``, and the ``verdict``. ``found``: what preserve.json holds, by run."""
    scored = [run for run in found if (run / "metrics.json").is_file()]
    grouped = group(find_runs([glob.escape(str(run)) for run in scored])) if scored else []
    blind = blind_runs(grouped)
    rows = [
        _row(arm.label, [{**_seen(run, blind), **found[run.folder]["scores"]} for run in arm.runs]) for arm in grouped
    ]
    for row, arm in zip(rows, grouped, strict=True):
        row["seeds"] = [run.seed for run in arm.runs]
    rows += [_row(run.name, [told["scores"]]) for run, told in found.items() if run not in scored]
    return rows


def _seen(run: Run, blind: Mapping[int, Run]) -> dict[str, float | None]:
    """What the picture is worth to it: against other pictures, and against the blind run of the same seed."""
    other, gain = blind.get(id(run)), None
    same = "references_sha256"
    if other is not None and run.metrics.get(same) == other.metrics.get(same):
        losses = run.scores.get(LOSS), other.scores.get(LOSS)
        gain = None if None in losses else losses[1] - losses[0]
    return {GAIN: gain, GAP: run.scores.get(GAP)}


def _row(label: str, runs: Sequence[Mapping]) -> dict:
    row: dict = {"label": label, "seeds": [None] * len(runs), "columns": {}}
    for column in COLUMNS:
        values = [run.get(column) for run in runs]
        row["columns"][column] = None if None in values else over_seeds(values)
    forgotten = {name: row["columns"][name] for name in FORGOTTEN}
    words = {n.partition("/")[2]: verdict_over_seeds(one["per_seed"]) for n, one in forgotten.items() if one}
    said = ", ".join(f"{word} ({name})" for name, word in words.items())
    return {**row, "verdict": said or "began with random weights: there was nothing to forget"}


def over_seeds(values: Sequence[float]) -> dict:
    """Mean, its interval where there are several seeds, and all of them."""
    low, high = map(float, t_interval(np.array(values))) if len(values) > 1 else (None, None)
    return {"mean": float(np.mean(values)), "low": low, "high": high, "per_seed": list(values)}


def table(rows: Sequence[Mapping]) -> str:
    """Markdown: an arm a row."""
    head = ["arm", "n", *(column.removeprefix("preserve/") for column in COLUMNS), "verdict"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        cells = [_cell(row["columns"][column]) for column in COLUMNS]
        lines.append([row["label"], str(len(row["seeds"])), *cells, row["verdict"]])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(one: Mapping | None) -> str:
    if one is None:
        return MISSING
    interval = "" if one["low"] is None else f" {brackets(one['low'], one['high'], signed)}"
    return f"{number(one['mean'])}{interval}"


# --------------------------------------------------------------------------------------------------------------------
# figure
# --------------------------------------------------------------------------------------------------------------------
def frontier(rows: Sequence[Mapping]) -> Figure | None:
    """Forgetting over what is seen, behind an irrelevant picture and of the weights alone; None without such arms."""
    shown = next((own for seen in (GAIN, GAP) if len(own := _both(rows, seen)) > 1), [])
    if not shown:
        return None
    seen = GAIN if shown == _both(rows, GAIN) else GAP
    figure, axes = plt.subplots(1, 2, figsize=(10.4, 4.2), layout="constrained", sharex=True)
    titles = ("behind a picture of something else", "of the weights alone")
    for axis, column, title in zip(axes, (FORGOTTEN[2], FORGOTTEN[0]), titles, strict=True):
        bent(axis)
        for place, row in enumerate(shown):
            _point(axis, row, seen, column, COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)])
        best = _undominated([(row["columns"][seen]["mean"], row["columns"][column]["mean"]) for row in shown])
        axis.plot(*zip(*best, strict=True), color="0.75", lw=4, zorder=0, solid_joinstyle="round")
        axis.axhline(0, color="grey", lw=0.8, ls=":")
        axis.set(xlabel=f"{seen}: nats a token that seeing is worth", title=title)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("forgotten: nats a token of other prose")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=9, frameon=False)
    figure.suptitle("right and low is better; grey: no arm sees more and forgets less", fontsize=9)
    return figure


def _both(rows: Sequence[Mapping], seen: str) -> list[Mapping]:
    return [row for row in rows if row["columns"][seen] and all(row["columns"][name] for name in FORGOTTEN)]


def _point(axis: Axes, row: Mapping, seen: str, column: str, colour: str, marker: str) -> None:
    x, y = row["columns"][seen], row["columns"][column]
    if y["low"] is not None:
        axis.plot([x["mean"]] * 2, [y["low"], y["high"]], color=colour, lw=1.2, alpha=0.7)
    if x["low"] is not None:
        axis.plot([x["low"], x["high"]], [y["mean"]] * 2, color=colour, lw=1.2, alpha=0.7)
    axis.plot(x["per_seed"], y["per_seed"], marker, color=colour, ms=3.5, alpha=0.45, mew=0)
    axis.plot(x["mean"], y["mean"], marker, color=colour, ms=8, label=row["label"])


def _undominated(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those of which none other sees as much and forgets less, from left to right."""
    return sorted({(x, y) for x, y in points if not any(u >= x and v <= y and (u, v) != (x, y) for u, v in points)})
