"""What the page says about numbers: which way is better, who leads and who may as well, and what runs cost."""

from __future__ import annotations

import json
import math
from statistics import fmean
from typing import TYPE_CHECKING

from src.comparison.resampling import p_value
from src.comparison.runs import Arm

if TYPE_CHECKING:
    from src.comparison.arms import Comparison
    from src.comparison.estimates import Cell, Difference

LESS_IS_BETTER = ("loss", "perplexity")
DESCRIPTIVE = ("length", "vocabulary")  # more is neither better nor worse
LEVEL = 0.05  # of significance, after Holm's correction

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


def direction(score: str) -> int:
    """1 where more is better, -1 where less is, 0 where neither."""
    return -1 if score in LESS_IS_BETTER else 0 if score in DESCRIPTIVE else 1


def difference(comparison: Comparison, arm: str, other: str, score: str) -> Difference | None:
    """``arm`` minus ``other``, whichever way round it was tested; None where it was not."""
    for found in comparison.differences:
        if (found.arm, found.other, found.score) == (arm, other, score):
            return found
        if (found.arm, found.other, found.score) == (other, arm, score):
            return type(found)(arm, other, score, -found.value, -found.high, -found.low, found.p, found.p_holm)
    return None


def leaders(comparison: Comparison, score: str) -> tuple[str | None, list[str], bool]:
    """(arm with the best mean, arms whose difference from it could not be shown, whether each other has a verdict).

    An arm whose own interval has no width has none where no difference could be shown: of BLEU-4 .000, because in no
    picture four words are right, it cannot be told either that it is as good. With so few resamples that no difference
    could pass Holm's correction, no arm has a verdict.
    """
    cells = {arm.label: cell for arm in comparison.arms if (cell := comparison.cells.get((arm.label, score)))}
    means = {label: cell.mean for label, cell in cells.items()}
    if not means or not direction(score):
        return None, [], False
    best = max(means, key=lambda label: direction(score) * means[label])
    tests = {label: difference(comparison, label, best, score) for label in means if label != best}
    pairs = sum(found.score == score for found in comparison.differences)
    if pairs * p_value(0, comparison.resamples) > LEVEL:
        return best, [], False
    unshown = [label for label, test in tests.items() if test is None or test.p_holm > LEVEL]
    tied = [label for label in unshown if tests[label] is not None and not cells[label].flat]
    return best, tied, bool(tests) and unshown == tied


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


def interval_text(cell: Cell | Difference) -> str:
    """ "0.823 [0.800, 0.846]" of a cell or a difference."""
    value = cell.mean if hasattr(cell, "mean") else cell.value
    return f"{score_text(value)} [{score_text(cell.low)}, {score_text(cell.high)}]"


def p_text(p: float) -> str:
    """A p-value to stand in a column of them: ".012", "< .001"."""
    return "< .001" if p < 0.001 else f"{p:.3f}".removeprefix("0")


def p_equation(p: float) -> str:
    """A p-value to stand behind the letter: "= .012", "< .001"."""
    return p_text(p) if p < 0.001 else f"= {p_text(p)}"
