"""Where a mechanism reads the picture, found by watching it read texts, and the same with some of this changed.

No mechanism is named, as every one enters the words by one or several of these doors:

    input      a column of the text begins with something else than its token's embedding
    block      in the self-attention of a block, words look at visual columns: those that stand before the text, and
               those of "input"
    crossing   words read in a CrossAttention

A site is one such door at one place. It is cut (the token's own embedding; words do not look at visual columns; 0 is
read), or swapped: of 2 n rows, those of n pictures and then those of n others with the same texts, the first n read
there what the others' pictures have to say, with their own queries. With all sites cut a model is blind, and with all
of them swapped it says of one picture what it says of the other: where that is not so, it reads by a door of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.contracts import Block, Language, Text, present
from src.layers.attention import CrossAttention
from src.layers.cache import Cache
from src.layers.walk import Walk


@dataclass(frozen=True)
class Site:
    """``order``: among all of a walk. ``place``: how many layers of attention words have passed with it, 0: none."""

    order: int
    kind: str
    place: int


def depths(sites: Sequence[Site], blocks: int) -> list[float]:
    """Of each site, from 0 (the input) to 1 (the last layer), in a language model of so many ``blocks``."""
    last = max([blocks, *(site.place for site in sites)])
    return [site.place / last for site in sites]


@contextmanager
def watched(fusion: nn.Module, lm: Language, changed: Collection[Site] = (), swap: bool = False) -> Iterator[Watched]:
    """A language model to ``decode`` with, once: it finds the ``sites``, and cuts or swaps those that are ``changed``.

    Only single passes without a cache are watched.
    """
    watch = Watched(lm, frozenset(changed), swap)
    crossings = [module for module in fusion.modules() if isinstance(module, CrossAttention)]
    hooks = [module.q.register_forward_hook(watch.ask) for module in crossings]
    hooks += [module.out.register_forward_hook(watch.cross) for module in crossings]
    try:
        yield watch
    finally:
        for hook in hooks:
            hook.remove()


class Watched:
    """Shows what ``contracts.Language`` promises, and sees by it what a mechanism does."""

    def __init__(self, lm: Language, changed: frozenset[Site], swap: bool):
        self.lm, self.changed, self.swap = lm, changed, swap
        self.sites: list[Site] = []
        self._blocks = self._crossings = 0  # passed; of crossings those since the last block
        self._own_BTD: Tensor | None = None  # embeddings of the text's tokens
        self._text: Text | None = None
        self._visual_BS: Tensor | None = None  # columns that are no words; None: there are none
        self._cut_bias: Tensor | None = None
        self._changing = False  # the crossing under way

    def __getattr__(self, name: str):
        return getattr(self.lm, name)

    @property
    def language(self) -> Language:
        """Itself, for type checkers, who do not follow ``__getattr__``."""
        return cast(Language, self)

    # ---------------------------------------------------------------------------------------- the language model
    def embed(self, ids_BT: Tensor) -> Tensor:
        self._own_BTD = self.lm.embed(ids_BT)
        return self._own_BTD

    def walk(self, text: Text, dtype: torch.dtype, cache: Cache | None = None) -> Walk:
        self._text = text
        return self.lm.walk(text, dtype, cache)

    def begin(self, inputs_BSD: Tensor, text: Text, cache: Cache | None = None) -> tuple[Tensor, Walk]:
        walk = self.walk(text, inputs_BSD.dtype, cache)
        return self.place(inputs_BSD, walk), walk

    def place(self, inputs_BSD: Tensor, walk: Walk) -> Tensor:
        """The first block's inputs; S = ahead + T columns, of which the last are the text's."""
        own_BTD = present(self._own_BTD, "embeddings of the text")
        ahead = inputs_BSD.shape[1] - own_BTD.shape[1]
        other_BS = F.pad((inputs_BSD[:, ahead:] != own_BTD).any(-1), (ahead, 0), value=False)
        visual_BS = torch.arange(inputs_BSD.shape[1], device=inputs_BSD.device) < ahead
        visual_BS = visual_BS.expand_as(other_BS)
        if other_BS.any():
            if not self._meet("input", 0):
                visual_BS = visual_BS | other_BS
            elif self.swap:
                inputs_BSD = torch.where(other_BS[:, :, None], _others(inputs_BSD), inputs_BSD)
            else:
                inputs_BSD = torch.cat([inputs_BSD[:, :ahead], own_BTD], 1)
        if ahead or other_BS.any():
            self._visual_BS = visual_BS
            self._cut_bias = None if self.swap or not self.changed else self._without(visual_BS, inputs_BSD, walk)
        return self.lm.place(inputs_BSD, walk)

    def read(self, text: Text, cache: Cache | None = None) -> tuple[Tensor, Walk]:
        self._blocks += self.lm.spec.layers
        return self.lm.read(text, cache)

    def blocks(self) -> list[Block]:
        return [WatchedBlock(block, self) for block in self.lm.blocks()]

    # ---------------------------------------------------------------------------------------- the doors
    def attend(self, block: Block, h_BSD: Tensor, walk: Walk) -> Tensor:
        """``block.attend``, where words may look at visual columns."""
        self._blocks, self._crossings = self._blocks + 1, 0
        if self._visual_BS is None or not self._meet("block", self._blocks):
            return block.attend(h_BSD, walk)
        if not self.swap:
            return block.attend(h_BSD, replace(walk, bias=self._cut_bias, causal=False))
        visual_BS1 = self._visual_BS[:, :, None]
        read_BSD = block.attend(torch.where(visual_BS1, _others(h_BSD), h_BSD), walk)
        return torch.where(visual_BS1, block.attend(h_BSD, walk), read_BSD)

    def ask(self, module: nn.Module, inputs: tuple, q_BTE: Tensor) -> Tensor | None:
        """Hook on a crossing's queries."""
        self._changing = self._meet("crossing", self._blocks + self._crossings)
        self._crossings += 1
        return torch.cat([q_BTE.chunk(2)[0]] * 2) if self._changing and self.swap else None

    def cross(self, module: nn.Module, inputs: tuple, read_xBTD: Tensor) -> Tensor | None:
        """Hook on what a crossing hands out, (B, T, D) or (K, B, T, D)."""
        if not self._changing:
            return None
        return _others(read_xBTD, dim=-3) if self.swap else torch.zeros_like(read_xBTD)

    def _meet(self, kind: str, place: int) -> bool:
        """Note a site; whether it is changed."""
        self.sites.append(Site(len(self.sites), kind, place))
        return self.sites[-1] in self.changed

    def _without(self, visual_BS: Tensor, inputs_BSD: Tensor, walk: Walk) -> Tensor:
        """The walk's mask, in which besides no word looks at a visual column, (B, 1, S, S)."""
        bias = walk.bias
        if bias is None:  # as it was needless; not so for a ragged text
            text = replace(present(self._text, "text of the walk"), ragged=True)
            bias = present(self.lm.walk(text, inputs_BSD.dtype).bias, "mask of a ragged text")
        unseen_BSS = ~visual_BS[:, :, None] & visual_BS[:, None, :]
        return bias.masked_fill(unseen_BSS[:, None], 0.5 * torch.finfo(bias.dtype).min)


class WatchedBlock:
    """A block whose attention is the watch's."""

    def __init__(self, block: Block, watch: Watched):
        self.block, self.watch = block, watch

    def norm(self, h_BTD: Tensor) -> Tensor:
        return self.block.norm(h_BTD)

    def attend(self, h_BTD: Tensor, walk: Walk) -> Tensor:
        return self.watch.attend(self.block, h_BTD, walk)

    def feed(self, h_BTD: Tensor) -> Tensor:
        return self.block.feed(h_BTD)


def _others(x: Tensor, dim: int = 0) -> Tensor:
    """The second half along ``dim``, twice."""
    return torch.cat([x.chunk(2, dim)[1]] * 2, dim)
