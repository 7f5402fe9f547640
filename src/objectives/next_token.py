"""The next token, as language models learn: the mean over targets of -log p(x_{t+1} | x_{<=t}, pictures)."""

from __future__ import annotations

from dataclasses import dataclass

from src.contracts import Batch, Target, View, present
from src.fusion.base import Fusion, Writer
from src.objectives.base import Chance, Learner, Loss, Objective, Walked


@dataclass(frozen=True)
class NextToken(Objective):
    """What every mechanism that writes is trained with unless told otherwise."""

    def share(self, fusion: Fusion) -> float:
        return self.weight * (fusion.caption_weight if isinstance(fusion, Writer) else 1.0)

    def view(self, batch: Batch, chance: Chance) -> View:
        text = present(batch.text, "text in the batch")
        return View(text, Target.next(text))

    def loss(self, of: Learner, walked: Walked, view: View) -> Loss:
        hidden_BTE, terms = walked
        return Loss(*of.cross_entropy(hidden_BTE, present(view.target, "target in the view")), terms)
