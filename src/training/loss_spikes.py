"""Loss spikes: one bad batch must not undo days of training, nor end them."""

from __future__ import annotations

import statistics
from collections import defaultdict, deque
from collections.abc import Iterable

from torch import Tensor, nn

from src.contracts import Batch
from src.layers.processes import processes, summed

WINDOW = 101  # losses that the median is taken of
ENOUGH = 20  # losses before anything is called a spike


class LossSpikes:
    """Which updates are to be left out: those whose loss exceeds ``factor`` times the running median of its data set.

    Spikes enter the median, too: single ones hardly move it, and a loss that stays high is soon no spike any more, so
    that training cannot stand still.
    """

    def __init__(self, factor: float):
        self.factor = factor
        self.recent: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=WINDOW))
        self.pending = False  # whether the update at work is one to be left out
        self.skipped = 0

    def see(self, dataset: str, loss: float) -> float | None:
        """Take note of a loss; the median that it exceeds by far, or None for an ordinary one."""
        recent = self.recent[dataset]
        median = statistics.median(recent) if len(recent) >= ENOUGH else None
        recent.append(loss)
        if median is None or loss <= self.factor * median:
            return None
        self.pending = True
        return median

    def watch(self, loss: Tensor, batch: Batch, step: int) -> str | None:
        """Mark the update at work when its loss is a spike, and say so. All processes decide by their mean."""
        mean = (summed(loss) / processes()).item()
        median = self.see(batch.dataset, mean)
        if median is None:
            return None
        return (
            f"note: the update at step {step} is left out: the loss {mean:.3g} on the batch of "
            f"{', '.join(batch.ids[:4])} ... is more than {self.factor:g} times the usual {median:.3g}."
        )

    def leave_out(self, parameters: Iterable[nn.Parameter]) -> None:
        """Drop the update that is marked."""
        self.pending = False
        self.skipped += 1
        for parameter in parameters:
            parameter.grad = None  # the optimiser passes over what has none: neither momentum nor decay moves it

    def state_dict(self) -> dict:
        return {"recent": {name: list(losses) for name, losses in self.recent.items()}, "skipped": self.skipped}

    def load_state_dict(self, state: dict) -> None:
        self.skipped = state["skipped"]
        for name, losses in state["recent"].items():
            self.recent[name].extend(losses)
