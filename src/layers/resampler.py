"""Flamingo's perceiver resampler: tokens of a picture or video become a few latents (arXiv 2204.14198, section 3.1).

The formulas are in src/fusion/flamingo.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.layers.attention import CrossAttention, key_bias
from src.layers.dropout import Dropout
from src.layers.lists import ModuleList
from src.layers.notes import Aux, note


def squared_relu(x: Tensor) -> Tensor:
    """relu(x)^2, So et al. 2021, arXiv 2109.08668."""
    return F.relu(x).square()


ACTIVATIONS = {"sqrelu": squared_relu, "gelu": F.gelu}


class Resampler(nn.Module):
    """Tokens of X pictures (X, N, C) -> R latents each, (X, R, C)."""

    def __init__(self, width: int, latents: int, std: float, layers: int, max_frames: int, **shape):
        super().__init__()
        self.latents_RC = nn.Parameter(std * torch.randn(latents, width))
        self.times_FC = nn.Parameter(torch.randn(max_frames, width)) if max_frames > 1 else None
        self.layers = ModuleList(ResamplerLayer(width, **shape) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, X_XNC: Tensor, frames: int, valid_XN: Tensor | None, aux: Aux | None = None) -> Tensor:
        """``frames``: at most ``max_frames``; ``valid_XN`` is False at padded tokens.

        With ``aux``, "pooler" is noted: the last layer's weights of latents over tokens, (X, R, N), averaged over heads
        and divided by their sum, since latents also look at latents.
        """
        if len(X_XNC) == 0:
            return X_XNC.new_empty(0, *self.latents_RC.shape)
        X_XNC = self._timed(X_XNC, frames)
        bias = None
        if valid_XN is not None:
            bias = key_bias(F.pad(valid_XN, (0, len(self.latents_RC)), value=True), X_XNC.dtype)  # latents are real
        Z_XRC = self.latents_RC.expand(len(X_XNC), -1, -1)
        read: Aux | None = None if aux is None else {}
        for layer in self.layers:
            Z_XRC = layer(Z_XRC, X_XNC, bias, read)
        if read is not None:
            pooler_XRN = read["attention"][-1].mean(1)[:, :, : X_XNC.shape[1]]
            note(aux, "pooler", F.normalize(pooler_XRN, p=1, dim=-1))
        return self.norm(Z_XRC)

    def _timed(self, X_XNC: Tensor, frames: int) -> Tensor:
        if self.times_FC is None:
            return X_XNC
        return X_XNC + self.times_FC[:frames].repeat_interleave(X_XNC.shape[1] // frames, 0)


class ResamplerLayer(nn.Module):
    """Z + Attention(LN_z Z, [LN_x X ; LN_z Z]), then Z + FFW(LN Z)."""

    def __init__(self, width: int, heads: int, head_width: int, ffw_ratio: int, activation: str, dropout: float):
        super().__init__()
        self.norm_x, self.norm_z = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend = CrossAttention(width, width, heads, head_width, bias=False, dropout=dropout)
        self.drop = Dropout(dropout)
        self.feed = FeedForward(width, ffw_ratio, activation)

    def forward(self, Z_XRC: Tensor, X_XNC: Tensor, bias: Tensor | None, aux: Aux | None) -> Tensor:
        """(X, R, C); ``bias`` over the N tokens and then the R latents."""
        z_XRC = self.norm_z(Z_XRC)
        k_XHSd, v_XHSd = self.attend.keys_values(torch.cat([self.norm_x(X_XNC), z_XRC], dim=1))  # S = N + R
        Z_XRC = Z_XRC + self.drop(self.attend(z_XRC, k_XHSd, v_XHSd, bias, aux))
        return Z_XRC + self.drop(self.feed(Z_XRC))


class FeedForward(nn.Module):
    """W_2 act(W_1 LN x), without biases."""

    def __init__(self, width: int, ratio: int, activation: str):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, ratio * width, bias=False), nn.Linear(ratio * width, width, bias=False)
        self.act = ACTIVATIONS[activation]

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(self.norm(x_BTD))))
