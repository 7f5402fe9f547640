"""The short-row path of attention on CPUs is the fused kernel's function, gradients included."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from src.layers import attention as module
from src.layers.attention import attention
from src.layers.dropout import dropout


def rows(heads=4, kv_heads=4, T=6, S=6):
    g = torch.Generator().manual_seed(0)
    shapes = ((2, heads, T, 8), (2, kv_heads, S, 8), (2, kv_heads, S, 8))
    return [torch.randn(shape, generator=g, dtype=torch.float64, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("case", ["plain", "causal", "bias", "grouped", "scaled"])
def test_short_rows_equal_the_fused_kernel(case, monkeypatch):
    q, k, v = rows(kv_heads=2 if case == "grouped" else 4, S=9 if case == "bias" else 6)
    options = {}
    if case == "bias":
        options["bias"] = torch.randn(2, 1, 1, 9, dtype=torch.float64)
    if case in ("causal", "grouped"):
        options["causal"] = True
    if case == "scaled":
        options["scale"] = 0.7
    fused = attention(q, k, v, **options)
    monkeypatch.setattr(module, "_as_products", lambda *_: True)
    short = attention(q, k, v, **options)
    torch.testing.assert_close(short, fused, rtol=0, atol=1e-6)  # the softmax of the short path is float32
    cotangent = torch.randn_like(fused)
    for one, other in zip(*(torch.autograd.grad(x, (q, k, v), cotangent) for x in (short, fused)), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_dropout_of_short_rows_keeps_the_mean(monkeypatch):
    monkeypatch.setattr(module, "_as_products", lambda *_: True)
    q, k, v = (x.detach().float() for x in rows())
    many = torch.stack([attention(q, k, v, dropout=0.3) for _ in range(3000)])
    assert (many.mean(0) - F.scaled_dot_product_attention(q, k, v)).abs().max() < 0.1
    assert many.std(0).mean() > 0.1


def test_bfloat16_and_dropout_are_matrix_products_but_for_long_texts():
    q, k, _ = (x.detach().float() for x in rows())
    assert not module._as_products(q, k, 0.0) and module._as_products(q, k, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        assert module._as_products(q, k, 0.0)
        long = torch.empty(1, 1, 8192, 8)
        assert not module._as_products(long, long, 0.0) and module._as_products(long, long, 0.1)
        with torch.no_grad():  # decoding
            assert module._as_products(q, k, 0.0)


def test_dropout_keeps_the_mean_drops_the_share_and_follows_the_seed():
    x = torch.ones(200, 1000, requires_grad=True)
    torch.manual_seed(5)
    once = dropout(x, 0.2, training=True)
    assert (once == 0).float().mean() == pytest.approx(0.2, abs=4e-3)
    assert once.mean().item() == pytest.approx(1, abs=5e-3)
    once.sum().backward()
    assert torch.equal(x.grad, once.detach())  # the gradient passes where the value passed
    twice = dropout(x, 0.2, training=True)
    torch.manual_seed(5)
    assert not torch.equal(once, twice) and torch.equal(once, dropout(x, 0.2, training=True))
    assert dropout(x, 0.2, training=False) is x
