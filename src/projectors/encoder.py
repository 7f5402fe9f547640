"""Visual tokens through a small trained transformer: SRAU's level encoder for any mechanism.

    x_0 = LN(drop(GELU(Linear X)));  x_k = LayerLN(x_{k-1}), k = 1..K        formulas: src/layers/level_encoder.py

SRAU trains this encoder beside its gates (VisualGPT, arXiv 2102.10407, section 3.2). A mechanism behind
``projector=encoder`` has the same layers, so that a difference between the two is none of theirs. Hands out x_K as
tokens, and all x_1 .. x_K as levels.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from src.contracts import LanguageSpec, VisionSpec, Visual
from src.kinds import BelowOne, Size
from src.layers.level_encoder import LevelEncoder
from src.layers.notes import Aux
from src.projectors.base import Projector


class Encoder(Projector):
    """(I, M, N, C) -> (I, M, N, D), with K levels of that shape."""

    def __init__(self, vision: VisionSpec, language: LanguageSpec, levels: Size, dropout: BelowOne):
        super().__init__(vision, language)
        self.layers = LevelEncoder(vision.width, language.width, language.heads, levels, dropout, "authors")
        self.spec = replace(vision, width=language.width, levels=levels)

    @staticmethod
    def sizes(projector, language, vision):
        return {"width": language.width, "tokens": vision.tokens, "levels": projector.levels}

    def forward(self, visual: Visual, aux: Aux | None = None) -> Visual:
        I, M = visual.tokens_IMNC.shape[:2]
        valid_IMN = visual.token_valid_IMN
        x_XND = self.layers.enter(visual.tokens_IMNC.flatten(0, 1))  # X = I*M
        levels_XKND: Tensor = self.layers.climb(x_XND, None if valid_IMN is None else valid_IMN.flatten(0, 1))
        levels_IMKND = levels_XKND.unflatten(0, (I, M))
        return replace(visual, tokens_IMNC=levels_IMKND[:, :, -1], levels_IMKNC=levels_IMKND)
