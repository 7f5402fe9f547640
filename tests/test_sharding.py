"""Training with sharded weights gives the gradients, checkpoints and results of training without."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import FUSIONS, OBJECTIVES, Characters, language_of, make_fusion, make_text, make_visual, viewed
from torch import distributed, nn

from src.captioner import Captioner
from src.contracts import Batch, UserError
from src.language.adapters import adapt
from src.layers import chunked_loss
from src.training.sharding import shard, whole

EXACT = {"rtol": 0, "atol": 1e-10}
PROCESSES = 2
VARIANTS = [
    *((name, True, False, 2**24) for name in FUSIONS),
    ("cross_attention", False, False, 2**24),  # language model frozen
    ("cross_attention", "adapted", True, 2**24),  # and with adapters
    ("cross_attention", True, True, 2**24),  # blocks computed again
    ("vcgpt", True, False, 131 * 4),  # loss in pieces
]


class Step(Captioner):
    """A captioner whose training step is the loss alone: no trainer."""

    def training_step(self, batch: Batch) -> torch.Tensor:
        return self.total(batch, self.losses(batch))


def make_captioner(name: str, tuned: bool | str, recompute: bool) -> Captioner:
    language = language_of(name, layers=2)
    language.recompute = recompute
    regime = {"train_language": tuned is True, "train_vision": False}
    how = {"reduction": "token_mean"}
    captioner = Step(None, make_fusion(name, language), language, Characters(), regime, how, None, OBJECTIVES)
    if tuned == "adapted":
        adapt(language, rank=2, alpha=2.0, targets="all")
    return captioner


def make_batch(process: int) -> Batch:
    return viewed(Batch([], make_text(4, 8, seed=process), visual=make_visual(2, seed=10 + process)))


def compare_all() -> None:
    """One of two processes: sharded gradients against the mean of both batches' in one model."""
    torch.set_default_dtype(torch.float64)
    distributed.init_process_group("gloo")
    mesh = distributed.device_mesh.init_device_mesh("cpu", (PROCESSES,))
    for name, tuned, recompute, piece in VARIANTS:
        chunked_loss.PIECE = piece
        plain, sharded = (make_captioner(name, tuned, recompute).eval() for _ in range(2))
        expected = torch.stack([plain.training_step(make_batch(process)) for process in range(PROCESSES)]).mean()
        expected.backward()
        shard(sharded, mesh)
        kept = sum(whole_or_slice.to_local().numel() for whole_or_slice in sharded.parameters())
        total = sum(parameter.numel() for parameter in plain.parameters())
        assert kept < 0.6 * total, f"{name}: this process keeps {kept} of {total} numbers"
        loss = sharded.training_step(make_batch(distributed.get_rank()))
        loss.backward()
        distributed.all_reduce(loss.detach_())
        torch.testing.assert_close(loss / PROCESSES, expected.detach(), **EXACT)
        for (key, mine), parameter in zip(sharded.named_parameters(), plain.parameters(), strict=True):
            assert (mine.grad is None) == (parameter.grad is None), f"{name}: {key}"
            if parameter.grad is not None:
                gap = (whole(mine.grad) - parameter.grad).abs().max()
                assert gap < 1e-10, f"{name}: {key} differs by {gap}"
        norms = [whole(nn.utils.clip_grad_norm_(one.parameters(), 0.1)) for one in (plain, sharded)]
        torch.testing.assert_close(*norms, **EXACT)
        print(f"equal: {name} {tuned} {recompute} {piece}", flush=True)
    distributed.destroy_process_group()


def test_gradients_of_all_mechanisms():
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={PROCESSES}", "--standalone", __file__]
    paths = os.pathsep.join(map(str, (Path(__file__).parent, Path(__file__).parents[1])))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.count("equal: ") == PROCESSES * len(VARIANTS)


def test_single_numbers_are_named():
    captioner = make_captioner("clipcap", True, False)
    captioner.fusion.gain = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(UserError, match=r"fusion\.gain is a single number.*shape \(1,\)"):
        shard(captioner, None)


if __name__ == "__main__":
    compare_all()
