"""The test of a comparison: seeds are the unit, and the words follow from the numbers.

A claim about a mechanism is one about trainings, and a training differs from the next by its seed. Two arms are
compared by d_s = score of the arm - score of the other, one for each of the n seeds that both have; they share batches
and the initial weights of what they have in common, so that much of what a seed does cancels. With m and s the mean and
the sample standard deviation of d_s, and T(q, f) the q-quantile of Student's t with f degrees of freedom:

Test         t = m / (s / sqrt(n)), two-sided, n - 1 degrees of freedom (Student 1908).
Interval     m +- T(.975, n - 1) s / sqrt(n); its half is what n seeds reached. 1.96 instead of T would cover .88 with
             n = 5 and .70 with n = 2.
Several      Holm 1979 over the planned contrasts of the primary score, whatever they share; one that has no test counts
contrasts    as p = 1. Differences that were not planned are corrected for nothing: they explore.
Level        Two one-sided tests (Schuirmann 1987, J. Pharmacokinet. Biopharm. 15) of |true difference| < margin:
             p = max(P(t_f >= (m + margin) / se), P(t_f <= (m - margin) / se)), f = n - 1, se = s / sqrt(n). No
             difference that could be shown is not the same: that may be few seeds.
Detectable   The difference that n seeds find with a probability of .8 at a two-sided level of .05: s / sqrt(n) times
             the noncentrality c at which P(|t'(n - 1, c)| > T(.975, n - 1)) = .8, t' noncentral t; exact, as t'^2 is
             noncentral F with 1 and n - 1 degrees of freedom and noncentrality c^2.

n equal differences, s = 0, have no test: what does not scatter are copies of one result and not n trainings.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from src.comparison.resampling import TIE, holm
from src.errors import UserError

ALPHA = 0.05  # of tests, and left out by intervals
POWER = 0.8


class Word(NamedTuple):
    """What may be said of a comparison with at least ``seeds`` seeds and ``p`` (a field of ``Verdict``) below .05."""

    word: str
    seeds: int
    planned: bool  # whether of planned contrasts of the primary score only
    p: str


WORDS = (Word("shown", 5, True, "p_holm"), Word("level", 5, True, "p_level"))  # both may hold: small, but sure
LESS = Word("hint", 2, False, "p")  # where none of these holds
OPEN = "open"
LEGEND = (
    "shown: planned, n >= 5 seeds, Holm p < .05; level: planned, n >= 5, inside the margin by two one-sided tests, "
    "Holm p < .05; hint: n >= 2 and p < .05 without these; open: anything else. p: paired t test over n seeds; "
    "p over images: permutation test, Holm over all pairs of a score."
)


@dataclass(frozen=True)
class SeedTest:
    """Per-seed differences of two arms. Without a test (fewer than two seeds, or no scatter) the last five are None."""

    n: int  # seeds that both arms have
    left_out: int  # seeds that only one of them has
    value: float | None = None  # mean difference; None where no seed is shared
    std: float | None = None
    low: float | None = None  # 95 % t interval of the mean
    high: float | None = None
    p: float | None = None
    detectable: float | None = None  # at 80 % power, with the standard deviation and the seeds that there are

    @property
    def half_width(self) -> float | None:
        """Of the interval: what n seeds reached."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    def flipped(self) -> SeedTest:
        """The other arm minus this one."""
        value, low, high = (None if bound is None else -bound for bound in (self.value, self.high, self.low))
        return replace(self, value=value, low=low, high=high)


@dataclass(frozen=True)
class Verdict:
    """``p_holm``, ``p_level``: over the planned contrasts; None where not planned, without a test or a margin."""

    n: int
    planned: bool
    p: float | None
    p_holm: float | None = None
    p_level: float | None = None

    @property
    def word(self) -> str:
        """The strongest words that hold, or "open"."""
        return ", ".join(one.word for one in WORDS if self._holds(one)) or (LESS.word if self._holds(LESS) else OPEN)

    def _holds(self, word: Word) -> bool:
        p = getattr(self, word.p)
        return self.n >= word.seeds and self.planned >= word.planned and p is not None and p < ALPHA


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> SeedTest:
    """The test of two arms' scores by seed, ``first`` minus ``second``."""
    shared = sorted(first.keys() & second.keys())
    left_out = len(first.keys() ^ second.keys())
    if not shared:
        return SeedTest(0, left_out)
    differences = np.array([first[seed] - second[seed] for seed in shared])
    value, n, std = float(differences.mean()), len(shared), None
    if n < 2 or (std := float(differences.std(ddof=1))) < TIE:
        return SeedTest(n, left_out, value, std)
    low, high = t_interval(differences)
    return SeedTest(n, left_out, value, std, float(low), float(high), float(t_test(differences)), detectable(std, n))


def verdicts(tests: Sequence[SeedTest], margin: float | None = None) -> list[Verdict]:
    """Of all planned contrasts of the primary score together. ``margin``: in its units; None: none was stated."""
    if margin is None:
        levels: list[float | None] = [None] * len(tests)
    else:
        levels = [None if test.p is None else level_test(test.value, test.std, test.n, margin) for test in tests]
    corrected = [_holm([test.p for test in tests]), _holm(levels)]
    return [Verdict(test.n, True, test.p, *both) for test, *both in zip(tests, *corrected, strict=True)]


def unplanned(test: SeedTest) -> Verdict:
    return Verdict(test.n, False, test.p)


def _holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjusted p-values; a contrast without one counts as p = 1 and has none."""
    adjusted = holm([1.0 if p is None else p for p in p_values])
    return [None if p is None else own for p, own in zip(p_values, adjusted, strict=True)]


# --------------------------------------------------------------------------------------------------------------------
# formulas; differences (..., n), one per seed
# --------------------------------------------------------------------------------------------------------------------
def t_test(differences: np.ndarray) -> np.ndarray:
    """Two-sided p of "the mean is 0", (...)."""
    from scipy import stats

    return stats.ttest_1samp(differences, 0.0, axis=-1).pvalue


def t_interval(differences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both ends of the 95 % interval of the mean, (...)."""
    from scipy import stats

    n = differences.shape[-1]
    half = stats.t.ppf(1 - ALPHA / 2, n - 1) * differences.std(-1, ddof=1) / math.sqrt(n)
    return differences.mean(-1) - half, differences.mean(-1) + half


def level_test(value: float | np.ndarray, std: float | np.ndarray, n: int, margin: float) -> float | np.ndarray:
    """p of "the true difference is not within the margin", from mean and standard deviation of n differences."""
    from scipy import stats

    error = std / math.sqrt(n)
    return np.maximum(stats.t.sf((value + margin) / error, n - 1), stats.t.cdf((value - margin) / error, n - 1))


def detectable(std: float, n: int) -> float:
    """The least true difference that a paired t test of n seeds finds with a probability of .8 at p < .05, two-sided.

    ``std``: of the per-seed differences, such as a pilot's. Raises UserError for fewer than two seeds.
    """
    if n < 2:
        raise UserError(f"A difference over n={n} seeds cannot be tested; take at least 2.")
    return std / math.sqrt(n) * _noncentrality(n)


@functools.cache
def _noncentrality(n: int) -> float:
    """Where a two-sided t test of n differences has its power of .8."""
    from scipy import optimize, stats

    critical = stats.t.ppf(1 - ALPHA / 2, n - 1)

    def lacking(c: float) -> float:
        return stats.ncf.sf(critical**2, 1, n - 1, c**2) - POWER

    return float(optimize.brentq(lacking, 1.0, 5 * critical))  # it is 1.3 (n = 2) to 1.43 critical values
