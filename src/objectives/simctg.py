"""Hidden states that differ, so that contrastive search can tell words apart (SimCTG; Su et al., arXiv 2202.06417).

    L = L_MLE + mean over pairs i != j of a text's tokens of max(0, rho - 1 + cos(h_i, h_j))        equations 2 and 3

h: the final hidden states; cos(h_i, h_i) is 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from src.contracts import Text, View
from src.kinds import Share
from src.objectives.base import Learner, Loss, Walked
from src.objectives.next_token import NextToken


@dataclass(frozen=True)
class SimCTG(NextToken):
    """``margin`` rho: 0.5 in the paper; 0 is the next token alone."""

    margin: Share = 0.5

    def loss(self, of: Learner, walked: Walked, view: View) -> Loss:
        loss, hidden_BTE = super().loss(of, walked, view), walked[0]
        alike = alikeness(hidden_BTE, view.text, self.margin)
        return loss._replace(terms={**loss.terms, "simctg": (alike, self.weight)})


def alikeness(h_BTE: Tensor, text: Text, margin: float) -> Tensor:
    """The second term: the mean over all ordered pairs of different tokens that stand in one text; 0 without any."""
    unit_BTE = F.normalize(h_BTE.float(), dim=-1)
    alike_BTT = unit_BTE @ unit_BTE.transpose(1, 2)
    pair_BTT = text.valid_BT[:, :, None] & text.valid_BT[:, None, :]
    if text.segment_BT is not None:
        pair_BTT = pair_BTT & (text.segment_BT[:, :, None] == text.segment_BT[:, None, :])
    pair_BTT = pair_BTT & ~torch.eye(pair_BTT.shape[1], dtype=torch.bool, device=pair_BTT.device)
    return (F.relu(margin - 1 + alike_BTT) * pair_BTT).sum() / pair_BTT.sum().clamp_min(1)
