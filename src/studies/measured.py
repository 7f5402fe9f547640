"""What the measures of a study found, numbers of runs by name ("preserve/weights"): means with intervals over seeds.

A command that is named among a plan's measures has its numbers tabulated where it leaves ``scores`` in
<run>/<command>/<command>.json. Its contrasts are those of the plan, paired by seed; none of them was planned for these
numbers, so that a hint is the most that is said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from src.comparison.numbers import MISSING, brackets, number, p_text, signed
from src.comparison.seeds import paired, t_interval, unplanned
from src.studies.ledger import Ledger

Found = dict[str, dict[str, dict[int, float]]]  # measure -> arm -> seed -> number


def section(ledger: Ledger, steps: int, seeds: Sequence[int], contrasts: Sequence[Sequence[str]]) -> str:
    """Markdown: the tables, and what was not measured; empty where the plan measures nothing of this kind."""
    arms = [arm for arm in ledger.plan.arms() if steps in arm.lengths]
    told = [ledger.about(arm, seed, steps).get("not_measured", {}) for arm in arms for seed in seeds]
    refused = dict.fromkeys(f"src.{command}: {why}" for one in told for command, why in one.items())
    found = measured(ledger, steps, seeds)
    return "\n\n".join([*([tables(found, contrasts)] if found else []), *refused])


def measured(ledger: Ledger, steps: int, seeds: Sequence[int]) -> Found:
    """Of all arms at one length."""
    found: Found = {}
    for arm in (arm for arm in ledger.plan.arms() if steps in arm.lengths):
        for seed in seeds:
            for name, value in ledger.measures(arm, seed, steps).items():
                by_arm = found.setdefault(name, {})
                if value is not None:
                    by_arm.setdefault(arm.label, {})[seed] = value
    return found


def tables(found: Mapping[str, Mapping[str, Mapping[int, float]]], contrasts: Sequence[Sequence[str]]) -> str:
    """Markdown: arms by measures, then the contrasts of each."""
    names = list(found)
    labels = list(dict.fromkeys(label for by_arm in found.values() for label in by_arm))
    rows = [["arm", *names]]
    rows += [[label, *(_cell(found[name].get(label, {})) for name in names)] for label in labels]
    tests = [["measure", "arm minus other", "difference", "n", "95 % over seeds", "p", "word"]]
    for name in names:
        for arm, other in contrasts:
            test = paired(found[name].get(arm, {}), found[name].get(other, {}))
            if test.value is not None:
                numbers = [signed(test.value), str(test.n), brackets(test.low, test.high, signed), p_text(test.p)]
                tests.append([name, f"{arm} minus {other}", *numbers, unplanned(test).word])
    return "\n\n".join(_markdown(one) for one in (rows, tests) if len(one) > 1)


def _cell(by_seed: Mapping[int, float]) -> str:
    values = np.array(list(by_seed.values()))
    if not len(values):
        return MISSING
    interval = f" {brackets(*map(float, t_interval(values)))}" if len(values) > 1 else ""
    return f"{number(float(values.mean()))}{interval}"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]])
