"""BLEU-1 to BLEU-4 as COCO defines it (Papineni et al. 2002, ACL, section 2; pycocoevalcap 1.2, bleu_scorer.py).

BLEU-n = min(1, e^(1 - r/c)) * (p_1 * ... * p_n)^(1/n), with p_k the clipped k-gram precision, c the words of the
captions and r the words of the references closest to them in length. For a corpus all counts are summed first.
"""

from __future__ import annotations

import numpy as np

from src.metrics.ngrams import ORDERS, PredictionNgrams, ReferenceNgrams

# COCO's guards against empty counts; part of the definition, since they decide the score of very short captions.
TINY, SMALL = 1e-15, 1e-9
# Columns of a row of statistics: matches of order 1 to 4, n-grams of order 1 to 4, caption length, reference length.
MATCHES, GUESSES, LENGTH, REFERENCE = slice(0, ORDERS), slice(ORDERS, 2 * ORDERS), 2 * ORDERS, 2 * ORDERS + 1


def bleu(statistics: np.ndarray) -> np.ndarray:
    """BLEU-1 to BLEU-4 from the counts of a picture, or from the sum of any pictures' counts: (..., 10) -> (..., 4)."""
    precisions = (statistics[..., MATCHES] + TINY) / (statistics[..., GUESSES] + SMALL)
    means = np.cumprod(precisions, axis=-1) ** (1 / np.arange(1, ORDERS + 1))
    ratio = (statistics[..., LENGTH] + TINY) / (statistics[..., REFERENCE] + SMALL)
    return means * np.exp(np.minimum(0.0, 1 - 1 / ratio))[..., None]


def bleu_statistics(references: ReferenceNgrams, predictions: PredictionNgrams) -> np.ndarray:
    """The ten counts of every picture's prediction against its references: (pictures, 10), whole numbers."""
    rows = np.zeros((references.pictures, 2 * ORDERS + 2), dtype=np.int64)
    for order, (ours, theirs) in enumerate(zip(predictions.orders, references.orders, strict=True)):
        found = ours.place >= 0
        # An n-gram counts at most as often as it stands in the reference that has most of it.
        matches = np.minimum(ours.count[found], theirs.most[ours.place[found]])
        np.add.at(rows[:, order], ours.picture[found], matches)
    rows[:, GUESSES] = np.maximum(0, predictions.words[:, None] - np.arange(ORDERS))
    rows[:, LENGTH] = predictions.words
    rows[:, REFERENCE] = _closest_length(references, predictions.words)
    return rows


def _closest_length(references: ReferenceNgrams, words: np.ndarray) -> np.ndarray:
    """Length of each picture's reference closest to ``words``, of two equally close the shorter: (pictures,)."""
    distance = np.abs(references.words - words[references.picture])
    beyond = int(references.words.max()) + 1
    return np.minimum.reduceat(distance * beyond + references.words, references.first) % beyond
