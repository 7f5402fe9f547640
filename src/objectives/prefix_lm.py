"""Prefix language modelling (Wang et al. 2022, SimVLM, arXiv 2108.10904, section 3.1).

    L = mean over t >= r of -log p(x_t | x_{r <= s < t}, x_{< r} seen both ways, pictures),    r uniform

A beginning of random length r is open: its columns see each other, whatever their order, and none of them is predicted.
The start token always belongs to it and the last token that is to be learnt never does, so that every split leaves
something to learn where there is anything. A start token alone opens nothing: r = 1 is a plain language model, behind
visual tokens too, and what captions are written by.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from src.contracts import Batch, Target, View, present
from src.objectives.base import Chance
from src.objectives.next_token import NextToken


@dataclass(frozen=True)
class PrefixLM(NextToken):
    """The next token behind a beginning that is read both ways."""

    def view(self, batch: Batch, chance: Chance) -> View:
        text = present(batch.text, "text in the batch")
        column_T = torch.arange(text.ids_BT.shape[1])
        last = (text.targets() * column_T).amax(1).tolist()  # columns of the last tokens that are to be learnt
        r_B = torch.tensor([1 + int(chance(b).random() * column) for b, column in enumerate(last)])
        before_BT = column_T < r_B[:, None]
        open_BT = before_BT & (r_B[:, None] > 1)
        text = replace(text, open_BT=open_BT, target_BT=text.targets() & ~before_BT)
        return View(text, Target.next(text))
