"""Hidden spans are told behind what is left (Raffel et al. 2020, T5, arXiv 1910.10683, section 3.1.4), in a decoder.

    <bos> a <m> on the <m>  |  <m> red dog <m> grass <eos>                <m>: the mask; left of |: read both ways

    L = mean over t behind | of -log p(x_t | what stands left of |, x_{< t}, pictures)

An ablation of SimVLM (arXiv 2108.10904, section 4.4) beside objective=prefix_lm. T5 numbers its masks; here they are
one token, and the order of the spans tells which is which. Some 15 % of the words are hidden, in spans of three on
average, of random lengths at random places that do not touch; start, end and what is given are not.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated

import torch

from src.contracts import Batch, LanguageSpec, Target, Text, View, present
from src.errors import UserError
from src.kinds import Ge, Gt, Lt
from src.objectives.base import Chance, Surroundings
from src.objectives.next_token import NextToken


@dataclass(frozen=True)
class SpanCorruption(NextToken):
    """``rate``: of the words that are hidden, at least one; ``length``: of a span, on average."""

    rate: Annotated[float, Gt(0), Lt(1)] = 0.15
    length: Annotated[float, Ge(1)] = 3.0
    language: LanguageSpec | None = field(default=None, init=False)

    def fitted(self, to: Surroundings) -> SpanCorruption:
        """Raises UserError for a tokenizer without a token that hides words."""
        if to.language.mask is None:
            raise UserError(
                "objective=span_corruption hides words, and the tokenizer has no token for that; say "
                "+language.tokenizer.mask=true of a vocabulary made here."
            )
        return self.knowing(language=to.language)

    def longer(self, tokens: int) -> int:
        return 2 * self._spans(tokens)[1]

    def _spans(self, words: int) -> tuple[int, int]:
        """How many words are hidden, and in how many spans, with a word between any two."""
        hidden = min(words, max(1, round(self.rate * words)))
        return hidden, min(max(1, round(hidden / self.length)), words - hidden + 1)

    def view(self, batch: Batch, chance: Chance) -> View:
        text = present(batch.text, "text in the batch")
        rows = [self._row(text, b, chance(b)) for b in range(len(text.ids_BT))]
        T = max(len(front) + len(back) for front, back in rows)
        ids_BT, phi_BT = text.ids_BT.new_full((len(rows), T), self._known.pad), text.phi_BT.new_zeros(len(rows), T)
        length_B1 = torch.tensor([[len(front) + len(back)] for front, back in rows])
        open_B1 = torch.tensor([[len(front)] for front, _ in rows])
        for b, (front, back) in enumerate(rows):
            for t, (id, source) in enumerate((*front, *back)):
                ids_BT[b, t], phi_BT[b, t] = id, text.phi_BT[b, source]
        valid_BT, open_BT = torch.arange(T) < length_B1, torch.arange(T) < open_B1
        told = Text(ids_BT, valid_BT, phi_BT, target_BT=valid_BT & ~open_BT, open_BT=open_BT)
        return View(told, Target.next(told))

    @property
    def _known(self) -> LanguageSpec:
        return present(self.language, "language model")

    def _row(self, text: Text, b: int, draw: random.Random) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """What is read both ways and what is told, as tokens and the columns that they stood in."""
        columns = text.valid_BT[b].nonzero().flatten().tolist()
        given = [t for t in columns if not text.targets()[b, t] or t == columns[0]]
        end = [t for t in columns[-1:] if text.ids_BT[b, t] == self._known.eos and t != columns[0]]
        words = [t for t in columns if t not in given and t not in end]

        def kept(places: list[int]) -> list[tuple[int, int]]:
            return [(int(text.ids_BT[b, t]), t) for t in places]

        front, back, left = kept(given), [], 0
        for first, last in spans(len(words), *self._spans(len(words)), draw) if words else ():
            mask = (present(self._known.mask, "mask token"), words[first])
            front += [*kept(words[left:first]), mask]
            back += [mask, *kept(words[first:last])]
            left = last
        return front + kept(words[left:]), back + kept(end)


def spans(words: int, hidden: int, many: int, draw: random.Random) -> list[tuple[int, int]]:
    """So ``many`` spans, [first, last), of so many words, ``hidden`` of them in all; no two touch."""
    lengths = _shares(hidden, many, draw)
    gaps = _shares(words - hidden + 2, many + 1, draw)  # before, between and behind; the outer ones may be empty
    found, place = [], -1
    for gap, length in zip(gaps, lengths, strict=False):
        first = place + gap
        found.append((first, first + length))
        place = first + length
    return found


def _shares(total: int, many: int, draw: random.Random) -> list[int]:
    """So ``many`` whole numbers of at least 1 that sum to ``total``, all such equally likely."""
    cuts = sorted(draw.sample(range(1, total), many - 1))
    return [b - a for a, b in pairwise([0, *cuts, total])]
