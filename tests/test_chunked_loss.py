"""The loss in pieces equals the loss at once: value, gradients, and what must not get any."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from src.layers import chunked_loss
from src.layers.chunked_loss import summed_cross_entropy


class Readout(nn.Module):
    """Two matrices and a norm, one of them frozen, one parameter that is never used."""

    def __init__(self, dtype):
        super().__init__()
        self.norm, self.W = nn.LayerNorm(6, dtype=dtype), nn.Linear(6, 40, bias=False, dtype=dtype)
        self.frozen = nn.Linear(6, 40, dtype=dtype).requires_grad_(False)
        self.unused = nn.Parameter(torch.zeros(3, dtype=dtype))

    def forward(self, h):
        return self.W(self.norm(h)) + self.frozen(h)


@pytest.mark.parametrize("rows", [1, 7, 10, 24])
def test_equal_to_the_plain_loss(monkeypatch, rows):
    monkeypatch.setattr(chunked_loss, "PIECE", rows * 40)
    torch.manual_seed(0)
    readout = Readout(torch.float64)
    h, t = torch.randn(25, 6, dtype=torch.float64, requires_grad=True), torch.randint(40, (25,))
    wanted = (h, readout.norm.weight, readout.norm.bias, readout.W.weight)
    plain = F.cross_entropy(readout(h), t, reduction="sum") / 25 * 3
    expected = torch.autograd.grad(plain, wanted)
    (3 * summed_cross_entropy(readout, h, t, readout.parameters(), 40) / 25).backward()
    for parameter, grad in zip(wanted, expected, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=0, atol=1e-12)
    assert readout.unused.grad is None and readout.frozen.weight.grad is None
    with torch.no_grad():
        torch.testing.assert_close(summed_cross_entropy(readout, h, t, readout.parameters(), 40), plain / 3 * 25)


def test_never_all_logits_at_once(monkeypatch):
    monkeypatch.setattr(chunked_loss, "PIECE", 400)
    readout, seen = Readout(torch.float32), []
    readout.W.register_forward_hook(lambda _, given, logits: seen.append(logits.numel()))
    h = torch.randn(95, 6, requires_grad=True)
    summed_cross_entropy(readout, h, torch.randint(40, (95,)), readout.parameters(), 40).backward()
    assert max(seen) == 400 and len(seen) == 10  # once each: nothing is computed again in the backward pass


def test_in_half_precision_as_close_as_the_plain_loss(monkeypatch):
    torch.manual_seed(0)
    readout = Readout(torch.float32)
    h, t = torch.randn(64, 6, requires_grad=True), torch.randint(40, (64,))
    with torch.autocast("cpu", torch.bfloat16):
        plain = F.cross_entropy(readout(h).float(), t, reduction="sum")
        expected = torch.autograd.grad(plain, (h, readout.W.weight))
        monkeypatch.setattr(chunked_loss, "PIECE", 400)
        loss = summed_cross_entropy(readout, h, t, readout.parameters(), 40)
    loss.backward()
    torch.testing.assert_close(loss, plain, rtol=1e-6, atol=0)
    torch.testing.assert_close(h.grad, expected[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(readout.W.weight.grad, expected[1], rtol=2e-2, atol=2e-2)  # sums of bfloat16 products


def test_operations_are_counted_as_those_of_the_plain_loss(monkeypatch):
    readout = Readout(torch.float32)
    h, t = torch.randn(32, 6, requires_grad=True), torch.randint(40, (32,))
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(readout(h), t, reduction="sum").backward()
    plain = counter.get_total_flops()
    for piece in (2**24, 400):
        monkeypatch.setattr(chunked_loss, "PIECE", piece)
        with FlopCounterMode(display=False) as counter:
            summed_cross_entropy(readout, h, t, readout.parameters(), 40).backward()
        assert counter.get_total_flops() == plain > 0
