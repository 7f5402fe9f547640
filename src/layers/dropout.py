"""Dropout that costs little on a CPU.

torch draws a 53-bit number for every element; with the small layers used here that was up to half of a training step.
Sixteen bits decide as well, and numpy's SFC64 makes them forty times faster. It is seeded from torch's generator, so
seeds, checkpoints and resuming work as ever.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEVELS = 2**16


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Zero each element with probability ``p`` (to 1/65536) and scale the others so that the mean stays."""
    if not training or p == 0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, p)
    seed = int(torch.randint(2**63 - 1, ()))
    bits = np.random.Generator(np.random.SFC64(seed)).bytes(2 * x.numel())
    dropped = round(p * LEVELS)
    kept = torch.from_numpy(np.frombuffer(bits, np.uint16) >= dropped).view(x.shape)
    return x * kept.to(x.dtype).mul_(LEVELS / (LEVELS - dropped))


class Dropout(nn.Module):
    """``dropout`` as a module: active in training mode."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p, self.training)
