"""Jobs side by side: every one a fresh process with a device of its own; one that was cut off goes on.

A device is leased to one job at a time: on GPUs by a lock file per device, so that two pools on one machine share them;
on CPUs ``jobs`` processes run side by side, each with its part of the cores. Processes rather than one process for all:
CUDA, W&B and DDP (whose child processes repeat the command line) each keep state that one job must not leave to the
next.
"""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig

from src.config.checks import LEASED
from src.records.folder import result, resumable

GRACE = 10.0  # seconds that a child has to finish its step and to save after SIGTERM


class Job(NamedTuple):
    """``overrides``: of the task; ``config``: what they make, where it is known; ``folder``: where its results go."""

    overrides: tuple[str, ...]
    config: DictConfig | None
    folder: Path

    def result(self) -> dict | None:
        """What the job wrote as its last act; None if it has not finished, or if that is damaged."""
        return result(self.folder)


class Pool:
    """``leases``: environment variables of each place where a job can run, see ``leases``; ``command``: what is run
    with a job's overrides behind it. ``minutes``: after which a job that saves when it is told to (SIGTERM) is cut off,
    and goes on in a new process; None: never."""

    def __init__(self, leases: Sequence[dict[str, str]], command: Sequence[str], minutes: float | None = None):
        self.leases, self.command, self.minutes = leases, command, minutes
        self.children: set[subprocess.Popen] = set()
        self.stopping = threading.Event()

    def run(self, jobs: Sequence[Job], then: Callable[[Job], None] | None = None) -> dict[Path, str]:
        """Run all that have no results yet; the cause of every failure, by folder. KeyboardInterrupt stops all.

        ``then``: what is done with every job that has results, while its lease lasts.
        """
        from tqdm import tqdm

        waiting = [job for job in jobs if then or job.result() is None]
        free: queue.Queue[dict] = queue.Queue()
        for lease in self.leases:
            free.put(lease)
        causes: dict[Path, str] = {}
        bar = tqdm(total=len(jobs), initial=len(jobs) - len(waiting), desc="jobs", unit="job")

        def leased(job: Job) -> None:
            lease = free.get()
            try:
                cause = None if self.stopping.is_set() or job.result() else self._to_its_end(job, lease)
                if then and job.result():
                    then(job)
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
                for future in [pool.submit(leased, job) for job in waiting]:
                    future.result()
            except KeyboardInterrupt:
                self._stop()  # before the threads are waited for, which wait for the children
                raise
        return causes

    # ------------------------------------------------------------------------------------------------- one job
    def _to_its_end(self, job: Job, lease: dict[str, str]) -> str | None:
        """Run one job, in as many processes as its time needs; the cause if it failed."""
        while True:
            cause, cut_off = self._run(job, lease)
            if not (cut_off and resumable(job.folder)) or self.stopping.is_set():
                return cause

    def _run(self, job: Job, lease: dict[str, str]) -> tuple[str | None, bool]:
        """One process of a job: the cause if it failed, and whether its time was over."""
        if (job.folder / "result.json").exists():
            print(f"note: {job.folder}/result.json is damaged; the job goes on from its last checkpoint.", flush=True)
        earlier = _set_aside(job.folder)
        job.folder.mkdir(parents=True)
        resume = [f"resume={_quoted(earlier)}"] if earlier and resumable(earlier) else []
        command = [*self.command, *job.overrides, *resume, f"hydra.run.dir={_quoted(job.folder)}"]
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
                status, cut_off = self._wait(child)
            finally:
                self.children.discard(child)
        return (None if status == 0 and job.result() is not None else _cause(log, status)), cut_off

    def _wait(self, child: subprocess.Popen) -> tuple[int, bool]:
        try:
            return child.wait(None if self.minutes is None else 60 * self.minutes), False
        except subprocess.TimeoutExpired:
            child.terminate()
            return child.wait(), True

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


def leases(devices: Sequence[str] | None, jobs: int | None) -> list[dict[str, str]]:
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
def interruptible() -> Iterator[None]:
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
