"""How likely the references of each picture are, with the picture and with another one; nothing is decoded.

    nats(p)           - sum over references r of p and target tokens t of r of  log p(r_t | r_<t, p)
    nats_shuffled(p)  the same with the picture that stands before p in a circle drawn from the seed

Pictures are encoded in the order of the circle, so that those of a batch and the last one of the batch before are all
that is kept of them. Every reference is read once with either picture, however many a picture has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor
from tqdm import tqdm

from src.build import Parts
from src.contracts import Line, Memory, Target, View
from src.data.order import circle
from src.loading.rows import Rows

TOGETHER = 16  # captions of a picture that are read side by side
AT_ONCE = 256  # captions of one pass: what it takes does not grow with the references of a picture


@dataclass(frozen=True)
class Read:
    """Of one picture: nats of all its references, with another picture (None: not read), and their target tokens."""

    nats: float
    nats_shuffled: float | None
    tokens_read: int


def nats_per_token(found: Sequence[Read]) -> float:
    """Over all references of all pictures."""
    return sum(one.nats for one in found) / max(1, sum(one.tokens_read for one in found))


def gap_per_token(found: Sequence[Read]) -> float | None:
    """What the right picture is worth against another one; None where no other was read."""
    lost = [one.nats_shuffled - one.nats for one in found if one.nats_shuffled is not None]
    return sum(lost) / max(1, sum(one.tokens_read for one in found)) if len(lost) == len(found) else None


@torch.no_grad()
def read_references(parts: Parts, split: str, shuffled: bool = False) -> dict[str, Read]:
    """By id, in the order of the split. ``shuffled``: with other pictures, too.

    What does not see reads nothing twice: one picture is as good to it as another. In a split of one picture there is
    no other.
    """
    captioner, data = parts.captioner, parts.data
    captioner.eval()
    lines = data.lines(split)
    order = circle(len(lines), data.seed)
    strangers = shuffled and captioner.fusion.sees and len(order) > 1
    found: dict[str, Read] = {}
    ids: list[str] = []
    last: Memory | None = None
    batches = data.pictures_at(split, order[-1:] + order)  # the last one is the stranger of the first
    for batch in tqdm(batches, desc=f"references of {split}", unit="batch", leave=False):
        batch = captioner.transfer_batch_to_device(batch, captioner.device, 0)
        with captioner.autocast():
            memory = captioner.memory(batch)
        memory = memory if last is None else memory.behind(last)
        ids = [*ids[-1:], *batch.ids]
        sums_I3 = _sums(parts, memory, [lines[id] for id in ids[1:]], strangers)
        for id, (nats, other, tokens) in zip(ids[1:], sums_I3.tolist(), strict=True):
            blind = nats if shuffled and not captioner.fusion.sees else None
            found[id] = Read(nats, other if strangers else blind, int(tokens))
        last = memory.select(torch.tensor([len(ids) - 1], device=captioner.device))
    return {id: found[id] for id in lines}


def _sums(parts: Parts, memory: Memory, captions: Sequence[Sequence[Line]], strangers: bool) -> Tensor:
    """Nats of each picture's ``captions``, with the picture before it (0 without ``strangers``), and target tokens.

    (I, 3), of all contexts of ``memory`` but its first.
    """
    captioner, data = parts.captioner, parts.data
    rows = Rows(data.rows.pack, ends=False)
    sums_3I = torch.zeros(3, len(captions), dtype=torch.float64)
    for place_U, texts in _portions(captions):
        text = data.texts(texts)
        target = Target.next(text)
        owner_X = place_U[target.at_X // (text.ids_BT.numel() // len(place_U))]
        view = rows.lay(View(text, target), len(place_U))
        view, place_U = captioner.transfer_batch_to_device((view, place_U), captioner.device, 0)
        for k in range(1 + strangers):
            with captioner.autocast():
                nats_X = captioner.nats(memory.select(place_U + 1 - k), view)
            sums_3I[k].index_add_(0, owner_X, nats_X.cpu().double())
        sums_3I[2] += owner_X.bincount(minlength=len(captions))
    return sums_3I.T


def _portions(captions: Sequence[Sequence[Line]]) -> Iterator[tuple[Tensor, list[Line]]]:
    """All captions in portions of ``AT_ONCE`` at most, as rows of pictures need equally many each.

    The pictures of a portion by their place in ``captions``, (U,), and their texts, picture after picture; one that
    has more than ``TOGETHER`` comes again with the next ones.
    """
    pieces = [(i, own[k : k + TOGETHER]) for i, own in enumerate(captions) for k in range(0, len(own), TOGETHER)]
    pieces.sort(key=lambda piece: len(piece[1]))
    for count, alike in groupby(pieces, key=lambda piece: len(piece[1])):
        same, at_once = list(alike), AT_ONCE // count
        for portion in (same[k : k + at_once] for k in range(0, len(same), at_once)):
            yield torch.tensor([i for i, _ in portion]), [text for _, own in portion for text in own]
