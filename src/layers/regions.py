"""How visual tokens enter an encoder beside words: what a region looks like, and where it is.

    visualbert   LN(W f + s + p)                      s: "this is vision"; p: one position for all, which are a set
    uniter       LN(LN(W f) + LN(W_b b7) + s)         b7: corners, width, height, area
    vilbert      LN(W f + W_b b5)                     b5: corners, area; in front a region of the whole: the mean of f
    lxmert       (LN(W f) + LN(W_b b4)) / 2           b4: corners

Li et al. 2019, arXiv 1908.03557, section 3.2; Chen et al. 2020, arXiv 1909.11740; Lu et al. 2019, arXiv 1908.02265;
Tan & Bansal 2019, arXiv 1908.07490. Their regions are boxes of a detector; here they are the cells of a grid over the
picture, row by row. A hidden region's f is a learnt vector (UNITER: zeros plus one; ViLBERT: zeros).
"""

from __future__ import annotations

from math import isqrt
from typing import Literal

import torch
from torch import Tensor, nn

from src.layers.post_norm import EPS

Form = Literal["visualbert", "uniter", "vilbert", "lxmert"]
BOX = {"visualbert": 0, "uniter": 7, "vilbert": 5, "lxmert": 4}  # numbers that tell where a region is


def grid_boxes(tokens: int) -> Tensor:
    """Corners x1, y1, x2, y2 of each cell as shares of the picture, (N, 4): as square a grid as ``tokens`` make."""
    rows = next(n for n in range(isqrt(tokens), 0, -1) if tokens % n == 0)
    y_N, x_N = (index.flatten() for index in torch.meshgrid(*map(torch.arange, (rows, tokens // rows)), indexing="ij"))
    size_4 = torch.tensor([tokens // rows, rows] * 2)
    return torch.stack([x_N, y_N, x_N + 1, y_N + 1], 1) / size_4


def described(box_N4: Tensor, numbers: int) -> Tensor:
    """Boxes by their corners and as many further numbers as are asked for: (width, height,) area."""
    width_N, height_N = box_N4[:, 2] - box_N4[:, 0], box_N4[:, 3] - box_N4[:, 1]
    sides = [width_N, height_N] if numbers == 7 else []
    area = [width_N * height_N] if numbers > 4 else []
    return torch.cat([box_N4, *(x_N[:, None] for x_N in (*sides, *area))], 1)


class RegionEmbedding(nn.Module):
    """Features of N regions (X, N, C) -> what blocks read, (X, N, D); of form vilbert N + 1 regions."""

    box_NE: Tensor

    def __init__(self, source_width: int, width: int, tokens: int, form: Form, dropout: nn.Module):
        super().__init__()
        self.form = form
        self.fc = nn.Linear(source_width, width)
        self.hidden_C = nn.Parameter(torch.zeros(source_width))
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.drop = dropout
        if form in ("visualbert", "uniter"):
            self.kind_D = nn.Parameter(torch.zeros(width))
        if form == "visualbert":
            self.position_D = nn.Parameter(torch.zeros(width))
            return
        box_N4 = grid_boxes(tokens)
        if form == "vilbert":
            box_N4 = torch.cat([torch.tensor([[0.0, 0.0, 1.0, 1.0]]), box_N4])
        self.register_buffer("box_NE", described(box_N4, BOX[form]), persistent=False)
        self.box_fc = nn.Linear(BOX[form], width)
        if form in ("uniter", "lxmert"):
            self.box_norm = nn.LayerNorm(width, eps=EPS)
        if form == "uniter":
            self.sum_norm = nn.LayerNorm(width, eps=EPS)

    def forward(self, f_XNC: Tensor, hidden_XN: Tensor | None = None) -> Tensor:
        """``hidden``: regions that are not to be seen."""
        if hidden_XN is not None:
            f_XNC = torch.where(hidden_XN[..., None], self.hidden_C.to(f_XNC.dtype), f_XNC)
        if self.form == "vilbert":  # the mean is taken of what is left
            f_XNC = torch.cat([f_XNC.mean(1, keepdim=True), f_XNC], 1)
        x_XND = self.fc(f_XNC)
        if self.form == "visualbert":
            return self.drop(self.norm(x_XND + self.kind_D + self.position_D))
        box_ND = self.box_fc(self.box_NE.to(x_XND.dtype))
        if self.form == "vilbert":
            return self.drop(self.norm(x_XND + box_ND))
        both_XND = self.norm(x_XND) + self.box_norm(box_ND)
        if self.form == "lxmert":
            return self.drop(both_XND / 2)
        return self.drop(self.sum_norm(both_XND + self.kind_D))
