"""Signals that ask a training to stop: SIGTERM (a batch system, a sweep), SIGINT (Ctrl-C), SIGUSR1 (SLURM's warning).

While a training is under way a signal is only noted: src.training.checkpoints.LastCheckpoint finishes the step, saves,
and ends the process with Stopped. At any other time a signal ends the process at once; then there is nothing to save.
Either way the exit status is 128 + the signal's number, as shells have it: 143 for SIGTERM, 130 for Ctrl-C, 138 for
SIGUSR1.
"""

from __future__ import annotations

import signal
import subprocess
import threading

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Stopped(SystemExit):
    """Ends the process because of the signal ``number``; ``step``: the one that was saved, None outside of training.

    ``first``: whether this is the process that speaks for all. The others end with status 0, since Lightning kills
    the first process when it sees one of them end with another.
    """

    def __init__(self, number: int, step: int | None = None, first: bool = True):
        super().__init__(128 + number if first else 0)
        self.number, self.step, self.first = number, step, first

    def __str__(self) -> str:
        name = signal.Signals(self.number).name
        if self.step is None:
            return f"stopped by {name}; resume=auto goes on from the last checkpoint, if there is one yet."
        return f"stopped by {name} at step {self.step}; resume=auto continues."


class Interrupts:
    """A context in which SIGNALS are handled; what another library handles already (submitit) is left to it.

    ``noted``: number of the signal that came while a training was ``under_way``, or 0. A second Ctrl-C does not wait
    for the step.
    """

    def __init__(self) -> None:
        self.noted, self.under_way = 0, False
        self.before: dict[int, object] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():  # others may not set handlers
            own = (signal.SIG_DFL, signal.default_int_handler)
            self.before = {number: signal.getsignal(number) for number in SIGNALS if signal.getsignal(number) in own}
            self.install()
        return self

    def __exit__(self, kind, error, trace) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if isinstance(error, Stopped) and error.first:
            print(f"\n{error}", flush=True)  # a progress bar stands in the line

    def install(self) -> None:
        for number in self.before:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame) -> None:
        if not self.under_way or number == self.noted == signal.SIGINT:
            raise Stopped(number)
        self.noted = number


def requeue(environment) -> None:
    """Ask SLURM to run this job again; ``environment``: os.environ of a job."""
    job = environment["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in environment:
        job = f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
        cause = done.stderr.strip() if done.returncode else None
    except OSError as error:
        cause = error.strerror
    print(f"\njob {job} is {'queued again' if cause is None else f'not queued again ({cause})'}.", flush=True)
