"""Matrices of weights laid out once for a whole round of captioning, on a CPU in bfloat16.

oneDNN multiplies matrices in blocks, and torch lays the weights out in blocks anew at every call. With the few rows of
a decoding step that takes as long as the product (16 rows by 1024 x 256, two cores: 71 us; laid out before, 28 us).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


@contextmanager
def packed(*modules: nn.Module) -> Iterator[None]:
    """Within, the linear layers of ``modules`` multiply with the weights that they have on entering, in bfloat16.

    That is what autocast does with them; where it is off, on a GPU, where gradients are wanted, and on processors
    without products in bfloat16, nothing changes.
    """
    found = (layer for module in modules for layer in module.modules() if type(layer) in (nn.Linear, Conv1D))
    forwards = {layer: _laid_out(layer) for layer in found if _gains(layer.weight)}
    try:
        for layer, forward in forwards.items():
            layer.forward = forward
        yield
    finally:
        for layer in forwards:
            vars(layer).pop("forward", None)  # the class's own is back


def _gains(weight: Tensor) -> bool:
    return (
        type(weight) is nn.Parameter  # and no slice of one (trainer.strategy=fsdp)
        and weight.device.type == "cpu"
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
        and not torch.is_grad_enabled()
        and torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def _laid_out(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    """The layer's function; GPT-2's Conv1D keeps its matrix the other way round."""
    weight_NK = layer.weight if isinstance(layer, nn.Linear) else layer.weight.t()
    blocks = torch.ops.mkldnn._reorder_linear_weight(weight_NK.to(torch.bfloat16).contiguous())
    bias_N = None if layer.bias is None else layer.bias.to(torch.bfloat16)

    def forward(x_XK: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x_XK.to(torch.bfloat16), blocks, bias_N, "none", [], "")

    return forward
