"""Nothing that was trained is in no checkpoint: the last validation comes when training ends, whatever ends it."""

from __future__ import annotations

import itertools

import lightning
import pytest
import torch
from conftest import quiet_trainer
from test_captioner import make_batch, make_captioner
from torch.utils.data import DataLoader

from src.training.checkpoints import LastCheckpoint
from src.training.signals import Interrupts
from src.training.validations import TimeLimit, Validations, is_due

BATCHES = [make_batch(seed=seed) for seed in range(13)]  # an epoch, which neither 2 nor 4 divides


class Recorder(lightning.Callback):
    """Steps after which validation ran."""

    def __init__(self):
        self.steps = []

    def on_validation_end(self, trainer, module):
        self.steps.append(trainer.global_step)


def loader(batches):
    return DataLoader(batches, batch_size=None)


def train(folder, interval, batches=BATCHES, callbacks=(), **options):
    """Steps after which validation ran, in a training put together as src.train does it."""
    recorder, last = Recorder(), LastCheckpoint(folder, Interrupts(), again=False)
    trainer = quiet_trainer(
        callbacks=[Validations(interval), *callbacks, recorder, last],
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        enable_checkpointing=True,
        **{"max_epochs": -1, **options},
    )
    module = make_captioner("clipcap")
    trainer.fit(module, loader(batches), loader(BATCHES[:1]))
    assert torch.load(last.path, weights_only=True)["global_step"] == trainer.global_step == recorder.steps[-1]
    return recorder.steps


@pytest.mark.parametrize("batches", [1, 2, 4, 8, 20])
def test_runs_that_differ_in_accumulation_alone_validate_at_the_same_steps(batches, tmp_path):
    assert train(tmp_path, 3, accumulate_grad_batches=batches, max_steps=10) == [4, 7, 10]


@pytest.mark.parametrize(
    ("options", "interval", "steps"),
    [
        ({"max_epochs": 2}, 20, [26]),
        ({"max_epochs": 2, "accumulate_grad_batches": 4}, 3, [3, 6, 8]),  # 4 steps an epoch, of 4, 4, 4 and 1 batches
        ({"max_epochs": 2, "accumulate_grad_batches": 2, "limit_train_batches": 5}, 2, [2, 4, 6]),
        ({"max_epochs": 2, "max_steps": 9, "accumulate_grad_batches": 2}, 1000, [9]),
        ({"max_epochs": 3, "overfit_batches": 2}, 1, [1, 2, 3, 4, 5, 6]),
        ({"max_epochs": 2, "accumulate_grad_batches": 2}, 1.0, [7, 14]),  # shares of an epoch
        ({"max_epochs": 2}, 0.5, [7, 13, 20, 26]),
        ({"max_steps": 20}, 1.0, [10, 20]),
    ],
)
def test_the_last_validation_comes_at_the_end(options, interval, steps, tmp_path):
    assert train(tmp_path, interval, **options) == steps


@pytest.mark.parametrize(("wanted", "total"), [(500, 1500), (500, 1300), (500, 4), (187, 750), (3, 10), (1, 7)])
def test_validations_are_spread_evenly(wanted, total):
    count = max(1, round(total / wanted))
    steps = [0, *(step for step in range(1, total + 1) if is_due(step, total, count))]
    gaps = {b - a for a, b in itertools.pairwise(steps)}
    assert steps[-1] == total and len(steps) == count + 1 and max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("batches", [1, 3])
def test_a_limit_in_time_ends_training_after_a_step_with_a_validation(batches, tmp_path, monkeypatch):
    limit = TimeLimit("00:01:00:00")
    elapsed = iter(range(0, 10**6, 20 * 60))  # 20 minutes from one look at the clock to the next; one is at the start
    monkeypatch.setattr(limit, "time_elapsed", lambda *_: next(elapsed))
    assert train(tmp_path, 100, callbacks=[limit], max_steps=50, accumulate_grad_batches=batches) == [3]


def test_an_update_of_fewer_batches_is_their_mean(tmp_path):
    """Else the last step of an epoch of 6 batches, in fours, would go half of the way."""
    held = [BATCHES[:4], BATCHES[4:6]]

    updates = []

    class Still(lightning.Callback):
        """The gradients of one and the same model: without any the optimiser passes over its parameters."""

        def on_before_optimizer_step(self, trainer, module, optimizer):
            updates.append([p.grad.clone() for p in module.parameters() if p.grad is not None])
            optimizer.zero_grad()

    train(tmp_path, 100, BATCHES[:6], [Still()], accumulate_grad_batches=4, max_epochs=1)
    twin = make_captioner("clipcap")
    for batches, gradients in zip(held, updates, strict=True):
        twin.zero_grad()
        (sum(twin.text_loss(batch)[0] for batch in batches) / len(batches)).backward()
        own = [p.grad for p in twin.parameters() if p.grad is not None]
        torch.testing.assert_close(gradients, own)
