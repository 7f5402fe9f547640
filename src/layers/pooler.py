"""Attentional pooling: learnt queries read the visual tokens once (CoCa, arXiv 2205.01917, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from src.layers.attention import CrossAttention
from src.layers.notes import Aux, note
from src.layers.starts import xavier_start


class AttentionalPooler(nn.Module):
    """pool(X; Q): (I, N, C) -> (I, n, D). It starts like open_clip's, whose attention is torch's MultiheadAttention."""

    def __init__(self, width: int, source_width: int, heads: int, queries: int, dropout: float = 0.0):
        super().__init__()
        self.query_nD = nn.Parameter(torch.randn(queries, width))
        self.norm_q, self.norm_k = nn.LayerNorm(width), nn.LayerNorm(source_width)
        self.attend = CrossAttention(width, source_width, heads, dropout=dropout)
        # Of equal widths torch packs three matrices in one, (3 D, D), whose Xavier start has half the variance.
        gain = 0.5**0.5 if source_width == width else 1.0
        for layer in (self.attend.q, self.attend.k, self.attend.v):
            xavier_start(layer, gain)
        nn.init.zeros_(self.attend.out.bias)

    def forward(self, X_INC: Tensor, bias: Tensor | None = None, aux: Aux | None = None) -> Tensor:
        """With ``aux``, the weights (I, n, N), mean over heads, are noted under "pooler"."""
        q_InD = self.norm_q(self.query_nD).expand(len(X_INC), -1, -1)
        read: Aux | None = None if aux is None else {}
        U_InD = self.attend(q_InD, *self.attend.keys_values(self.norm_k(X_INC)), bias, read)
        if read is not None:
            note(aux, "pooler", read["attention"][0].mean(1))
        return U_InD
