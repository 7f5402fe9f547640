"""Where a mechanism reads the picture, found by watching it read texts, and the same with some of this changed.

No mechanism is named, as every one enters the words by one or several of these doors:

    input      a column of the text begins with something else than its token's embedding
    block      in the self-attention of a block, words look at visual columns: those that stand before the text, and
               those of "input"
    crossing   words read in a CrossAttention, or one after the other in a SoftAttention; or begin at an Opening

A site is one such door at one place. It is cut (the token's own embedding; words do not look at visual columns; 0 is
read), or swapped: of 2 n rows, those of n pictures and then those of n others with the same texts, the first n read
there what the others' pictures have to say, with their own queries. With all sites cut a model is blind, and with all
of them swapped it says of one picture what it says of the other: where that is not so, it reads by a door of its own.

Up to the first site that is changed a pass is the one in which none is, and what stands before the text sees none of
its words, so that no cut reaches it. A pass that is given what the first one left (``Passed``) computes the rest alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.contracts import Block, Language, Text, present
from src.layers.attention import CrossAttention
from src.layers.cache import Cache
from src.layers.soft_attention import Opening, SoftAttention
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


@dataclass
class Passed:
    """What a pass without changes left: of each step through the language model what came in at the columns before the
    text, (B, ahead, D), and what went out, (B, S, D); and these columns' keys and values in every attention."""

    steps: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    ahead: int = 0
    keys_values: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def append(self, name: str, k_BKXd: Tensor, v_BKXd: Tensor) -> tuple[Tensor, Tensor]:
        """In a cache's place: the first pass leaves those of its first columns, others put theirs behind them."""
        if name in self.keys_values:
            k_BKPd, v_BKPd = self.keys_values[name]
            return torch.cat([k_BKPd, k_BKXd], 2), torch.cat([v_BKPd, v_BKXd], 2)
        self.keys_values[name] = k_BKXd[:, :, : self.ahead].clone(), v_BKXd[:, :, : self.ahead].clone()
        return k_BKXd, v_BKXd


@contextmanager
def watched(
    fusion: nn.Module,
    lm: Language,
    changed: Collection[Site] = (),
    swap: bool = False,
    first: Passed | None = None,
) -> Iterator[Watched]:
    """A language model to ``decode`` with, once: it finds the ``sites``, and cuts or swaps those that are ``changed``.

    Only single passes without a cache are watched. ``first``: what such a pass over the same text and pictures left,
    its ``passed``, where some of its sites are cut now.
    """
    watch = Watched(lm, frozenset(changed), swap, first)
    hooks = []
    for module in fusion.modules():
        if isinstance(module, CrossAttention):
            hooks.append(module.q.register_forward_hook(watch.ask))
            hooks.append(module.out.register_forward_hook(watch.cross))
        elif isinstance(module, SoftAttention):
            hooks.append(module.q.register_forward_hook(watch.ask_again))
            hooks.append(module.out.register_forward_hook(watch.cross))
        elif isinstance(module, Opening):
            hooks.append(module.register_forward_hook(watch.open))
    try:
        yield watch
    finally:
        for hook in hooks:
            hook.remove()


