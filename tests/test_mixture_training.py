"""Several data sets in one training: the trainer's gradient is the weighted sum, whatever it is combined with."""

from __future__ import annotations

import lightning
import pytest
import torch
from conftest import OBJECTIVES, VISION, Characters, make_fusion, make_language, quiet_trainer
from test_captioner import OPTIM, Pixels
from test_documents import mixture

from src.captioner import Captioner
from src.decoding.greedy import Greedy
from src.training.optimiser import reduction

WEIGHTS = {"pairs": 2.0, "stories": 0.5}


class Recorder(lightning.Callback):
    """The gradient of every step, as the optimiser gets it."""

    def __init__(self):
        self.gradients = []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.gradients.append([p.grad.clone() for p in module.parameters() if p.grad is not None])


def make(reduction="token_mean"):
    language = make_language(context=128)
    vision = Pixels().double()
    vision.spec = VISION
    rates = {"lr_fusion": 0.01, "lr_language": 0.001, "lr_vision": 0.002, "train_language": True, "train_vision": True}
    fusion = make_fusion("flamingo", language, "fusion.resampler_layers=1", "fusion.latents=3")
    captioner = Captioner(
        vision,
        fusion,
        language,
        Characters(),
        rates,
        {**OPTIM, "reduction": reduction},
        Greedy(8),
        OBJECTIVES,
        tagged=True,
    )
    return captioner.eval()


def data(schedule="accumulate", **weights):
    mixed = mixture(schedule, **weights)
    for member in mixed.members.values():
        member.image_size = 12 * 4  # what the small encoder of these tests can cut into blocks
        member.objectives = OBJECTIVES
    return mixed


def train(captioner, mixed, steps=1, accumulate=1, clip=None):
    recorder = Recorder()
    trainer = quiet_trainer(
        max_steps=steps,
        accumulate_grad_batches=accumulate * mixed.batches_per_update,
        gradient_clip_val=clip,
        limit_val_batches=0,
        callbacks=[recorder],
    )
    trainer.fit(captioner, datamodule=mixed)
    return recorder.gradients, trainer


def gradient_of(captioner, losses):
    """One backward pass on a sum of losses."""
    captioner.zero_grad()
    sum(losses).backward()
    return [p.grad.clone() for p in captioner.parameters() if p.grad is not None]


def batches(n):
    loader = iter(data().train_dataloader())
    return [next(loader) for _ in range(n)]


def assert_same(one, two):
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_sum"])
def test_an_update_follows_the_weighted_sum(reduction):
    (got,), trainer = train(make(reduction), data())
    twin = make(reduction)

    def value(batch):
        loss, targets = twin.text_loss(batch)
        return loss * (targets / len(batch.text.ids_BT) if reduction == "sequence_sum" else 1)

    assert_same(got, gradient_of(twin, [WEIGHTS[b.dataset] * value(b) for b in batches(2)]))
    assert {"train/pairs/loss", "train/stories/loss"} <= set(trainer.callback_metrics)


def test_accumulation_over_updates_is_the_mean_of_their_sums():
    (got,), _ = train(make(), data(), accumulate=2)
    twin = make()
    assert_same(got, gradient_of(twin, [WEIGHTS[b.dataset] * twin.text_loss(b)[0] / 2 for b in batches(4)]))


def test_the_sum_is_clipped_once():
    (got,), _ = train(make(), data(), clip=0.01)
    assert torch.linalg.vector_norm(torch.cat([g.flatten() for g in got])) > 0.01  # recorded before clipping
    captioner = make()
    captioner.configure_gradient_clipping = _Norms(captioner.configure_gradient_clipping)
    train(captioner, data(), clip=0.01)
    assert captioner.configure_gradient_clipping.calls == 1


class _Norms:
    def __init__(self, clip):
        self.clip, self.calls = clip, 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        return self.clip(*args, **kwargs)


def test_round_robin_is_not_the_sum():
    got, _ = train(make(), data("round_robin"), steps=2)
    twin = make()
    first, _ = batches(2)
    assert_same(got[0], gradient_of(twin, [WEIGHTS["pairs"] * twin.text_loss(first)[0]]))
    (summed,), _ = train(make(), data())
    assert max((a - b).abs().max() for a, b in zip(got[0], summed, strict=True)) > 1e-6


def test_weight_zero_equals_leaving_the_data_set_out():
    (without,), _ = train(make(), data(pairs=1.0, stories=0.0))
    twin = make()
    assert_same(without, gradient_of(twin, [twin.text_loss(batches(1)[0])[0]]))


def test_token_mean_is_over_the_tokens_of_all_processes(monkeypatch):
    """Two processes with 3 and 9 tokens: the mean of their scaled losses is the mean over all 12."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    counts, means = (3, 9), (5.0, 1.0)
    scaled = []
    for mine, other, mean in zip(counts, counts[::-1], means, strict=True):
        monkeypatch.setattr(torch.distributed, "all_reduce", lambda x, other=other: x.add_(other))
        scaled.append(float(reduction("token_mean", torch.tensor(mine), rows=2)) * mean)
    assert sum(scaled) / 2 == pytest.approx((3 * 5.0 + 9 * 1.0) / 12)
