"""Flamingo's inserted layer (arXiv 2204.14198, section 3.1); the formulas are in src/fusion/flamingo.py."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from src.layers.attention import CrossAttention
from src.layers.dropout import Dropout
from src.layers.notes import Aux
from src.layers.resampler import FeedForward


class GatedCrossAttention(nn.Module):
    """y + tanh(alpha) * Attention(LN y, Z), then y + tanh(beta) * FFW(LN y); ``gate``: their start, None without.

    ``dropout`` acts on the attention's weights and on both outputs.
    """

    def __init__(
        self,
        width: int,
        source_width: int,
        heads: int,
        head_width: int,
        ffw_ratio: int,
        activation: str,
        dropout: float,
        gate: float | None,
    ):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.cross = CrossAttention(width, source_width, heads, head_width, bias=False, dropout=dropout)
        self.feed = FeedForward(width, ffw_ratio, activation)
        self.drop = Dropout(dropout)
        self.alpha = None if gate is None else nn.Parameter(torch.full((1,), float(gate)))
        self.beta = None if gate is None else nn.Parameter(torch.full((1,), float(gate)))

    def forward(
        self, y_BTD: Tensor, k_IHSd: Tensor, v_IHSd: Tensor, bias: Tensor | None, reads_BT1: Tensor, aux: Aux | None
    ) -> Tensor:
        """(B, T, D); ``reads_BT1`` is False where the attention must be 0, whatever a backend makes of an empty row."""
        read_BTD = self.cross(self.norm(y_BTD), k_IHSd, v_IHSd, bias, aux).masked_fill(~reads_BT1, 0.0)
        y_BTD = y_BTD + _gated(self.alpha, self.drop(read_BTD))
        return y_BTD + _gated(self.beta, self.drop(self.feed(y_BTD)))


def _gated(gate: Tensor | None, x: Tensor) -> Tensor:
    return x if gate is None else gate.tanh() * x
