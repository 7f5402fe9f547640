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
    if x.device.type != "cpu" or torch.compiler.is_compiling():  # compiled code knows no numpy, and fuses torch's own
        return F.dropout(x, p)
    seed = int(torch.randint(2**63 - 1, ()))
    bits = np.random.Generator(np.random.SFC64(seed)).bytes(2 * x.numel())
    dropped = round(p * LEVELS)
    kept = _mask(np.frombuffer(bits, np.uint16) >= dropped, x.dtype).view(x.shape)
    # The scale stays outside the mask: bfloat16 would round 1 / 0.9 by two in a thousand.
    return (x * kept).mul_(LEVELS / (LEVELS - dropped))


def _mask(kept: np.ndarray, dtype: torch.dtype) -> Tensor:
    """Ones and zeros. torch converts booleans to bfloat16 slowly, so the bit pattern of 1.0 is written directly."""
    if dtype == torch.bfloat16:
        return torch.from_numpy((kept * np.uint16(0x3F80)).view(np.int16)).view(dtype)
    return torch.from_numpy(kept).to(dtype)


class Dropout(nn.Module):
    """``dropout`` as a module: active in training mode."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p, self.training)
