"""Hydra launcher for sweeps: every job is a fresh process with a device of its own; finished jobs are not run again.

``hydra/launcher=processes``, which is the default of ``python -m src.train -m ...``. A job's folder is named after its
configuration (``<sweep>/<name>-<hash>``; what else tells it from jobs of the same name stands between), so the same
command, given again after a failure or a kill, goes on where it stopped: the hash finds a job's folder again, jobs with
a ``result.json`` are skipped, a job that was cut off continues from its last checkpoint. Its first attempt is kept
beside as ``<folder>~1``.

A device is leased to one job at a time: on GPUs by a lock file per device, so that two sweeps on one machine share
them; on CPUs ``jobs`` processes run side by side, each with its part of the cores. Processes rather than one process
for all: CUDA, W&B and DDP (whose child processes repeat the command line) each keep state that one job must not leave
to the next.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf, open_dict

from src.config.checks import LEASED, check_secrets
from src.config.make import config_hash
from src.errors import UserError
from src.records.folder import result, resumable

LONGEST = 80  # characters of what tells jobs of one name apart, in the names of their folders
GRACE = 10.0  # seconds that a child has to finish its step and to save after SIGTERM


class Job(NamedTuple):  # Hydra loads plugins in a way that dataclasses do not bear
    """``overrides``: of the task; ``folder``: where its results go."""

    overrides: tuple[str, ...]
    config: DictConfig
    folder: Path

    def result(self) -> dict | None:
        """What the job wrote as its last act; None if it has not finished, or if that is damaged."""
        return result(self.folder)


class ProcessPool(Launcher):
    """``devices``: one lease per entry ("0", or "2,3" for two GPUs a job); null: every GPU, or the CPU.

    ``jobs``: processes side by side on the CPU; null: one per two cores.
    """

    def __init__(self, devices: Sequence[str] | None, jobs: int | None) -> None:
        self.leases = _leases(devices, jobs)
        self.children: set[subprocess.Popen] = set()
        self.stopping = threading.Event()

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
        with _interruptible():
            try:
                causes = self._run_all(jobs)
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

    def _run_all(self, jobs: Sequence[Job]) -> dict[Path, str]:
        """The cause of every failure, by folder."""
        from tqdm import tqdm

        waiting = [job for job in jobs if job.result() is None]
        free: queue.Queue[dict] = queue.Queue()
        for lease in self.leases:
            free.put(lease)
        causes: dict[Path, str] = {}
        bar = tqdm(total=len(jobs), initial=len(jobs) - len(waiting), desc="sweep", unit="job")

        def run(job: Job) -> None:
            lease = free.get()
            try:
                cause = None if self.stopping.is_set() else self._run(job, lease)
            except Exception as error:  # a full disk, say: this job failed, the others may not
                cause = f"{type(error).__name__}: {error}"
            finally:
                free.put(lease)
            if cause:
                causes[job.folder] = cause
                bar.set_postfix(failed=len(causes))
            if not self.stopping.is_set():  # what a Ctrl-C ended, or kept from beginning, is not done
                bar.update()

        with ThreadPoolExecutor(len(self.leases)) as pool, bar:
            try:
                for future in [pool.submit(run, job) for job in waiting]:
                    future.result()
            except KeyboardInterrupt:
                self._stop()  # before the threads are waited for, which wait for the children
                raise
        return causes

    # ------------------------------------------------------------------------------------------------- one job
    def _run(self, job: Job, lease: dict[str, str]) -> str | None:
        """Run one job to its end; the cause if it failed."""
        if (job.folder / "result.json").exists():
            print(f"note: {job.folder}/result.json is damaged; the job goes on from its last checkpoint.", flush=True)
        earlier = _set_aside(job.folder)
        job.folder.mkdir(parents=True)
        resume = [f"resume={_quoted(earlier)}"] if earlier and resumable(earlier) else []
        command = [sys.executable, "-m", _module(), *_config_arguments(), *job.overrides, *resume]
        command.append(f"hydra.run.dir={_quoted(job.folder)}")
        log = job.folder / "stdout.log"
        with _locked(lease.get("CUDA_VISIBLE_DEVICES")), open(log, "wb") as output:
            # What W&B shows together; the user's own setting wins.
            group = {"WANDB_RUN_GROUP": os.environ.get("WANDB_RUN_GROUP") or job.folder.parent.name}
            child = subprocess.Popen(
                command,
                env={**os.environ, **group, **lease},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self.children.add(child)
            if self.stopping.is_set():  # since this job was taken from the queue
                child.terminate()
            try:
                status = child.wait()
            finally:
                self.children.discard(child)
        return None if status == 0 and job.result() is not None else _cause(log, status)

    def _stop(self) -> None:
        """End all children and what they started (data workers, DDP ranks)."""
        self.stopping.set()
        children = list(self.children)
        for child in children:
            child.terminate()  # itself alone: it saves, for which it needs its data workers
        deadline = time.monotonic() + GRACE
        for child in children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(max(0.0, deadline - time.monotonic()))
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)  # the group outlives its leader where a worker hangs


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


def _leases(devices: Sequence[str] | None, jobs: int | None) -> list[dict[str, str]]:
    """Environment variables of each place where a job can run."""
    if devices is None:
        import torch

        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        every = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
        devices = every if torch.cuda.is_available() else []
    if devices:
        return [{"CUDA_VISIBLE_DEVICES": str(device), LEASED: "1"} for device in devices]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = jobs or max(1, cores // 2)
    return [{"OMP_NUM_THREADS": str(max(1, cores // jobs))} for _ in range(jobs)]


@contextlib.contextmanager
def _locked(devices: str | None) -> Iterator[None]:
    """Hold the lock of every GPU in ``devices``, in one order, so that two sweeps cannot wait for each other."""
    from filelock import FileLock

    with contextlib.ExitStack() as stack:
        for device in sorted((devices or "").split(",")):
            if device:
                stack.enter_context(FileLock(Path(tempfile.gettempdir()) / f"fusion-sweep-gpu-{device}.lock"))
        yield


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM (a batch system's time limit) ends a sweep like Ctrl-C."""

    def interrupt(*_) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _set_aside(folder: Path) -> Path | None:
    """Rename what an unfinished attempt left to ``<folder>~1``, ``~2`` ...; None if there was none."""
    if not folder.exists():
        return None
    number = 1
    while (aside := folder.with_name(f"{folder.name}~{number}")).exists():
        number += 1
    folder.rename(aside)
    return aside


def _quoted(path: Path) -> str:
    """As the value of an override, whatever characters the path has."""
    return QuotedString(str(path), Quote.single).with_quotes()


def _module() -> str:
    return sys.modules["__main__"].__spec__.name


def _config_arguments() -> list[str]:
    """--config-name and the like, which overrides do not hold."""
    arguments, kept = sys.argv[1:], []
    for i, argument in enumerate(arguments):
        if argument.startswith(("--config-", "-cn", "-cd", "-cp")):
            kept += [argument] if "=" in argument else arguments[i : i + 2]
    return kept


def _cause(log: Path, status: int) -> str:
    """Why a job failed, in one line: its own "error:" sentence or the exception at the end of its log."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    said = [line for line in lines if line.startswith(("error: ", "stopped by "))]
    if said:
        return said[-1].removeprefix("error: ")
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    if not shutil.disk_usage(log.parent).free:
        return f"{log.parent} is on a full disk"
    hints = ("Set the environment variable HYDRA_FULL_ERROR",)
    ends = [line for line in lines if not line.startswith(hints)]
    return (ends[-1] if ends else "it said nothing")[:200]


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
