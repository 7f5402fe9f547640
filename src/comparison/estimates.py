"""Every score of an arm with its interval, every pair of arms with its difference and its tests.

Two questions, two columns. Would other trainings say the same? The paired t test over seeds answers (seeds.py), and
it alone decides what may be said: a claim about mechanisms is one about trainings. Would other images say the same of
these models? A bootstrap and a permutation test over images answer, with the trained models as they are: an image's
value for an arm is the mean over the arm's seeds, and corpus scores (BLEU, METEOR) are taken of each seed and averaged.

One resampling does not answer both. There are two-way bootstraps that draw seeds too (Owen 2007, "The pigeonhole
bootstrap"), but the variance of S drawn seeds is too small by (S - 1) / S on average, and it is estimated from S
values; where the scatter of seeds dominates, 1.96 such standard errors cover a normal score's mean with probability
P(|t| < 1.96 sqrt((S - 1) / S)), t with S - 1 degrees of freedom: .60 for two seeds, .75 for three, .85 for five, and
percentile intervals cover less still. Student's t knows how little S seeds tell; Bouthillier et al. 2021, "Accounting
for variance in machine learning benchmarks", is why one should look at both.

The test of a pair over images exchanges the two arms' statistics of an image, those of all seeds at once; its test
statistic is the difference of the scores of the seeds' pooled statistics, which for means is the difference itself.
Answers of one story are no independent images: drawn and exchanged together (``measures.by_story``).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from src.comparison.measures import Measure
from src.comparison.plan import NO_PLAN, Plan
from src.comparison.resampling import at_least, draws, exchanged, holm, interval, p_value, signs
from src.comparison.seeds import SeedTest, Verdict, paired, unplanned, verdicts

Pair = tuple[str, str]  # labels: an arm, and the other


@dataclass(frozen=True)
class Cell:
    """One score of one arm. ``low`` to ``high``: the 95 % bootstrap interval of ``mean`` over images."""

    mean: float  # over seeds
    std: float | None  # sample standard deviation over seeds; None with one seed
    low: float
    high: float
    per_seed: tuple[float, ...]

    @property
    def flat(self) -> bool:
        """Whether all resamples agree, but for COCO's guard, which makes BLEU without a match 1e-5 instead of 0."""
        return self.high - self.low < 1e-4


@dataclass(frozen=True)
class Difference:
    """Arm minus other in a score's own units: over images, all seeds' means; over seeds, what ``seeds`` pairs.

    ``low`` to ``high``: the 95 % interval of ``value`` over images, paired.
    """

    arm: str
    other: str
    score: str
    value: float
    low: float
    high: float
    p: float  # two-sided paired permutation test over images
    p_holm: float  # after Holm over all pairs of that score
    seeds: SeedTest
    verdict: Verdict

    @property
    def word(self) -> str:
        """What may be said: of ``seeds.WORDS``, "hint" or "open"."""
        return self.verdict.word

    @property
    def mean(self) -> float:
        """Over the seeds that both have; without such seeds the difference of the arms' means."""
        return self.value if self.seeds.value is None else self.seeds.value

    def flipped(self) -> Difference:
        """Other minus arm."""
        bounds = {"value": -self.value, "low": -self.high, "high": -self.low, "seeds": self.seeds.flipped()}
        return replace(self, arm=self.other, other=self.arm, **bounds)


def estimate(
    measures: Sequence[Measure],
    labels: Sequence[str],
    baseline: str,
    resamples: int,
    seed: int,
    plan: Plan = NO_PLAN,
    fixed: Collection[str] = (),
) -> tuple[dict[tuple[str, str], Cell | None], list[Difference]]:
    """Cells by (label, score), and the differences of all pairs.

    All arms and scores meet the same resampled images. Arms without a measure's statistics, or for which it is
    undefined on these images for any seed, get None. ``fixed``: arms that are the same for every seed, of which one run
    stands beside each seed of the others.
    """
    measures = [_defined(measure) for measure in measures]
    bootstrap = _bootstrap(measures, resamples, np.random.default_rng([seed, 0]))
    extreme = _permute(measures, labels, baseline, plan, resamples, np.random.default_rng([seed, 1]))
    cells: dict[tuple[str, str], Cell | None] = {}
    differences: list[Difference] = []
    for measure in measures:
        for label in labels:
            cells[label, measure.name] = _cell(measure, label, bootstrap)
        pairs = _pairs(measure, labels, baseline, plan)
        p_values = [p_value(extreme[(measure.name, *pair)], resamples) for pair in pairs]
        over_seeds = _over_seeds(measure, pairs, plan, fixed)
        for pair, p, p_holm in zip(pairs, p_values, holm(p_values), strict=True):
            arm, other = pair
            value = cells[arm, measure.name].mean - cells[other, measure.name].mean
            low, high = interval(bootstrap[measure.name, arm] - bootstrap[measure.name, other])
            differences.append(Difference(arm, other, measure.name, value, low, high, p, p_holm, *over_seeds[pair]))
    return cells, differences


