"""When training validates, and when it ends by the clock: counted in steps of the optimiser, however many batches are
added up for one."""

from __future__ import annotations

import math

from lightning.pytorch.callbacks import Callback, Timer


class Validations(Callback):
    """Validations spread evenly over training, the last one when it ends: what comes later would be in no checkpoint.

    They are about ``interval`` apart: steps, or a share (a float) of the steps of an epoch. Lightning by itself counts
    batches, the last of which, in an epoch, may make a step of fewer; so it is told after every batch whether now.
    """

    def __init__(self, interval: int | float):
        self.interval = interval
        self.step = self.total = 0  # the last step that was finished; how many there will be
        self.count = 1  # validations in all of training

    def on_train_start(self, trainer, module) -> None:
        self.step, self.total = trainer.global_step, int(trainer.estimated_stepping_batches)
        steps = self.interval
        if isinstance(steps, float):
            steps *= math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        self.count = max(1, round(self.total / steps))
        batches = trainer.fit_loop.epoch_loop.batch_progress.total
        self._tell(trainer, batches.completed == batches.processed)  # gone on with from behind a validation

    def on_train_batch_end(self, trainer, module, outputs, batch, index) -> None:
        stepped, self.step = trainer.global_step > self.step, trainer.global_step
        self._tell(trainer, stepped and is_due(self.step, self.total, self.count))

    @staticmethod
    def _tell(trainer, now: bool) -> None:
        """Lightning validates after batches whose number ``val_check_batch`` divides."""
        trainer.val_check_batch = 1 if now else trainer.fit_loop.total_batch_idx + 2


def is_due(step: int, total: int, count: int) -> bool:
    """Whether one of ``count`` validations, spread evenly over ``total`` steps, comes after ``step``."""
    return step * count // total > (step - 1) * count // total


class TimeLimit(Timer):
    """``trainer.max_time``, looked at after steps only: batches of an unfinished one would have been for nothing."""

    def on_train_batch_end(self, trainer, module, outputs, batch, index) -> None:
        if not trainer.fit_loop.epoch_loop._should_accumulate():
            super().on_train_batch_end(trainer, module, outputs, batch, index)
