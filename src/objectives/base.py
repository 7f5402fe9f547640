"""What every objective promises: a view of the batch, made where data are loaded, and a loss of it, made in the step.

    view(batch, chance) -> View              what is read and what is to be predicted; nothing but data
    live(of, batch, view) -> View            the same, or what the model itself makes of the batch in training's step
    walk(fusion, lm, memory, view) -> walked the way through the model, which may be compiled
    loss(of, walked, view) -> Loss           nats, and of how many tokens or rows they are the mean
    head(language) -> module or None         parameters of its own, which lie in ``captioner.heads``

Objectives are frozen dataclasses of options, so that loading processes can be handed them. A loss that only one
mechanism has (CoCa's contrastive term on its own lower half) is no objective but a term of its ``learn``.
"""

from __future__ import annotations

import copy
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import ClassVar, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from src.contracts import Batch, Language, LanguageSpec, Memory, Target, Text, Tokenizer, View, VisionSpec
from src.decoding.base import Decoder
from src.fusion.base import Fusion, Reader, Writer
from src.kinds import Rate, check_kinds

Chance = Callable[[int], random.Random]  # row b of a batch -> its draws, a function of (seed, epoch, id) alone


Known = TypeVar("Known", bound="Objective")
Walked = tuple  # what ``walk`` hands to ``loss``: (hidden_BTD, terms) of a Writer, a Read of a Reader


@dataclass(frozen=True)
class Surroundings:
    """What objectives may know before there is a batch.

    ``commonest``: so many of the commonest answers of training; ``regions``: the width of regions as they are read; 0:
    that of the language model. ``captions``: of each training picture, all of them; none where a model is restored
    without its data.
    """

    vision: VisionSpec | None
    language: LanguageSpec
    commonest: Callable[[int], Sequence[str]]
    regions: int = 0
    captions: Callable[[], Iterable[Sequence[str]]] = tuple


class Loss(NamedTuple):
    """``mean`` over ``count`` target tokens (or rows), so that means over processes and batches stay exact.

    ``terms``: the mechanism's own losses beside it, and with weight 0 what is only told. ``rows``: how many texts it is
    of; None: those of the batch.
    """

    mean: Tensor
    count: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]: nobody counts in it as in a tuple
    terms: Mapping[str, tuple[Tensor, float]] = MappingProxyType({})
    rows: int | None = None


class Learner(Protocol):
    """What an objective may know of the captioner."""

    fusion: Fusion
    language: Language
    heads: nn.ModuleDict
    training: bool
    tokenizer: Tokenizer

    def cross_entropy(self, hidden_BTE: Tensor, target: Target) -> tuple[Tensor, Tensor]:
        """Mean nats per target token, each by its weight, and how many there are."""
        ...

    def start(self, contexts: int, device: torch.device) -> Text:
        """The prompt of plain captioning."""
        ...

    def say(self, batch: Batch, *ways: tuple[Decoder, int]) -> list[list[list[int]]]:
        """For each decoder so many captions a picture, neighbours, as token ids: as when captions are made, without
        dropout and gradients."""
        ...


class Limit(NamedTuple):
    """A term that may reach ``most`` in a batch, but not in the mean of many; ``said``: what that means, in words."""

    most: float
    said: str


@dataclass(frozen=True)
class Objective(ABC):
    """``weight``: of its loss among those of other objectives."""

    weight: Rate = field(default=1.0, kw_only=True)
    needs: ClassVar[type[Fusion]] = Writer  # what the mechanism has to be able to do
    fills: ClassVar[bool] = False  # teaches which words are hidden, so that words can be asked for one by one
    foils: ClassVar[bool] = False  # reads captions made false, where the data have them
    makes_texts: ClassVar[bool] = False  # learns from texts that the model makes up in the step
    limits: ClassVar[Mapping[str, Limit]] = MappingProxyType({})  # of its terms: beyond them training stops

    def __post_init__(self):
        check_kinds("objectives", {one.name: one.type for one in fields(self) if one.init}, vars(self))

    def fitted(self, to: Surroundings) -> Objective:
        """The same, knowing what it needs of model and data. Raises UserError where it cannot be learnt from them."""
        return self

    def knowing(self: Known, **fields) -> Known:
        """The same with fields that no option sets."""
        other = copy.copy(self)
        for name, value in fields.items():
            object.__setattr__(other, name, value)
        return other

    def head(self, language: LanguageSpec) -> nn.Module | None:
        """Parameters of its own."""
        return None

    def share(self, fusion: Fusion) -> float:
        """``weight``, with what the mechanism itself asks for."""
        return self.weight

    def longer(self, tokens: int) -> int:
        """By how many columns its view of a text of so many tokens is longer."""
        return 0

    @property
    def judged_by(self) -> int:
        """How many captioned pictures of val choose the best checkpoint, by CIDEr-D; 0: its loss chooses."""
        return 0

    @abstractmethod
    def view(self, batch: Batch, chance: Chance) -> View:
        """What this objective makes of a batch, one text a row, in the process that loads it."""

    def live(self, of: Learner, batch: Batch, view: View) -> View:
        """What a step of training learns from, where the model has a say in it; in validation ``view`` stands."""
        return view

    def walk(self, fusion: Fusion, lm: Language, memory: Memory, view: View) -> Walked:
        """What the loss is made of; ``view`` as ``seen`` leaves it.

        Of a Writer the hidden states and own losses of its ``learn``, of a Reader what it reads.
        """
        if isinstance(fusion, Writer) and issubclass(self.needs, Writer):
            return fusion.learn(lm, memory, view.text)
        if isinstance(fusion, Reader):
            memory = memory if view.hidden_IN is None else fusion.hide(memory, view.hidden_IN)
            return fusion.read(lm, memory, view.text)
        raise TypeError(f"{type(self).__name__} has to say how it walks through {type(fusion).__name__}.")

    @abstractmethod
    def loss(self, of: Learner, walked: Walked, view: View) -> Loss:
        """The loss of a view, of what ``walk`` made of its text."""
