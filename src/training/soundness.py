"""Stops before damage is done: rows that would be read wrongly, numbers that are none."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from src.contracts import Text, UserError
from src.layers.processes import averaged
from src.objectives.base import Limit

WINDOW = 100  # batches over which what is bad has to last
DIVERGED = "lower the learning rates (regime.lr_*)"  # what is said of every training that has left the numbers


def check_rows(text: Text, vocabulary: int) -> None:
    """Raises UserError for rows that the language model would read wrongly, or could not: of the first batches only,
    since looking at a device's numbers waits for it."""
    begins_late_B = text.valid_BT.int().diff(dim=1).gt(0).any(1) | ~text.valid_BT[:, 0]
    if not text.ragged and begins_late_B.any():
        raise UserError("A row of the batch has padding before its text; texts to learn from are padded at their end.")
    if text.ids_BT.min() < 0 or text.ids_BT.max() >= vocabulary:
        raise UserError(
            f"The batch has token ids from {text.ids_BT.min()} to {text.ids_BT.max()}, and the language model knows "
            f"0 to {vocabulary - 1}; use the tokenizer that belongs to the model."
        )


def require_finite(what: str, values: Mapping[str, Tensor], step: int, ids: Sequence[str]) -> None:
    """Raises UserError before infinities reach a checkpoint. ``ids``: of the batch at work."""
    for name, value in values.items():
        if not torch.isfinite(value):
            raise UserError(
                f"The {what} ({name}) is {value.item()} at step {step}, on the batch of {', '.join(ids[:4])} ...; "
                f"{DIVERGED} or use trainer.precision=32-true; the last checkpoint is kept."
            )


class Lasting:
    """Terms that may reach their limit in a batch, but not in the mean of the last ``WINDOW`` ones."""

    def __init__(self, limits: Mapping[str, Limit]):
        self.limits = limits
        self.recent: dict[str, deque[float]] = {name: deque(maxlen=WINDOW) for name in limits}

    def watch(self, terms: Mapping[str, Tensor], step: int) -> None:
        """Raises UserError, in all processes alike, for a term that has been at its limit for too long."""
        for name, limit in self.limits.items():
            recent = self.recent[name]
            recent.append(averaged(terms[name]).item())
            mean = sum(recent) / len(recent)
            if len(recent) == WINDOW and mean >= limit.most:
                raise UserError(
                    f"{limit.said} ({name} {mean:.2f} in the mean of {WINDOW} batches, at step {step}); the last "
                    "checkpoint is kept."
                )


def require_finite_weights(trainer) -> None:
    """Raises UserError for weights that a checkpoint would keep, in place of the last good ones.

    A signal may come before losses are looked at, and gradients may not be clipped. All processes have to ask together.
    """
    trained = ((name, x) for name, x in trainer.lightning_module.named_parameters() if x.requires_grad)
    own = ((name, x.to_local() if isinstance(x, DTensor) else x) for name, x in trained)
    spoilt = next((name for name, x in own if not torch.isfinite(x).all()), None)
    if trainer.strategy.reduce_boolean_decision(spoilt is not None, all=False):  # saving is everybody's
        raise UserError(
            f"{spoilt or 'A part of the weights'} holds nan or infinite numbers after step {trainer.global_step}; this "
            f"is not saved, and the last checkpoint is kept; {DIVERGED} or use trainer.precision=32-true."
        )
