"""Hydra launcher for sweeps: every job is a fresh process with a device of its own; finished jobs are not run again.

``hydra/launcher=processes``, which is the default of ``python -m src.train -m ...``. A job's folder is named after its
configuration (``<sweep>/<name>-<hash>``; what else tells it from jobs of the same name stands between), so the same
command, given again after a failure or a kill, goes on where it stopped: the hash finds a job's folder again, jobs with
a ``result.json`` are skipped, a job that was cut off continues from its last checkpoint. Its first attempt is kept
beside as ``<folder>~1``.

How jobs share a machine: src/launch/pool.py.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf, open_dict

from src.config.checks import check_secrets
from src.config.make import config_hash
from src.errors import UserError
from src.launch.pool import Job, Pool, interruptible, leases

LONGEST = 80  # characters of what tells jobs of one name apart, in the names of their folders


class ProcessPool(Launcher):
    """``devices``: one lease per entry ("0", or "2,3" for two GPUs a job); null: every GPU, or the CPU.

    ``jobs``: processes side by side on the CPU; null: one per two cores.
    """

    def __init__(self, devices: Sequence[str] | None, jobs: int | None) -> None:
        command = [sys.executable, "-m", _module(), *_config_arguments()]
        self.pool = Pool(leases(devices, jobs), command)

    def setup(self, *, hydra_context, task_function, config: DictConfig) -> None:
        self.loader, self.config = hydra_context.config_loader, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Run all jobs; a table of them at the end. Exits with 130 if it was interrupted.

        Asking a failed job for its return value, as Hydra's sweeper does at the end, exits with 1.
        """
        jobs = self._plan(job_overrides, initial_job_idx)
        folders = [job.folder for job in jobs]
        jobs = list({job.folder: job for job in jobs}.values())  # a=1,1 is one job
        started = time.monotonic()
        with interruptible():
            try:
                causes = self.pool.run(jobs)
            except KeyboardInterrupt:
                print("interrupted: the same command goes on where it stopped.", file=sys.stderr, flush=True)
                sys.exit(130)
        print(_table(jobs, causes, time.monotonic() - started), flush=True)
        by_folder = {job.folder: _returned(job) for job in jobs}
        return [by_folder[folder] for folder in folders]

    # ------------------------------------------------------------------------------------------------- what to run
    def _plan(self, job_overrides: Sequence[Sequence[str]], first: int) -> list[Job]:
        """Configuration and folder of every job, before any of them starts: a typo is found at once."""
        saved, jobs = Singleton.get_state(), []
        for number, overrides in enumerate(job_overrides, first):
            cfg = self.loader.load_sweep_config(self.config, list(overrides))
            with open_dict(cfg):
                cfg.hydra.job.id, cfg.hydra.job.num = str(number), number
            HydraConfig.instance().set_config(cfg)  # so that ${hydra:...} in the job's name can be resolved
            self._refuse_secrets(cfg)
            folder = Path(cfg.hydra.sweep.dir) / f"{cfg.name}-{config_hash(cfg)[:8]}"
            jobs.append(Job(tuple(overrides), cfg, folder.absolute()))
        Singleton.set_state(saved)
        return [job._replace(folder=_folder(job, jobs)) for job in jobs]

    def _refuse_secrets(self, cfg: DictConfig) -> None:
        """Before any job starts; Hydra has written the configuration of the whole sweep down already."""
        try:
            check_secrets(OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"]))
        except UserError as error:
            (Path(self.config.hydra.sweep.dir) / "multirun.yaml").unlink(missing_ok=True)
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)


def _folder(job: Job, jobs: Sequence[Job]) -> Path:
    """Where a job of this hash lies already, else a folder whose name says what tells it from those of its name."""
    name, _, number = job.folder.name.rpartition("-")
    earlier = sorted(job.folder.parent.glob(f"*-{number}"))
    if earlier:
        return earlier[0]
    alike = [set(one.overrides) for one in jobs if one.folder.name.rpartition("-")[0] == name]
    own = [one for one in job.overrides if not all(one in others for others in alike)]
    words = [f"{key.lstrip('+')}={value.rpartition('/')[2]}" for key, _, value in (one.partition("=") for one in own)]
    between = re.sub(r"[^\w.=-]+", "_", "-".join(words))[:LONGEST]
    return job.folder.with_name("-".join(filter(None, [name, between, number])))


def _module() -> str:
    return sys.modules["__main__"].__spec__.name


def _config_arguments() -> list[str]:
    """--config-name and the like, which overrides do not hold."""
    arguments, kept = sys.argv[1:], []
    for i, argument in enumerate(arguments):
        if argument.startswith(("--config-", "-cn", "-cd", "-cp")):
            kept += [argument] if "=" in argument else arguments[i : i + 2]
    return kept


def _returned(job: Job) -> JobReturn:
    answer, result = JobReturn(), job.result()
    answer.overrides, answer.cfg, answer.working_dir = job.overrides, job.config, str(job.folder)
    answer.status = JobStatus.FAILED if result is None else JobStatus.COMPLETED
    answer.return_value = SystemExit(1) if result is None else result["value"]
    return answer


def _table(jobs: Sequence[Job], causes: dict[Path, str], seconds: float) -> str:
    """One line per job, what failed last, and where everything is."""
    width = max(len(job.folder.name) for job in jobs)
    lines = []
    for job in sorted(jobs, key=lambda job: job.folder in causes):
        result = job.result()
        if result is not None:
            value = "-" if result["value"] is None else format(result["value"], ".4f")
            lines.append(f"  {job.folder.name:<{width}}  {result['score']} {value}")
        else:
            lines.append(f"  {job.folder.name:<{width}}  failed: {causes.get(job.folder, 'not run')}")
    folder = jobs[0].folder.parent
    lines.append(f"{len(jobs) - len(causes)} of {len(jobs)} jobs have results in {folder} ({seconds / 60:.1f} min)")
    if causes:
        lines.append("Logs: stdout.log in each folder. Given again, the command runs only what is missing.")
    return "\n".join(lines)
