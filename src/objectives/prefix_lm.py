"""Prefix language modelling (Wang et al. 2022, SimVLM, arXiv 2108.10904, section 3.1).

    L = mean over t >= r of -log p(x_t | x_{r <= s < t}, x_{< r} seen both ways, pictures),    r uniform

A beginning of random length r is open: its columns see each other, whatever their order, and none of them is predicted.
The start token always belongs to it and the last token never does, so that r = 1 is a plain language model.
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
        lengths = text.valid_BT.sum(1).tolist()
        r_B = torch.tensor([1 + int(chance(b).random() * (length - 1)) for b, length in enumerate(lengths)])
        open_BT = torch.arange(text.ids_BT.shape[1]) < r_B[:, None]
        text = replace(text, open_BT=open_BT, target_BT=text.targets() & ~open_BT)
        return View(text, Target.next(text))