class Watched:
    """Shows what ``contracts.Language`` promises, and sees by it what a mechanism does."""

    def __init__(self, lm: Language, changed: frozenset[Site], swap: bool, first: Passed | None):
        self.lm, self.changed, self.swap, self.first = lm, changed, swap, first
        self.passed = Passed()
        self.sites: list[Site] = []
        self._blocks = self._crossings = 0  # passed; of crossings those since the last block
        self._own_BTD: Tensor | None = None  # embeddings of the text's tokens
        self._text: Text | None = None
        self._visual_BS: Tensor | None = None  # columns that are no words; None: there are none
        self._bias: Tensor | None = None  # the walk's mask; and that in which no word looks at a visual column
        self._cut_bias: Tensor | None = None
        self._steps, self._differs = 0, False  # through the language model; whether anything has been changed so far
        self._changing = False  # the crossing under way
        self._changes: dict[nn.Module, bool] = {}  # of crossings that every word comes to

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
            if self.changed and not self.swap:
                self._bias, self._cut_bias = self._masks(visual_BS, inputs_BSD, walk)
        open_BT = present(self._text, "text of the walk").open_BT
        if open_BT is None or not open_BT[:, ahead:].any():  # else what stands before the text sees words
            self.passed.ahead = ahead
        return self.lm.place(inputs_BSD, walk)

    def read(self, text: Text, cache: Cache | None = None) -> tuple[Tensor, Walk]:
        self._blocks += self.lm.spec.layers
        own_BTD = self.lm.embed(text.ids_BT)
        h_BTD = self._step(own_BTD, lambda _, ahead: self.lm.read(text, cache)[0])
        return h_BTD, self.lm.walk(text, own_BTD.dtype, cache)

    def blocks(self) -> list[Block]:
        return [WatchedBlock(block, self) for block in self.lm.blocks()]

    # ---------------------------------------------------------------------------------------- the doors
    def attend(self, block: Block, h_BSD: Tensor, walk: Walk) -> Tensor:
        """``block.attend``, where words may look at visual columns."""
        self._blocks, self._crossings = self._blocks + 1, 0
        changing = self._visual_BS is not None and self._meet("block", self._blocks)
        if not (changing and self.swap):
            return self._step(h_BSD, lambda h_BXD, ahead: block.attend(h_BXD, self._seen(walk, ahead, changing)))
        visual_BS1 = present(self._visual_BS, "visual columns")[:, :, None]
        read_BSD = block.attend(torch.where(visual_BS1, _others(h_BSD), h_BSD), walk)
        return torch.where(visual_BS1, block.attend(h_BSD, walk), read_BSD)

    def feed(self, block: Block, h_BSD: Tensor) -> Tensor:
        return self._step(h_BSD, lambda h_BXD, ahead: block.feed(h_BXD))

    def ask(self, module: nn.Module, inputs: tuple, q_BTE: Tensor) -> Tensor | None:
        """Hook on a crossing's queries."""
        self._changing = self._meet("crossing", self._blocks + self._crossings)
        self._crossings += 1
        return torch.cat([q_BTE.chunk(2)[0]] * 2) if self._changing and self.swap else None

    def ask_again(self, module: nn.Module, inputs: tuple, q_BE: Tensor) -> Tensor | None:
        """The same of a crossing that words come to one after the other: one site for all of them."""
        if module not in self._changes:
            self.ask(module, inputs, q_BE)
            self._changes[module] = self._changing
        self._changing = self._changes[module]
        return torch.cat([q_BE.chunk(2)[0]] * 2) if self._changing and self.swap else None

    def cross(self, module: nn.Module, inputs: tuple, read: Tensor) -> Tensor | None:
        """Hook on what a crossing hands out, (B, D), (B, T, D) or (K, B, T, D)."""
        if not self._changing:
            return None
        return _others(read, dim=max(0, read.ndim - 3)) if self.swap else torch.zeros_like(read)

    def open(self, module: nn.Module, inputs: tuple, state_BE: Tensor) -> Tensor | None:
        """Hook on what texts begin at; nobody asks for it."""
        self.ask(module, inputs, state_BE)
        return self.cross(module, inputs, state_BE)

    def _meet(self, kind: str, place: int) -> bool:
        """Note a site; whether it is changed."""
        self.sites.append(Site(len(self.sites), kind, place))
        self._differs |= self.sites[-1] in self.changed
        return self.sites[-1] in self.changed

    # ---------------------------------------------------------------------------------------- what is known already
    def _step(self, h_BSD: Tensor, make: Callable[[Tensor, int], Tensor]) -> Tensor:
        """The next step through the language model: ``make`` of all columns, or of those behind the first so many."""
        ahead, number = self.passed.ahead, self._steps
        self._steps += 1
        if self.first is None:
            out_BSD = make(h_BSD, 0)
            if not self.changed:
                self.passed.steps.append((h_BSD[:, :ahead], out_BSD))
            return out_BSD
        in_BPD, out_BSD = self.first.steps[number]
        if not self._differs:
            return out_BSD
        if ahead and torch.equal(in_BPD, h_BSD[:, :ahead]):
            return torch.cat([out_BSD[:, :ahead], make(h_BSD[:, ahead:], ahead)], 1)
        return make(h_BSD, 0)

    def _seen(self, walk: Walk, ahead: int, cut: bool) -> Walk:
        """The walk of the columns behind the first ``ahead``, in which words look at visual columns unless ``cut``."""
        if ahead:
            bias = present(self._cut_bias if cut else self._bias, "mask of a changed walk")[:, :, ahead:]
            rotary = None if walk.rotary is None else (walk.rotary[0][:, ahead:], walk.rotary[1][:, ahead:])
            cache = cast(Cache, self.first)
            return replace(walk, positions_RT=walk.positions_RT[:, ahead:], bias=bias, causal=False, cache=cache,
                           rotary=rotary)  # fmt: skip
        if cut:
            return replace(walk, bias=self._cut_bias, causal=False)
        leaves = self.passed.ahead and not self.changed
        return replace(walk, cache=cast(Cache, self.passed)) if leaves else walk

    def _masks(self, visual_BS: Tensor, inputs_BSD: Tensor, walk: Walk) -> tuple[Tensor, Tensor]:
        """The walk's mask, and that in which besides no word looks at a visual column, (B, 1, S, S) each."""
        bias = walk.bias
        if bias is None:  # as it was needless; not so for a ragged text
            text = replace(present(self._text, "text of the walk"), ragged=True)
            bias = present(self.lm.walk(text, inputs_BSD.dtype).bias, "mask of a ragged text")
        unseen_BSS = ~visual_BS[:, :, None] & visual_BS[:, None, :]
        return bias, bias.masked_fill(unseen_BSS[:, None], 0.5 * torch.finfo(bias.dtype).min)


class WatchedBlock:
    """A block whose attention is the watch's."""

    def __init__(self, block: Block, watch: Watched):
        self.block, self.watch = block, watch

    def norm(self, h_BTD: Tensor) -> Tensor:
        return self.block.norm(h_BTD)

    def attend(self, h_BTD: Tensor, walk: Walk) -> Tensor:
        return self.watch.attend(self.block, h_BTD, walk)

    def feed(self, h_BTD: Tensor) -> Tensor:
        return self.watch.feed(self.block, h_BTD)


def _others(x: Tensor, dim: int = 0) -> Tensor:
    """The second half along ``dim``, twice."""
    return torch.cat([x.chunk(2, dim)[1]] * 2, dim)
