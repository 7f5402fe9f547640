"""Attention of one state per text row over the features of its picture, with what a picture gives computed once.

    e_i = w^T tanh(W_a a_i + W_h h)                  additive    Bahdanau et al. 2015, arXiv 1409.0473
    e_i = (W_a a_i)^T (W_h h)                        dot         Luong et al. 2015, arXiv 1508.04025 ("general")
    e_i = (W_a a_i)^T (W_h h) / sqrt(A)              scaled_dot  Vaswani et al. 2017, arXiv 1706.03762
    alpha = softmax(e),  read = sum_i alpha_i a_i    values are the features themselves

One bias, beside W_h: one beside W_a is the same in the first form, and changes nothing in the others.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Score = Literal["additive", "dot", "scaled_dot"]


class Opening(nn.Identity):
    """What the first word of a text finds there of its picture passes here, for who watches (diagnostics.sites)."""


class SoftAttention(nn.Module):
    """Text rows (B, E) over features (I, N, C); B is a multiple of I, ``inner`` is A."""

    def __init__(self, width: int, source_width: int, inner: int, score: Score):
        super().__init__()
        self.q = nn.Linear(width, inner)  # W_h
        self.k = nn.Linear(source_width, inner, bias=False)  # W_a
        self.w = nn.Linear(inner, 1, bias=False) if score == "additive" else None
        self.scale = inner**-0.5 if score == "scaled_dot" else 1.0
        self.out = nn.Identity()  # what is read passes here, for who watches

    def keys_values(self, source_INC: Tensor) -> tuple[Tensor, Tensor]:
        """W_a a, (I, N, A), and a, (I, N, C), in the type that products are computed in."""
        k_INA = self.k(source_INC)
        return k_INA, source_INC.to(k_INA.dtype)

    def forward(self, h_BE: Tensor, k_INA: Tensor, v_INC: Tensor, bias_I1N: Tensor | None) -> tuple[Tensor, Tensor]:
        """What each row reads, (B, C), and its weights, (B, N). ``bias``: an additive mask."""
        q_IGA = self.q(h_BE).unflatten(0, (len(k_INA), -1))
        if self.w is None:
            e_IGN = torch.bmm(q_IGA * self.scale, k_INA.transpose(1, 2))
        else:
            e_IGN = self.w(torch.tanh(k_INA[:, None] + q_IGA[:, :, None]))[..., 0]
        if bias_I1N is not None:
            e_IGN = e_IGN + bias_I1N
        alpha_IGN = e_IGN.softmax(-1, dtype=e_IGN.dtype)  # autocast would make it, and z, single precision
        return self.out(torch.bmm(alpha_IGN, v_INC).flatten(0, 1)), alpha_IGN.flatten(0, 1)
