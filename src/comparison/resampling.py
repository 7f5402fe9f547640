"""Bootstrap, permutation test and Holm's correction, for scores that follow from sums over images.

Notation: n images, c columns of per-image statistics. A score is any function of the columns' sums: a mean is
sum / count, a share is hits / chances, corpus BLEU is a function of ten summed counts (``src.metrics.bleu``).
Resampling therefore is a matrix product of random weights with the statistics; no image is ever scored again, and what
depends on the whole reference set (CIDEr-D's document frequencies) stays as it was.

Interval    Images are drawn with replacement, the same ones for all systems; the 2.5 and 97.5 percentiles of the score
            (or of the difference of two systems) are the 95 % interval. Efron & Tibshirani 1993, An Introduction to the
            Bootstrap, sections 6.2 and 13.3; paired, for corpus scores of text: Koehn 2004, EMNLP, sections 3 and 4.
Test        Under the hypothesis that two systems do not differ, which of them wrote which caption is a coin flip for
            every image: their statistics are exchanged at random, and p is the share of exchanges that give at least
            the observed absolute difference. For a mean this is the sign-flip test. Efron & Tibshirani 1993, section
            15.2; for corpus scores as "approximate randomisation" Riezler & Maxwell 2005, section 4. The observed
            assignment is counted too, p = (b + 1) / (resamples + 1), so p is never 0 (Phipson & Smyth 2010).
            Dror et al. 2018, ACL, section 3 recommend both for scores whose distribution is unknown.
Several     Holm 1979: the share of comparisons in which any true "no difference" is rejected stays below the level,
pairs       whatever the dependence between the pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

LEVEL = 0.95
TIE = 1e-12  # absolute differences closer than this are equal: sums of one and the same thing differ by rounding
_NUMBERS = 1 << 21  # held at once in a block of weights or sums: 16 MiB


def draws(images: int, columns: int, resamples: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """How often each image is drawn, n of n with replacement: blocks (rows, n), ``resamples`` rows together.

    A block times statistics (n, ``columns``) needs bounded memory, whatever the number of resamples.
    """
    for rows in _blocks(images, columns, resamples):
        weights = np.empty((rows, images))
        for row in weights:
            row[:] = np.bincount(rng.integers(images, size=images, dtype=np.uint32), minlength=images)
        yield weights


def signs(images: int, columns: int, resamples: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """+1 and -1 with equal chance, in blocks like those of ``draws``; -1 exchanges two systems on that image."""
    for rows in _blocks(images, columns, resamples):
        bits = np.frombuffer(rng.bytes(rows * -(-images // 8)), np.uint8).reshape(rows, -1)
        yield np.unpackbits(bits, axis=1, count=images) * 2.0 - 1.0


def _blocks(images: int, columns: int, resamples: int) -> Iterator[int]:
    rows = max(1, _NUMBERS // max(images, columns))
    for first in range(0, resamples, rows):
        yield min(rows, resamples - first)


def exchanged(first: np.ndarray, second: np.ndarray, flipped: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums of two systems after images were exchanged between them.

    ``first``, ``second``: their sums (k,); ``flipped``: signs @ (first's statistics - second's), (rows, k). What both
    have together stays, and the difference of their sums is what the signs make of it.
    """
    together = first + second
    return (together + flipped) / 2, (together - flipped) / 2


def at_least(observed: float, resampled: np.ndarray) -> int:
    """How many resampled differences are as far from 0 as the observed one; an undefined one (nan) counts as far."""
    return int(np.sum(~(np.abs(resampled) < abs(observed) - TIE)))


def p_value(extreme: int, resamples: int) -> float:
    """Two-sided p of a permutation test in which ``extreme`` of ``resamples`` were at least as far from 0."""
    return (extreme + 1) / (resamples + 1)


def interval(values: np.ndarray) -> tuple[float, float]:
    """The 95 % percentile interval of resampled scores (resamples,).

    Resamples without the score (nan: a share of nothing) are left out; at least one must have it.
    """
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(values[~np.isnan(values)], [tail, 1 - tail])
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order of ``p_values``: reject where they are at most the level.

    The j-th smallest of m is multiplied by m - j + 1, made at least as large as the ones before it, and cut at 1.
    """
    adjusted, before = [0.0] * len(p_values), 0.0
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    for rank, place in enumerate(order):
        before = max(before, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = before
    return adjusted
