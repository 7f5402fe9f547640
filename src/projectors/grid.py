"""What projectors share that make four tokens one: visual tokens as the square grid that they are, row by row.

A grid of odd sides has no halves, and is neither cut nor padded in silence.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import replace

from torch import Tensor

from src.contracts import LanguageSpec, UserError, VisionSpec, Visual
from src.layers.notes import Aux
from src.projectors.base import Projector, apart, together


class GridProjector(Projector):
    """(I, M, N, C) -> (I, M, N / 4, D), which lie as the picture does. ``forward`` raises UserError for pictures with
    padded tokens, which are no grid."""

    def __init__(self, vision: VisionSpec, language: LanguageSpec):
        super().__init__(vision, language)
        self.spec = replace(vision, width=language.width, tokens=vision.tokens // 4, levels=0)

    @staticmethod
    def refusals(projector, vision):
        side = vision.tokens**0.5
        if side % 2:
            which = "are no square grid" if side % 1 else f"are {side:.0f} x {side:.0f}, which has no half"
            yield (
                f"This projector makes four tokens one, and the encoder's {vision.tokens} {which}; use an encoder with "
                "an even grid (vision=vit has 8 x 8), or projector=attention_pool or perceiver."
            )

    @staticmethod
    def sizes(projector, language, vision):
        return {"width": language.width, "tokens": vision.tokens // 4, "levels": 0}

    def forward(self, visual: Visual, aux: Aux | None = None) -> Visual:
        tokens_XNC, valid_XN = apart(visual)
        if valid_XN is not None:
            raise UserError(
                "This projector reads whole grids of visual tokens, and some are padding; use projector=mlp."
            )
        return together(visual, self.halved(tokens_XNC))

    @abstractmethod
    def halved(self, tokens_XNC: Tensor) -> Tensor:
        """Tokens (X, N, C) of X pictures -> (X, N / 4, D)."""


def as_grid(tokens_XNC: Tensor) -> Tensor:
    """(X, C, y, x), N = y*x."""
    return tokens_XNC.transpose(1, 2).unflatten(2, (math.isqrt(tokens_XNC.shape[1]), -1))


def as_tokens(grid_XCyx: Tensor) -> Tensor:
    """(X, N, C)."""
    return grid_XCyx.flatten(2).transpose(1, 2)
