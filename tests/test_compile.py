"""Compiled training gives the numbers of the plain one, and is compiled once for all lengths of captions."""

from __future__ import annotations

import pytest
import torch
from commands import run
from conftest import FUSIONS, OBJECTIVES, Characters, language_of, make_fusion, make_text, make_visual, viewed
from test_verbs import SMOKE
from torch._dynamo.testing import CompileCounterWithBackend

from src.captioner import Captioner
from src.contracts import Batch, UserError

IN_PIECES = {"show_attend_tell"}  # around its loop over words, which stays as it is
REGIME = {"train_language": True, "train_vision": False}


@pytest.fixture(autouse=True)
def double_precision():
    """Which cached features are brought to."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def make_captioner(name: str, recompute: bool = False) -> Captioner:
    language = language_of(name, layers=2)
    language.recompute = recompute
    fusion = make_fusion(name, language)
    return Captioner(
        None, fusion, language, Characters(), REGIME, {"reduction": "token_mean"}, None, OBJECTIVES
    ).train()


def loss_and_gradients(captioner: Captioner, batch: Batch) -> tuple[torch.Tensor, list[torch.Tensor]]:
    total = captioner.total(batch, captioner.losses(batch))
    trained = [p for p in captioner.parameters() if p.requires_grad]
    return total, torch.autograd.grad(total, trained, allow_unused=True)


@pytest.mark.parametrize(("name", "recompute"), [*((name, False) for name in FUSIONS), ("cross_attention", True)])
def test_equal_and_compiled_once(monkeypatch, name, recompute):
    torch._dynamo.reset()
    counter, plain_compile = CompileCounterWithBackend("eager"), torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, dynamic: plain_compile(f, dynamic=dynamic, backend=counter))
    captioner = make_captioner(name, recompute)
    for module in captioner.modules():  # torch draws other random numbers in compiled code
        for rate in ("p", "dropout"):
            if isinstance(getattr(module, rate, None), float):
                setattr(module, rate, 0.0)
    batches = [
        viewed(Batch([], make_text(6, length, seed), visual=make_visual(3, seed)))
        for seed, length in enumerate((9, 12, 7))
    ]
    expected = [loss_and_gradients(captioner, batch) for batch in batches]
    captioner.compile_training()
    compilations = []
    for batch, (loss, gradients) in zip(batches, expected, strict=True):
        found, mine = loss_and_gradients(captioner, batch)
        torch.testing.assert_close(found, loss, rtol=0, atol=1e-10)
        torch.testing.assert_close(mine, gradients, rtol=0, atol=1e-10)
        compilations.append(counter.frame_count)
    pieces = compilations[0] if name in IN_PIECES else 1
    assert compilations == [pieces] * 3


@pytest.mark.slow
def test_a_whole_training(tmp_path):
    small = ("fusion=blind", "language.model.layers=1", "language.model.width=16", "compile=true")
    run("src.train", *SMOKE, *small, f"hydra.run.dir='{tmp_path}/run'")
    assert (tmp_path / "run" / "result.json").is_file()


def test_where_nothing_can_be_compiled(monkeypatch):
    def broken(*_):
        raise RuntimeError("no working C++ compiler")

    torch._dynamo.reset()
    plain_compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, dynamic: plain_compile(f, dynamic=dynamic, backend=broken))
    captioner = make_captioner("blind")
    captioner.compile_training()
    with pytest.raises(UserError, match=r"does not work on this machine \(.*C\+\+ compiler\); say compile=false"):
        captioner.losses(viewed(Batch([], make_text(6, 5), visual=make_visual(3))))
