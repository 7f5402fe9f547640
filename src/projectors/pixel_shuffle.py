"""Four neighbouring visual tokens as one, side by side in their width: nothing is thrown away, a quarter is left.

    H_uv = MLP [x_(2u,2v) ; x_(2u,2v+1) ; x_(2u+1,2v) ; x_(2u+1,2v+1)]            MLP: src/projectors/mlp.py, 4C -> D

Also called space to depth (Shi et al. 2016, arXiv 1609.05158, read backwards); in vision-language models VILA's 2 x 2
downsampling (Lin et al. 2023, arXiv 2312.07533) and InternVL's pixel shuffle (Chen et al. 2024, arXiv 2404.16821).
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor
from torch.nn import functional as F

from src.contracts import LanguageSpec, VisionSpec
from src.kinds import BelowOne, Size
from src.projectors.grid import GridProjector, as_grid, as_tokens
from src.projectors.mlp import MLP


class PixelShuffle(GridProjector):
    """``layers``: of the MLP behind, with GELU between."""

    def __init__(self, vision: VisionSpec, language: LanguageSpec, layers: Size, dropout: BelowOne):
        super().__init__(vision, language)
        self.steps = MLP(replace(vision, width=4 * vision.width), language, layers, None, dropout).steps

    def halved(self, tokens_XNC: Tensor) -> Tensor:
        shuffled_XEvu = F.pixel_unshuffle(as_grid(tokens_XNC), 2)  # E = 4*C, the four of one channel side by side
        four_XvuE = shuffled_XEvu.unflatten(1, (-1, 4)).transpose(1, 2).flatten(1, 2)  # the four tokens side by side
        return self.steps(as_tokens(four_XvuE))
