"""Cross-attention from text to pictures, with the keys and values of a picture computed once.

    A = softmax(Q K^T / sqrt(d)) V        Vaswani et al. 2017, arXiv 1706.03762, section 3.2

The rows of one picture (its G captions, or its beams) are neighbours in the batch, so their queries can be laid one
after the other along the query axis: the picture's keys and values are then shared without being copied.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def note(aux: dict | None, name: str, value) -> None:
    """Append ``value`` to the list ``aux[name]``; nothing happens (and nothing is kept) when ``aux`` is None."""
    if aux is not None:
        aux.setdefault(name, []).append(value)


def key_bias(valid_IN: Tensor | None, dtype) -> Tensor | None:
    """Additive mask (I, 1, 1, N), 0 at valid keys and a large negative number elsewhere; None when all are valid."""
    if valid_IN is None:
        return None
    bias = valid_IN.new_zeros(valid_IN.shape, dtype=dtype)
    # Half the smallest number, so that adding it to a score cannot overflow to -inf and give NaN in an empty row.
    return bias.masked_fill(~valid_IN, 0.5 * torch.finfo(dtype).min)[:, None, None, :]


class CrossAttention(nn.Module):
    """Multi-head attention of text (B, T, D) over sources (I, N, C), with keys and values as a separate step."""

    def __init__(
        self,
        width: int,
        source_width: int,
        heads: int,
        head_width: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.heads = heads
        inner = heads * (head_width or width // heads)
        self.q = nn.Linear(width, inner, bias=bias)
        self.k = nn.Linear(source_width, inner, bias=bias)
        self.v = nn.Linear(source_width, inner, bias=bias)
        self.out = nn.Linear(inner, width, bias=bias)
        self.dropout = dropout

    def keys_values(self, source_INC: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (I, H, N, d) of the sources."""
        return self._split(self.k(source_INC)), self._split(self.v(source_INC))

    def forward(
        self, h_BTD: Tensor, k_IHNd: Tensor, v_IHNd: Tensor, bias: Tensor | None = None, aux: dict | None = None
    ) -> Tensor:
        """What each text position reads from its picture, (B, T, D); B is a multiple of I.

        ``bias`` is an additive mask that broadcasts to (I, H, G*T, N). With ``aux``, the weights (B, H, T, N) are noted
        under "attention".
        """
        B, T, _ = h_BTD.shape
        rows = k_IHNd.shape[0]
        q_IHQd = self._split(self.q(h_BTD).view(rows, B // rows * T, -1))  # Q = G*T
        if aux is not None:
            scores = q_IHQd @ k_IHNd.transpose(-1, -2) * q_IHQd.shape[-1] ** -0.5
            weights_IHQN = (scores if bias is None else scores + bias).softmax(-1)
            weights_BTHN = weights_IHQN.transpose(1, 2).reshape(B, T, self.heads, -1)
            note(aux, "attention", weights_BTHN.transpose(1, 2))  # (B, H, T, N)
        read_IHQd = F.scaled_dot_product_attention(
            q_IHQd, k_IHNd, v_IHNd, attn_mask=bias, dropout_p=self.dropout if self.training else 0.0
        )
        return self.out(read_IHQd.transpose(1, 2).reshape(B, T, -1))

    def _split(self, x_INE: Tensor) -> Tensor:
        return x_INE.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (I, H, N, d)
