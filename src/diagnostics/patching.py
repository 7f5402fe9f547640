"""By which readings the colour of a thing comes into a caption: scenes that differ in one colour of one thing.

    d(w, w')      log p(colour | picture) - log p(other colour | picture)        at the place of the colour word
    effect l      d on the right picture - d there with site l swapped in from the recoloured one

What is swapped are the visual side's keys and values, or what stands at the input; words keep asking their own
questions. Divided by the whole difference, that of d between both pictures, effects are shares; as sites work together
they need not add up to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from src.captioner import Captioner
from src.contracts import Example, Line, Memory, View, present
from src.data.scenes import SEEN_PAIRS
from src.diagnostics.seeing import Sight, grouped, nats, spans_of, view_of
from src.diagnostics.seeing_summary import ratio
from src.diagnostics.sites import Site
from src.loading.module import CaptionData
from src.scenes.picks import pick
from src.scenes.world import COLOURS, Scene


@dataclass(frozen=True)
class Pair:
    """A picture, and the same with one thing recoloured; ``caption`` names the thing's ``colour`` once."""

    right: Example
    recoloured: Example
    caption: str
    colour: str
    other: str


@dataclass(frozen=True)
class Patched:
    """Of N pairs: d on either picture, and with each of L sites swapped, in nats."""

    right_N: np.ndarray
    recoloured_N: np.ndarray
    swapped_LN: np.ndarray


def minimal_pair(example: Example) -> Pair | None:
    """None where no caption names, once, the colour of the only thing that has it; same look, place, shape and size."""
    scene, rng = Scene.from_dict(example.extra["scene"]), Random(f"recoloured/{example.id}")
    colours = [thing.colour for thing in scene.things]
    for caption in example.captions:
        named = [c for c in COLOURS if colours.count(c) == 1 and caption.split().count(c) == 1]
        if not named:
            continue
        i = colours.index(pick(named, rng))
        thing = scene.things[i]
        free = [c for c in COLOURS if c not in colours and (c, thing.shape) in SEEN_PAIRS]
        if not free:
            continue
        other = pick(free, rng)
        things = (*scene.things[:i], replace(thing, colour=other), *scene.things[i + 1 :])
        extra = {**example.extra, "scene": replace(scene, things=things).to_dict()}
        pair = replace(example, id=f"{example.id}-{other}", extra=extra)
        return Pair(example, pair, caption, thing.colour, other)
    return None


@torch.no_grad()
def patch(captioner: Captioner, data: CaptionData, split: str, pairs: Sequence[Pair], sites: Sequence[Site]) -> Patched:
    """What each site carries of the colour. ``sites``: as they were found in these captions or others."""
    captioner.eval()
    n, rows = len(pairs), []
    data = data.with_examples(split, [pair.right for pair in pairs] + [pair.recoloured for pair in pairs])
    both = zip(data.pictures_at(split, range(n)), data.pictures_at(split, range(n, 2 * n)), strict=True)
    for k, batches in enumerate(tqdm(both, desc="patching", unit="batch", leave=False)):
        right, recoloured = (_memory(captioner, batch) for batch in batches)
        memory, here = recoloured.behind(right), pairs[k * data.batch_size : (k + 1) * data.batch_size]
        views = [_view(captioner, data, here, other) for other in (False, True)]
        with captioner.autocast():  # around all passes: weights are cast once
            whole = _preference(captioner, memory, views, here)
            swapped = [_preference(captioner, memory, views, here, site)[: len(here)] for site in sites]
        rows.append(np.stack([whole[: len(here)], whole[len(here) :], *swapped]))
    found = np.concatenate(rows, 1)
    return Patched(found[0], found[1], found[2:])


def _memory(captioner: Captioner, batch) -> Memory:
    batch = captioner.transfer_batch_to_device(batch, captioner.device, 0)
    with captioner.autocast():
        return captioner.memory(batch)


def _view(captioner: Captioner, data: CaptionData, pairs: Sequence[Pair], other: bool) -> View:
    """The captions of ``pairs`` twice, with the right colour or the other one."""
    captions = [_worded(pair, pair.other if other else pair.colour) for pair in pairs]
    view = view_of(data, [Line(caption) for caption in captions] * 2)
    return captioner.transfer_batch_to_device(view, captioner.device, 0)


def _worded(pair: Pair, colour: str) -> str:
    return " ".join(colour if word == pair.colour else word for word in pair.caption.split())


def _preference(
    captioner: Captioner, memory: Memory, views: Sequence[View], pairs: Sequence[Pair], site: Site | None = None
) -> np.ndarray:
    """d of the pairs' right pictures, then of the recoloured ones, (2 N,)."""
    changed = () if site is None else (site,)
    said = [nats(captioner, memory, view, changed, swap=True)[0] for view in views]
    right_B, other_B = (
        _at(captioner, view, nats_X, [pair.other if k else pair.colour for pair in pairs] * 2)
        for k, (view, nats_X) in enumerate(zip(views, said, strict=True))
    )
    return (other_B - right_B).numpy()


def _at(captioner: Captioner, view: View, nats_X: Tensor, colours: Sequence[str]) -> Tensor:
    """-log p of each row's colour word, its pieces together, (B,); 0 where the caption was cut before it."""
    ids_X = present(view.target, "target in the view").id_X
    found_B = torch.zeros(len(colours), dtype=nats_X.dtype)
    for b, (span, colour) in enumerate(zip(spans_of(view, len(colours)), colours, strict=True)):
        words, groups = grouped(captioner.tokenizer, ids_X[span].tolist())
        bare = [word.strip(",.") for word in words]
        if colour in bare:
            found_B[b] = nats_X[span][groups[bare.index(colour)]].sum()
    return found_B


def patching(captioner: Captioner, data: CaptionData, split: str, sight: Sight) -> dict | None:
    """What goes into seeing.json, of the pairs that ``data``'s examples make; None where they make none.

    Shares are None where the interval of the whole difference reaches 0.
    """
    found = [pair for example in data.examples(split) if (pair := minimal_pair(example)) is not None]
    if not found:
        return None
    patched = patch(captioner, data, split, found, sight.sites)
    whole_N, ones_N = patched.right_N - patched.recoloured_N, np.ones(len(found))
    difference = ratio(whole_N, ones_N, "nats")
    told = {"pairs": len(found), "right": ratio(patched.right_N, ones_N, "nats"), "difference": difference}
    effects = [
        None if difference["low"] <= 0 else ratio(patched.right_N - swapped_N, whole_N, "share")
        for swapped_N in patched.swapped_LN
    ]
    return {**told, "effects": effects}
