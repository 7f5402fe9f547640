"""What the page says about numbers: who leads and from whom that is not shown, and what runs cost."""

from __future__ import annotations

import json
import math
from statistics import fmean
from typing import TYPE_CHECKING

from src.comparison.runs import Arm
from src.comparison.scores import direction
from src.comparison.seeds import OPEN

if TYPE_CHECKING:
    from src.comparison.arms import Comparison
    from src.comparison.estimates import Difference

# key: (name with unit, where metrics.json has it below "cost")
COSTS = {
    "trainable": ("trained parameters", ("parameters", "trainable")),
    "total": ("all parameters", ("parameters", "total")),
    "flops": ("FLOPs per step", ("training_flops",)),
    "step_ms": ("ms per step", ("step_ms",)),
    "train_seconds": ("training, s", ("train_seconds",)),
    "captions_per_second": ("captions per s", ("captions_per_second",)),
    "peak_memory_mb": ("peak memory, MiB", ("peak_memory_mb",)),
}


def leaders(comparison: Comparison, score: str) -> tuple[str | None, list[str]]:
    """(arm with the best mean, arms whose difference from it is open, by the seeds).

    An arm whose own interval has no width gets no mark: of BLEU-4 .000, because in no picture four words are right, it
    cannot be told either that it may be as good.
    """
    cells = {arm.label: cell for arm in comparison.arms if (cell := comparison.cells.get((arm.label, score)))}
    if not cells or not direction(score):
        return None, []
    best = max(cells, key=lambda label: direction(score) * cells[label].mean)
    tests = {label: comparison.difference(label, best, score) for label in cells if label != best}
    undecided = [label for label, d in tests.items() if d is not None and d.word == OPEN and not cells[label].flat]
    return best, undecided


def cost_of(arm: Arm) -> dict[str, float | None]:
    """Means over the seeds, by the keys of ``COSTS``; None where a run does not tell.

    The cost of training stands in the run's own metrics.json, also where a later evaluation is compared.
    """
    spent = []
    for run in arm.runs:
        own = run.folder / "metrics.json"
        trained = json.loads(own.read_text(encoding="utf-8")).get("cost", {}) if own.is_file() else {}
        spent.append({**trained, **run.metrics.get("cost", {})})
    return {key: _mean([_at(cost, path) for cost in spent]) for key, (_, path) in COSTS.items()}


def _at(node: dict | float | None, path: tuple[str, ...]) -> float | None:
    for name in path:
        node = node.get(name) if isinstance(node, dict) else None
    return node


def _mean(values: list[float | None]) -> float | None:
    return None if None in values else fmean(values)


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


def score_text(value: float) -> str:
    """Three decimals; fewer where the number is large."""
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"


def interval_text(low: float | None, high: float | None) -> str:
    """ "[0.800, 0.846]"; "-" where there was no test."""
    return "-" if low is None or high is None else f"[{score_text(low)}, {score_text(high)}]"


def sentence(d: Difference) -> str:
    """A comparison in words: never without its seeds, its interval, its test and its class."""
    seeds, verdict = d.seeds, d.verdict
    p, holm = (verdict.p_holm, ", Holm") if verdict.planned else (seeds.p, "")
    interval = interval_text(seeds.low, seeds.high)
    tested = "" if p is None else f", 95 % {interval} over seeds, p {p_equation(p)}{holm}"
    if verdict.p_level is not None:
        tested += f", p {p_equation(verdict.p_level)} for level"
    return f"{d.arm} minus {d.other} {d.mean:+.3f} (n = {seeds.n}{tested}): {d.word}"


def p_text(p: float | None) -> str:
    """A p-value to stand in a column of them: ".012", "< .001"; "-" where there was no test."""
    return "-" if p is None else "< .001" if p < 0.001 else f"{p:.3f}".removeprefix("0")


def p_equation(p: float | None) -> str:
    """A p-value to stand behind the letter: "= .012", "< .001", "-"."""
    return p_text(p) if p is None or p < 0.001 else f"= {p_text(p)}"
