"""The page: what a comparison says, as one HTML file that asks nothing of the network and runs no script but its own.

Everything that comes from runs goes through jinja2's escaping or, for the gallery, through ``embedded``; report.js
puts it into the page as text. A content security policy with the script's own hash stands behind both.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from src.comparison.runs import Arm, Run
from src.comparison.scores import GAIN, direction
from src.comparison.seeds import LEGEND
from src.reporting import plots
from src.reporting.numbers import (
    COSTS,
    cost_of,
    interval_text,
    leaders,
    number_text,
    p_equation,
    p_text,
    score_text,
    sentence,
)

if TYPE_CHECKING:
    from src.comparison.arms import Comparison

HERE = Path(__file__).parent
FIRST = (GAIN, "truth", "CIDEr-D")  # what plots and gallery show before anything is chosen: the first there is
ONLINE = ("CIDEr-D", "BLEU-4", "ROUGE-L")  # what val_captions logs at every validation
PARETO = ("trainable", "flops", "step_ms")  # keys of COSTS: the axes of the Pareto plot
FRACTION = "data.train_fraction"


def page(comparison: Comparison, gallery: dict | None, notes: Sequence[str]) -> str:
    """The whole file. ``gallery``: of ``gallery.gallery``, None for a page without; ``notes``: on the gallery."""
    from jinja2 import Environment, StrictUndefined

    script = (HERE / "report.js").read_text(encoding="utf-8")
    wanted = [comparison.plan.primary if comparison.planned else None, *FIRST, comparison.scores[0]]
    first = next(name for name in wanted if name in comparison.scores)
    shown = next((name for name in wanted if gallery and name in gallery["metrics"]), first)
    content = {
        "c": comparison,
        "title": _title(comparison),
        "facts": _facts(comparison),
        "lead": _lead(comparison, first),
        "legend": LEGEND,
        "first": first,
        "scores": _scores(comparison),
        "against": _against(comparison),
        "pairs": [(score, [d for d in comparison.differences if d.score == score]) for score in comparison.scores],
        "costs": COSTS,
        "spent": [(arm.label, cost_of(arm)) for arm in comparison.arms],
        "forests": _per_score(comparison, _forest),
        "paretos": [
            (score, key, plot)
            for key in PARETO
            for score, plot in _per_score(comparison, lambda c, score, key=key: _pareto(c, score, key))
        ],
        "pareto_names": {key: COSTS[key][0] for key in PARETO},
        "validation": _curves(comparison.arms, "val/loss"),
        "training": _curves(comparison.arms, "train/loss"),
        "online": [(name, plot) for name in ONLINE if (plot := _curves(comparison.arms, f"val/{name}")) is not None],
        "fractions": _per_score(comparison, _efficiency),
        "gallery": gallery,
        "has_pictures": bool(gallery and gallery["ids"]),  # controls over no picture would do nothing
        "gallery_notes": notes,
        "data": embedded({**(gallery or {}), "first": shown}),
        "style": Markup((HERE / "report.css").read_text(encoding="utf-8")),
        "script": Markup(script),
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "written": time.strftime("%Y-%m-%d %H:%M"),
    }
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "number": number_text,
        "score": score_text,
        "p": p_text,
        "p_sign": p_equation,
        "date": run_date,
        "commit": commit,
    }
    environment.globals |= {"swatch": plots.swatch, "direction": direction, "interval": interval_text}
    template = environment.from_string((HERE / "report.html").read_text(encoding="utf-8"))
    size = len(template.render(**content, megabytes="0.0").encode())
    return template.render(**content, megabytes=f"{size / 1e6:.1f}")


def embedded(data: dict) -> Markup:
    """JSON that may stand inside <script>: nothing in it can end the element, open a comment or break a line."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Markup(text)


# --------------------------------------------------------------------------------------------------------------------
# words
# --------------------------------------------------------------------------------------------------------------------
def _title(comparison: Comparison) -> str:
    data = " and ".join(dict.fromkeys(_data_name(arm.runs[0]) for arm in comparison.arms))
    labels = [arm.label for arm in comparison.arms]
    who = labels[0] if len(labels) == 1 else f"{len(labels)} arms"
    return f"{who} on {data}, split {comparison.split}"


def _data_name(run: Run) -> str:
    target = run.config.get("data.source._target_", "src.loading.mixture.Mixture")
    return run.environment.get("choices", {}).get("data") or target.split(".")[-2]


def _facts(comparison: Comparison) -> list[tuple[str, str]]:
    """Name and value of what one has to know before reading the numbers."""
    runs = [run for arm in comparison.arms for run in arm.runs]
    seeds = sorted({len(arm.runs) for arm in comparison.arms})
    days = sorted({run_date(run)[:10] for run in runs})
    decoding = dict.fromkeys(_decoding(run) for run in runs)
    return [
        ("Compared", ", ".join(arm.label for arm in comparison.arms)),
        ("Split", f"{comparison.split}, {comparison.size.replace('images', 'pictures')}"),
        ("Seeds", " to ".join(map(str, dict.fromkeys((seeds[0], seeds[-1])))) + " per arm"),
        ("Baseline", comparison.baseline),
        ("Decoding", "; ".join(decoding)),
        ("Commit", ", ".join(dict.fromkeys(commit(run) for run in runs))),
        ("Runs of", " to ".join(dict.fromkeys((days[0], days[-1])))),
    ]


