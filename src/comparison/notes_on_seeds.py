"""What a reader of a comparison has to know about its plan, its seeds, and the blind runs that gains are gains on."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from src.comparison.estimates import Difference
from src.comparison.plan import Plan
from src.comparison.runs import Arm, Run
from src.comparison.scores import GAIN
from src.comparison.seeds import ALPHA, OPEN

NAMED = 6  # pairs that a note lists


def notes_on_plan(plan: Plan, differences: Sequence[Difference]) -> list[str]:
    """What was planned and is corrected for, and that everything else explores."""
    if not plan.contrasts:
        return ["No contrast was planned (contrasts=), so every comparison explores and is a hint at most."]
    within = "no margin was stated, so none can be level" if plan.margin is None else f"margin {plan.margin:g}"
    notes = [
        f"Planned contrasts of {plan.primary}: {len(plan.contrasts)}, Holm over all of them, {within}; every other "
        "comparison explores and is a hint at most."
    ]
    there = {(d.arm, d.other) for d in differences if d.score == plan.primary}
    lost = [f"{arm} minus {other}" for arm, other in plan.contrasts if (arm, other) not in there]
    if lost:
        notes.append(f"Planned, but without {plan.primary}, and counted by Holm all the same: {'; '.join(lost)}.")
    return notes


def notes_on_seeds(arms: Sequence[Arm], differences: Sequence[Difference], fixed: Collection[str]) -> list[str]:
    """Which seeds are paired, which pairs have no test, and where images say more than seeds do."""
    notes = []
    if any(len(arm.runs) == 1 for arm in arms):
        notes.append("An arm with one seed has no standard deviation: how much another training changes is not known.")
    if fixed and len(arms) > 1:
        notes.append(f"Nothing in {', '.join(fixed)} trains: one run stands beside every seed of the others.")
    left_out = {f"{d.arm} and {d.other} {d.seeds.left_out}": None for d in differences if d.seeds.left_out}
    if left_out:
        notes.append(
            "Only seeds that both arms of a pair have are compared, but over images all of them; left out are of "
            f"{_listed(left_out)}."
        )
    untested = {f"{d.arm} and {d.other} (n = {d.seeds.n})": None for d in differences if d.seeds.p is None}
    if untested:
        notes.append(f"No test over seeds, which takes two shared ones that do not say the same: {_listed(untested)}.")
    wider = [
        f"{d.score} of {d.arm} and {d.other} (n = {d.seeds.n})"
        for d in differences
        if d.p_holm < ALPHA and d.seeds.p is not None and d.word == OPEN
    ]
    if wider:
        notes.append(f"Significant over images, but within what seeds do by Student's t: {_listed(wider)}.")
    return notes


def _listed(pairs: Collection[str]) -> str:
    first, more = list(pairs)[:NAMED], len(pairs) - NAMED
    return ", ".join(first) + (f" and {more} more" if more > 0 else "")


def notes_on_gains(arms: Sequence[Arm], scores: Sequence[str], blind: Mapping[int, Run]) -> list[str]:
    """Runs without a blind one. ``blind``: by the identity of each run that has one."""
    if GAIN not in scores:
        return []
    without = [(arm.label, [run.seed for run in arm.runs if id(run) not in blind]) for arm in arms]
    named = [f"{label} (seed {', '.join(map(str, seeds))})" for label, seeds in without if seeds]
    if not named:
        return []
    return [
        f"Without {GAIN}, for lack of a blind run with the same seed, regime, language model and data, or of nats in "
        f"the rows of both: {'; '.join(named)}."
    ]
