"""How likely a language model finds texts, read in several ways, and pictures' effect on what it knows.

    start         the language model that a run began from, by itself
    weights       the trained one, by itself: the fusion bypassed
    absent        as it is deployed, with a context that holds no picture
    irrelevant    as it is deployed, behind a picture that has nothing to do with the text

All in the precision of the weights, without autocast: what has not changed gives the same numbers.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from src.captioner import Captioner
from src.contracts import Language, Memory, Text, Tokenizer
from src.fusion.base import Writer
from src.fusion.blind import Blind
from src.layers.cache import Cache
from src.layers.chunked_loss import each_cross_entropy

WAYS = ("weights", "absent", "irrelevant")
COLUMNS = 128  # of a window of prose, with its start
AT_ONCE = 1024  # columns of endings in one pass


@dataclass(frozen=True)
class Way:
    """``memory``: of some pictures, or of one context without any; ``start``: what every text begins with.

    ``sees``: whether the columns look at a picture.
    """

    language: Language
    fusion: Writer
    memory: Memory
    start: tuple[int, ...]
    sees: bool = False

    @property
    def pictures(self) -> int:
        return len(next(iter(self.memory.values()))) if self.memory else 1


@dataclass(frozen=True)
class Asked:
    """Ids of texts behind a common ``beginning``; ``picture``: which one they stand behind, counted round and round."""

    beginning: list[int]
    endings: list[list[int]]
    picture: int = 0


def alone(language: Language) -> Way:
    """A language model by itself."""
    return Way(language, Blind(None, language.spec).eval(), Memory(), (language.spec.bos,))


def without_picture(captioner: Captioner) -> Way:
    """As deployed, where there is none; what does not see is a language model by itself."""
    if not captioner.fusion.sees:
        return alone(captioner.language)
    with torch.no_grad():
        memory = captioner.no_picture(1)
    return Way(captioner.language, captioner.writer, memory, (captioner.tokenizer.bos,))


def with_pictures(captioner: Captioner, memory: Memory) -> Way:
    """As deployed, behind pictures."""
    if not captioner.fusion.sees:
        return alone(captioner.language)
    tag = captioner.tokenizer.image_tag if captioner.tagged else []
    return Way(captioner.language, captioner.writer, memory, (captioner.tokenizer.bos, *tag), sees=True)


def asked(tokenizer: Tokenizer, sentences: Sequence[str], picture: int = 0) -> Asked:
    """Whole sentences, as ids behind what all begin with; of each at least one token is asked for."""
    ids = tokenizer.encode(sentences)
    shared = sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, zip(*ids, strict=False)))
    shared = min(shared, *(len(own) - 1 for own in ids))
    return Asked(ids[0][:shared], [own[shared:] for own in ids], picture)


def windows(tokenizer: Tokenizer, texts: Sequence[str], tokens: int, columns: int) -> list[list[tuple[int, list[int]]]]:
    """So many tokens of the texts in turn, as windows of ``columns`` at most; with the place of their text.

    Fewer where the texts have fewer.
    """
    cut = [[ids[i : i + columns] for i in range(0, len(ids), columns)] for ids in tokenizer.encode(list(texts))]
    found, left = [], tokens
    for turn in itertools.zip_longest(*cut):
        for place, window in enumerate(turn):
            if window is not None and left > 0:
                found.append((place, window[:left]))
                left -= len(window)
    return found


@torch.no_grad()
def likelihoods(way: Way, questions: Sequence[Asked], title: str) -> list[np.ndarray]:
    """log p of every ending behind its beginning, in nats, question by question."""
    found: dict[int, np.ndarray] = {}
    opened = _opened(way, max(len(q.beginning) + max(map(len, q.endings)) for q in questions))
    bar = tqdm(total=len(questions), desc=title, unit="question", leave=False)
    for places in _portions(questions):
        portion = [questions[place] for place in places]
        for place, own in zip(places, _together(way, *copy.deepcopy(opened), portion).numpy(), strict=True):
            found[place] = own
        bar.update(len(places))
    bar.close()
    return [found[place] for place in range(len(questions))]


def _portions(questions: Sequence[Asked]) -> list[list[int]]:
    """Places of questions whose beginnings are equally long and which have equally many endings; short ones first."""
    sizes = [(len(q.beginning), len(q.endings), max(map(len, q.endings))) for q in questions]
    order = sorted(range(len(questions)), key=lambda place: sizes[place])
    found = []
    for (_, endings), alike in itertools.groupby(order, key=lambda place: sizes[place][:2]):
        portion: list[int] = []
        for place in alike:
            if portion and (len(portion) + 1) * endings * sizes[place][2] > AT_ONCE:
                found.append(portion)
                portion = []
            portion.append(place)
        found.append(portion)
    return found


def _opened(way: Way, room: int) -> tuple[Cache, Tensor]:
    """What all texts begin with, read behind each picture, with ``room`` for so many more columns; and the last state.

    Once for all, as visual tokens in front of words may be many.
    """
    device = next(iter(way.language.parameters())).device
    ids_IT = torch.tensor([way.start], device=device).repeat(way.pictures, 1)
    text = _text(ids_IT, torch.ones_like(ids_IT, dtype=torch.bool), way.sees)
    if len(way.start) > 1:  # as in captions: what stands before the tag looks at no picture
        text.phi_BT[:, 0] = 0
    cache = Cache(way.pictures, way.fusion.extra_positions + ids_IT.shape[1] + room)
    return cache, way.fusion.decode(way.language, way.memory, text, cache)[:, -1:]


def _together(way: Way, cache: Cache, opened_I1E: Tensor, questions: Sequence[Asked]) -> Tensor:
    """log p, (I, G): the beginnings are read once, and then all G endings behind each."""
    device = opened_I1E.device
    picture_I = torch.tensor([q.picture % way.pictures for q in questions], device=device)
    decode = partial(way.fusion.decode, way.language, way.memory.select(picture_I))
    cache.select(picture_I)
    hidden_BTE = opened_I1E.index_select(0, picture_I)
    begun_IT = torch.tensor([q.beginning for q in questions], device=device, dtype=torch.long)
    if begun_IT.shape[1]:
        hidden_BTE = decode(_text(begun_IT, torch.ones_like(begun_IT, dtype=torch.bool), way.sees), cache)[:, -1:]
    endings = [ending for q in questions for ending in q.endings]
    I, G, T = len(questions), len(questions[0].endings), max(map(len, endings))
    hidden_BTE = hidden_BTE.repeat_interleave(G, 0)
    ids_BT = torch.tensor([row + [way.language.spec.pad] * (T - len(row)) for row in endings], device=device)
    valid_BT = torch.arange(T, device=device) < torch.tensor([len(row) for row in endings], device=device)[:, None]
    if T > 1:
        cache.repeat(G)
        read_BTE = decode(_text(ids_BT[:, :-1], valid_BT[:, 1:], way.sees), cache)  # nothing is asked of the last
        hidden_BTE = torch.cat([hidden_BTE, read_BTE], 1)
    readout = partial(way.fusion.readout, way.language)
    nats_X = each_cross_entropy(readout, hidden_BTE[valid_BT], ids_BT[valid_BT], way.language.spec.vocabulary)
    nats_BT = torch.zeros(valid_BT.shape, dtype=torch.float64)
    nats_BT[valid_BT.cpu()] = nats_X.cpu().double()
    return -nats_BT.sum(1).view(I, G)


def _text(ids_BT: Tensor, valid_BT: Tensor, sees: bool) -> Text:
    return Text(ids_BT, valid_BT, torch.full_like(ids_BT, int(sees)))
