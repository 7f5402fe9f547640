"""Visual tokens as word vectors, by a small MLP (Liu et al. 2023, LLaVA, arXiv 2304.08485; two layers: 2310.03744).

    tokens      H_n = W2 GELU(W1 x_n + b1) + b2                   one vector for every visual token
    pooled      [H_1 ; ... ; H_k] = the same of the pooled vector, k vectors of it

One linear layer is LLaVA's first form and, with two vectors of the pooled feature, Frozen's (Tsimpoukelli et al. 2021,
arXiv 2106.13884, section 3.1).
"""

from __future__ import annotations

import itertools
from dataclasses import replace

from torch import Tensor, nn

from src.contracts import LanguageSpec, VisionSpec, Visual
from src.kinds import BelowOne, Size
from src.layers.dropout import Dropout
from src.layers.notes import Aux
from src.projectors.base import Projector


class MLP(Projector):
    """(I, M, N, C) -> (I, M, N, D); with ``pooled``, (I, M, C) -> (I, M, pooled, D)."""

    def __init__(
        self, vision: VisionSpec, language: LanguageSpec, layers: Size, pooled: Size | None, dropout: BelowOne
    ):
        super().__init__(vision, language)
        self.pooled, self.needs_tokens, self.laid_out = pooled, pooled is None, pooled is None
        D, vectors = language.width, pooled or 1
        source_width = vision.width if pooled is None else vision.pooled_width
        widths = [source_width, *[D * vectors] * layers]
        steps = [part for pair in itertools.pairwise(widths) for part in (nn.GELU(), nn.Linear(*pair))]
        self.steps = nn.Sequential(*steps[1:], Dropout(dropout))
        self.spec = replace(vision, width=D, tokens=pooled or vision.tokens, levels=0)

    @staticmethod
    def sizes(projector, language, vision):
        return {"width": language.width, "tokens": projector.pooled or vision.tokens, "levels": 0}

    def forward(self, visual: Visual, aux: Aux | None = None) -> Visual:
        if self.pooled is None:
            return replace(visual, tokens_IMNC=self.steps(visual.tokens_IMNC), levels_IMKNC=None)
        tokens_IMND: Tensor = self.steps(visual.pooled_IMC).unflatten(-1, (self.pooled, -1))
        return replace(visual, tokens_IMNC=tokens_IMND, levels_IMKNC=None, token_valid_IMN=None, frames=1)
