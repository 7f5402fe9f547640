"""What a run costs: step time, floating-point operations, peak memory. Measured while it trains."""

from __future__ import annotations

import hashlib
import resource
import statistics
import sys
import time

import lightning
import torch
from torch.utils.flop_counter import FlopCounterMode

from src.captioner import Captioner
from src.contracts import Batch

WARMUP_STEPS = 5  # not counted: allocation, first use of kernels


class CostMeter(lightning.Callback):
    """Seconds per step, waiting for data included; pictures seen, and a digest of which ones in which order."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.pictures = 0
        self._batches = hashlib.sha256()
        self._last: float | None = None

    def on_train_batch_end(self, trainer, module, outputs, batch: Batch, index: int) -> None:
        now = time.perf_counter()
        if self._last is not None:
            self.seconds.append(now - self._last)
        self._last = now
        self.pictures += len(batch.ids)
        self._batches.update("\n".join(batch.ids).encode())

    def on_validation_end(self, trainer, module) -> None:
        self._last = None  # the pause of a validation belongs to no step

    def summary(self) -> dict:
        """Median step time in milliseconds (None where nothing was measured), pictures seen, digest of the batches."""
        steady = self.seconds[WARMUP_STEPS:]
        return {
            "step_ms": 1000 * statistics.median(steady) if steady else None,
            "pictures_seen": self.pictures,
            "batches_sha256": self._batches.hexdigest(),  # equal in two runs that were fed alike
        }


def training_flops(captioner: Captioner, batch: Batch) -> int:
    """Floating-point operations of one forward and backward pass on ``batch``; gradients are left empty.

    In eval mode, which costs the same: training mode would move the running statistics of batch norms.
    """
    counter = FlopCounterMode(display=False)
    was_training = captioner.training
    captioner.eval()
    with counter:
        loss, _, terms = captioner.losses(batch)
        total = loss + sum(value for value, _ in terms.values())
        if total.requires_grad:
            total.backward()
    captioner.zero_grad(set_to_none=True)
    captioner.train(was_training)
    return counter.get_total_flops()


def peak_memory_mb() -> float:
    """Highest memory of this process in MiB: on the GPU if one is used, else resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 2**10 if sys.platform == "darwin" else 1  # macOS reports bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit / 2**10
