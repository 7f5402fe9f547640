"""Word n-grams of references, counted once, and of predictions looked up among them; BLEU and CIDEr-D share both.

Counting is done on arrays of numbers instead of dictionaries of tuples: five times faster at the size of COCO's test
split, and the reference side is reused for every set of predictions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

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
    ``pictures``   (grams,) in the references of how many pictures an n-gram stands: its document frequency
    """

    keys: np.ndarray
    most: np.ndarray
    first: np.ndarray
    text: np.ndarray
    gram: np.ndarray
    count: np.ndarray
    pictures: np.ndarray

    def find(self, picture: np.ndarray, gram: np.ndarray) -> np.ndarray:
        """Where each (picture, gram) stands in ``keys``; -1 where no reference of that picture has the n-gram."""
        if not len(self.keys):
            return np.full(len(gram), -1)
        keys = picture * len(self.pictures) + gram
        place = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where((gram < len(self.pictures)) & (self.keys[place] == keys), place, -1)


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


class ReferenceNgrams:
    """N-grams of every picture's tokenised references.

    ``pictures`` pictures with together T texts; ``words`` (T,) length of each text; ``picture`` (T,) whose it is;
    ``first`` (pictures,) each picture's first text.
    """

    def __init__(self, references: Sequence[Sequence[str]]) -> None:
        """``references``: for each picture its tokenised texts; a picture without any is a ValueError."""
        per_picture = np.array([len(texts) for texts in references])
        if not len(per_picture) or not per_picture.min():
            raise ValueError("Every picture needs at least one reference.")
        self.pictures = len(references)
        self.picture = np.repeat(np.arange(self.pictures), per_picture)
        self.first = np.cumsum(per_picture) - per_picture
        self._words: dict[str, int] = {}
        self._keys: list[np.ndarray] = []
        self.words, rows = self._count((text for texts in references for text in texts), learn=True)
        self.orders = [self._by_picture(*row) for row in rows]

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
            if learn:
                self._keys.append(np.unique(gram))
            gram = _number(gram, self._keys[order])
            rows.append(_tally(text[start], gram))
        return lengths, rows

    def _by_picture(self, text: np.ndarray, gram: np.ndarray, count: np.ndarray) -> ReferenceOrder:
        grams = int(gram.max(initial=-1)) + 1
        keys = self.picture[text] * grams + gram
        by_key = np.argsort(keys, kind="stable")
        keys, first = np.unique(keys[by_key], return_index=True)
        text, gram, count = text[by_key], gram[by_key], count[by_key]
        most = np.maximum.reduceat(count, first) if len(first) else count
        pictures = np.bincount(gram[first], minlength=grams)
        return ReferenceOrder(keys, most, np.append(first, len(text)), text, gram, count, pictures)


def _number(keys: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Each key's place in the sorted ``known``; keys that are not in there count on from its end."""
    place = np.searchsorted(known, keys)
    new = np.append(known, -1)[place] != keys
    place[new] = len(known) + np.unique(keys[new], return_inverse=True)[1]
    return place


def _tally(text: np.ndarray, gram: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Different (text, gram) pairs, sorted, and how often each occurs."""
    grams = int(gram.max(initial=0)) + 1
    pairs, count = np.unique(text * grams + gram, return_counts=True)
    return pairs // grams, pairs % grams, count
