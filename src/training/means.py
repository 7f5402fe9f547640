"""Means over all batches of all processes, as exact as over one batch of everything.

Lightning's own weighs processes by whole numbers that it divides by how many there are: 225 tokens of two become 224.
"""

from __future__ import annotations

import torch
from torch import Tensor

from src.layers.processes import summed


class Means:
    """Sums of what batches tell, by name; all processes must tell the same names, in one order."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, name: str, mean: Tensor, count: Tensor | int) -> None:
        """``mean`` over ``count`` tokens or rows, 0 for what another process counts."""
        mean = mean.detach().to(torch.promote_types(mean.dtype, torch.float32))
        own = torch.stack([mean * count, torch.as_tensor(count, dtype=mean.dtype, device=mean.device)])
        self._sums[name] = self._sums[name] + own if name in self._sums else own

    def taken(self) -> dict[str, Tensor]:
        """The means, which begin anew."""
        sums, self._sums = self._sums, {}
        everywhere = {name: summed(own) for name, own in sums.items()}
        return {name: total / count.clamp(min=1) for name, (total, count) in everywhere.items()}