def _over_seeds(
    measure: Measure, pairs: Sequence[Pair], plan: Plan, fixed: Collection[str]
) -> dict[Pair, tuple[SeedTest, Verdict]]:
    """The test over seeds of each pair, and what may be said; planned contrasts without a test count in Holm's."""
    tests = {pair: _paired(measure, *pair, fixed) for pair in pairs}
    judged = {pair: unplanned(test) for pair, test in tests.items()}
    if measure.name == plan.primary:
        asked = [tests.get(pair, SeedTest(0, 0)) for pair in plan.contrasts]
        judged |= dict(zip(plan.contrasts, verdicts(asked, plan.margin), strict=True))
    return {pair: (tests[pair], judged[pair]) for pair in pairs}


def _paired(measure: Measure, arm: str, other: str, fixed: Collection[str]) -> SeedTest:
    first, second = (
        dict(zip(measure.seeds_of(label), _per_seed(measure, label).tolist(), strict=True)) for label in (arm, other)
    )
    if arm in fixed and other not in fixed:
        first = {seed: first.get(seed, next(iter(first.values()))) for seed in second}
    elif other in fixed and arm not in fixed:
        second = {seed: second.get(seed, next(iter(second.values()))) for seed in first}
    return paired(first, second)


def _per_seed(measure: Measure, label: str) -> np.ndarray:
    """The score of each of an arm's seeds, (seeds,)."""
    return measure.score(measure.statistics[label].sum(1))


def _defined(measure: Measure) -> Measure:
    """The measure with those arms only for which it is defined on all images."""
    kept = {
        label: statistics
        for label, statistics in measure.statistics.items()
        if not np.isnan(measure.score(statistics.sum(1))).any()
    }
    return replace(measure, statistics=kept)


def _pairs(measure: Measure, labels: Sequence[str], baseline: str, plan: Plan) -> list[Pair]:
    """(arm, other) for all pairs of arms with the score: as planned, else with the baseline as the second."""
    there = [label for label in labels if label in measure.statistics]
    return [plan.oriented(a, b, baseline) for a, b in itertools.combinations(there, 2)]


def _cell(measure: Measure, label: str, bootstrap: Mapping[tuple[str, str], np.ndarray]) -> Cell | None:
    if label not in measure.statistics:
        return None
    per_seed = _per_seed(measure, label)
    std = float(per_seed.std(ddof=1)) if len(per_seed) > 1 else None
    low, high = interval(bootstrap[measure.name, label])
    return Cell(float(per_seed.mean()), std, low, high, tuple(per_seed.tolist()))


def _bootstrap(
    measures: Sequence[Measure], resamples: int, rng: np.random.Generator
) -> dict[tuple[str, str], np.ndarray]:
    """(score, label) -> the arm's score on every resample, mean over seeds, (resamples,)."""
    keys = [(measure, label) for measure in measures for label in measure.statistics]
    if not keys:
        return {}
    # (images, columns): the seeds' columns of an arm stand side by side
    columns, places = _side_by_side([measure.statistics[label].transpose(1, 0, 2) for measure, label in keys])
    found = np.empty((len(keys), resamples))
    done = 0
    for weights in draws(*columns.shape, resamples, rng):
        sums = weights @ columns
        rows = slice(done, done := done + len(sums))
        for number, ((measure, label), place) in enumerate(zip(keys, places, strict=True)):
            seeds, _, k = measure.statistics[label].shape
            found[number, rows] = measure.score(sums[:, place].reshape(-1, seeds, k)).mean(-1)
    return {(measure.name, label): values for (measure, label), values in zip(keys, found, strict=True)}


def _permute(
    measures: Sequence[Measure],
    labels: Sequence[str],
    baseline: str,
    plan: Plan,
    resamples: int,
    rng: np.random.Generator,
) -> dict[tuple[str, str, str], int]:
    """(score, arm, other) -> in how many exchanges of the two the difference is as far from 0 as the observed one."""
    pooled = {
        (measure.name, label): values for measure in measures for label, values in _pooled(measure.statistics).items()
    }
    if not pooled:
        return {}
    columns, places = _side_by_side(list(pooled.values()))
    place = dict(zip(pooled, places, strict=True))
    total = {key: values.sum(0) for key, values in pooled.items()}
    tests = [(measure, *pair) for measure in measures for pair in _pairs(measure, labels, baseline, plan)]
    extreme = dict.fromkeys([(measure.name, arm, other) for measure, arm, other in tests], 0)
    for flips in signs(*columns.shape, resamples, rng):
        sums = flips @ columns
        for measure, arm, other in tests:
            a, b = (measure.name, arm), (measure.name, other)
            observed = measure.score(total[a]) - measure.score(total[b])
            first, second = exchanged(total[a], total[b], sums[:, place[a]] - sums[:, place[b]])
            extreme[measure.name, arm, other] += at_least(observed, measure.score(first) - measure.score(second))
    return extreme


def _pooled(statistics: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Statistics of each arm's seeds together, (images, k), as if all arms had the same number of seeds.

    Multiples and not means, so that counts stay whole and equal sums are equal to the last bit.
    """
    common = math.lcm(*(len(own) for own in statistics.values()))
    return {label: own.sum(0) * (common // len(own)) for label, own in statistics.items()}


def _side_by_side(parts: Sequence[np.ndarray]) -> tuple[np.ndarray, list[slice]]:
    """Arrays (images, ...) as one (images, columns), and which columns each became."""
    flat = [part.reshape(len(part), -1) for part in parts]
    ends = np.cumsum([part.shape[1] for part in flat]).tolist()
    return np.concatenate(flat, axis=1), [slice(a, b) for a, b in itertools.pairwise([0, *ends])]
