"""Masked words (Devlin et al. 2019, BERT, arXiv 1810.04805, section 3.1).

    L = mean over hidden t of -log p(x_t | what is left of x, pictures)

A word is hidden with probability ``rate``: 80 % of the hidden ones become the mask, 10 % any other word, 10 % stay. Of
every text at least one is hidden. ``policy: conditional`` is UNITER's (arXiv 1909.11740): the pictures are whole;
``policy: joint`` also hides the same share of their visual tokens, as VisualBERT's and LXMERT's trainings may.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import torch
from torch import Tensor

from src.contracts import Batch, Target, View, present
from src.errors import UserError
from src.fusion.base import Read, Reader
from src.kinds import Gt, Lt
from src.objectives.base import Chance, Learner, Loss, Objective, Surroundings, Walked

MASKED, OTHER = 0.8, 0.1  # the rest stays as it is


@dataclass(frozen=True)
class Masked(Objective):
    """See above."""

    rate: Annotated[float, Gt(0), Lt(1)] = 0.15
    policy: Literal["conditional", "joint"] = "conditional"
    to: Surroundings | None = field(default=None, init=False)
    needs = Reader
    fills = True

    def fitted(self, to: Surroundings) -> Masked:
        """Raises UserError for a tokenizer without a token that hides words."""
        if to.language.mask is None:
            raise UserError("objective=masked hides words, and the tokenizer has no token for that; use language=bert.")
        return self.knowing(to=replace(to, commonest=None))  # processes that load are handed it

    def view(self, batch: Batch, chance: Chance) -> View:
        text = present(batch.text, "text in the batch")
        to, draws = present(self.to, "mask token"), [chance(b) for b in range(len(text.ids_BT))]
        ids_BT, chosen_BT = text.ids_BT.clone(), torch.zeros_like(text.valid_BT)
        for b, (row, draw) in enumerate(zip(text.valid_BT & ~text.starts(), draws, strict=True)):
            for t in some(row.nonzero().flatten().tolist(), self.rate, draw):
                chosen_BT[b, t], how = True, draw.random()
                if how < MASKED:
                    ids_BT[b, t] = present(to.language.mask, "mask token")
                elif how < MASKED + OTHER:
                    ids_BT[b, t] = int(draw.random() * to.language.vocabulary)
        shown = replace(text, ids_BT=ids_BT, open_BT=torch.ones_like(text.valid_BT), target_BT=None)
        hidden = None
        if self.policy == "joint":
            tokens = present(to.vision, "pictures").tokens
            hidden = hidden_regions(tokens, self.rate, draws[:: len(draws) // len(batch.ids)])
        return View(shown, Target.here(text.ids_BT, chosen_BT), hidden_IN=hidden)

    def loss(self, of: Learner, walked: Walked, view: View) -> Loss:
        return Loss(*of.cross_entropy(Read(*walked).hidden_BTD, present(view.target, "target in the view")))


def some(places: Sequence[int], share: float, draw: random.Random) -> list[int]:
    """Each of ``places`` with probability ``share``; one of them where that is none."""
    return [place for place in places if draw.random() < share] or [places[int(draw.random() * len(places))]]


def hidden_regions(N: int, share: float, draws: Sequence[random.Random]) -> Tensor:
    """Some visual tokens of each picture, (I, N)."""
    hidden_IN = torch.zeros(len(draws), N, dtype=torch.bool)
    for i, draw in enumerate(draws):
        hidden_IN[i, some(range(N), share, draw)] = True
    return hidden_IN
