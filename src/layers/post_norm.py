"""Transformer layers whose norms stand behind the sums (Vaswani et al. 2017, arXiv 1706.03762; BERT's are such).

attend   LN(x + W_o A V)      q from x, keys and values from what is read
feed     LN(x + W_2 gelu(W_1 x))
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from src.layers.attention import CrossAttention
from src.layers.dropout import Dropout
from src.layers.notes import Aux

EPS = 1e-12  # of BERT's norms


class PostNormAttention(nn.Module):
    """x (B, T, D) reads sources (B, S, C); of its own width C = D it may read itself."""

    def __init__(self, width: int, source_width: int, heads: int, dropout: float):
        super().__init__()
        self.read = CrossAttention(width, source_width, heads, dropout=dropout)
        self.drop = Dropout(dropout)
        self.norm = nn.LayerNorm(width, eps=EPS)

    def forward(self, x_BTD: Tensor, source_BSC: Tensor, bias: Tensor | None = None, aux: Aux | None = None) -> Tensor:
        """``bias``: additive, broadcasts to (B, H, T, S)."""
        return self.norm(x_BTD + self.drop(self.read(x_BTD, *self.read.keys_values(source_BSC), bias, aux)))


class PostNormFeed(nn.Module):
    """Two linear layers, four times as wide between them."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.drop = Dropout(dropout)
        self.norm = nn.LayerNorm(width, eps=EPS)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.norm(x_BTD + self.drop(self.fc2(F.gelu(self.fc1(x_BTD)))))


class PostNormLayer(nn.Module):
    """Self-attention, then ``feed``."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.attend = PostNormAttention(width, width, heads, dropout)
        self.feed = PostNormFeed(width, dropout)

    def forward(self, x_BTD: Tensor, bias: Tensor | None = None, aux: Aux | None = None) -> Tensor:
        return self.feed(self.attend(x_BTD, x_BTD, bias, aux))
