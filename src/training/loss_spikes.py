"""Loss spikes: one bad batch must not undo days of training, nor end them."""

from __future__ import annotations

import statistics
from collections import defaultdict, deque

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

    def state_dict(self) -> dict:
        return {"recent": {name: list(losses) for name, losses in self.recent.items()}, "skipped": self.skipped}

    def load_state_dict(self, state: dict) -> None:
        self.skipped = state["skipped"]
        for name, losses in state["recent"].items():
            self.recent[name].extend(losses)
