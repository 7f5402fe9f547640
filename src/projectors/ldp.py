"""MobileVLM's lightweight downsample projector, LDP (Chu et al. 2023, arXiv 2312.16886, section 3.4; authors' code).

    X   = W2 GELU(W1 x + b1) + b2                                 every visual token to the width of the words, C -> D
    X   = X + B_1(X)                                              stride 1
    H   = B_2(X)                                                  stride 2: four tokens become one

    B(X) = LN(P (a * s)),   a = hswish(LN(DW X))                  DW: depth-wise 3 x 3 of that stride, P: 1 x 1
    s    = hsigmoid(W4 relu(W3 mean_yx a + b3) + b4)              squeeze and excite, W3: D -> D / 4

An inverted residual of MobileNetV3 (Howard et al. 2019, arXiv 1905.02244) that expands nothing, with layer norms over
the channels. With 1024 -> 2048 it has 18.94 million parameters; the paper's "less than 20" does not hold at 2560.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from src.contracts import LanguageSpec, VisionSpec
from src.kinds import BelowOne
from src.layers.dropout import Dropout
from src.projectors.grid import GridProjector, as_grid, as_tokens


class LDP(GridProjector):
    """``dropout``: on the vectors that it makes."""

    def __init__(self, vision: VisionSpec, language: LanguageSpec, dropout: BelowOne):
        super().__init__(vision, language)
        D = language.width
        self.mlp = nn.Sequential(nn.Linear(vision.width, D), nn.GELU(), nn.Linear(D, D))
        self.mix, self.shrink = MobileBlock(D, stride=1), MobileBlock(D, stride=2)
        self.drop = Dropout(dropout)

    def halved(self, tokens_XNC: Tensor) -> Tensor:
        grid_XDyx = as_grid(self.mlp(tokens_XNC))
        grid_XDyx = grid_XDyx + self.mix(grid_XDyx)
        return self.drop(as_tokens(self.shrink(grid_XDyx)))


class MobileBlock(nn.Module):
    """B above: (X, D, y, x) -> (X, D, y / stride, x / stride)."""

    def __init__(self, width: int, stride: int):
        super().__init__()
        inner = max(1, width // 4)
        self.depthwise = nn.Conv2d(width, width, 3, stride, padding=1, groups=width, bias=False)
        self.squeeze, self.excite = nn.Conv2d(width, inner, 1), nn.Conv2d(inner, width, 1)
        self.pointwise = nn.Conv2d(width, width, 1, bias=False)
        self.norm1, self.norm2 = ChannelNorm(width), ChannelNorm(width)

    def forward(self, grid_XDyx: Tensor) -> Tensor:
        a_XDvu = F.hardswish(self.norm1(self.depthwise(grid_XDyx)))
        s_XD11 = F.hardsigmoid(self.excite(F.relu(self.squeeze(a_XDvu.mean((2, 3), keepdim=True)))))
        return self.norm2(self.pointwise(a_XDvu * s_XD11))


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels at every place of a grid (X, D, y, x)."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)
