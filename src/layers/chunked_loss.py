"""Cross-entropy over a large vocabulary without all logits at once: (X, V) in pieces of some rows each.

Logits of 1,000 targets over 50,257 tokens, their softmax in single precision and its gradient are half a gigabyte, more
than a small language model itself. Here every piece goes to its loss and on to its gradient before the next is made;
nothing is computed twice, as the gradient of a sum of losses is known up to one factor in the forward pass. (New torch
has linear_cross_entropy for one matrix; a fusion's readout may be any function.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

PIECE = 2**24  # logits at once: 64 MB in single precision

Readout = Callable[[Tensor], Tensor]


def summed_cross_entropy(
    readout: Readout, hidden_XD: Tensor, target_X: Tensor, parameters: Iterable[Tensor], vocabulary: int
) -> Tensor:
    """Sum over X of -log softmax(readout(hidden))[target], in nats, in single precision or better.

    ``parameters``: all that ``readout`` may depend on; those that train get their gradients. Up to ``PIECE`` logits are
    made in one piece, the plain way.
    """
    rows = max(1, PIECE // vocabulary)
    if len(hidden_XD) <= rows:
        return _loss(readout, hidden_XD, target_X)
    if not torch.is_grad_enabled():
        pieces = zip(hidden_XD.split(rows), target_X.split(rows), strict=True)
        return torch.stack([_loss(readout, h_YD, t_Y) for h_YD, t_Y in pieces]).sum()
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return _InPieces.apply(readout, rows, target_X, hidden_XD, *trained)


def _loss(readout: Readout, hidden_XD: Tensor, target_X: Tensor) -> Tensor:
    logits_XV = readout(hidden_XD)
    return F.cross_entropy(logits_XV.to(torch.promote_types(logits_XV.dtype, torch.float32)), target_X, reduction="sum")


class _InPieces(torch.autograd.Function):
    @staticmethod
    def forward(ctx, readout: Readout, rows: int, target_X: Tensor, hidden_XD: Tensor, *parameters: Tensor) -> Tensor:
        wanted = (hidden_XD, *parameters)
        total = torch.zeros((), device=hidden_XD.device, dtype=torch.promote_types(hidden_XD.dtype, torch.float32))
        hidden_grads, parameter_grads = [], [None] * len(parameters)
        for h_YD, t_Y in zip(hidden_XD.detach().split(rows), target_X.split(rows), strict=True):
            with torch.enable_grad():
                h_YD.requires_grad_()
                # A view: what hooks into the modules of a readout (to count operations, say) cannot be on a leaf here.
                loss = _loss(readout, h_YD.view_as(h_YD), t_Y)
                found = torch.autograd.grad(loss, (h_YD, *parameters), allow_unused=True)
            total = total + loss.detach()
            hidden_grads.append(found[0])
            for i, grad in enumerate(found[1:]):
                if grad is not None:
                    parameter_grads[i] = grad if parameter_grads[i] is None else parameter_grads[i].add_(grad)
        ctx.there = [i for i, grad in enumerate([hidden_grads, *parameter_grads]) if grad is not None]
        ctx.save_for_backward(torch.cat(hidden_grads), *(grad for grad in parameter_grads if grad is not None))
        ctx.count = len(wanted)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, factor: Tensor):
        grads: list[Tensor | None] = [None] * ctx.count
        for i, grad in zip(ctx.there, ctx.saved_tensors, strict=True):
            grads[i] = grad * factor.to(grad.dtype)
        return None, None, None, *grads
