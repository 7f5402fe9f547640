"""What every objective promises: a view of the batch, made where data are loaded, and a loss of it, made in the step.

    view(batch, chance) -> View            what is read and what is to be predicted; nothing but data
    loss(of, memory, view) -> Loss         nats, and of how many tokens or rows they are the mean
    head(language) -> module or None       parameters of its own, which lie in ``captioner.heads``

Objectives are frozen dataclasses of options, so that loading processes can be handed them. A loss that only one
mechanism has (CoCa's contrastive term on its own lower half) is no objective but a term of its ``learn``.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import ClassVar, NamedTuple, Protocol

from torch import Tensor, nn

from src.contracts import Batch, Language, LanguageSpec, Memory, Target, Text, View
from src.fusion.base import Fusion, Terms, Writer

Chance = Callable[[int], random.Random]  # row b of a batch -> its draws, a function of (seed, epoch, id) alone


class Loss(NamedTuple):
    """``mean`` over ``count`` target tokens (or rows), so that means over processes and batches stay exact.

    ``terms``: the mechanism's own losses beside it.
    """

    mean: Tensor
    count: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]: nobody counts in it as in a tuple
    terms: Mapping[str, tuple[Tensor, float]] = MappingProxyType({})


class Learner(Protocol):
    """What an objective may know of the captioner."""

    fusion: Fusion
    language: Language
    heads: nn.ModuleDict

    def learn(self, memory: Memory, text: Text) -> tuple[Tensor, Terms]:
        """The mechanism's ``learn``: hidden states of all columns but the last, and losses of its own."""
        ...

    def cross_entropy(self, hidden_BTE: Tensor, target: Target) -> tuple[Tensor, Tensor]:
        """Mean nats per target token, and how many there are."""
        ...


@dataclass(frozen=True)
class Objective(ABC):
    """``weight``: of its loss among those of other objectives."""

    weight: float = field(default=1.0, kw_only=True)
    needs: ClassVar[type[Fusion]] = Writer  # what the mechanism has to be able to do

    def head(self, language: LanguageSpec) -> nn.Module | None:
        """Parameters of its own."""
        return None

    def share(self, fusion: Fusion) -> float:
        """``weight``, with what the mechanism itself asks for."""
        return self.weight

    @abstractmethod
    def view(self, batch: Batch, chance: Chance) -> View:
        """What this objective makes of a batch, in the process that loads it."""

    @abstractmethod
    def loss(self, of: Learner, memory: Memory, view: View) -> Loss:
        """The loss of a view whose pictures are in ``memory``."""


def with_views(batch: Batch, objectives: Mapping[str, Objective], chance: Chance) -> Batch:
    """``batch`` as every objective sees it."""
    return replace(batch, views={name: objective.view(batch, chance) for name, objective in objectives.items()})
