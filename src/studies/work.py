"""The trainings of a study, in their order: what others need, tuning, then seed by seed all arms at all lengths.

Seeds are the outer loop, so that whenever a study is stopped its arms are equally far. The arms of one seed share one
kind of machine, and the same trainings ``before`` them; a seed that was begun on another ground is made again.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from src.comparison.runs import find_runs
from src.errors import UserError
from src.launch.pool import Job, Pool
from src.records.environment import machine_kind
from src.records.folder import Saved
from src.records.wandb_file import gather
from src.records.wandb_runs import group_of
from src.records.weights import tensor_hash
from src.studies.draws import settings
from src.studies.ledger import Ledger
from src.studies.mirror import labels
from src.studies.plan import Arm, Plan
from src.studies.probe import Measured
from src.training.checkpoints import TRUNK
from src.training.soundness import DIVERGED

LEASE = 90.0  # minutes, after which a job saves, ends, and goes on in a new process
REFUSED = 2  # exit code of a command that says what is wrong in a sentence
QUIET = ("samples=1", "val_captions=0")


class Trial(NamedTuple):
    """``options``: those that were drawn."""

    arm: Arm
    number: int
    options: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.arm.regime}-{self.arm.name}-{self.number}"

    @property
    def about(self) -> dict:
        return {"arm": self.arm.label, "trial": self.number, "options": list(self.options)}


@dataclass
class Work:
    """``folder``: of the runs; ``leases``: as ``launch.pool`` has them."""

    plan: Plan
    ledger: Ledger
    folder: Path
    leases: Sequence[dict[str, str]]
    lock: threading.Lock = field(default_factory=threading.Lock)

    # -------------------------------------------------------------------------------------------------- stages
    @property
    def done(self) -> bool:
        """Whether the ledger has everything."""
        rows = self.ledger.rows().keys() == self.plan.rows.keys()
        return rows and not self.missing_trials() and all(map(self.ledger.complete, self.plan.seeds))

    def prepare(self) -> None:
        """The trainings that the others need."""
        self._run([Job(tuple(options), None, self.before / name) for name, options in self.plan.before.items()])

    def calibrated(self, measured: Mapping[str, Measured]) -> dict[str, Measured]:
        """With what a process takes beside what was measured: a training of one step for real, as many at once as there
        will be."""
        arm = next(self.plan.arms())
        shutil.rmtree(self.folder / "probe", ignore_errors=True)
        options = (*self.schedule(arm, 1), "trainer.val_check_interval=1", "test_split=null")
        started = time.monotonic()
        self._run([Job(options, None, self.folder / "probe" / str(place)) for place in range(len(self.leases))])
        rest = time.monotonic() - started - measured[arm.label].seconds(1, scored=False)
        shutil.rmtree(self.folder / "probe")
        return {label: replace(one, start=one.start + max(0.0, rest)) for label, one in measured.items()}

    def rows(self) -> None:
        """What trains nothing; scores only."""
        names = [name for name in self.plan.rows if name not in self.ledger.rows()]
        jobs = [Job(tuple(self.plan.rows[name]), None, self.folder / "rows" / name) for name in names]
        causes = Pool(self.leases, [sys.executable, "-m", "src.pipeline"]).run(jobs) if jobs else {}
        self._require(causes, len(jobs))
        for job in jobs:
            self.ledger.add_row(job.folder, job.folder.name)

    def tune(self) -> None:
        """All trials that the ledger does not have; their runs are not kept."""
        trials = {self.folder / "tuning" / trial.name: trial for trial in self.missing_trials()}
        jobs = [Job(self.trial(trial), None, folder) for folder, trial in trials.items()]
        causes = self._causes(jobs, lambda job: self._tell(job, trials[job.folder]))
        for folder in [folder for folder, cause in causes.items() if DIVERGED in cause]:  # tried, and no good
            self.ledger.add_trial({**trials[folder].about, "val_loss": None, "cause": causes.pop(folder)})
        self._require(causes, len(jobs))

    def finals(self, concluded: Callable[[], None]) -> None:
        """Seed by seed; ``concluded`` is called whenever a seed is complete."""
        for seed in self.plan.seeds:
            self._clear_ground(seed)
            for steps in sorted({steps for arm in self.plan.arms() for steps in arm.lengths}):
                self._finals(seed, steps)
            if self.ledger.complete(seed):
                for run in self.folder.glob(f"*-s{seed}-*"):
                    self._drop(run)
                concluded()

    # -------------------------------------------------------------------------------------------------- options
    @property
    def before(self) -> Path:
        return self.folder / "before"

    def options(self, arm: Arm) -> tuple[str, ...]:
        """Those of the plan, with {before} filled in."""
        return tuple(option.replace("{before}", str(self.before)) for option in arm.options)

    def missing_trials(self) -> list[Trial]:
        """Those that the ledger does not have."""
        tuning, found = self.plan.tuning, []
        for arm in self.plan.arms():
            if not arm.is_control:
                space = [*tuning.space, *tuning.further.get(arm.name, [])]
                known = self.ledger.trials(arm).keys()
                drawn = enumerate(settings(space, tuning.trials, tuning.seed))
                found += [Trial(arm, number, options) for number, options in drawn if number not in known]
        return found

    def trial(self, trial: Trial) -> tuple[str, ...]:
        """Options of a trial: no picture of the test split is looked at."""
        tuning = self.plan.tuning
        told = labels(self.plan, trial.arm, trial.name, tuning.seed, tuning.steps, "tune")
        options = (*self.schedule(trial.arm, tuning.steps), *trial.options, *tuning.options, *told)
        return (*options, f"seed={tuning.seed}", "test_split=null")

    def final(self, arm: Arm, seed: int, steps: int) -> tuple[str, ...]:
        told = labels(self.plan, arm, self.run_folder(arm, seed, steps).name, seed, steps, "train")
        return (*self.schedule(arm, steps), *self.ledger.chosen(arm), *told, f"seed={seed}")

    def schedule(self, arm: Arm, steps: int) -> tuple[str, ...]:
        plan = self.plan
        rate = (f"optim.warmup={plan.warmup}", f"optim.cooldown={plan.cooldown}", f"trainer.max_steps={steps}")
        return (*self.options(arm), *rate, *QUIET)

    # -------------------------------------------------------------------------------------------------- finals
    def run_folder(self, arm: Arm, seed: int, steps: int) -> Path:
        return self.folder / f"{arm.regime}-{arm.name}-s{seed}-{steps}"

    def _finals(self, seed: int, steps: int) -> None:
        missing = {}
        for arm in self.plan.arms():
            if steps in arm.lengths and not self.ledger.has(arm, seed, steps):
                missing[self.run_folder(arm, seed, steps)] = arm
        jobs = [Job(self._lengthened(arm, seed, steps), None, folder) for folder, arm in missing.items()]
        self._run(jobs, lambda job: self._kept(job, missing[job.folder], seed, steps))

    def _lengthened(self, arm: Arm, seed: int, steps: int) -> tuple[str, ...]:
        """The options of a final; it goes on from the trunk of the next shorter one, where that still lies there."""
        options = self.final(arm, seed, steps)
        shorter = [length for length in arm.lengths if length < steps]
        for length in reversed(shorter):
            run = self.run_folder(arm, seed, length)
            if (run / "checkpoints" / TRUNK).is_file():
                return (*options, f"resume={run}")
        return options

    def _kept(self, job: Job, arm: Arm, seed: int, steps: int) -> None:
        """Measure, record, and drop what no longer run goes on from."""
        about: dict = {"ground": self.ground, "options": list(job.overrides)}
        for measure in self.plan.measures:
            log = job.folder / f"{measure.command}.log"
            if refused := self._command(measure.command, [f"run={job.folder}", *measure.options], log):
                about.setdefault("not_measured", {})[measure.command] = refused.replace(str(job.folder), arm.label)
        with self.lock:
            self.ledger.add_final(job.folder, arm, seed, steps, about)
        trunk = job.folder / "checkpoints" / TRUNK
        for checkpoint in (job.folder / "checkpoints").glob("*.ckpt"):
            if checkpoint != trunk or steps == arm.lengths[-1]:
                checkpoint.unlink()
        for aside in job.folder.parent.glob(f"{job.folder.name}~*"):
            self._drop(aside)

    @cached_property
    def ground(self) -> str:
        """The kind of machine, and the weights of the trainings before the finals."""
        weights = {}
        for name in self.plan.before:
            weights[name] = tensor_hash(Saved.run(self.before / name).tensors)
        digest = hashlib.sha256(repr(sorted(weights.items())).encode()).hexdigest()[:12] if weights else "none"
        return f"{machine_kind()}; before: {digest}"

    def _clear_ground(self, seed: int) -> None:
        """Forget what was made of an incomplete seed elsewhere."""
        others = self.ledger.grounds(seed) - {self.ground}
        if others and not self.ledger.complete(seed):
            there = "; ".join(sorted(others))
            self.ledger.forget(seed, f"Seed {seed} was begun on {there} and made again on {self.ground}.")

    # -------------------------------------------------------------------------------------------------- tuning
    def _tell(self, job: Job, trial: Trial) -> None:
        """Record a finished trial, and drop its run with earlier attempts at it."""
        (run,) = find_runs(str(job.folder))
        found = {"val_loss": run.scores["loss"], "seconds": run.metrics["cost"]["train_seconds"]}
        with self.lock:
            self.ledger.add_trial({**trial.about, **found, "machine": machine_kind()})
        for run in [*job.folder.parent.glob(f"{job.folder.name}~*"), job.folder]:
            self._drop(run)

    def _drop(self, run: Path) -> None:
        """Remove a run folder, but for what it logged offline to W&B."""
        gather(run, self.folder)
        shutil.rmtree(run)

    # -------------------------------------------------------------------------------------------------- processes
    def _run(self, jobs: Sequence[Job], then: Callable[[Job], None] | None = None) -> None:
        """Raises UserError when one has failed, after the others; what they have made is kept."""
        self._require(self._causes(jobs, then), len(jobs))

    def _causes(self, jobs: Sequence[Job], then: Callable[[Job], None] | None) -> dict[Path, str]:
        """Run them; why some failed, by folder."""
        if not jobs:
            return {}
        group = {"WANDB_RUN_GROUP": group_of(self.plan.name)}
        leases = [{**group, **lease} for lease in self.leases]
        return Pool(leases, [sys.executable, "-m", "src.train"], LEASE).run(jobs, then)

    @staticmethod
    def _require(causes: Mapping[Path, str], jobs: int) -> None:
        if causes:
            told = "; ".join(f"{folder.name}: {cause}" for folder, cause in list(causes.items())[:3])
            raise UserError(
                f"{len(causes)} of {jobs} trainings failed ({told}); logs: {next(iter(causes)).parent}/*/stdout.log. "
                "Given again, the command goes on with what is missing."
            )

    @staticmethod
    def _command(command: str, words: Sequence[str], log: Path) -> str | None:
        """Run it; the sentence with which it refuses a run that it has nothing to say of. Raises RuntimeError when it
        fails otherwise."""
        answer = subprocess.run(
            [sys.executable, "-m", f"src.{command}", *words], capture_output=True, text=True, encoding="utf-8"
        )
        log.write_text(answer.stdout + answer.stderr, encoding="utf-8")
        if answer.returncode == REFUSED:
            return answer.stderr.strip().rpartition("\n")[2].removeprefix("error: ")
        if answer.returncode:
            raise RuntimeError(f"src.{command} failed, see {log}")
