"""How a layer's two branches, attention and MLP, stand on the stream of hidden states h: one of three ways.

    Serial        a = h + Attention(h)              y = a + MLP(a)            nearly all families
    Parallel      a = h + Attention(h) + MLP(h)     y = a                     GPT-NeoX
    NormedSums    a = N1(h + Attention(h))          y = N2(a + MLP(a))        OPT-350m

Norms around a branch are part of it, whether they stand in front (most families), behind (OLMo 2) or on both sides
(Gemma 2 and 3): they change what it reads and how much it adds, not what is added to what.

``attend`` hands out a, and ``feed`` goes on with what a mechanism has made of it. Whoever stands between them meets

    Serial        the stream between the branches: the layer's own MLP reads what was added to it, or put in its place
    Parallel      the stream behind both, as this MLP reads no attention, and so none that a mechanism puts there: the
                  next layer is the first to read what was added
    NormedSums    the normed sum of h and attention: what is added to it is normed by N2 alone, behind the MLP
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from src.layers.walk import Walk


class Branches(ABC):
    """What one layer of the library's adds to the stream."""

    @abstractmethod
    def norm(self, h_BTD: Tensor) -> Tensor:
        """What attention reads of the stream: its norm, or all as it is."""

    @abstractmethod
    def attention(self, x_BTD: Tensor, walk: Walk) -> Tensor:
        """What attention adds, of states behind ``norm``; appends to the walk's cache."""

    @abstractmethod
    def mlp(self, h_BTD: Tensor) -> Tensor:
        """What the MLP adds, of the stream itself: its norm is its own."""


class Serial:
    """The MLP reads what attention has found."""

    def __init__(self, branches: Branches):
        self.branches, self.norm = branches, branches.norm

    def attend(self, h_BTD: Tensor, walk: Walk) -> Tensor:
        """h + Attention(h)."""
        return h_BTD + self.branches.attention(self.norm(h_BTD), walk)

    def feed(self, h_BTD: Tensor) -> Tensor:
        """a + MLP(a)."""
        return h_BTD + self.branches.mlp(h_BTD)


class Parallel(Serial):
    """Both read the same."""

    def attend(self, h_BTD: Tensor, walk: Walk) -> Tensor:
        """h + Attention(h) + MLP(h)."""
        return super().attend(h_BTD, walk) + self.branches.mlp(h_BTD)

    def feed(self, h_BTD: Tensor) -> Tensor:
        """Nothing: all has been added."""
        return h_BTD


class NormedSums(Serial):
    """Norms act on the sums, so that no stream runs past them."""

    def __init__(self, branches: Branches, first: nn.Module, second: nn.Module):
        super().__init__(branches)
        self.first, self.second = first, second

    def attend(self, h_BTD: Tensor, walk: Walk) -> Tensor:
        """N1(h + Attention(h))."""
        return self.first(super().attend(h_BTD, walk))

    def feed(self, h_BTD: Tensor) -> Tensor:
        """N2(a + MLP(a))."""
        return self.second(super().feed(h_BTD))
