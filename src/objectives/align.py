"""Words and regions that belong together are alike: optimal transport between them (UNITER's word-region alignment,
Chen et al. 2020, arXiv 1909.11740, section 3.2).

    L = <T, C> of matching pairs - <T, C> of others       C_tn = 1 - cos(word t, region n), both as they were read
    T = argmin <T, C> with rows summing to 1 / words and columns to 1 / regions

T comes from the inexact proximal point method (IPOT, Xie et al. 2020, arXiv 1802.04307), and gradients do not see it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from src.contracts import Batch, View, present
from src.errors import UserError
from src.fusion.base import Read, Reader
from src.kinds import Rate, Size
from src.objectives.base import Chance, Learner, Loss, Objective, Surroundings, Walked
from src.objectives.match import Match

TINY = 1e-30  # what is not there has 0 of a plan, not 0 / 0
BETA = 0.5  # of the proximal step, as in UNITER's code


@dataclass(frozen=True)
class Align(Objective):
    """``steps`` of the method; ``weight`` 0.1 is UNITER's."""

    steps: Size = 50
    weight: Rate = field(default=0.1, kw_only=True)
    needs = Reader

    def fitted(self, to: Surroundings) -> Align:
        """Raises UserError where words and regions are of different widths."""
        if to.regions not in (0, to.language.width):
            raise UserError(
                f"objective=align compares words of width {to.language.width} with regions of {to.regions}; leave "
                "fusion.vision_width=null."
            )
        return self

    def view(self, batch: Batch, chance: Chance) -> View:
        return Match(hard=0.0).view(batch, chance)

    def loss(self, of: Learner, walked: Walked, view: View) -> Loss:
        read, label_B = Read(*walked), present(view.label_B, "labels in the view")
        cost_BTN = 1 - _unit(read.hidden_BTD) @ _unit(present(read.regions_BND, "regions")).transpose(1, 2)
        valid_BN = cost_BTN.new_ones(cost_BTN.shape[0], cost_BTN.shape[2], dtype=torch.bool)
        with torch.no_grad():
            plan_BTN = transport(cost_BTN, view.text.valid_BT, valid_BN, self.steps)
        distance_B = (plan_BTN * cost_BTN).sum((1, 2))
        mean = (distance_B * (2 * label_B - 1)).mean()
        return Loss(mean, torch.tensor(len(label_B), device=mean.device))


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x.float(), dim=-1)


def transport(cost_BTN: Tensor, valid_BT: Tensor, valid_BN: Tensor, steps: int) -> Tensor:
    """The plan T, (B, T, N): uniform marginals over what is valid, 0 elsewhere."""
    a_BT1 = (valid_BT / valid_BT.sum(1, keepdim=True)).to(cost_BTN.dtype)[:, :, None]
    b_BN1 = (valid_BN / valid_BN.sum(1, keepdim=True)).to(cost_BTN.dtype)[:, :, None]
    kernel_BTN = torch.exp(-cost_BTN / BETA) * valid_BT[:, :, None] * valid_BN[:, None, :]
    plan_BTN, s_BN1 = torch.ones_like(cost_BTN), b_BN1
    for _ in range(steps):
        q_BTN = kernel_BTN * plan_BTN
        d_BT1 = a_BT1 / (q_BTN @ s_BN1).clamp_min(TINY)
        s_BN1 = b_BN1 / (q_BTN.transpose(1, 2) @ d_BT1).clamp_min(TINY)
        plan_BTN = d_BT1 * q_BTN * s_BN1.transpose(1, 2)
    return plan_BTN
