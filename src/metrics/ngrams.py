"""Word n-grams of references, counted once, and of predictions looked up among them; BLEU and CIDEr-D share both.

Counting is done on arrays of numbers instead of dictionaries of tuples: five times faster at the size of COCO's test
split, and the reference side is reused for every set of predictions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

ORDERS = 4  # n-grams of 1 to 4 words
_WORDS = 1 << 24  # an n-gram's key is (number of its first n-1 words) * _WORDS + (number of its last word)


@dataclass(frozen=True)
class ReferenceOrder:
    """The n-grams of one order in all references: U different (picture, n-gram) pairs, in R (text, n-gram) rows.

    ``keys``       (U,) sorted; picture * grams + gram
    ``most``       (U,) how often the picture's richest text has the n-gram
    ``first``      (U + 1,) where a pair's rows begin and end in the three arrays of rows
    ``text``       (R,) the reference that the row is about
    ``gram``       (R,) the number of its n-gram
    ``count``      (R,) how often it is in there
    ``grams``      how many numbers there are
    """

    keys: np.ndarray
    most: np.ndarray
    first: np.ndarray
    text: np.ndarray
    gram: np.ndarray
    count: np.ndarray
    grams: int

    @cached_property
    def pictures(self) -> np.ndarray:
        """(grams,) in the references of how many pictures an n-gram stands: its document frequency."""
        return np.bincount(self.keys % max(1, self.grams), minlength=self.grams)

    def find(self, picture: np.ndarray, gram: np.ndarray) -> np.ndarray:
        """Where each (picture, gram) stands in ``keys``; -1 where no reference of that picture has the n-gram."""
        if not len(self.keys):
            return np.full(len(gram), -1)
        keys = picture * self.grams + gram
        place = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where((gram < self.grams) & (self.keys[place] == keys), place, -1)


@dataclass(frozen=True)
class PredictionOrder:
    """The n-grams of one order in the predictions, one row per (picture, n-gram).

    ``gram`` counts on past the references' numbers for n-grams that no reference has; ``place`` is the row of
    ``ReferenceOrder.keys`` or -1.
    """

    picture: np.ndarray
    gram: np.ndarray
    count: np.ndarray
    place: np.ndarray


@dataclass(frozen=True)
class PredictionNgrams:
    """``words`` (pictures,): length of each prediction; ``orders``: its n-grams of 1 to 4 words."""

    words: np.ndarray
    orders: list[PredictionOrder]


@dataclass(frozen=True)
class Frequencies:
    """In the references of how many of ``pictures`` pictures n-grams stand.

    ``words``: the number of each word; ``keys``: for each order the n-grams' keys, sorted, where a place is a number;
    ``counts``: for each order the document frequencies by number.
    """

    pictures: int
    words: dict[str, int]
    keys: list[np.ndarray]
    counts: list[np.ndarray]

    def idf(self, order: int, gram: np.ndarray) -> np.ndarray:
        """log(pictures / those with the n-gram) of each number; one that no reference has counts as in one picture."""
        counts = self.counts[order]
        pictures = np.ones(len(gram))
        pictures[gram < len(counts)] = counts[gram[gram < len(counts)]]
        return np.log(float(self.pictures)) - np.log(np.maximum(1.0, pictures))


class ReferenceNgrams:
    """N-grams of every picture's tokenised references.

    ``pictures`` pictures with together T texts; ``words`` (T,) length of each text; ``picture`` (T,) whose it is;
    ``first`` (pictures,) each picture's first text; ``frequencies``: of n-grams in all of them, or those given.
    """

    def __init__(self, references: Sequence[Sequence[str]], frequencies: Frequencies | None = None) -> None:
        """``references``: for each picture its tokenised texts; a picture without any is a ValueError.

        ``frequencies``: those of other pictures, whose numbers n-grams keep; new ones count on from their end.
        """
        per_picture = np.array([len(texts) for texts in references])
        if not len(per_picture) or not per_picture.min():
            raise ValueError("Every picture needs at least one reference.")
        self.pictures = len(references)
        self.picture = np.repeat(np.arange(self.pictures), per_picture)
        self.first = np.cumsum(per_picture) - per_picture
        self._words = dict(frequencies.words) if frequencies else {}
        self._known = [[keys] for keys in frequencies.keys] if frequencies else [[] for _ in range(ORDERS)]
        self.words, rows = self._count((text for texts in references for text in texts), learn=True)
        self.orders = [self._by_picture(*row) for row in rows]
        self.frequencies = frequencies or Frequencies(
            self.pictures, self._words, [keys for (keys,) in self._known], [order.pictures for order in self.orders]
        )

    def look_up(self, predictions: Sequence[str]) -> PredictionNgrams:
        """The n-grams of one tokenised prediction per picture, in the pictures' order."""
        if len(predictions) != self.pictures:
            raise ValueError(f"{len(predictions)} predictions for {self.pictures} pictures.")
        words, rows = self._count(predictions, learn=False)
        orders = [
            PredictionOrder(picture, gram, count, order.find(picture, gram))
            for order, (picture, gram, count) in zip(self.orders, rows, strict=True)
        ]
        return PredictionNgrams(words, orders)

    def _count(self, texts: Iterable[str], learn: bool) -> tuple[np.ndarray, list[tuple[np.ndarray, ...]]]:
        """Length of each text, and for each order the rows (text, gram, count), sorted by text and gram.

        ``learn`` numbers the n-grams seen here for good; what predictions say beyond them is numbered for this call.
        """
        words = self._words if learn else dict(self._words)
        split = [text.split() for text in texts]
        last = np.array([words.setdefault(word, len(words)) for text in split for word in text], dtype=np.int64)
        lengths = np.array([len(text) for text in split])
        text = np.repeat(np.arange(len(split)), lengths)
        start, gram, rows = np.arange(len(last)), last, []
        for order in range(ORDERS):
            if order:  # lengthen the n-grams of the order before by the next word of the same text
                inside = start + order < len(last)
                inside[inside] = text[start[inside] + order] == text[start[inside]]
                start = start[inside]
                gram = gram[inside] * _WORDS + last[start + order]
            number = _number(gram, self._known[order])
            if learn:
                self._known[order].append(np.unique(gram[number >= sum(map(len, self._known[order]))]))
            gram = number
            rows.append(_tally(text[start], gram))
        return lengths, rows

    def _by_picture(self, text: np.ndarray, gram: np.ndarray, count: np.ndarray) -> ReferenceOrder:
        grams = int(gram.max(initial=-1)) + 1
        keys = self.picture[text] * grams + gram
        by_key = np.argsort(keys, kind="stable")
        keys, first = np.unique(keys[by_key], return_index=True)
        text, gram, count = text[by_key], gram[by_key], count[by_key]
        most = np.maximum.reduceat(count, first) if len(first) else count
        return ReferenceOrder(keys, most, np.append(first, len(text)), text, gram, count, grams)


def _number(keys: np.ndarray, known: Sequence[np.ndarray]) -> np.ndarray:
    """Each key's place in the sorted arrays ``known``, one behind the other; others count on from their end."""
    number, before = np.full(len(keys), -1), 0
    for one in known:
        place = np.searchsorted(one, keys)
        there = place < len(one)
        there[there] = one[place[there]] == keys[there]
        number[there] = before + place[there]
        before += len(one)
    new = number < 0
    number[new] = before + np.unique(keys[new], return_inverse=True)[1]
    return number


def _tally(text: np.ndarray, gram: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Different (text, gram) pairs, sorted, and how often each occurs."""
    grams = int(gram.max(initial=0)) + 1
    pairs, count = np.unique(text * grams + gram, return_counts=True)
    return pairs // grams, pairs % grams, count
