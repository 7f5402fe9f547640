"""Matrices of weights laid out once for a whole round of captioning, on a CPU.

Products of matrices work on blocks, and torch lays the weights out in blocks anew at every call. With the few rows of a
decoding step that takes as long as the product, or longer (two cores; 16 rows by 1024 x 256 in bfloat16: 71 us; laid
out before, 28 us; 16 rows by 50257 x 768 in float32: 54 ms and 22 ms). The product also applies GPT-2's GELU to what
it has just made, which in bfloat16 takes torch as long as the product itself (80 rows by 1024 x 256 on one core: 470 us
one after the other, 240 us together).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers.activations import GELUTanh
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP
from transformers.pytorch_utils import Conv1D

from src.layers.forwards import replaced

# Elements from which on a matrix in float32 gains: smaller ones stay in a core's cache, however they are laid out.
FLOAT32_FROM = 2**19


class Part(Protocol):
    """A module, or what promises as little of one as a language model does."""

    def modules(self) -> Iterator[nn.Module]: ...


@contextmanager
def laid_out(*parts: Part) -> Iterator[None]:
    """Within, the linear layers of ``parts`` multiply with the weights that they have on entering.

    In bfloat16 where autocast does so and the processor has such products, else in float32, the large ones. The copies
    take as much memory as the weights themselves. On a GPU, and where gradients are wanted, nothing changes.
    """
    dtype = _multiplied_in()
    every = dict.fromkeys(layer for part in parts for layer in part.modules())
    gelus = {mlp.c_fc: mlp.act for mlp in every if type(mlp) is GPT2MLP and type(mlp.act) is GELUTanh}
    found = (layer for layer in every if type(layer) is nn.Linear or type(layer) is Conv1D)
    forwards: dict[nn.Module, Callable[[Tensor], Tensor]] = {
        layer: _laid_out(layer, dtype, gelu=layer in gelus) for layer in found if dtype and _gains(layer.weight, dtype)
    }
    forwards |= {gelu: _unchanged for layer, gelu in gelus.items() if layer in forwards}
    with replaced(forwards):
        yield


def _multiplied_in() -> torch.dtype | None:
    """The type of the products on a CPU; None where laying out does not help, or oneDNN cannot."""
    if torch.is_grad_enabled() or not torch.backends.mkldnn.is_available():
        return None
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
    fast = dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype if fast else None


def _gains(weight: Tensor, dtype: torch.dtype) -> bool:
    if type(weight) is not nn.Parameter or weight.device.type != "cpu":  # a slice of one (trainer.strategy=fsdp)
        return False
    return dtype == torch.bfloat16 or (weight.dtype == torch.float32 and weight.numel() >= FLOAT32_FROM)


def _unchanged(x: Tensor) -> Tensor:
    return x


def _laid_out(layer: nn.Linear | Conv1D, dtype: torch.dtype, gelu: bool = False) -> Callable[[Tensor], Tensor]:
    """The layer's function, and GELU (its approximation by tanh) of it; GPT-2's Conv1D keeps its matrix transposed."""
    weight_NK = layer.weight if isinstance(layer, nn.Linear) else layer.weight.t()
    blocks = torch.ops.mkldnn._reorder_linear_weight(weight_NK.to(dtype).contiguous())
    bias_N = None if layer.bias is None else layer.bias.to(dtype)
    then = ("gelu", [], "tanh") if gelu else ("none", [], "")

    def forward(x_XK: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x_XK.to(dtype), blocks, bias_N, *then)

    return forward
