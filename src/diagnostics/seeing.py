"""What every word of some captions gains from its picture, and by which of a mechanism's readings.

    seen(w)       log p(w | right picture) - mean over k others of log p(w | it)         teacher forced, in nats
    cut l         the same with site l cut (``diagnostics.sites``): what is left without it
    up to l       the same with all sites behind l cut: what has entered by then

The others are the k pictures before the right one in the circle that ``gap/loss`` is made with, so that with k = 1 the
sum over the words of all captions is ``gap/loss`` times their tokens. With all sites cut every word sees 0.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from src.captioner import Captioner
from src.contracts import Line, Memory, Target, Tokenizer, View, present
from src.data.order import circle
from src.diagnostics.reading import END, words_of
from src.diagnostics.sites import Passed, Site, Watched, depths, watched
from src.loading.module import CaptionData
from src.loading.rows import Rows

BLIND = 1e-4  # nats of a token up to which it sees nothing: rounding
APART = Rows(pack=False, ends=False)


@dataclass(frozen=True)
class Word:
    """One word of a caption, its pieces together. ``position``: its number in the caption, from 0; ``seen`` in nats."""

    id: str
    caption: int
    position: int
    word: str
    kind: str
    seen: float


@dataclass(frozen=True)
class Sight:
    """Of N captions, one a picture. ``words``: caption after caption, in the order of the split.

    ``cut_LN``, ``upto_LN``: nats that each caption sees without site l, and with the sites up to l only. ``complete``:
    whether nothing is seen with all sites cut; otherwise the mechanism reads where nobody looked for it.
    """

    words: list[Word]
    tokens_N: np.ndarray
    sites: list[Site]
    depths: list[float]
    cut_LN: np.ndarray
    upto_LN: np.ndarray
    complete: bool

    @property
    def seen_N(self) -> np.ndarray:
        """Nats that each caption sees."""
        places = {id: i for i, id in enumerate(dict.fromkeys(word.id for word in self.words))}
        return np.bincount([places[word.id] for word in self.words], [word.seen for word in self.words])


@torch.no_grad()
def see(captioner: Captioner, data: CaptionData, split: str, shuffled: int, kind: Callable[[str], str]) -> Sight:
    """The first caption of every picture of ``split``, each beside ``shuffled`` others; ``kind``: a word's class."""
    captioner.eval()
    captions = {id: own[0] for id, own in data.lines(split).items()}
    words: dict[str, list[Word]] = {}
    tokens: dict[str, int] = {}
    changed: dict[str, list[float]] = {}  # nats that a caption sees, by alteration
    sites: list[Site] = []
    complete = True
    bar = tqdm(total=len(captions), desc="seeing", unit="caption", leave=False)
    for ids, memory in neighbours(captioner, data, split, shuffled):
        view = view_of(data, [captions[id] for id in ids])
        view = captioner.transfer_batch_to_device(view, captioner.device, 0)
        spans = spans_of(view, len(ids))
        with captioner.autocast():  # around all passes: weights are cast once
            sites, (seen_X, blind_X, *altered_AX) = seen(captioner, memory, view, shuffled)
        complete &= bool(blind_X.abs().max() < BLIND)
        for id, span in zip(ids, spans, strict=True):
            words[id] = _words(id, captioner.tokenizer, view, span, seen_X, kind)
            tokens[id] = len(span)
            changed[id] = [float(altered_X[span].sum()) for altered_X in altered_AX]
        bar.update(len(ids))
    bar.close()
    changed_AN = np.array([changed[id] for id in captions]).T.reshape(2, len(sites), len(captions))
    return Sight(
        [word for id in captions for word in words[id]],
        np.array([tokens[id] for id in captions]),
        sites,
        depths(sites, captioner.language.spec.layers) if sites else [],
        *changed_AN,
        complete,
    )


