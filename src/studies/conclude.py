"""What a study says, from its ledger alone: contrasts in the wording rule's words, tables, curves, a paragraph.

README.md       question, paragraph, contrasts, what measures found, deviations, how to repeat it
table-<steps>.md, comparison-<steps>.json      all arms at one length, as src.compare writes them
curves.png      the primary score over computation and over time, a point a length and a band over seeds
tuning.png      expected lowest validation loss of the best of k trials (Dodge et al. 2019, arXiv 1909.03004)
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from src.comparison.arms import Comparison, compare
from src.comparison.figure import COLOURS, MARKERS
from src.comparison.numbers import number, signed
from src.comparison.runs import Arm as Compared
from src.comparison.seeds import LEGEND, t_interval
from src.comparison.tables import markdown, plain
from src.records.files import write_bytes, write_json, write_text
from src.studies.ledger import Ledger
from src.studies.measured import section
from src.studies.plan import Arm

SHOWN = ("gain/loss", "gap/loss", "loss", "CIDEr-D", "truth", "coverage", "truth_f1")  # in the table of arms
STILL = 0.002  # nats per token: what validation may still gain in the last fifth of a training that has converged


def conclude(ledger: Ledger, command: str, time: str | None = None) -> None:
    """Write everything. ``command``: that repeats it; ``time``: a sentence on what was predicted and what it took."""
    comparisons = {}
    for steps in sorted({steps for arm in ledger.plan.arms() for steps in arm.lengths}):
        if (comparison := compared(ledger, steps)) is not None:
            comparisons[steps] = comparison
            write_text(ledger.folder / f"table-{steps}.md", markdown(comparison))
            write_json(ledger.folder / f"comparison-{steps}.json", plain(comparison))
    if any(ledger.trials(arm) for arm in ledger.plan.arms()):
        write_bytes(ledger.folder / "tuning.png", _tuning(ledger))
    if comparisons:
        write_bytes(ledger.folder / "curves.png", _curves(ledger, comparisons))
    write_text(ledger.folder / "README.md", _readme(ledger, comparisons, command, time))


def seeds_there(ledger: Ledger) -> list[int]:
    """Those that are complete: no arm is ahead of another by what was run first."""
    return [seed for seed in ledger.plan.seeds if ledger.complete(seed)]


def contrast_length(ledger: Ledger) -> int:
    """The longest length that all arms of the contrasts have."""
    labels = {label for contrast in ledger.plan.contrasts for label in contrast}
    shared = set.intersection(*(set(arm.lengths) for arm in ledger.plan.arms() if arm.label in labels or not labels))
    return max(shared)


def compared(ledger: Ledger, steps: int) -> Comparison | None:
    """All arms at one length over the complete seeds; the planned contrasts at theirs. None without such a seed."""
    plan, seeds = ledger.plan, seeds_there(ledger)
    runs = {arm.label: ledger.finals(arm, steps) for arm in plan.arms() if steps in arm.lengths}
    arms = [Compared(label, tuple(run for seed, run in own.items() if seed in seeds)) for label, own in runs.items()]
    if not seeds or not arms:
        return None
    planned = plan.contrasts if steps == contrast_length(ledger) else []
    blind = next((arm.label for arm in arms if arm.label.endswith("/blind")), None)
    return compare(
        arms,
        baseline=blind,
        contrasts=planned,
        primary=plan.primary if planned else None,
        margin=plan.margin if planned else None,
    )


# --------------------------------------------------------------------------------------------------------------------
# words
# --------------------------------------------------------------------------------------------------------------------
def paragraph(comparison: Comparison) -> str:
    """The planned contrasts in sentences whose verbs are the wording rule's."""
    sentences = []
    for d in comparison.planned:
        tested = [] if d.seeds.p is None else [f"p = {d.seeds.p:.3f}", f"Holm {d.verdict.p_holm:.3f}"]
        interval = "" if d.seeds.low is None else f" [{signed(d.seeds.low)}, {signed(d.seeds.high)}]"
        numbers = ", ".join([f"{signed(d.mean)}{interval}", f"n = {d.seeds.n}", *tested])
        sentences.append(f"{d.score}, {d.arm} minus {d.other}: {numbers}: {d.word}.")
    return " ".join(sentences)


def _readme(ledger: Ledger, comparisons: Mapping[int, Comparison], command: str, time: str | None) -> str:
    plan, seeds = ledger.plan, seeds_there(ledger)
    parts = [f"# {plan.name}", plan.question, f"```bash\n{command}\n```"]
    parts.append(
        f"Plan `{plan.sha256[:12]}` ([registered.yaml](registered.yaml)); {len(seeds)} of {len(plan.seeds)} seeds are "
        f"complete."
    )
    if comparisons:
        headline = comparisons[contrast_length(ledger)]
        parts += [f"## Planned contrasts, {contrast_length(ledger)} steps", paragraph(headline), LEGEND]
        parts += [f"## Arms, {steps} steps\n\n{_arms(ledger, one, steps)}" for steps, one in comparisons.items()]
        for steps in comparisons:
            planned = plan.contrasts if steps == contrast_length(ledger) else []
            if found := section(ledger, steps, seeds, planned):
                parts.append(f"## Measures, {steps} steps\n\n{found}")
        parts.append("![the primary score over computation and time](curves.png)")
    if (ledger.folder / "tuning.png").is_file():
        parts += ["## Tuning", _chosen(ledger), "![best of k trials](tuning.png)"]
    if time:
        parts.append(time)
    deviations = ledger.deviations or ["None."]
    parts.append("## Deviations from the plan\n\n" + "\n".join(f"- {sentence}" for sentence in deviations))
    return "\n\n".join(parts) + "\n"


