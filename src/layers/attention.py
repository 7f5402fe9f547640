"""Cross-attention from text to pictures, with the keys and values of a picture computed once.

    A = softmax(Q K^T / sqrt(d)) V        Vaswani et al. 2017, arXiv 1706.03762, section 3.2

The rows of one picture (its G captions, or its beams) are neighbours in the batch, so their queries can be laid one
after the other along the query axis: the picture's keys and values are then shared without being copied.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.layers.dropout import dropout as drop
from src.layers.notes import Aux, note
from src.layers.walk import Walk

SCORES = 2**24  # of all heads and rows, up to which they are made all at once: 32 MB in bfloat16


def key_bias(valid_IN: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Additive mask (I, 1, 1, N), 0 at valid keys and a large negative number elsewhere; None when all are valid."""
    return None if valid_IN is None else additive_mask(valid_IN, dtype)[:, None, None, :]


def additive_mask(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where ``seen``, of that shape, and half the smallest number elsewhere.

    Not -inf, nor what could overflow to it when a score is added: an empty row would be NaN, and so would a whole tile
    in kernels that scale the mask by log2(e).
    """
    return seen.new_zeros(seen.shape, dtype=dtype).masked_fill(~seen, 0.5 * torch.finfo(dtype).min)


def attention(
    q_BHTd: Tensor,
    k_BKSd: Tensor,
    v_BKSd: Tensor,
    bias: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
) -> Tensor:
    """softmax(q k^T * scale + bias) v, (B, H, T, d); K key-value heads serve H query heads (H a multiple of K).

    ``causal`` needs S = T. ``bias`` is additive and broadcasts to (B, H, T, S). ``softcap`` bounds the scores before
    it, by softcap * tanh(scores / softcap), which torch's fused kernels cannot; they do the rest everywhere but for
    bfloat16 on a CPU, up to ``SCORES``: there the fused backward pass takes five times as long as two matrix
    products (64 rows of 20 tokens: 65 ms against 10 ms on one core, torch 2.15), and the forward pass of one token two
    to six times (64 rows that read 50 tokens: 1.06 ms against 0.16 ms on two cores).
    """
    gqa = q_BHTd.shape[1] != k_BKSd.shape[1]
    if softcap is None and not _as_products(q_BHTd, k_BKSd, dropout):
        return F.scaled_dot_product_attention(
            q_BHTd, k_BKSd, v_BKSd, attn_mask=bias, dropout_p=dropout, is_causal=causal, scale=scale, enable_gqa=gqa
        )
    if gqa:
        shared = q_BHTd.shape[1] // k_BKSd.shape[1]
        k_BKSd, v_BKSd = k_BKSd.repeat_interleave(shared, 1), v_BKSd.repeat_interleave(shared, 1)
    factor = q_BHTd.shape[-1] ** -0.5 if scale is None else scale
    scores_BHTS = _product(q_BHTd * factor, k_BKSd.transpose(-1, -2))
    if softcap is not None:
        scores_BHTS = softcap * torch.tanh(scores_BHTS / softcap)
    if causal:
        later_TS = torch.ones(scores_BHTS.shape[-2:], dtype=torch.bool, device=q_BHTd.device).triu(1)
        scores_BHTS = scores_BHTS.masked_fill(later_TS, -torch.inf)
    if bias is not None:
        scores_BHTS = scores_BHTS + bias
    return _product(drop(softmax(scores_BHTS), dropout, training=True), v_BKSd)


def _product(a_BHTX: Tensor, b_BHXS: Tensor) -> Tensor:
    """a @ b, (B, H, T, S). On four axes torch.matmul starts four operations more, a seventh of a short row's time."""
    return torch.bmm(a_BHTX.flatten(0, 1), b_BHXS.flatten(0, 1)).view(*a_BHTX.shape[:-1], b_BHXS.shape[-1])


def softmax(scores_BHTS: Tensor) -> Tensor:
    """Softmax over the last axis that stays in the type of the scores, also under autocast.

    The kernel sums in float32 either way; converting to it and back would double the memory traffic.
    """
    return scores_BHTS.softmax(-1, dtype=scores_BHTS.dtype)


def _as_products(q_BHTd: Tensor, k_BKSd: Tensor, dropout: float) -> bool:
    """Whether two matrix products are faster than the fused kernel: see ``attention``."""
    if q_BHTd.device.type != "cpu":
        return False
    if dropout > 0:  # torch makes all scores then, too, and draws slowly
        return True
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else q_BHTd.dtype
    return dtype == torch.bfloat16 and math.prod(q_BHTd.shape[:-1]) * k_BKSd.shape[-2] <= SCORES


def split_heads(qkv_BTE: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, (B, H, T, d) each, of one projection to all three: E = 3*H*d."""
    q_BHTd, k_BHTd, v_BHTd = qkv_BTE.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind()
    return q_BHTd, k_BHTd, v_BHTd


def self_attention(
    q_BHTd: Tensor,
    k_BKTd: Tensor,
    v_BKTd: Tensor,
    walk: Walk,
    slot: str,
    scale: float,
    dropout: float,
    softcap: float | None = None,
) -> Tensor:
    """Attention of text over its own columns so far, heads joined again: (B, T, H*d).

    K key-value heads serve H query heads (H a multiple of K). New keys and values go into the cache under ``slot``.
    ``softcap`` as in ``attention``.
    """
    # Under autocast rotated keys are float32 although attention reads them in half precision: not worth caching.
    k_BKSd, v_BKSd = k_BKTd.to(v_BKTd.dtype), v_BKTd
    if walk.cache is not None:
        k_BKSd, v_BKSd = walk.cache.append(slot, k_BKSd, v_BKSd)
    if walk.notes is not None:  # of who reads both ways, whose heads all have keys of their own
        scores_BHTS = q_BHTd @ k_BKSd.transpose(-1, -2) * scale
        note(walk.notes, "attention", (scores_BHTS if walk.bias is None else scores_BHTS + walk.bias).softmax(-1))
    read_BHTd = attention(q_BHTd, k_BKSd, v_BKSd, walk.bias, walk.causal, scale, dropout, softcap)
    return read_BHTd.transpose(1, 2).flatten(2)  # (B, H, T, d) -> (B, T, H*d)


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
        self.heads, self.width = heads, head_width or width // heads  # of one head
        inner = heads * self.width
        self.q = nn.Linear(width, inner, bias=bias)
        self.k = nn.Linear(source_width, inner, bias=bias)
        self.v = nn.Linear(source_width, inner, bias=bias)
        self.out = nn.Linear(inner, width, bias=bias)
        self.dropout = dropout

    def keys_values(self, source_INC: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (I, H, N, d) of the sources, laid out as every step of decoding reads them."""
        return self._split(self.k(source_INC)).contiguous(), self._split(self.v(source_INC)).contiguous()

    def forward(
        self, h_BTD: Tensor, k_IHNd: Tensor, v_IHNd: Tensor, bias: Tensor | None = None, aux: Aux | None = None
    ) -> Tensor:
        """What each text position reads from its picture, (B, T, D); B is a multiple of I.

        ``bias`` is an additive mask that broadcasts to (I, H, G*T, N). With ``aux``, the weights (B, H, T, N) are noted
        under "attention".
        """
        read_IHQd = self._read(self._queries(h_BTD, len(k_IHNd)), k_IHNd, v_IHNd, bias, h_BTD.shape[:2], aux)
        return self.out(read_IHQd.transpose(1, 2).reshape(*h_BTD.shape[:2], -1))  # (I, H, Q, d) -> (B, T, D)

    def levels(
        self, h_BTD: Tensor, k_IKHNd: Tensor, v_IKHNd: Tensor, bias: Tensor | None = None, aux: Aux | None = None
    ) -> Tensor:
        """The same for K sources per picture with shared weights, each read by itself: (K, B, T, D)."""
        B, T, _ = h_BTD.shape
        I, K = k_IKHNd.shape[:2]
        q_XHQd = self._queries(h_BTD, I).repeat_interleave(K, 0)  # X = I*K
        k_XHNd, v_XHNd = k_IKHNd.flatten(0, 1), v_IKHNd.flatten(0, 1)
        bias = None if bias is None else bias.flatten(0, 1)
        read_XHQd = self._read(q_XHQd, k_XHNd, v_XHNd, bias, (B, T), aux)
        read_KIQHd = read_XHQd.unflatten(0, (I, K)).permute(1, 0, 3, 2, 4)
        return self.out(read_KIQHd.reshape(K, B, T, -1))  # (K, B, T, D)

    def _queries(self, h_BTD: Tensor, I: int) -> Tensor:
        """(I, H, Q, d) with the rows of a picture one after the other: Q = G*T."""
        return self.q(h_BTD).view(I, -1, self.heads, self.width).transpose(1, 2)

    def _read(
        self, q_XHQd: Tensor, k_XHNd: Tensor, v_XHNd: Tensor, bias: Tensor | None, rows: Sequence[int], aux: Aux | None
    ) -> Tensor:
        """Attention, (X, H, Q, d); ``rows``: the B and T of the text."""
        if aux is not None:
            self._note_weights(q_XHQd, k_XHNd, bias, rows, aux)
        return attention(q_XHQd, k_XHNd, v_XHNd, bias, dropout=self.dropout if self.training else 0.0)

    def _note_weights(self, q_XHQd: Tensor, k_XHNd: Tensor, bias: Tensor | None, rows: Sequence[int], aux: Aux) -> None:
        scores = q_XHQd @ k_XHNd.transpose(-1, -2) * q_XHQd.shape[-1] ** -0.5
        weights_XHQN = (scores if bias is None else scores + bias).softmax(-1)
        B, T = rows
        I = B * T // weights_XHQN.shape[2]  # B*T = I*Q
        weights_IKHGTN = weights_XHQN.view(I, -1, self.heads, B // I, T, weights_XHQN.shape[-1])
        for level in weights_IKHGTN.unbind(1):
            note(aux, "attention", level.transpose(1, 2).flatten(0, 1))  # (B, H, T, N)

    def _split(self, x_INE: Tensor) -> Tensor:
        return x_INE.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (I, H, N, d)
