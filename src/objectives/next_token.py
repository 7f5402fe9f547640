"""The next token, as language models learn: the mean over targets of -log p(x_{t+1} | x_{<=t}, pictures)."""

from __future__ import annotations

from dataclasses import dataclass

from src.contracts import Batch, Target, View
from src.fusion.base import Writer
from src.objectives.base import Chance, Learner, Loss, Objective, Walked


@dataclass(frozen=True)
class NextToken(Objective):
    """What every mechanism that writes is trained with unless told otherwise."""

    def share(self, fusion: Writer) -> float:
        return self.weight * fusion.caption_weight

    def view(self, batch: Batch, chance: Chance) -> View:
        return View(batch.text, Target.next(batch.text))

    def loss(self, of: Learner, walked: Walked, view: View) -> Loss:
        hidden_BTD, terms = walked
        return Loss(*of.cross_entropy(hidden_BTD, view.target), terms)
