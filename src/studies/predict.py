"""Hours, memory and disk of a study before anything starts, and what to cut where they are too much."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from src.studies.plan import Arm, Plan
from src.studies.probe import Measured
from src.studies.work import Work
from src.training.optimiser import trunk_steps


@dataclass(frozen=True)
class Prediction:
    """``parts``: hours by what they go into, all places where jobs run together."""

    parts: dict[str, float]
    memory_gb: float
    disk_gb: float

    @property
    def hours(self) -> float:
        return sum(self.parts.values())


def predict(work: Work, measured: Mapping[str, Measured]) -> Prediction:
    """Of what the ledger does not have yet. ``measured``: by the label of an arm."""
    places, parts = len(work.leases), {}
    for trial in work.missing_trials():
        seconds = measured[trial.arm.label].seconds(work.plan.tuning.steps, scored=False)
        _add(parts, "tuning", seconds / places)
    for seed in work.plan.seeds:
        for arm in work.plan.arms():
            for steps, before in lengths(work.plan, arm):
                if not work.ledger.has(arm, seed, steps):
                    seconds = measured[arm.label].seconds(steps, scored=True, before=before)
                    _add(parts, f"finals of {steps} steps", seconds / places)
    heaviest = sorted(measured.values(), key=lambda one: one.memory_mb)[-places:]
    memory = sum(one.memory_mb for one in heaviest) / 1024
    kept = sum(measured[arm.label].disk for arm in work.plan.arms())  # the trunks of a seed
    return Prediction(parts, memory, kept / 2**30)


def lengths(plan: Plan, arm: Arm) -> Iterator[tuple[int, int]]:
    """Every length of an arm, and how many of its steps the one before has made."""
    before = 0
    for steps in arm.lengths:
        yield steps, before
        before = trunk_steps(steps, plan.cooldown)


def _add(parts: dict[str, float], name: str, seconds: float) -> None:
    parts[name] = parts.get(name, 0.0) + seconds / 3600


def told(prediction: Prediction, measured: Mapping[str, Measured]) -> str:
    """A table of the arms, and the sums."""
    width = max(map(len, measured))
    lines = [f"{'arm':<{width}}  ms a step  start  validation  scoring   MiB"]
    for label, one in measured.items():
        row = (
            f"{1000 * one.step:9.0f}  {one.start:4.0f}s  {one.validation:9.1f}s  {one.end:6.1f}s  {one.memory_mb:4.0f}"
        )
        lines.append(f"{label:<{width}}  {row}")
    parts = ", ".join(f"{name} {_time(hours)}" for name, hours in prediction.parts.items())
    lines.append(
        f"predicted: {_time(prediction.hours)} ({parts or 'nothing is missing'}), {prediction.memory_gb:.1f} GiB of "
        f"memory, {prediction.disk_gb:.1f} GiB on the disk"
    )
    return "\n".join(lines)


def too_much(work: Work, prediction: Prediction, measured: Mapping[str, Measured]) -> str | None:
    """What is beyond the plan's limits, and what to cut; None where all fits."""
    limits, over = work.plan.limits, []
    for what, wanted, limit in (
        ("hours", prediction.hours, limits.hours),
        ("GiB of memory", prediction.memory_gb, limits.memory_gb),
        ("GiB on the disk", prediction.disk_gb, limits.disk_gb),
    ):
        if wanted > limit:
            over.append(f"{wanted:.1f} {what} where {limit:g} may be spent")
    if not over:
        return None
    return f"The study would take {' and '.join(over)}; {_cuts(work, prediction, measured)}, or raise its limits."


def _cuts(work: Work, prediction: Prediction, measured: Mapping[str, Measured]) -> str:
    """What single cuts would save, the largest first."""
    plan, found = work.plan, []
    longest = max(steps for arm in plan.arms() for steps in arm.lengths)
    saved = prediction.parts.get(f"finals of {longest} steps", 0.0)
    if longest > min(steps for arm in plan.arms() for steps in arm.lengths):
        found.append((saved, f"the length of {longest} steps saves {_time(saved)}"))
    saved = prediction.parts.get("tuning", 0.0) / max(1, plan.tuning.trials)
    found.append((saved, f"a trial of each arm saves {_time(saved)}"))
    finals = prediction.hours - prediction.parts.get("tuning", 0.0)
    found.append((finals / len(plan.seeds), f"a seed saves {_time(finals / len(plan.seeds))}"))
    slowest = max(measured, key=lambda label: measured[label].step)
    share = measured[slowest].step / max(1e-9, sum(one.step for one in measured.values()))
    found.append((share * prediction.hours, f"the arm {slowest} saves about {_time(share * prediction.hours)}"))
    return "cut: " + "; ".join(words for _, words in sorted(found, reverse=True))


def _time(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"
