"""The registered plan of a study: a yaml file, read and checked as a whole before anything starts.

regime   e.g. tuned, frozen: options that all its arms share, arms by name, controls (arms that are not tuned
         themselves but inherit an arm's options), the lengths at which results are read
arm      options of src.train, e.g. [fusion=srau]; "tuned/srau" in contrasts
tuning   ``trials`` random settings an arm, the same for all arms of a regime as far as they share dimensions, of
         ``steps`` steps each, chosen by validation loss, with a seed that no final has
finals   every arm with every seed: a constant rate with a cool-down, read at the ``lengths``
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.errors import UserError

MOST = 4  # planned contrasts: with Holm over more, five seeds show nothing


@dataclass
class Control:
    """An arm with the tuned options of ``inherits``. ``lengths``: None for those of its regime."""

    inherits: str = MISSING
    options: list[str] = MISSING
    lengths: list[int] | None = None


@dataclass
class Regime:
    options: list[str] = MISSING
    lengths: list[int] = MISSING  # steps, ascending
    arms: dict[str, list[str]] = MISSING
    controls: dict[str, Control] = field(default_factory=dict)


@dataclass
class Tuning:
    """``space``: sweeps over single options, in Hydra's words; ``further``: an arm's own, by its name; ``options``: of
    trials alone."""

    trials: int = MISSING
    steps: int = MISSING
    seed: int = MISSING
    space: list[str] = MISSING
    further: dict[str, list[str]] = field(default_factory=dict)
    options: list[str] = field(default_factory=list)


@dataclass
class Measure:
    """A command that is run on a finished run before its weights are dropped: src.<command> run=<it> <options>."""

    command: str = MISSING
    options: list[str] = MISSING


@dataclass
class Limits:
    """What may be spent; no part of the plan's hash."""

    hours: float = MISSING
    memory_gb: float = MISSING
    disk_gb: float = MISSING


@dataclass
class Plan:
    name: str = MISSING
    question: str = MISSING
    options: list[str] = MISSING  # of every training
    regimes: dict[str, Regime] = MISSING
    tuning: Tuning = MISSING
    seeds: list[int] = MISSING
    cooldown: float = MISSING  # share of a length
    warmup: int = MISSING  # steps
    contrasts: list[list[str]] = MISSING  # [arm, other], at the longest length that both have
    primary: str = MISSING
    margin: float | None = None  # for equivalence, in the primary's units
    before: dict[str, list[str]] = field(default_factory=dict)  # trainings that the others need, as {before}/<name>
    rows: dict[str, list[str]] = field(default_factory=dict)  # of src.pipeline: what trains nothing, beside the arms
    measures: list[Measure] = field(default_factory=list)
    limits: Limits = MISSING

    @property
    def sha256(self) -> str:
        """Of everything but the limits."""
        content = {key: value for key, value in asdict(self).items() if key != "limits"}
        if not self.tuning.options:  # plans were registered before there were any
            del content["tuning"]["options"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def arms(self) -> Iterator[Arm]:
        """Every arm and control, regime by regime."""
        for name, regime in self.regimes.items():
            for arm, options in regime.arms.items():
                yield Arm(name, arm, (*self.options, *regime.options, *options), arm, tuple(regime.lengths))
            for arm, control in regime.controls.items():
                options = (*self.options, *regime.options, *control.options)
                yield Arm(name, arm, options, control.inherits, tuple(control.lengths or regime.lengths))


@dataclass(frozen=True)
class Arm:
    """``options``: all of them but the tuned ones, which are those of the arm ``tuned_as`` of the same regime."""

    regime: str
    name: str
    options: tuple[str, ...]
    tuned_as: str
    lengths: tuple[int, ...]

    @property
    def label(self) -> str:
        return f"{self.regime}/{self.name}"

    @property
    def is_control(self) -> bool:
        return self.tuned_as != self.name


def read_plan(path: Path | str) -> Plan:
    """Raises UserError with what is wrong with the file, or with the plan."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"plan={path} is no file; the plans are in conf/study.")
    try:
        loaded: Any = OmegaConf.merge(OmegaConf.structured(Plan), OmegaConf.load(path))
        plan: Plan = OmegaConf.to_object(loaded)  # pyright: ignore[reportAssignmentType]
    except OmegaConfBaseException as error:
        where = getattr(error, "full_key", "") or "the plan"
        raise UserError(f"{path}, {where}: {str(error).splitlines()[0]}.".replace("..", ".")) from None
    except Exception as error:  # what yaml makes of a file that is none
        raise UserError(f"{path} cannot be read ({' '.join(str(error).split())}).") from None
    for sentence in _faults(plan):
        raise UserError(f"{path}: {sentence}")
    return plan


def _faults(plan: Plan) -> Iterator[str]:
    """What no study can be made of, in sentences."""
    if not re.fullmatch(r"[\w-]+", plan.name):
        yield f"name={plan.name} is to be the name of a folder: letters, digits, - and _."
    for name, regime in plan.regimes.items():
        for length in (regime.lengths, *(c.lengths for c in regime.controls.values() if c.lengths)):
            if not length or sorted(set(length)) != list(length) or length[0] < 1:
                yield f"the lengths {length} of {name} must be whole numbers of steps, ascending."
            if not set(length) <= set(regime.lengths):
                yield f"the lengths {length} of a control of {name} must be among those of its regime."
        for control, own in regime.controls.items():
            if own.inherits not in regime.arms:
                yield f"the control {name}/{control} inherits from {own.inherits}, which is no arm of {name}."
            if control in regime.arms:
                yield f"{name}/{control} is both an arm and a control."
        if plan.primary == "gain/loss" and "blind" not in regime.arms:
            yield f"the primary gain/loss is measured against an arm named blind, and {name} has none."
    labels = [arm.label for arm in plan.arms()]
    if len(plan.contrasts) > MOST:
        yield f"{len(plan.contrasts)} contrasts are too many: with more than {MOST}, few seeds can show nothing."
    for contrast in plan.contrasts:
        if len(contrast) != 2 or contrast[0] == contrast[1]:
            yield f"the contrast {contrast} must name two arms: [regime/arm, regime/other]."
        for label in contrast:
            if label not in labels:
                yield f"the contrast {contrast} names {label}, which is none of the arms: {', '.join(labels)}."
    if len(set(plan.seeds)) < max(2, len(plan.seeds)):
        yield f"seeds={plan.seeds} must be several different ones: they are the unit of every test."
    if plan.tuning.seed in plan.seeds:
        yield f"seed {plan.tuning.seed} is that of the tuning; the finals need fresh ones."
    if plan.tuning.trials < 0 or plan.tuning.steps < 1:
        yield "tuning needs a number of trials of 0 or more, and of steps of at least 1."
    if not 0 < plan.cooldown < 1:
        yield f"cooldown={plan.cooldown} must be a share above 0 and below 1."
    if plan.margin is not None and plan.margin <= 0:
        yield f"margin={plan.margin} must be above 0, in the units of {plan.primary}; or null for no equivalence."
    for further in plan.tuning.further:
        if not any(further in regime.arms for regime in plan.regimes.values()):
            yield f"tuning.further speaks of {further}, which is no arm."
