"""Attention pooling: n learnt queries read all visual tokens once, whatever their number.

    Z = softmax((LN Q W_q)(LN X W_k)^T / sqrt(d)) (LN X W_v) W_o              Q (n, D) learnt, X (N, C), several heads

Lee et al. 2019, Set Transformer, arXiv 1810.00825, section 3.2; as the pooler of CoCa (arXiv 2205.01917) and open_clip,
src/layers/pooler.py. A 1 x 1 convolution maps every token by itself and keeps their places; here every vector depends
on all of X, whose order tells nothing, and vectors follow the order of the queries: they lie nowhere in the picture.
"""

from __future__ import annotations

from dataclasses import replace

from src.contracts import LanguageSpec, VisionSpec, Visual
from src.kinds import BelowOne, Size
from src.layers.attention import key_bias
from src.layers.dropout import Dropout
from src.layers.notes import Aux, note, noted
from src.layers.pooler import AttentionalPooler
from src.projectors.base import Projector, apart, together


class AttentionPool(Projector):
    """(I, M, N, C) -> (I, M, queries, D)."""

    laid_out = False
    undecayed = ("pooler.query_nD",)

    def __init__(self, vision: VisionSpec, language: LanguageSpec, queries: Size, dropout: BelowOne):
        super().__init__(vision, language)
        self.pooler = AttentionalPooler(language.width, vision.width, language.heads, queries, dropout)
        self.drop = Dropout(dropout)
        self.spec = replace(vision, width=language.width, tokens=queries, levels=0)

    @staticmethod
    def sizes(projector, language, vision):
        return {"width": language.width, "tokens": projector.queries, "levels": 0}

    def forward(self, visual: Visual, aux: Aux | None = None) -> Visual:
        X_XNC, valid_XN = apart(visual)
        read: Aux | None = None if aux is None else {}
        Z_XnD = self.pooler(X_XNC, key_bias(valid_XN, X_XNC.dtype), read)
        if (weights_XnN := noted(read, "pooler")) is not None:
            note(aux, "projected", weights_XnN)
        return together(visual, self.drop(Z_XnD))
