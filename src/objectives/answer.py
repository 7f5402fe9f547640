"""Answers as classes: questions are read, and one of the commonest answers is chosen by a head over what was read.

    L = - sum_a p_a log softmax(W_2 LN(gelu(W_1 pooled)))_a        p_a: the share of the people asked who said a

The cross-entropy to what people answer (as VisualBERT's, arXiv 1908.03557; LXMERT and UNITER have a logistic loss of
every answer); the head is LXMERT's, arXiv 1908.07490. Questions whose answers are all rare ones teach nothing, and are
counted out of the mean. The answers lie in the head, so that whoever loads it knows them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.contracts import Batch, LanguageSpec, Text, View, present
from src.errors import UserError
from src.fusion.base import Read, Reader
from src.kinds import Size
from src.objectives.base import Chance, Learner, Loss, Objective, Surroundings, Walked

WORDS = "words_X"  # of the head: its answers as JSON in bytes


@dataclass(frozen=True)
class Answer(Objective):
    """``answers``: classes at most. ``known``: what they are, found in the data or in a head."""

    answers: Size = 3129  # VQAv2's answers that nine questions or more have
    known: tuple[str, ...] = field(default=(), init=False)
    places: Mapping[str, int] = field(default_factory=dict, init=False, repr=False)  # of what is known
    needs = Reader

    def fitted(self, to: Surroundings) -> Answer:
        """Raises UserError where there is no answer."""
        known = tuple(to.commonest(self.answers))
        if not known:
            raise UserError("objective=answer has no answers to choose from: it needs data with questions (data=vqa).")
        return self.knowing(known=known, places={answer: place for place, answer in enumerate(known)})

    def head(self, language: LanguageSpec) -> AnswerHead:
        return AnswerHead(language.width, self.known)

    def view(self, batch: Batch, chance: Chance) -> View:
        text = question_of(present(batch.text, "text in the batch"))
        rows = len(text.ids_BT) // len(batch.ids)
        shares = torch.tensor([self._shares(answers) for answers in batch.captions for _ in range(rows)])
        return View(text, label_B=shares)

    def _shares(self, answers: Sequence[str]) -> list[float]:
        found = [0.0] * len(self.known)
        for answer in answers:
            if (place := self.places.get(answer)) is not None:
                found[place] += 1 / len(answers)
        return found

    def loss(self, of: Learner, walked: Walked, view: View) -> Loss:
        label_BA = present(view.label_B, "answers in the view")
        nats_B = F.cross_entropy(of.heads["answer"](Read(*walked).pooled_BD).float(), label_BA, reduction="none")
        count = (label_BA.sum(1) > 0).sum()
        return Loss(nats_B.sum() / count.clamp_min(1), count)


class AnswerHead(nn.Module):
    """Logits (B, A) of what a Reader has pooled, (B, D)."""

    words_X: Tensor

    def __init__(self, width: int, answers: Sequence[str]):
        super().__init__()
        self.answers = tuple(answers)
        self.fc1, self.norm = nn.Linear(width, 2 * width), nn.LayerNorm(2 * width)
        self.fc2 = nn.Linear(2 * width, len(answers))
        self.register_buffer(WORDS, torch.tensor(list(json.dumps(self.answers).encode()), dtype=torch.uint8))

    def forward(self, pooled_BD: Tensor) -> Tensor:
        return self.fc2(self.norm(F.gelu(self.fc1(pooled_BD))))


def known_answers(heads: Mapping[str, Tensor]) -> list[str]:
    """The answers of a head among the tensors of all heads; none where there is no such head."""
    words_X = next((x for name, x in heads.items() if name.endswith(f".{WORDS}")), None)
    return [] if words_X is None else json.loads(bytes(words_X.tolist()))


def question_of(text: Text) -> Text:
    """What is given of each row, to be read both ways; what is to be said is not there."""
    given_BT = text.valid_BT & ~text.targets()
    T = int(given_BT.sum(1).max())
    text = replace(text, valid_BT=given_BT, target_BT=None).columns(None, T)
    return replace(text, open_BT=torch.ones_like(text.valid_BT))
