"""What a run costs: step time and peak memory. Measured while it trains."""

from __future__ import annotations

import hashlib
import resource
import statistics
import sys
import time

import lightning
import torch

from src.contracts import Batch

WARMUP_STEPS = 5  # not counted: allocation, first use of kernels


class CostMeter(lightning.Callback):
    """Seconds per step, and how many of them are no training; pictures seen, and a digest of which in which order.

    All of it goes on where it stood when training is resumed.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.waits: list[float] = []  # from the end of one step to the beginning of the next: data, and Lightning
        self.pictures = 0
        self.total = 0.0
        self._batches = ""
        self._started: float | None = None
        self._last: float | None = None

    def on_train_start(self, trainer, module) -> None:
        self._started = time.perf_counter()

    def on_train_batch_start(self, trainer, module, batch: Batch, index: int) -> None:
        if self._last is not None:
            self.waits.append(time.perf_counter() - self._last)

    def on_train_batch_end(self, trainer, module, outputs, batch: Batch, index: int) -> None:
        now = time.perf_counter()
        if self._last is not None:
            self.seconds.append(now - self._last)
        self._last = now
        self.pictures += len(batch.ids)
        self._batches = hashlib.sha256("\n".join([self._batches, *batch.ids]).encode()).hexdigest()

    def on_validation_end(self, trainer, module) -> None:
        self._last = None  # the pause of a validation belongs to no step

    def on_train_end(self, trainer, module) -> None:
        self.total, self._started = self._so_far(), None

    def _so_far(self) -> float:
        return self.total + (time.perf_counter() - self._started if self._started else 0.0)

    def state_dict(self) -> dict:
        return {
            "seconds": self.seconds,
            "waits": self.waits,
            "pictures": self.pictures,
            "total": self._so_far(),
            "batches": self._batches,
        }

    def load_state_dict(self, state_dict: dict) -> None:
        self.seconds, self.waits = list(state_dict["seconds"]), list(state_dict.get("waits", []))
        self.pictures = state_dict["pictures"]
        self.total, self._batches = state_dict["total"], state_dict["batches"]

    def summary(self) -> dict:
        """Seconds of training, median step and median wait before it in milliseconds (None where nothing was measured),
        pictures, digest."""
        steady, waits = self.seconds[WARMUP_STEPS:], self.waits[WARMUP_STEPS:]
        return {
            "train_seconds": self.total,
            "step_ms": 1000 * statistics.median(steady) if steady else None,
            "wait_ms": 1000 * statistics.median(waits) if waits else None,
            "pictures_seen": self.pictures,
            "batches_sha256": self._batches,  # equal in two runs that were fed alike
        }


def peak_memory_mb() -> float:
    """Highest memory of this process in MiB: on the GPU if one is used, else resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 2**10 if sys.platform == "darwin" else 1  # macOS reports bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit / 2**10
