"""Cross-entropy over a vocabulary whose logits become their own gradient, (X, V) in pieces of some rows each.

    d/dz_v ( -log softmax(z)_t )  =  softmax(z)_v - [v = t]

Logits of 1,000 targets over 50,257 tokens, their softmax in single precision and its gradient are half a gigabyte, more
than a small language model itself. Here every piece goes to its loss and on to its gradient before the next is made;
nothing is computed twice, as the gradient of a sum of losses is known up to one factor in the forward pass. (New torch
has linear_cross_entropy for one matrix; a fusion's readout may be any function.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import repeat

import torch
from torch import Tensor
from torch.nn import functional as F

PIECE = 2**26  # logits at once: 128 MB in half precision; every piece more makes and adds a gradient of all weights
BLOCK = 2**18  # of them in single precision at once on a CPU, whose caches hold that: 1 MB

Readout = Callable[[Tensor], Tensor]


def summed_cross_entropy(
    readout: Readout,
    hidden_XD: Tensor,
    target_X: Tensor,
    parameters: Iterable[Tensor],
    vocabulary: int,
    weight_X: Tensor | None = None,
) -> Tensor:
    """Sum over X of -weight log softmax(readout(hidden))[target], in nats, in single precision or better.

    ``parameters``: all that ``readout`` may depend on; those that train get their gradients. ``weight``: None: 1.
    """
    rows = max(1, PIECE // vocabulary)
    if not torch.is_grad_enabled():
        if weight_X is not None:
            return (weight_X * each_cross_entropy(readout, hidden_XD, target_X, vocabulary)).sum()
        pieces = zip(hidden_XD.split(rows), target_X.split(rows), strict=True)
        return torch.stack([_loss(readout(h_YD), t_Y) for h_YD, t_Y in pieces]).sum()
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return _InPieces.apply(readout, rows, target_X, weight_X, hidden_XD, *trained)


@torch.no_grad()
def each_cross_entropy(readout: Readout, hidden_XD: Tensor, target_X: Tensor, vocabulary: int) -> Tensor:
    """The same of every target, (X,), without gradients."""
    rows = max(1, PIECE // vocabulary)
    pieces = zip(hidden_XD.split(rows), target_X.split(rows), strict=True)
    return torch.cat([_loss(readout(h_YD), t_Y, reduction="none") for h_YD, t_Y in pieces])


def _loss(logits_XV: Tensor, target_X: Tensor, reduction: str = "sum") -> Tensor:
    return F.cross_entropy(logits_XV.to(_precise(logits_XV)), target_X, reduction=reduction)


def _loss_and_gradient(logits_XV: Tensor, target_X: Tensor, weight_X: Tensor | None, grad_XV: Tensor) -> Tensor:
    """The summed loss; its gradient is written into ``grad_XV``, some rows at a time."""
    rows = max(1, BLOCK // logits_XV.shape[1]) if logits_XV.device.type == "cpu" else len(logits_XV)
    total = logits_XV.new_zeros((), dtype=_precise(logits_XV))
    pieces = zip(*(x.split(rows) for x in (logits_XV, target_X, grad_XV)), _split(weight_X, rows), strict=False)
    for z_YV, t_Y, grad_YV, weight_Y in pieces:
        logp_YV = z_YV.log_softmax(-1, dtype=total.dtype)
        logp_Y1 = logp_YV.gather(1, t_Y[:, None])
        total -= (logp_Y1 if weight_Y is None else weight_Y[:, None] * logp_Y1).sum()
        probability_YV = logp_YV.exp_()
        probability_YV.scatter_add_(1, t_Y[:, None], -torch.ones_like(t_Y[:, None], dtype=total.dtype))
        grad_YV.copy_(probability_YV if weight_Y is None else probability_YV.mul_(weight_Y[:, None]))
    return total


def _split(weight_X: Tensor | None, rows: int) -> Iterable[Tensor | None]:
    """Pieces of ``rows`` weights each; None after None where there are none."""
    return repeat(None) if weight_X is None else weight_X.split(rows)


def _precise(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


class _InPieces(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        readout: Readout,
        rows: int,
        target_X: Tensor,
        weight_X: Tensor | None,
        hidden_XD: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        total = torch.zeros((), device=hidden_XD.device, dtype=_precise(hidden_XD))
        hidden_grads, buffer = [], None
        parameter_grads: list[Tensor | None] = [None] * len(parameters)
        pieces = zip(hidden_XD.detach().split(rows), target_X.split(rows), _split(weight_X, rows), strict=False)
        for h_YD, t_Y, weight_Y in pieces:
            with torch.enable_grad():
                h_YD.requires_grad_()
                # A view: what hooks into the modules of a readout (to count operations, say) cannot be on a leaf here.
                logits_YV = readout(h_YD.view_as(h_YD))
            buffer = torch.empty_like(logits_YV, requires_grad=False) if buffer is None else buffer
            grad_YV = buffer[: len(logits_YV)]  # not the logits' own memory: a readout may need them once more
            total += _loss_and_gradient(logits_YV.detach(), t_Y, weight_Y, grad_YV)
            found = torch.autograd.grad(logits_YV, (h_YD, *parameters), grad_YV, allow_unused=True)
            hidden_grads.append(found[0])
            for i, grad in enumerate(found[1:]):
                if grad is not None:
                    before = parameter_grads[i]
                    parameter_grads[i] = grad if before is None else before.add_(grad)
        ctx.there = [i for i, grad in enumerate([hidden_grads, *parameter_grads]) if grad is not None]
        ctx.save_for_backward(torch.cat(hidden_grads), *(grad for grad in parameter_grads if grad is not None))
        ctx.count = 1 + len(parameters)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, factor: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]: forward gives one output
        grads: list[Tensor | None] = [None] * ctx.count
        for i, grad in zip(ctx.there, ctx.saved_tensors, strict=True):
            grads[i] = grad.mul_(factor.to(grad.dtype))  # in place: torch refuses to go back a second time
        return None, None, None, None, *grads
