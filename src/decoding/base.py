"""What decoders share: the step they are given, and the loop of those that keep one row per picture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from src.contracts import Memory, Text
from src.kinds import Checked
from src.layers.cache import Cache


class Seen(NamedTuple):
    """What one walk over some columns leaves: the logits of the last one, and the hidden states of all of them."""

    logits_BV: Tensor
    hidden_BTE: Tensor


class Step(Protocol):
    """One walk: reads the columns of ``text``, and appends them to ``cache``."""

    def __call__(self, memory: Memory, text: Text, cache: Cache) -> Seen: ...


class Decoder(Checked, ABC, group="decode"):
    """How words are chosen.

    ``empty``: whether saying nothing at all is a choice. ``judged``: it asks a model of its own about the pictures,
    which has to ``meet`` them first.
    """

    empty: ClassVar[bool] = False
    judged: ClassVar[bool] = False

    def beside(self, memory: Memory, ids: Sequence[str]) -> Memory:
        """``memory`` with what this decoder itself knows of the pictures called ``ids``, one a context."""
        return memory

    @abstractmethod
    def __call__(self, step: Step, memory: Memory, prompt: Text, eos: int, extra: int = 0) -> list[list[int]]:
        """Token ids of every row of ``prompt``, without ``eos``; ``extra``: cache columns needed besides the tokens."""


def without_end(logits_BV: Tensor, eos: int) -> Tensor:
    """The first step's logits without the end token. Summed log-probabilities favour short captions, and where a model
    does not know what to say the empty one is the most probable of all (Stahlberg & Byrne 2019, arXiv 1908.10090).
    """
    return logits_BV.index_fill(-1, torch.tensor([eos], device=logits_BV.device), -torch.inf)


def next_column(ids_B: Tensor, phi_B: Tensor) -> Text:
    """One new token per row; it looks at the picture that the row looked at last."""
    return Text(ids_B[:, None], torch.ones_like(ids_B, dtype=torch.bool)[:, None], phi_B[:, None])


def roll_out(
    step: Step,
    memory: Memory,
    prompt: Text,
    extra: int,
    max_tokens: int,
    eos: int,
    choose: Callable[[Tensor], Tensor],
    empty: bool = False,
) -> list[list[int]]:
    """Extend every row of ``prompt`` (I, T) with ``choose(logits_BV) -> ids_B`` until ``eos`` or ``max_tokens``.

    ``extra``: cache columns that the fusion needs besides the tokens. Finished rows leave the batch, so late steps are
    cheap. Returns the new ids of each row, without ``eos``: at least one, unless ``empty`` ones may be.
    """
    rows = len(prompt.ids_BT)
    found: list[list[int]] = [[] for _ in range(rows)]
    cache = Cache(rows, prompt.ids_BT.shape[1] + extra + max_tokens)
    active, phi_B, text = list(range(rows)), prompt.phi_BT[:, -1], prompt
    for length in range(max_tokens):
        logits_BV = step(memory, text, cache).logits_BV
        ids_B = choose(logits_BV if length or empty else without_end(logits_BV, eos))
        ids = ids_B.tolist()  # the only thing that a step waits for
        going = [row for row, token in enumerate(ids) if token != eos]
        for row in going:
            found[active[row]].append(ids[row])
        if len(going) < len(ids):
            if not going:
                break
            active = [active[row] for row in going]
            keep_B = torch.tensor(going, device=ids_B.device)
            ids_B, phi_B = ids_B[keep_B], phi_B[keep_B]
            memory = memory.select(keep_B)
            cache.select(keep_B)
        text = next_column(ids_B, phi_B)
    return found
