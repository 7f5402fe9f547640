"""SRAU's levels: those of a vision encoder, or the layers of a small transformer over its tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.layers.attention import CrossAttention, key_bias
from src.layers.dropout import Dropout
from src.layers.lists import ModuleList
from src.layers.starts import xavier_start


class LevelEncoder(nn.Module):
    """Post-norm transformer over visual tokens; hands out the output of every layer, (I, K, N, D).

    ``form``: authors, or early with GELU by erf and with dropout on attention weights.
    """

    def __init__(self, source_width: int, width: int, heads: int, levels: int, dropout: float, form: str):
        super().__init__()
        self.gelu = "tanh" if form == "authors" else "none"
        self.fc = nn.Linear(source_width, width)
        self.drop = Dropout(dropout)
        self.norm = nn.LayerNorm(width)
        on_weights = 0.0 if form == "authors" else dropout
        self.layers = ModuleList(LevelLayer(width, heads, dropout, on_weights) for _ in range(levels))
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)

    def enter(self, tokens_INC: Tensor) -> Tensor:
        """What the first layer reads, (I, N, D)."""
        return self.norm(self.drop(F.gelu(self.fc(tokens_INC), approximate=self.gelu)))

    def climb(self, x_IND: Tensor, valid_IN: Tensor | None) -> Tensor:
        """The levels (I, K, N, D) of what ``enter`` made; ``valid_IN``: the tokens that are read, None for all."""
        bias = key_bias(valid_IN, x_IND.dtype)
        levels = []
        for layer in self.layers:
            x_IND = layer(x_IND, bias)
            levels.append(x_IND)
        return torch.stack(levels, dim=1)


class LevelLayer(nn.Module):
    """x = LN(x + drop(SA x)); x = LN(x + drop(MLP x)), ReLU; FFN 2048 at width 768, that ratio at others."""

    def __init__(self, width: int, heads: int, dropout: float, weights_dropout: float = 0.0):
        super().__init__()
        inner = -(-width * 8 // 3 // 64) * 64  # a multiple of 64, as matrix units like it
        self.attend = CrossAttention(width, width, heads, dropout=weights_dropout)
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.drop = Dropout(dropout)

    def forward(self, x_IND: Tensor, bias: Tensor | None) -> Tensor:
        x_IND = self.norm1(x_IND + self.drop(self.attend(x_IND, *self.attend.keys_values(x_IND), bias)))
        return self.norm2(x_IND + self.drop(self.fc2(self.drop(F.relu(self.fc1(x_IND))))))


class LevelProjector(nn.Module):
    """LN(Linear C -> D) of each of the last K levels of the vision encoder, (I, K, N, D)."""

    def __init__(self, source_width: int, width: int, levels: int):
        super().__init__()
        self.fc = ModuleList(nn.Linear(source_width, width) for _ in range(levels))
        self.norm = ModuleList(nn.LayerNorm(width) for _ in range(levels))
        xavier_start(self.fc)

    def forward(self, levels_IKNC: Tensor) -> Tensor:
        """All levels that there are; the last ones are read."""
        levels_KINC = levels_IKNC.unbind(1)[-len(self.fc) :]
        projected = [norm(fc(x_INC)) for fc, norm, x_INC in zip(self.fc, self.norm, levels_KINC, strict=True)]
        return torch.stack(projected, dim=1)  # (I, K, N, D)
