"""The processes of distributed training, of which there is one without it."""

from __future__ import annotations

import torch
from torch import Tensor


def processes() -> int:
    """How many train together."""
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if together else 1


def summed(x: Tensor) -> Tensor:
    """The sum of every process's ``x``, without gradients; all have to ask together."""
    everywhere = x.detach().clone()
    if processes() > 1:
        torch.distributed.all_reduce(everywhere)
    return everywhere


def averaged(x: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    """The mean of every process's ``x``, each by its ``weight``, without gradients; all have to ask together."""
    if processes() == 1:
        return x.detach()
    weight = torch.as_tensor(weight, dtype=x.dtype, device=x.device)
    return summed(x * weight) / summed(weight).clamp(min=1e-9)
