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
from src.contracts import Memory, Target, Tokenizer, View, present
from src.data.order import circle
from src.diagnostics.reading import END, words_of
from src.diagnostics.sites import Site, depths, watched
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
    captions = {id: own[0] for id, own in data.references(split).items()}
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
            seen_X, sites = seen(captioner, memory, view, shuffled)
            alterations = [{site} for site in sites] + [set(sites[i + 1 :]) for i in range(len(sites))]
            altered_AX = [seen(captioner, memory, view, shuffled, one)[0] if one else seen_X for one in alterations]
            blind_X = seen(captioner, memory, view, shuffled, sites)[0]
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
    order = circle(len(data.references(split)), data.seed)
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


def view_of(data: CaptionData, captions: Sequence[str]) -> View:
    """Captions, one a row, each token asked for."""
    text = data.texts(captions)
    return APART.lay(View(text, Target.next(text)), len(captions))


def nats(
    captioner: Captioner, memory: Memory, view: View, changed: Collection[Site] = (), swap: bool = False
) -> tuple[Tensor, list[Site]]:
    """-log p of each target, (X,), in double precision and on the CPU, and the sites that were passed."""
    with watched(captioner.fusion, captioner.language, changed, swap) as language, captioner.autocast():
        nats_X = captioner.nats(memory, view, language.language)
    return nats_X.cpu().double(), language.sites


def seen(
    captioner: Captioner, memory: Memory, view: View, others: int, changed: Collection[Site] = ()
) -> tuple[Tensor, list[Site]]:
    """What each target sees, (X,); pictures as ``neighbours`` lays them."""
    place_I = torch.arange(others, len(next(iter(memory.values()))), device=captioner.device)
    right_X, sites = nats(captioner, memory.select(place_I), view, changed)
    wrong_jX = [nats(captioner, memory.select(place_I - j), view, changed)[0] for j in range(1, others + 1)]
    return torch.stack(wrong_jX).mean(0) - right_X, sites


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
