"""How new layers start."""

from __future__ import annotations

from torch import nn


def xavier_start(module: nn.Module, gain: float = 1.0) -> None:
    """Uniform weights (Glorot and Bengio 2010) and zero biases, for every linear layer in ``module``."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight, gain)
            nn.init.zeros_(part.bias)