def _decoding(run: Run) -> str:
    decoding = dict(run.metrics.get("decoding") or {})
    if not decoding:
        return "not recorded" if "decoding" not in run.metrics else f"none ({run.fusion})"
    return decoding.pop("method", "") + "(" + ", ".join(f"{key}={value}" for key, value in decoding.items()) + ")"


def commit(run: Run) -> str:
    """The commit that made a run, short; + where files were changed."""
    name = run.environment.get("commit")
    return name[:10] + ("+" if run.environment.get("uncommitted_changes") else "") if name else "unknown"


def run_date(run: Run) -> str:
    """When the run finished: the time of its metrics.json."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime((run.folder / "metrics.json").stat().st_mtime))


def _lead(comparison: Comparison, score: str) -> str:
    """The page in a few sentences: what was planned; without a plan who has the best mean, and what is open."""
    if comparison.planned:
        return f"{comparison.plan.primary}: {'; '.join(map(sentence, comparison.planned))}."
    best, _ = leaders(comparison, score)
    if best is None or len(comparison.arms) == 1:
        return ""
    cell = comparison.cells[best, score]
    held = [comparison.difference(best, arm.label, score) for arm in comparison.arms if arm.label != best]
    against = "; ".join(sentence(d) for d in held if d is not None)
    return f"The best mean {score} is {best}'s, {score_text(cell.mean)}. Unplanned comparisons: {against}."


# --------------------------------------------------------------------------------------------------------------------
# tables
# --------------------------------------------------------------------------------------------------------------------
def _scores(comparison: Comparison) -> list[dict]:
    """A row per arm; a cell per score with its mark: "best", "open" or ""."""
    heads = {score: leaders(comparison, score) for score in comparison.scores}
    rows = []
    for arm in comparison.arms:
        marks = [
            "best" if arm.label == heads[score][0] else "open" if arm.label in heads[score][1] else ""
            for score in comparison.scores
        ]
        cells = [comparison.cells.get((arm.label, score)) for score in comparison.scores]
        rows.append({"arm": arm, "cells": list(zip(cells, marks, strict=True))})
    return rows


def _against(comparison: Comparison) -> list[tuple[str, list]]:
    """Per arm but the baseline, its difference from it in every score."""
    others = [arm.label for arm in comparison.arms if arm.label != comparison.baseline]
    return [(label, [comparison.against_baseline(label, score) for score in comparison.scores]) for label in others]


# --------------------------------------------------------------------------------------------------------------------
# plots
# --------------------------------------------------------------------------------------------------------------------
def _per_score(comparison: Comparison, draw: Callable[[Comparison, str], Markup | None]) -> list[tuple[str, Markup]]:
    drawn = ((score, draw(comparison, score)) for score in comparison.scores)
    return [(score, plot) for score, plot in drawn if plot is not None]


def _points(comparison: Comparison, score: str, x: Callable[[Arm], float | None]) -> list[plots.Point]:
    points = []
    for index, arm in enumerate(comparison.arms):
        cell, at = comparison.cells.get((arm.label, score)), x(arm)
        if cell is not None and at is not None:
            points.append(plots.Point(index, arm.label, at, cell))
    return points


def _forest(comparison: Comparison, score: str) -> Markup | None:
    points = _points(comparison, score, lambda arm: 0.0)
    return plots.forest(points, score) if points else None


def _pareto(comparison: Comparison, score: str, key: str) -> Markup | None:
    better = direction(score)
    points = _points(comparison, score, lambda arm: cost_of(arm)[key])
    return plots.pareto(points, COSTS[key][0], score, better) if len(points) > 1 and better else None


def _curves(arms: Sequence[Arm], column: str) -> Markup | None:
    series = [
        plots.Series(index, arm.label, tuple(curve))
        for index, arm in enumerate(arms)
        for run in arm.runs
        if (curve := run.curve(column))
    ]
    few = max((len(one.points) for one in series), default=0) <= 30
    return plots.curves(series, "step", column, markers=few) if series else None


def _efficiency(comparison: Comparison, score: str) -> Markup | None:
    """Score over the share of the training data; None unless some arms differ in nothing but that."""
    lines: list[tuple[dict, plots.Series]] = []
    for index, arm in enumerate(comparison.arms):
        settings, cell = dict(arm.runs[0].settings), comparison.cells.get((arm.label, score))
        share = settings.pop(FRACTION, None)
        if cell is None or share is None:
            continue
        place = next((i for i, (others, _) in enumerate(lines) if others == settings), len(lines))
        name = " ".join(part for part in arm.label.split(" ") if not part.startswith(f"{FRACTION}="))
        before = lines[place][1] if place < len(lines) else plots.Series(index, name, ())
        points = tuple(sorted((*before.points, (share, cell.mean))))
        lines[place : place + 1] = [(settings, plots.Series(before.index, name, points))]
    swept = [series for _, series in lines]
    if all(len(series.points) < 2 for series in swept):
        return None
    return plots.curves(swept, "share of the training data", score, log=True)