def _arms(ledger: Ledger, comparison: Comparison, steps: int) -> str:
    """One row an arm: scores with their standard deviation over seeds, and what a training costs."""
    scores = [score for score in SHOWN if score in comparison.scores]
    rows = [["arm", "n", *scores, "GFLOP a step", "minutes", "converged"]]
    for arm in ledger.plan.arms():
        runs = [run for one in comparison.arms if one.label == arm.label for run in one.runs]
        if runs:
            cells = [comparison.cells[arm.label, score] for score in scores]
            shown = ["-" if cell is None else _mean(cell.mean, cell.std) for cell in cells]
            costs = [run.metrics["cost"] for run in runs]
            gflop = np.mean([(cost.get("training_flops") or 0) / 1e9 for cost in costs])
            minutes = np.mean([cost["train_seconds"] / 60 for cost in costs])
            still = sum(has_converged(ledger.about(arm, run.seed, steps)["validation"]) for run in runs)
            rows.append(
                [arm.label, str(len(runs)), *shown, f"{gflop:.1f}", f"{minutes:.1f}", f"{still} of {len(runs)}"]
            )
    for name, found in ledger.rows().items():
        shown = ["-" if (value := found.get(score)) is None else number(value) for score in scores]
        rows.append([f"{name} (nothing is trained)", "-", *shown, "-", "-", "-"])
    rule = ["---"] * len(rows[0])
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], rule, *rows[1:]])


def has_converged(curve: Sequence[Sequence[float]]) -> bool:
    """Whether validation gained less than ``STILL`` nats over the last fifth of a training."""
    if len(curve) < 2:
        return False
    last = curve[-1][0]
    before = [loss for step, loss in curve if step <= 0.8 * last] or [curve[0][1]]
    return min(before) - min(loss for _, loss in curve) < STILL


def _mean(mean: float, std: float | None) -> str:
    return number(mean) if std is None else f"{number(mean)} ± {number(std)}"


def _chosen(ledger: Ledger) -> str:
    tuned = [arm for arm in ledger.plan.arms() if not arm.is_control and ledger.trials(arm)]
    rows = [["arm", "trials", "best validation loss", "options"]]
    for arm in tuned:
        losses = _losses(ledger, arm)
        chosen = " ".join(f"`{option}`" for option in ledger.chosen(arm))
        rows.append([arm.label, str(len(ledger.trials(arm))), number(min(losses)), chosen])
    rule = ["---"] * len(rows[0])
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], rule, *rows[1:]])


def _losses(ledger: Ledger, arm: Arm) -> list[float]:
    """Validation losses of an arm's trials; of one that diverged infinite."""
    found = (line["val_loss"] for line in ledger.trials(arm).values())
    return [float("inf") if loss is None else loss for loss in found]


# --------------------------------------------------------------------------------------------------------------------
# figures
# --------------------------------------------------------------------------------------------------------------------
def best_of(losses: Sequence[float]) -> list[float]:
    """Expected lowest of k of these losses, k = 1 .. n, drawn with replacement: sum over x of x P(lowest = x)."""
    ordered, n = np.sort(np.asarray(losses, dtype=float)), len(losses)
    above = (n - np.arange(n + 1)) / n  # share of trials at least as bad as the i-th best
    return [float(np.sum(ordered * (above[:-1] ** k - above[1:] ** k))) for k in range(1, n + 1)]


def _tuning(ledger: Ledger) -> bytes:
    arms = [arm for arm in ledger.plan.arms() if not arm.is_control and ledger.trials(arm)]
    figure = Figure(figsize=(5.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for place, arm in enumerate(arms):
        finite = [loss for loss in _losses(ledger, arm) if np.isfinite(loss)]
        axes.plot(range(1, len(finite) + 1), best_of(finite), label=arm.label, **_style(place))
    axes.set_xlabel("trials")
    axes.set_ylabel("expected lowest validation loss (nats per token)")
    return _png(figure, [axes])


def _curves(ledger: Ledger, comparisons: Mapping[int, Comparison]) -> bytes:
    figure = Figure(figsize=(9.4, 3.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, what, unit in zip(panels, ("flop", "seconds"), ("training FLOP", "seconds of training"), strict=True):
        for place, arm in enumerate(ledger.plan.arms()):
            _curve(axes, ledger, comparisons, arm, what, _style(place))
        axes.set_xscale("log")
        axes.set_xlabel(unit)
    panels[0].set_ylabel(ledger.plan.primary)
    return _png(figure, panels)


def _curve(axes: Axes, ledger: Ledger, comparisons: Mapping[int, Comparison], arm: Arm, what: str, style: dict) -> None:
    points = []
    for steps in arm.lengths:
        comparison = comparisons.get(steps)
        cell = None if comparison is None else comparison.cells.get((arm.label, ledger.plan.primary))
        runs = [run for one in comparison.arms if one.label == arm.label for run in one.runs] if comparison else []
        if cell is None or not runs:
            continue
        costs = [run.metrics["cost"] for run in runs]
        spent = [
            (cost.get("training_flops") or 0) * steps if what == "flop" else cost["train_seconds"] for cost in costs
        ]
        values = np.array(cell.per_seed)
        low, high = t_interval(values) if len(values) > 1 else (cell.mean, cell.mean)
        if np.mean(spent) > 0:
            points.append((np.mean(spent), cell.mean, low, high))
    if points:
        x, mean, low, high = map(np.array, zip(*points, strict=True))
        axes.plot(x, mean, label=arm.label, **style)
        axes.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)
        axes.vlines(x, low, high, color=style["color"], linewidth=1)


def _style(place: int) -> dict:
    return {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)], "markersize": 5}


def _png(figure: Figure, panels: Sequence[Axes]) -> bytes:
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize=8, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, facecolor="white")
    return buffer.getvalue()
