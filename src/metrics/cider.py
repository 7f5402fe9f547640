"""CIDEr-D (Vedantam, Zitnick, Parikh 2015, CVPR, section 5), the "CIDEr" that captioning papers report.

CIDEr-D = 10 * mean over orders n = 1 to 4 and references r of  min(g(c), g(r)) . g(r) / (|g(c)| |g(r)|) * e^(-(l_c -
l_r)^2 / 2 s^2), with g the TF-IDF vector of n-grams, l the length and s = 6. As in COCO's code (pycocoevalcap 1.2,
cider_scorer.py) l counts bigrams, not words.

Document frequencies are those of all references given, so that CIDEr-D of a part of the pictures is a different
number, and that of a single picture is 0; unless the references were counted with the frequencies of others
(``ReferenceNgrams``).
"""

from __future__ import annotations

import numpy as np

from src.metrics.ngrams import ORDERS, PredictionNgrams, PredictionOrder, ReferenceNgrams, ReferenceOrder

SIGMA = 6.0
SCALE = 10.0


class CiderD:
    """CIDEr-D against references whose weights and norms are computed once."""

    def __init__(self, references: ReferenceNgrams) -> None:
        self._references, self._idf = references, references.frequencies.idf
        self._weight = [order.count * self._idf(n, order.gram) for n, order in enumerate(references.orders)]
        self._norm = [
            _norm(order.text, weight, len(references.words))
            for order, weight in zip(references.orders, self._weight, strict=True)
        ]

    def score(self, predictions: PredictionNgrams) -> np.ndarray:
        """CIDEr-D of each picture's prediction: (pictures,), 0 to 10; the corpus score is the mean."""
        references = self._references
        cosines = sum(
            self._cosine(order, predictions.orders[order], references.orders[order]) for order in range(ORDERS)
        )
        ours, theirs = np.maximum(0, predictions.words - 1), np.maximum(0, references.words - 1)
        penalty = np.exp(-((ours[references.picture] - theirs) ** 2) / (2 * SIGMA**2))
        totals = np.bincount(references.picture, weights=cosines * penalty)
        return SCALE * totals / ORDERS / np.bincount(references.picture)

    def to_others(self, predictions: PredictionNgrams) -> np.ndarray:
        """For predictions that are references themselves, the mean over the picture's others: (pictures,), 0 to 10.

        0 where there is no other.
        """
        count = np.bincount(self._references.picture)
        weights = [order.count * self._idf(n, order.gram) for n, order in enumerate(predictions.orders)]
        orders = zip(predictions.orders, weights, strict=True)
        has = [_norm(order.picture, weight, len(count)) > 0 for order, weight in orders]
        itself = SCALE / ORDERS * np.sum(has, axis=0)  # every order's cosine with itself is 1, if it has any n-gram
        return np.maximum(0, self.score(predictions) * count - itself) / np.maximum(1, count - 1)

    def _cosine(self, order: int, ours: PredictionOrder, theirs: ReferenceOrder) -> np.ndarray:
        """Clipped cosine of each reference with its picture's prediction: (texts,)."""
        references = self._references
        weight = ours.count * self._idf(order, ours.gram)
        norm = _norm(ours.picture, weight, references.pictures)[references.picture] * self._norm[order]
        # One row for each reference of its picture that has the prediction's n-gram too.
        found = ours.place >= 0
        first, rows = theirs.first[ours.place[found]], np.diff(theirs.first)[ours.place[found]]
        row = np.arange(rows.sum()) + np.repeat(first - np.cumsum(rows) + rows, rows)
        other = self._weight[order][row]
        product = np.minimum(np.repeat(weight[found], rows), other) * other
        dot = np.bincount(theirs.text[row], weights=product, minlength=len(norm))
        return np.divide(dot, norm, out=np.zeros(len(norm)), where=norm > 0)


def _norm(owner: np.ndarray, weight: np.ndarray, owners: int) -> np.ndarray:
    """Euclidean norm of each owner's weights: (owners,)."""
    return np.sqrt(np.bincount(owner, weights=weight**2, minlength=owners))
