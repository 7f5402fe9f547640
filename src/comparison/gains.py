"""Which blind run a run is held against for ``gain/loss``: what its picture is worth in nats per token.

gain/loss = (nats of the blind run - nats of this one) / tokens, over all references of the compared images. The blind
run has the same seed and regime, the same language model, and, as far as anything in it trains, the same data; among
several the one whose other settings differ least. A blind run with a frozen language model trains nothing: it is the
start, the same for every seed, so one of them serves them all. A blind run gains 0 on itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from src.comparison.runs import Arm, Run
from src.config.make import is_below

REGIME = ("regime.train_language", "regime.train_vision", "regime.lora")


def blind_runs(arms: Sequence[Arm]) -> dict[int, Run]:
    """By the identity of each run the blind run that it is held against; runs without one are left out."""
    blind = [arm for arm in arms if is_blind(arm.runs[0])]
    found: dict[int, Run] = {}
    for run in (run for arm in arms for run in arm.runs):
        if is_blind(run):
            found[id(run)] = run
            continue
        fitting = [(_distance(run, arm.runs[0]), own) for arm in blind if (own := _serving(arm, run)) is not None]
        if fitting:
            found[id(run)] = min(fitting, key=lambda pair: pair[0])[1]
    return found


def is_blind(run: Run) -> bool:
    return run.fusion == "blind"


def trains_nothing(run: Run) -> bool:
    """Whether a run is the same for every seed: blind, with a frozen language model that was not drawn at random."""
    settings = run.settings
    frozen = settings.get(REGIME[0]) is False and not any(is_below(key, REGIME[2:]) for key in settings)
    return is_blind(run) and frozen and settings.get("language.init") != "random"


def _serving(arm: Arm, run: Run) -> Run | None:
    """The blind arm's run for the seed of ``run``; None where there is none, or where the arm does not fit."""
    same = (*REGIME, "language", *(() if trains_nothing(arm.runs[0]) else ("data",)))
    if any(is_below(key, same) for key in _differing(run, arm.runs[0])):
        return None
    own = next((one for one in arm.runs if one.seed == run.seed), None)
    return arm.runs[0] if own is None and trains_nothing(arm.runs[0]) else own


def _distance(run: Run, other: Run) -> int:
    return len(_differing(run, other))


def _differing(run: Run, other: Run) -> set[str]:
    """Settings in which they differ, beside the fusion's own."""
    keys = run.settings.keys() | other.settings.keys()
    return {k for k in keys if not is_below(k, ("fusion",)) and run.settings.get(k) != other.settings.get(k)}
