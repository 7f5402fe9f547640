"""Which text belongs to which picture of the batch? (CLIP, Radford et al. 2021, arXiv 2103.00020, figure 3)

    L = (CE(s, 1 .. I) + CE(s^T, 1 .. I)) / 2        s = e^t x y^T: all pictures by all texts; over all processes

A choice among I, both ways, and no yes or no. One caption of each picture takes part, another in every epoch: a second
one of the same picture would be a wrong answer that is right, and keep the loss above log 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from src.contracts import Batch, Language, Memory, Text, View, present
from src.errors import UserError
from src.fusion.base import Fusion, Retriever
from src.layers.contrast import contrastive_loss
from src.objectives.base import Chance, Learner, Loss, Objective, Walked


@dataclass(frozen=True)
class Contrastive(Objective):
    """Of mechanisms that compare by a ``scale`` of their own."""

    needs = Retriever

    def view(self, batch: Batch, chance: Chance) -> View:
        text = present(batch.text, "text in the batch")
        if batch.image_valid_IM is not None:
            raise UserError("objective=contrastive compares single pictures with captions, and these are documents.")
        I, G = len(batch.ids), len(text.ids_BT) // len(batch.ids)
        rows_I = torch.tensor([i * G + int(chance(i * G).random() * G) for i in range(I)])
        ids_IT, valid_IT, phi_IT = (x_BT[rows_I] for x_BT in (text.ids_BT, text.valid_BT, text.phi_BT))
        return View(Text(ids_IT, valid_IT, phi_IT))

    def walk(self, fusion: Fusion, lm: Language, memory: Memory, view: View) -> Walked:
        """Unit vectors of pictures and of their texts, (I, E) both, and e^t."""
        if not isinstance(fusion, Retriever):
            raise TypeError(f"{type(fusion).__name__} does not compare.")
        return fusion.embed_pictures(memory), fusion.embed_texts(lm, view.text), fusion.scale()

    def loss(self, of: Learner, walked: Walked, view: View) -> Loss:
        x_IE, y_IE, scale = walked
        mean, right = contrastive_loss(x_IE, y_IE, scale, gathered=of.training)
        return Loss(mean, torch.tensor(len(x_IE), device=mean.device), {"contrastive/accuracy": (right, 0.0)})
