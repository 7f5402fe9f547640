"""Which pictures and captions a step sees, and in which order.

Everything drawn here is a function of (seed, epoch, index) alone. Models of different size move the global random
generator by different amounts; batches that came from it would differ between the arms of a comparison.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle, islice

import torch
from torch.utils.data import Sampler

from src.data.base import stable_number

Pick = tuple[int | None, list[int]]  # epoch (None: not training), and the positions of a batch's examples
AGAIN = -1  # in place of the epoch: examples that another process has, so that all have equally many batches
POOL = 32  # steps whose examples are sorted by length among each other


class EpochBatchSampler(Sampler[Pick]):
    """Batches of ``n`` examples in an order that depends on (seed, epoch) alone, for one of ``world`` ranks.

    A last batch that would be smaller is left out, unless it is the only one. Every rank has equally many batches of
    equal size: where ``n`` is smaller than one step of all ranks, examples are repeated up to a multiple of ``world``.
    Iteration starts at batch ``start`` of epoch ``epoch``. ``lengths``: with them, examples of about equal length come
    together; those of ``POOL`` steps are sorted, and the steps shuffled.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        lengths: Sequence[int] | None = None,
    ):
        self.n, self.batch_size, self.seed, self.rank, self.world = n, batch_size, seed, rank, world
        self.lengths = lengths
        self.epoch = self.start = 0

    def __len__(self) -> int:
        return max(1, self.n // (self.batch_size * self.world))

    def batches(self, epoch: int) -> list[list[int]]:
        """This rank's batches of an epoch."""
        generator = torch.Generator().manual_seed(stable_number(self.seed, "order", epoch))
        order = torch.randperm(self.n, generator=generator).tolist()
        step = self.batch_size * self.world
        if self.n < step:
            order = _fill(order, self.world)
        elif self.lengths is not None:
            order = self._by_length(order[: len(self) * step], step, generator)
        return [order[i * step : (i + 1) * step][self.rank :: self.world] for i in range(len(self))]

    def _by_length(self, order: list[int], step: int, generator: torch.Generator) -> list[int]:
        """``order``, whole steps, in steps of examples of about equal length."""
        pools = (order[i : i + POOL * step] for i in range(0, len(order), POOL * step))
        sorted_order = [i for pool in pools for i in sorted(pool, key=self.lengths.__getitem__)]
        shuffled = torch.randperm(len(order) // step, generator=generator).tolist()
        return [i for k in shuffled for i in sorted_order[k * step : (k + 1) * step]]

    def __iter__(self) -> Iterator[Pick]:
        epoch, start = self.epoch, self.start
        yield from ((epoch, batch) for batch in self.batches(epoch)[start:])

    def identity(self) -> dict[str, int]:
        """What a position in an epoch means nothing without."""
        known = {"examples": self.n, "batch_size": self.batch_size, "seed": self.seed, "processes": self.world}
        return known if self.lengths is None else {**known, "by_length": POOL}


class InOrder(Sampler[Pick]):
    """All examples in order, in batches; with several ranks each gets every ``world``-th.

    Ranks get equally many batches: one that would have none where others have one gets an example ``AGAIN``.
    """

    def __init__(self, n: int, batch_size: int, rank: int = 0, world: int = 1):
        self.batch_size = batch_size
        self.mine = _fill(range(n), world)[rank::world]
        self.again = rank + (len(self.mine) - 1) * world >= n  # whether the last one is somebody else's

    def __len__(self) -> int:
        return -(-len(self.mine) // self.batch_size)

    def __iter__(self) -> Iterator[Pick]:
        own = self.mine[:-1] if self.again else self.mine
        for first in range(0, len(own), self.batch_size):
            yield None, own[first : first + self.batch_size]
        if len(own) % self.batch_size == 0 and self.again:
            yield AGAIN, self.mine[-1:]


def _fill(order: Sequence[int], multiple: int) -> list[int]:
    """``order``, begun again until its length is a multiple of ``multiple``."""
    return list(islice(cycle(order), -(-len(order) // multiple) * multiple))


def circle(n: int, seed: int) -> list[int]:
    """``n`` positions in an order of the seed; each has the one before it, the first the last, for its stranger."""
    order = list(range(n))
    random.Random(seed).shuffle(order)
    return order


def exchange(said: Mapping[str, str], seed: int) -> dict[str, str]:
    """Every picture gets the caption of another one, which is what it would get if the pictures were shuffled."""
    ids = list(said)
    order = circle(len(ids), seed)
    after = order[1:] + order[:1]
    return {ids[place]: said[ids[other]] for place, other in zip(order, after, strict=True)}


def draw_captions(seed: int, epoch: int, index: int, available: int, wanted: int) -> list[int]:
    """Which of an example's captions an epoch uses: no repetition before all were used."""
    chance = random.Random(stable_number(seed, "captions", epoch, index))
    # random() is promised to be the same in every Python version; sample() is not.
    order = sorted(range(available), key=lambda _: chance.random())
    return list(islice(cycle(order), wanted))


def nested_share(n: int, fraction: float, seed: int) -> list[int]:
    """Sorted positions of about ``fraction`` of ``n`` examples, at least one; smaller shares lie inside larger ones."""
    generator = torch.Generator().manual_seed(stable_number(seed, "fraction"))
    order = torch.randperm(n, generator=generator).tolist()
    return sorted(order[: max(1, round(fraction * n))])
