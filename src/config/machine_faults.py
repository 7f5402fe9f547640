"""A GPU that fails in the middle of the work or is full, a killed data worker: one sentence, and how to go on."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from src.errors import UserError
from src.records.folder import resumable

FULL = r"out of memory|(CUBLAS|CUDNN)_STATUS_ALLOC_FAILED"
# What torch and its libraries say when a device does not answer, is gone, or cannot be reached any more.
FAILED = (
    r"CUDA (driver )?error|HIP error|CUDNN_STATUS|cuDNN error|CUBLAS_STATUS|cuBLAS|CUSOLVER_STATUS|NCCL|"
    r"No CUDA GPUs are available|CUDA driver initialization|no CUDA-capable device|No supported gpu backend"
)
WORKER = r"DataLoader worker \(pid"  # what torch says when one is gone, in whatever the main process does just then
LONGEST = 200  # characters of what the library says


@contextmanager
def explaining_machine_faults(run: Path | None = None) -> Iterator[None]:
    """Around work on a GPU, or with data workers: what goes wrong with those becomes a UserError.

    ``run``: the folder of a training, which can go on from its last checkpoint. With CUDA_LAUNCH_BLOCKING=1 errors are
    left as they are: their traceback then says where they came from.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        cause = machine_fault(error)
        if cause is None or os.environ.get("CUDA_LAUNCH_BLOCKING") == "1":
            raise
        raise UserError(_sentence(" ".join(str(cause).split("\n")[0].split())[:LONGEST], run)) from error


def machine_fault(error: BaseException) -> BaseException | None:
    """The error that came first from a GPU or a worker, among ``error`` and those before it; None where none did.

    A GPU that has failed fails again at all that is tried with it, such as taking the model off it.
    """
    found = None
    while error is not None:
        if _from_machine(error):
            found = error
        error = error.__cause__ or error.__context__
    return found


def _from_machine(error: BaseException) -> bool:
    if type(error).__name__ in ("AcceleratorError", "OutOfMemoryError"):  # torch's, which is not imported for this
        return True
    return isinstance(error, Exception) and re.search(f"CUDA {FULL}|{FAILED}|{WORKER}", str(error)) is not None


def _sentence(said: str, run: Path | None) -> str:
    if re.search(WORKER, said):
        what = f"A process that loads data was ended from outside ({said})."
        advice = "Mostly the machine's memory was full: take fewer of them (data.workers) or a smaller data.batch_size."
    elif re.search(FULL, said):
        what, advice = f"The memory of the GPU is not enough ({said}).", "Work with smaller batches."
        if run is not None:
            advice = (
                "language.recompute=true needs less and changes no result; or begin anew with half of data.batch_size "
                "and trainer.accumulate_grad_batches=2."
            )
    else:
        what = f"The GPU failed ({said})."
        advice = (
            "nvidia-smi lists those that answer; if it fails again at the same place, the environment variable "
            "CUDA_LAUNCH_BLOCKING=1 shows which operation it is."
        )
    if run is None:
        return f"{what} {advice}"
    kept = f"The last checkpoint is kept in {run}/checkpoints, and the same command with resume=auto goes on from it."
    return f"{what} {kept if resumable(run) else 'There is no checkpoint yet; give the command again.'} {advice}"
