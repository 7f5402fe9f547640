"""Control: a few learnt vectors in place of visual tokens, the same for every picture.

    H = P (n, D), learnt

Whatever is behind it works as ever and sees nothing: what it gains on a picture's own tokens has been seen. In front of
the words it is prefix tuning (Li and Liang 2021, arXiv 2101.00190; in the input: Lester et al. 2021, arXiv 2104.08691),
which is what Frozen's control with black pictures comes to (Tsimpoukelli et al. 2021, arXiv 2106.13884, section 4.1).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from src.contracts import LanguageSpec, VisionSpec, Visual
from src.kinds import BelowOne, Size
from src.layers.dropout import Dropout
from src.layers.notes import Aux
from src.projectors.base import Projector


class Constant(Projector):
    """(I, M, pooled_width) -> (I, M, vectors, D), of which only I and M are read."""

    needs_tokens = False
    laid_out = False
    undecayed = ("vectors_PD",)

    def __init__(self, vision: VisionSpec, language: LanguageSpec, vectors: Size, dropout: BelowOne):
        super().__init__(vision, language)
        self.vectors_PD = nn.Parameter(0.02 * torch.randn(vectors, language.width))
        self.drop = Dropout(dropout)
        self.spec = replace(vision, width=language.width, tokens=vectors, levels=0)

    @staticmethod
    def sizes(projector, language, vision):
        return {"width": language.width, "tokens": projector.vectors, "levels": 0}

    def forward(self, visual: Visual, aux: Aux | None = None) -> Visual:
        I, M = visual.pooled_IMC.shape[:2]
        tokens_IMPD = self.drop(self.vectors_PD.expand(I, M, -1, -1).to(visual.pooled_IMC.dtype))
        return replace(visual, tokens_IMNC=tokens_IMPD, levels_IMKNC=None, token_valid_IMN=None, frames=1)
