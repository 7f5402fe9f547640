"""Weights laid out once give the same numbers, see no other weights, and leave nothing behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import GPT2Config
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP
from transformers.pytorch_utils import Conv1D

from src.layers.laid_out import FLOAT32_FROM, laid_out

here = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()),
    reason="this processor has no products in bfloat16",
)


def layers() -> nn.ModuleList:
    torch.manual_seed(0)
    conv = Conv1D(24, 16)
    nn.init.normal_(conv.bias)
    return nn.ModuleList([nn.Linear(16, 40), nn.Linear(16, 8, bias=False), conv])


def autocast() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


@here
@pytest.mark.parametrize("shape", [(16,), (1, 16), (5, 16), (2, 3, 7, 16)])
def test_laid_out_layers_give_what_autocast_gives(shape):
    modules, x = layers(), torch.randn(shape)
    with torch.no_grad(), autocast():
        plain = [layer(x) for layer in modules]
        with laid_out(modules):
            assert all("forward" in vars(layer) for layer in modules)
            found = [layer(x) for layer in modules]
    for one, other in zip(plain, found, strict=True):
        assert one.dtype == other.dtype == torch.bfloat16 and one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=2**-7, atol=2**-7)  # the last bit of bfloat16, and sums near 0


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch is built without oneDNN")
@pytest.mark.parametrize("shape", [(512,), (16, 512), (2, 3, 512)])
def test_in_single_precision_the_large_ones_are_laid_out(shape):
    torch.manual_seed(0)
    large, small = FLOAT32_FROM // 512, FLOAT32_FROM // 512 - 1
    modules = nn.ModuleList([nn.Linear(512, large), nn.Linear(512, large, bias=False), Conv1D(large, 512)])
    nn.init.normal_(modules[2].bias)
    modules.append(nn.Linear(512, small))
    x = torch.randn(shape)
    with torch.no_grad():
        plain = [layer(x) for layer in modules]
        with laid_out(modules):
            assert ["forward" in vars(layer) for layer in modules] == [True, True, True, False]
            found = [layer(x) for layer in modules]
    for one, other in zip(plain, found, strict=True):
        assert other.dtype == torch.float32 and one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)  # sums in another order
    assert not any("forward" in vars(layer) for layer in modules)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch is built without oneDNN")
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=here)])
@pytest.mark.parametrize("activation", ["gelu_pytorch_tanh", "gelu_new", "relu"])
def test_gelu_is_applied_once_and_only_where_it_is_that_of_tanh(dtype, activation):
    torch.manual_seed(0)
    mlp = GPT2MLP(2048, GPT2Config(n_embd=256, activation_function=activation)).eval()
    nn.init.normal_(mlp.c_fc.weight, std=0.1)  # so that much lies where GELU bends
    nn.init.normal_(mlp.c_fc.bias)
    x = torch.randn(5, 3, 256)
    tolerance = 1e-5 if dtype == torch.float32 else 2**-6
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        plain, inner = mlp(x), mlp.act(mlp.c_fc(x))
        with laid_out(mlp):
            assert ("forward" in vars(mlp.act)) == (activation == "gelu_pytorch_tanh")
            torch.testing.assert_close(mlp.act(mlp.c_fc(x)), inner, rtol=tolerance, atol=tolerance)
            found = mlp(x)
        assert not any("forward" in vars(layer) for layer in mlp.modules())
    torch.testing.assert_close(found, plain, rtol=tolerance, atol=tolerance)


def test_weights_in_double_precision_stay_where_they_are():
    modules = nn.ModuleList([nn.Linear(512, FLOAT32_FROM // 512).double()])
    with torch.no_grad(), laid_out(modules):
        assert "forward" not in vars(modules[0])


@here
def test_weights_changed_afterwards_count_and_errors_leave_nothing_behind():
    modules, x = layers(), torch.randn(3, 16)
    with torch.no_grad(), autocast():
        with pytest.raises(KeyboardInterrupt), laid_out(modules):
            raise KeyboardInterrupt
        assert not any("forward" in vars(layer) for layer in modules)
        before = modules[0](x)
        modules[0].weight.zero_(), modules[0].bias.zero_()
        with laid_out(modules, modules[:1]):  # a layer that two of them share
            assert not modules[0](x).any() and before.any()
        assert not any("forward" in vars(layer) for layer in modules)


@pytest.mark.parametrize("mode", ["single precision", "half precision", "gradients"])
def test_elsewhere_nothing_changes(mode):
    modules = layers()
    kind = torch.autocast("cpu", torch.float16 if mode == "half precision" else torch.bfloat16)
    with torch.set_grad_enabled(mode == "gradients"), kind:
        with torch.autocast("cpu", enabled=mode != "single precision", dtype=torch.get_autocast_dtype("cpu")):
            with laid_out(modules):
                assert not any("forward" in vars(layer) for layer in modules)


@here
def test_slices_of_weights_stay_where_they_are():
    class Slice(torch.Tensor):
        """As DTensor, which fsdp puts in the place of a parameter."""

    modules = layers()
    for layer in modules:
        layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Slice))
    with torch.no_grad(), autocast(), laid_out(modules):
        assert not any("forward" in vars(layer) for layer in modules)


@here
def test_a_tied_output_matrix_stays_the_embedding():
    embedding, head = nn.Embedding(9, 16), nn.Linear(16, 9, bias=False)
    head.weight = embedding.weight
    with torch.no_grad(), autocast(), laid_out(nn.ModuleList([embedding, head])):
        assert head.weight is embedding.weight
        logits = head(embedding(torch.tensor([4])))
    torch.testing.assert_close(logits.float(), (embedding.weight[4] @ embedding.weight.T)[None], rtol=0.02, atol=0.05)
