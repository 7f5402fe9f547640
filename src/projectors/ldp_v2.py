"""MobileVLM's second downsample projector, LDPv2 (Chu et al. 2024, arXiv 2402.03766, section 3.2; authors' code).

    X = pool_(s x s)(W2 GELU(W1 x + b1) + b2)         every visual token to the width of the words; mean over squares
    H = X + DW X                                      DW: depth-wise 3 x 3 with bias, which tells tokens their place

LDP (src/projectors/ldp.py) with 99.8 % fewer parameters behind the MLP. The authors' s is 12, of a grid of 24 x 24.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn
from torch.nn import functional as F

from src.contracts import LanguageSpec, VisionSpec
from src.kinds import BelowOne, Size
from src.layers.dropout import Dropout
from src.projectors.grid import GridProjector, as_grid, as_tokens


class LDPv2(GridProjector):
    """``side``: s; None halves the grid. A side that does not divide the grid's takes means over squares that overlap
    by one token. ``dropout``: on the vectors that it makes."""

    def __init__(self, vision: VisionSpec, language: LanguageSpec, side: Size | None, dropout: BelowOne):
        super().__init__(vision, language)
        D, tokens = language.width, side**2 if side else self.spec.tokens
        self.spec = replace(self.spec, tokens=tokens)
        self.mlp = nn.Sequential(nn.Linear(vision.width, D), nn.GELU(), nn.Linear(D, D))
        self.place = nn.Conv2d(D, D, 3, padding=1, groups=D)
        self.side, self.drop = round(tokens**0.5), Dropout(dropout)

    @staticmethod
    def refusals(projector, vision):
        side, grid = projector.side, vision.tokens**0.5
        if (side is None and grid % 2) or grid % 1:
            which = "are no square grid" if grid % 1 else f"are {grid:.0f} x {grid:.0f}, which has no half"
            way = "use projector=attention_pool or perceiver" if grid % 1 else f"give projector.side (below {grid:.0f})"
            yield f"The encoder's {vision.tokens} visual tokens {which}; {way}."
        if side is not None and side > grid:
            yield f"projector.side={side} is more than the {grid:.0f} x {grid:.0f} visual tokens of the encoder."

    @staticmethod
    def sizes(projector, language, vision):
        tokens = projector.side**2 if projector.side else vision.tokens // 4
        return {"width": language.width, "tokens": tokens, "levels": 0}

    def halved(self, tokens_XNC: Tensor) -> Tensor:
        pooled_XDvu = F.adaptive_avg_pool2d(as_grid(self.mlp(tokens_XNC)), self.side)
        return self.drop(as_tokens(pooled_XDvu + self.place(pooled_XDvu)))
