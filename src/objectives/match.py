"""Do picture and text belong together? (image-text matching)

    L = - [y log s + (1 - y) log(1 - s)],   s = sigmoid(w . pooled)         y = 1: they do (the papers' codes differ)
      + c * mean over texts that match of -log softmax_i(e^t cos(P v_i, Q x))_own

The second term is no paper's: reading every picture with every text is too much, so that retrieval needs vectors of
both that are compared without reading, v_i the mean of a picture's regions as they enter and x the mean of a text's
word vectors. They choose what is then read (task=retrieval).

Half of the texts are wrong ones: that of another picture of the batch, or, a share ``hard`` of them, the right one with
one word made false, where the data can tell (drawn scenes). ``captions: 2`` is VisualBERT's (arXiv 1908.03557): the
text is two captions, of which the first is always right and the second is asked for; it needs data.captions_per_image
of 2 or more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.contracts import Batch, Language, LanguageSpec, Memory, Text, View, present
from src.fusion.base import Fusion, Read, Reader
from src.kinds import Rate, Share
from src.objectives.base import Chance, Learner, Loss, Objective, Surroundings, Walked

RIGHT = 0.5


@dataclass(frozen=True)
class Match(Objective):
    """See above."""

    hard: Share = 0.5
    captions: Literal[1, 2] = 1
    contrast: Rate = 0.1  # c
    regions: int = field(default=0, init=False)  # their width
    needs = Reader
    foils = True

    def fitted(self, to: Surroundings) -> Match:
        return self.knowing(regions=to.regions or to.language.width)

    def head(self, language: LanguageSpec) -> MatchHead:
        return MatchHead(language.width, self.regions)

    def view(self, batch: Batch, chance: Chance) -> View:
        text = present(batch.text, "text in the batch")
        rows = len(text.ids_BT)
        G, draws = rows // len(batch.ids), [chance(b) for b in range(rows)]
        right = [draw.random() < RIGHT for draw in draws]
        asked = [(text, b) if right[b] else self._wrong(batch, text, b, G, draws[b]) for b in range(rows)]
        own = [source is text and place // G == b // G for b, (source, place) in enumerate(asked)]
        label_B = torch.tensor(own, dtype=torch.float)
        seen = [source.ids_BT[place][source.valid_BT[place]].tolist() for source, place in asked]
        if self.captions == 2:
            first = [b // G * G + (b + 1) % G for b in range(rows)]  # another of the same picture
            seen = [[*text.ids_BT[f][text.valid_BT[f]].tolist(), *ids[1:]] for f, ids in zip(first, seen, strict=True)]
        return View(open_rows(seen), label_B=label_B)

    def _wrong(self, batch: Batch, text: Text, b: int, G: int, draw: Random) -> tuple[Text, int]:
        """A text that does not belong to the picture of row b, and its row; the right one where there is no other."""
        hard = draw.random() < self.hard
        if batch.foils is not None and hard and batch.foils.valid_BT[b].any():
            return batch.foils, b
        others = [row for row in range(len(text.ids_BT)) if row // G != b // G]
        return text, others[int(draw.random() * len(others))] if others else b

    def walk(self, fusion: Fusion, lm: Language, memory: Memory, view: View) -> Walked:
        """What was read, pooled, and the means of regions, (I, E), and of words, (B, D)."""
        read = super().walk(fusion, lm, memory, view)
        return Read(*read).pooled_BD, mean_regions(memory), mean_words(lm, view.text)

    def loss(self, of: Learner, walked: Walked, view: View) -> Loss:
        (pooled_BD, v_IE, x_BD), label_B = walked, present(view.label_B, "labels in the view")
        head = cast(MatchHead, of.heads["match"])
        logit_B = head(pooled_BD).float()
        right = ((logit_B > 0) == label_B.bool()).float().mean()
        mean = F.binary_cross_entropy_with_logits(logit_B, label_B)
        matches_B = label_B.bool()
        own_B = torch.arange(len(v_IE), device=v_IE.device).repeat_interleave(len(label_B) // len(v_IE))
        terms = {"match/accuracy": (right, 0.0)}
        if self.contrast and matches_B.any():
            alike_BI = head.alike(x_BD, v_IE)
            contrast = F.cross_entropy(alike_BI[matches_B], own_B[matches_B])
            terms["match/contrast"] = contrast, self.contrast * self.weight
        return Loss(mean, torch.tensor(len(label_B), device=mean.device), terms)


class MatchHead(nn.Module):
    """A logit of what was read together, and unit vectors of pictures and texts that were not."""

    def __init__(self, width: int, regions: int):
        super().__init__()
        self.fc = nn.Linear(width, 1)
        self.of_pictures, self.of_texts = nn.Linear(regions, width, bias=False), nn.Linear(width, width, bias=False)
        self.scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # t, as CLIP's starts

    def forward(self, pooled_BD: Tensor) -> Tensor:
        return self.fc(pooled_BD).squeeze(-1)

    def alike(self, x_BD: Tensor, v_IE: Tensor) -> Tensor:
        """How alike texts and pictures are, (B, I), scaled as the contrast wants it."""
        return self.scale.exp() * self.texts(x_BD) @ self.pictures(v_IE).T

    def pictures(self, v_IE: Tensor) -> Tensor:
        return F.normalize(self.of_pictures(v_IE).float(), dim=-1)

    def texts(self, x_BD: Tensor) -> Tensor:
        return F.normalize(self.of_texts(x_BD).float(), dim=-1)


def mean_regions(memory: Memory) -> Tensor:
    """Of each picture's visual tokens as they enter, (I, E)."""
    v_INE = memory["regions"]
    if "valid" not in memory:
        return v_INE.mean(1)
    weight_IN1 = memory["valid"][..., None].to(v_INE.dtype)
    return (weight_IN1 * v_INE).sum(1) / weight_IN1.sum(1).clamp_min(1)


def mean_words(lm: Language, text: Text) -> Tensor:
    """Of each text's word vectors, (B, D)."""
    x_BTD, weight_BT1 = lm.embed(text.ids_BT), text.valid_BT[..., None]
    return (weight_BT1 * x_BTD).sum(1) / weight_BT1.sum(1)


def open_rows(ids: Sequence[list[int]]) -> Text:
    """Ids as rows that are read both ways, beside one picture each."""
    T = max(map(len, ids))
    valid_BT = torch.arange(T) < torch.tensor([[len(row)] for row in ids])
    ids_BT = torch.tensor([row + [0] * (T - len(row)) for row in ids])
    return Text(ids_BT, valid_BT, valid_BT.long(), open_BT=valid_BT)
