"""The Perceiver: a few latents read the visual tokens again and again (Jaegle et al. 2021, arXiv 2103.03206, 3.1).

    Z = latents (R, D), learnt
    r times:
        Z = Z + Attention(q = LN Z, kv = LN X);   Z = Z + MLP(LN Z)                 X: visual tokens (N, C)
        L times:
            Z = Z + Attention(q = kv = LN Z);     Z = Z + MLP(LN Z)                 MLP: W2 GELU(W1 z), of width D

What it costs grows with r (R N + L R^2), not with N^2. ``share``: all rounds after the first have the same weights, as
in the paper. Flamingo's resampler (src/layers/resampler.py) is another: there the latents stand among
what is read, and no latents read latents alone. transformers' PerceiverModel reads once, which is r = 1.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.contracts import LanguageSpec, VisionSpec, Visual
from src.kinds import BelowOne, Size
from src.layers.attention import CrossAttention, key_bias
from src.layers.dropout import Dropout
from src.layers.lists import ModuleList
from src.layers.notes import Aux, note, noted
from src.projectors.base import Projector, apart, together


class Perceiver(Projector):
    """(I, M, N, C) -> (I, M, latents, D). ``rounds``: r; ``layers``: L, of self-attention in each round.

    What is noted under "projected" are the weights of the last round, averaged over heads; what rounds before it read,
    and latents from each other, is left out.
    """

    laid_out = False
    undecayed = ("latents_RD",)

    def __init__(
        self,
        vision: VisionSpec,
        language: LanguageSpec,
        latents: Size,
        rounds: Size,
        share: bool,
        layers: Size,
        dropout: BelowOne,
    ):
        super().__init__(vision, language)
        D, heads = language.width, language.heads
        self.latents_RD = nn.Parameter(0.02 * torch.randn(latents, D))
        self.rounds = rounds
        own = min(2, rounds) if share else rounds  # rounds with weights of their own
        self.reads = ModuleList(Layer(D, vision.width, heads, dropout) for _ in range(own))
        self.thinks = ModuleList(Layer(D, None, heads, dropout) for _ in range(own * layers))
        self.layers = layers
        self.spec = replace(vision, width=D, tokens=latents, levels=0)

    @staticmethod
    def sizes(projector, language, vision):
        return {"width": language.width, "tokens": projector.latents, "levels": 0}

    def forward(self, visual: Visual, aux: Aux | None = None) -> Visual:
        X_XNC, valid_XN = apart(visual)
        bias = key_bias(valid_XN, X_XNC.dtype)
        read: Aux | None = None if aux is None else {}
        Z_XRD = self.latents_RD.expand(len(X_XNC), -1, -1).to(X_XNC.dtype)
        for r in range(self.rounds):
            own = min(r, len(self.reads) - 1)  # the last ones share
            Z_XRD = self.reads[own](Z_XRD, X_XNC, bias, read)
            for l in range(self.layers):
                Z_XRD = self.thinks[own * self.layers + l](Z_XRD)
        if (weights_XHRN := noted(read, "attention")) is not None:
            note(aux, "projected", weights_XHRN.mean(1))
        return together(visual, Z_XRD)


class Layer(nn.Module):
    """Z + Attention(LN Z, LN X), then Z + MLP(LN Z); ``source_width``: of X, None where Z reads itself."""

    def __init__(self, width: int, source_width: int | None, heads: int, dropout: float):
        super().__init__()
        self.norm_z = nn.LayerNorm(width)
        self.norm_x = None if source_width is None else nn.LayerNorm(source_width)
        self.attend = CrossAttention(width, source_width or width, heads, dropout=dropout)
        self.norm = nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, width), nn.Linear(width, width)
        self.drop = Dropout(dropout)

    def forward(
        self, Z_XRD: Tensor, X_XNC: Tensor | None = None, bias: Tensor | None = None, aux: Aux | None = None
    ) -> Tensor:
        z_XRD = self.norm_z(Z_XRD)
        source_XNC = z_XRD if self.norm_x is None else self.norm_x(X_XNC)
        Z_XRD = Z_XRD + self.drop(self.attend(z_XRD, *self.attend.keys_values(source_XNC), bias, aux))
        return Z_XRD + self.drop(self.fc2(F.gelu(self.fc1(self.norm(Z_XRD)))))
