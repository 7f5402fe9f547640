"""Hydra sweeper: random or Bayesian search over hyper-parameters with Optuna, by whatever launcher is configured.

    python -m src.train -m hydra/sweeper=search fusion=srau test_split=val \
        'regime.lr_fusion=tag(log, interval(1e-4, 1e-2))' 'fusion.tau=choice(0.0, 0.1, 0.2)' 'fusion.levels=range(1, 4)'

An override with ``interval``, ``range`` or ``choice`` is a dimension of the search, all others hold for every trial.
``test_split=val``: what a search has looked at is no test any more. Trials are kept in an SQLite file in the sweep's
folder: the same command, given again, goes on where it stopped. Failed trials count as tried and are not repeated.
Each trial carries a sum of its parameters and result: a file that was damaged since is refused.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig

SAMPLERS = ("tpe", "random")
SUM = "sha256"  # of parameters and result, the name of a trial's attribute


class Search(Sweeper):
    """``trials``: how many in all; ``batch``: how many are chosen, and run side by side, before looking at results.

    ``sampler``: tpe (Bergstra et al. 2011) | random; ``direction``: maximize | minimize the score that a job returns.
    """

    def __init__(self, trials: int, batch: int, sampler: str, direction: str, seed: int) -> None:
        if sampler not in SAMPLERS:
            _refuse(f"hydra.sweeper.sampler must be tpe or random; got {sampler!r}.")
        if direction not in ("maximize", "minimize"):
            _refuse(f"hydra.sweeper.direction must be maximize or minimize; got {direction!r}.")
        if trials < 1 or batch < 1:
            _refuse("hydra.sweeper.trials and hydra.sweeper.batch must be at least 1.")
        self.trials, self.batch, self.sampler, self.direction, self.seed = trials, batch, sampler, direction, seed

    def setup(self, *, hydra_context, task_function, config: DictConfig) -> None:
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        self.parser = OverridesParser.create(hydra_context.config_loader)

    def sweep(self, arguments: list[str]) -> None:
        """Run the trials that are still missing; print the best."""
        overrides = self.parser.parse_overrides(arguments)
        space = {o.get_key_element(): _dimension(o) for o in overrides if o.is_sweep_override()}
        fixed = [o.input_line for o in overrides if not o.is_sweep_override()]
        if not space:
            _refuse(
                "hydra/sweeper=search needs a dimension, for example 'regime.lr_fusion=tag(log, interval(1e-4, 1e-2))'."
            )
        try:
            import optuna  # noqa: F401
        except ImportError:
            _refuse("hydra/sweeper=search needs Optuna: pip install 'optuna>=4'.")
        file = Path(self.config.hydra.sweep.dir).absolute() / "search.db"
        with _told(file):
            self._search(self._study(file, arguments), file, fixed, space)

    def _search(self, study, file: Path, fixed: list[str], space: dict[str, Callable]) -> None:
        _check(study, file)
        self._ask_again(study)
        done = _answered(study)
        while done < self.trials:
            asked = [study.ask() for _ in range(min(self.batch, self.trials - done))]
            jobs = [[*fixed, *(f"{key}={suggest(trial, key)}" for key, suggest in space.items())] for trial in asked]
            answers = self.launcher.launch(jobs, initial_job_idx=asked[0].number)
            for trial, answer in zip(asked, answers, strict=True):
                _tell(study, trial, answer)
            done += len(asked)
        _report(study)

    def _study(self, file: Path, arguments: list[str]):
        import optuna
        from sqlalchemy import URL

        optuna.logging.set_verbosity(optuna.logging.ERROR)  # a database that fails is told below
        file.parent.mkdir(parents=True, exist_ok=True)
        samplers = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
        name = hashlib.sha256("\n".join([self.sampler, self.direction, *sorted(arguments)]).encode()).hexdigest()[:12]
        storage = URL.create("sqlite", database=str(file)).render_as_string()  # the path may hold ? and %
        study = optuna.create_study(storage=storage, study_name=name, direction=self.direction, load_if_exists=True)
        study.sampler = samplers[self.sampler](seed=self.seed + len(study.trials))  # a restart must not draw the same
        return study

    @staticmethod
    def _ask_again(study) -> None:
        """Trials that a kill left unanswered are put first in the queue; the launcher knows which of them finished."""
        from optuna.trial import TrialState

        for trial in study.get_trials(states=(TrialState.RUNNING,)):
            study.tell(trial.number, state=TrialState.PRUNED)
            study.enqueue_trial(trial.params)


def _answered(study) -> int:
    from optuna.trial import TrialState

    return len(study.get_trials(states=(TrialState.COMPLETE, TrialState.FAIL)))


def _dimension(override: Override) -> Callable:
    """What suggests a value: (trial, name) -> value."""
    value, log = override.value(), "log" in getattr(override.value(), "tags", set())
    if isinstance(value, IntervalSweep):
        whole = isinstance(value.start, int) and isinstance(value.end, int)
        low, high = value.start, value.end
        if whole:
            return lambda trial, name: trial.suggest_int(name, low, high, log=log)
        return lambda trial, name: trial.suggest_float(name, low, high, log=log)
    if isinstance(value, ChoiceSweep | RangeSweep):
        choices = [str(choice) for choice in override.sweep_string_iterator()]
        return lambda trial, name: trial.suggest_categorical(name, choices)
    return _refuse(f"{override.input_line}: a search takes interval(...), range(...) or choice(...).")


def _tell(study, trial, answer: JobReturn) -> None:
    from optuna.trial import TrialState

    if answer.status == JobStatus.COMPLETED and answer.return_value is not None:
        trial.set_user_attr(SUM, _sum(trial.params, answer.return_value))
        study.tell(trial, answer.return_value)
    else:
        study.tell(trial, state=TrialState.FAIL)


def _sum(params: dict, value: float) -> str:
    return hashlib.sha256(json.dumps([params, value], sort_keys=True).encode()).hexdigest()


def _check(study, file: Path) -> None:
    """Refuses a file in which a trial is not what was written; trials from before there were sums are not looked at."""
    from optuna.trial import TrialState

    try:
        complete = study.get_trials(states=(TrialState.COMPLETE,))
    except (ValueError, KeyError, AssertionError) as error:  # what Optuna makes of fields that make no sense to it
        _refuse_damaged(file, f"{type(error).__name__}: {error}")
    for trial in complete:
        if trial.user_attrs.get(SUM, _sum(trial.params, trial.value)) != _sum(trial.params, trial.value):
            _refuse_damaged(file, f"trial {trial.number} is not what was written")


@contextmanager
def _told(file: Path) -> Iterator[None]:
    """A database that cannot be read or written becomes one sentence."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        cause = error.__cause__ if isinstance(error, StorageInternalError) else error
        _refuse_damaged(file, str(getattr(cause, "orig", None) or cause).splitlines()[0])


def _refuse_damaged(file: Path, cause: str):
    _refuse(
        f"{file} cannot be used ({cause}); make room if the disk is full, else delete it and give the same command "
        "again: trials that have results are not run again."
    )


def _report(study) -> None:
    from optuna.trial import TrialState

    complete = study.get_trials(states=(TrialState.COMPLETE,))
    if not complete:
        print("No trial has finished; see the logs.", file=sys.stderr)
        sys.exit(1)
    print(f"best of {len(complete)} trials: {study.best_value:.4f}")
    for name, value in study.best_params.items():
        print(f"  {name}={value}")


def _refuse(sentence: str):
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(2)