def neighbours(captioner: Captioner, data: CaptionData, split: str, others: int) -> Iterator[tuple[list[str], Memory]]:
    """Pictures in the order of the circle, and their memories behind those of the ``others`` before them."""
    order = circle(len(data.examples(split)), data.seed)
    ids: list[str] = []
    kept: Memory | None = None
    for batch in data.pictures_at(split, order[-others:] + order):
        batch = captioner.transfer_batch_to_device(batch, captioner.device, 0)
        with captioner.autocast():
            memory = captioner.memory(batch)
        memory = memory if kept is None else memory.behind(kept)
        ids += batch.ids
        if len(ids) > others:
            yield ids[others:], memory
        stay = range(max(0, len(ids) - others), len(ids))
        ids, kept = ids[stay.start :], memory.select(torch.tensor(stay, device=captioner.device))


def view_of(data: CaptionData, captions: Sequence[Line]) -> View:
    """Captions, one a row, each token asked for."""
    text = data.texts(captions)
    return APART.lay(View(text, Target.next(text)), len(captions))


def nats(
    captioner: Captioner,
    memory: Memory,
    view: View,
    changed: Collection[Site] = (),
    swap: bool = False,
    first: Passed | None = None,
) -> tuple[Tensor, Watched]:
    """-log p of each target, (X,), in double precision and on the CPU, and who watched; options as of ``watched``."""
    with watched(captioner.fusion, captioner.language, changed, swap, first) as language, captioner.autocast():
        nats_X = captioner.nats(memory, view, language.language)
    return nats_X.cpu().double(), language


def seen(captioner: Captioner, memory: Memory, view: View, others: int) -> tuple[list[Site], Tensor]:
    """The L sites, and what each target sees, (2 + 2 L, X): as it is; with all sites cut; each alone; all behind each.

    Pictures as ``neighbours`` lays them.
    """
    place_I = torch.arange(others, len(next(iter(memory.values()))), device=captioner.device)
    found = [altered_nats(captioner, memory.select(place_I - j), view) for j in range(others + 1)]
    (sites, right_AX), wrong_jAX = found[0], [nats_AX for _, nats_AX in found[1:]]
    return sites, torch.stack(wrong_jAX).mean(0) - right_AX


def altered_nats(captioner: Captioner, memory: Memory, view: View) -> tuple[list[Site], Tensor]:
    """The sites, and -log p of each target, (2 + 2 L, X), with one picture a row; alterations as in ``seen``."""
    plain_X, watch = nats(captioner, memory, view)
    sites, passed = watch.sites, watch.passed
    alterations = [sites, *([site] for site in sites), *(sites[i + 1 :] for i in range(len(sites)))]
    altered_AX = (nats(captioner, memory, view, cut, first=passed)[0] if cut else plain_X for cut in alterations)
    return sites, torch.stack([plain_X, *altered_AX])


def spans_of(view: View, rows: int) -> list[list[int]]:
    """Which targets are of each row."""
    target = present(view.target, "target in the view")
    row_X = (target.at_X // (view.text.ids_BT.numel() // rows)).cpu()
    return [(row_X == row).nonzero().flatten().tolist() for row in range(rows)]


def grouped(tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[list[str], list[list[int]]]:
    """The words that a row's targets spell, and which of these make each; the end, where it is asked for, is one."""
    ended = bool(ids) and ids[-1] == tokenizer.eos
    words, groups = words_of(tokenizer, list(ids[:-1] if ended else ids))
    return ([*words, END], [*groups, [len(ids) - 1]]) if ended else (words, groups)


def _words(
    id: str, tokenizer: Tokenizer, view: View, span: list[int], seen_X: Tensor, kind: Callable[[str], str]
) -> list[Word]:
    target = present(view.target, "target in the view")
    words, groups = grouped(tokenizer, target.id_X[span].tolist())
    values = seen_X[span]
    return [
        Word(id, 0, position, word, kind(word), float(values[group].sum()))
        for position, (word, group) in enumerate(zip(words, groups, strict=True))
    ]
