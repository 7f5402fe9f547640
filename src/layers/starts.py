"""How new layers start."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from src.layers.attention import CrossAttention


def xavier_start(module: nn.Module, gain: float = 1.0) -> None:
    """Uniform weights (Glorot and Bengio 2010) and zero biases, for every linear layer in ``module``."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight, gain)
            nn.init.zeros_(part.bias)


def silent_start(layers: Iterable[CrossAttention]) -> None:
    """Attention that adds nothing at first: its output matrix learns from the first step on, the rest later."""
    for layer in layers:
        nn.init.zeros_(layer.out.weight)
        nn.init.zeros_(layer.out.bias)
