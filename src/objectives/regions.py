"""Hidden regions: what their features were, from what is left of the picture and the words (UNITER's masked region
feature regression, Chen et al. 2020, arXiv 1909.11740, section 3.2).

    L = mean over hidden n of |W^T LN(gelu(W_1 v_n)) + c - f_n|^2 / C        W: how regions enter, tied and transposed

The words are whole. UNITER's and ViLBERT's divergence from a detector's classes needs a detector, which is not here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.contracts import Batch, Language, LanguageSpec, Memory, View, VisionSpec, present
from src.fusion.base import Fusion, Read, Reader
from src.kinds import Gt, Lt
from src.objectives.base import Chance, Learner, Loss, Objective, Surroundings, Walked
from src.objectives.masked import hidden_regions


@dataclass(frozen=True)
class Regions(Objective):
    """``rate``: of visual tokens that are hidden; at least one of each picture."""

    rate: Annotated[float, Gt(0), Lt(1)] = 0.15
    vision: VisionSpec | None = field(default=None, init=False)
    width: int = field(default=0, init=False)  # of regions as they are read
    needs = Reader

    def fitted(self, to: Surroundings) -> Regions:
        return self.knowing(vision=to.vision, width=to.regions or to.language.width)

    def head(self, language: LanguageSpec) -> RegionHead:
        return RegionHead(self.width, present(self.vision, "pictures").width)

    def view(self, batch: Batch, chance: Chance) -> View:
        text = present(batch.text, "text in the batch")
        G = len(text.ids_BT) // len(batch.ids)
        draws = [chance(i * G) for i in range(len(batch.ids))]
        hidden_IN = hidden_regions(present(self.vision, "pictures").tokens, self.rate, draws)
        return View(replace(text, open_BT=torch.ones_like(text.valid_BT), target_BT=None), hidden_IN=hidden_IN)

    def walk(self, fusion: Fusion, lm: Language, memory: Memory, view: View) -> Walked:
        """Regions as they were read, (B, N, E), and their features, (I, N, C)."""
        read = Read(*super().walk(fusion, lm, memory, view))
        return present(read.regions_BND, "regions"), memory["features"]

    def loss(self, of: Learner, walked: Walked, view: View) -> Loss:
        v_BNE, f_INC = walked
        G = len(v_BNE) // len(f_INC)
        hidden_IN = present(view.hidden_IN, "hidden regions in the view")
        weight_EC = cast(Reader, of.fusion).regions.fc.weight
        found_XC = of.heads["regions"](v_BNE[hidden_IN.repeat_interleave(G, 0)], weight_EC)
        target_XC = f_INC.repeat_interleave(G, 0)[hidden_IN.repeat_interleave(G, 0)]
        mean = F.mse_loss(found_XC.float(), target_XC.float())
        return Loss(mean, torch.tensor(len(found_XC), device=mean.device))


class RegionHead(nn.Module):
    """From regions as they were read, (X, E), to features, (X, C)."""

    def __init__(self, width: int, features: int):
        super().__init__()
        self.fc, self.norm = nn.Linear(width, width), nn.LayerNorm(width)
        self.bias_C = nn.Parameter(torch.zeros(features))

    def forward(self, v_XE: Tensor, weight_EC: Tensor) -> Tensor:
        return self.norm(F.gelu(self.fc(v_XE))) @ weight_EC.to(v_XE.dtype) + self.bias_C
