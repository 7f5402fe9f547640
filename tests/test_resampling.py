"""Intervals cover what they promise, tests reject no more than they may: checked by simulation and by hand."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from conftest import ROOT

from src.comparison.estimates import estimate
from src.comparison.measures import Measure, share
from src.comparison.resampling import at_least, draws, holm, interval, p_value, signs
from src.metrics.bleu import bleu
from src.metrics.captions import CaptionScorer

GOLDEN = json.loads((ROOT / "tests" / "golden" / "captions.json").read_text(encoding="utf-8"))


def bleu4(sums: np.ndarray) -> np.ndarray:
    return bleu(sums)[..., 3]


def means(values_SI) -> np.ndarray:
    """Per-image values (seeds, images) as statistics of a mean."""
    values_SI = np.atleast_2d(values_SI)
    return np.stack([values_SI, np.ones_like(values_SI)], axis=-1).astype(float)


# --------------------------------------------------------------------------------------------------------------------
# random weights
# --------------------------------------------------------------------------------------------------------------------
def test_draws_are_n_of_n_with_replacement():
    blocks = list(draws(images=50, columns=1 << 19, resamples=4001, rng=np.random.default_rng(0)))
    weights = np.concatenate(blocks)
    assert len(blocks) > 1000 and weights.shape == (4001, 50) and (weights.sum(1) == 50).all()
    # A count is binomial(50, 1/50): mean 1, variance .98. 200,050 of them; the tolerances are five standard errors.
    assert weights.mean(0) == pytest.approx(np.ones(50), abs=5 * math.sqrt(0.98 / 4001))
    assert weights.var() == pytest.approx(0.98, abs=5 * math.sqrt(2.9 / 200_050))


def test_signs_are_fair_coins_whatever_the_number_of_images():
    weights = np.concatenate(list(signs(images=13, columns=1, resamples=8000, rng=np.random.default_rng(0))))
    assert weights.shape == (8000, 13) and set(np.unique(weights)) == {-1.0, 1.0}
    assert np.abs(weights.mean(0)).max() < 5 / math.sqrt(8000)
    assert np.abs(np.corrcoef(weights.T) - np.eye(13)).max() < 5 / math.sqrt(8000)


# --------------------------------------------------------------------------------------------------------------------
# bootstrap
# --------------------------------------------------------------------------------------------------------------------
def test_interval_of_a_mean_has_the_analytic_width():
    """The bootstrap's standard error of a mean is std / sqrt(n); the 95 % interval of 500 values is nearly normal."""
    values = np.random.default_rng(1).gamma(2.0, size=500)
    cells, _ = estimate([Measure("m", share, {"a": means(values)})], ["a"], "a", 20_000, 0)
    error = values.std() / math.sqrt(500)
    # A percentile of 20,000 draws is known to about .02 standard errors; gamma's skewness moves both ends by .01.
    assert cells["a", "m"].mean == pytest.approx(values.mean(), abs=1e-12)
    assert (cells["a", "m"].high - cells["a", "m"].low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.03)


def test_interval_of_a_share_has_the_width_of_the_delta_method():
    rng = np.random.default_rng(2)
    chances = rng.poisson(2.0, size=800)
    hits = rng.binomial(chances, rng.beta(2, 1, size=800))
    statistics = np.stack([hits, chances], axis=-1)[None].astype(float)
    cells, _ = estimate([Measure("s", share, {"a": statistics})], ["a"], "a", 20_000, 0)
    ratio = hits.sum() / chances.sum()
    error = np.sqrt(np.sum((hits - ratio * chances) ** 2)) / chances.sum()
    assert cells["a", "s"].mean == pytest.approx(ratio)
    assert (cells["a", "s"].high - cells["a", "s"].low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.03)


def test_bleu_is_that_of_the_drawn_captions_scored_from_scratch():
    """The slow way: draw captions, hand them to the scorer as a new corpus, take percentiles."""
    ids = list(GOLDEN["predictions"])
    scored = CaptionScorer(GOLDEN["references"]).score(GOLDEN["predictions"])
    statistics = np.stack([scored.bleu_statistics[id] for id in ids])[None].astype(float)
    cells, _ = estimate([Measure("BLEU-4", bleu4, {"a": statistics})], ["a"], "a", 100, seed=3)
    slow = []
    for counts in itertools.chain(*draws(len(ids), 10, 100, np.random.default_rng([3, 0]))):
        drawn = [id for id, count in zip(ids, counts, strict=True) for _ in range(int(count))]
        references = {f"{place}": GOLDEN["references"][id] for place, id in enumerate(drawn)}
        predictions = {f"{place}": GOLDEN["predictions"][id] for place, id in enumerate(drawn)}
        slow.append(CaptionScorer(references).score(predictions).corpus["BLEU-4"])
    assert len(set(slow)) > 90
    assert (cells["a", "BLEU-4"].low, cells["a", "BLEU-4"].high) == pytest.approx(interval(np.array(slow)), abs=1e-12)
    assert cells["a", "BLEU-4"].mean == pytest.approx(scored.corpus["BLEU-4"], abs=1e-12)


def test_differences_are_paired():
    """Two arms that rise and fall with the same images differ surely, however wide their own intervals are."""
    rng = np.random.default_rng(4)
    difficulty = rng.normal(0, 1, size=300)
    arms = {"a": means(difficulty + 0.02 * rng.normal(size=300) + 0.01), "b": means(difficulty)}
    cells, (difference,) = estimate([Measure("m", share, arms)], ["b", "a"], "b", 2000, 0)
    assert cells["a", "m"].high - cells["a", "m"].low > 0.2 > 40 * (difference.high - difference.low)
    assert (difference.arm, difference.other) == ("a", "b") and 0 < difference.low and difference.p < 0.001


def test_a_share_is_left_out_of_resamples_without_a_chance():
    """Two of 200 images have a chance; a seventh of the resamples have neither, and nothing becomes nan."""
    rare, common = np.zeros((1, 200, 2)), np.ones((1, 200, 2))
    rare[0, :2, 1], rare[0, 0, 0] = 1, 1
    cells, (difference,) = estimate([Measure("s", share, {"a": rare, "b": common})], ["a", "b"], "b", 1000, 0)
    assert (cells["a", "s"].low, cells["a", "s"].mean, cells["a", "s"].high) == (0, 0.5, 1)
    assert (difference.low, difference.value, difference.high) == (-1, -0.5, 0)


# --------------------------------------------------------------------------------------------------------------------
# seeds
# --------------------------------------------------------------------------------------------------------------------
def test_seeds_are_averaged_per_image_and_their_scatter_is_reported():
    rng = np.random.default_rng(5)
    values = {"a": rng.normal(size=(3, 100)), "b": rng.normal(size=(1, 100))}
    measure = Measure("m", share, {label: means(own) for label, own in values.items()})
    cells, (difference,) = estimate([measure], ["a", "b"], "b", 1000, 0)
    assert cells["a", "m"].per_seed == pytest.approx(values["a"].mean(1))
    assert cells["a", "m"].std == pytest.approx(values["a"].mean(1).std(ddof=1))
    assert cells["b", "m"].std is None
    averaged = Measure("m", share, {"a": means(values["a"].mean(0)), "b": means(values["b"])})
    _, (same,) = estimate([averaged], ["a", "b"], "b", 1000, 0)
    assert (difference.value, difference.low, difference.high, difference.p) == pytest.approx(
        (same.value, same.low, same.high, same.p)
    )


def test_bleu_of_an_arm_is_the_mean_of_its_seeds_bleu():
    counts = bleu_counts(np.random.default_rng(6), 1, 100, 3)[0].transpose(1, 0, 2)
    cells, _ = estimate([Measure("BLEU-4", bleu4, {"a": counts})], ["a"], "a", 1000, 0)
    assert cells["a", "BLEU-4"].per_seed == pytest.approx(bleu4(counts.sum(1)))
    assert cells["a", "BLEU-4"].mean == pytest.approx(bleu4(counts.sum(1)).mean())


# --------------------------------------------------------------------------------------------------------------------
# permutation test
# --------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("kind", "seed"), [("mean", 0), ("share", 7), ("BLEU", 4)])
def test_p_is_that_of_all_exchanges(kind, seed):
    """Against every one of the 2^10 ways to exchange two systems on ten images."""
    rng = np.random.default_rng(seed)  # one that gives a p of interest
    if kind == "BLEU":
        score, (first, second) = bleu4, bleu_counts(rng, 1, 10, 2)[0].transpose(1, 0, 2)
    else:
        chances = np.ones((2, 10)) if kind == "mean" else rng.integers(1, 4, size=(2, 10))
        score, (first, second) = share, np.stack([rng.integers(0, 4, size=(2, 10)), chances], axis=-1).astype(float)
    observed, extreme = abs(score(first.sum(0)) - score(second.sum(0))), 0
    for exchange in itertools.product([False, True], repeat=10):
        a, b = np.where(np.array(exchange)[:, None], (second, first), (first, second))
        extreme += abs(score(a.sum(0)) - score(b.sum(0))) >= observed - 1e-12
    exact = extreme / 2**10
    assert 0.01 < exact < 0.1
    _, (difference,) = estimate(
        [Measure("m", score, {"a": first[None], "b": second[None]})], ["a", "b"], "b", 40_000, 0
    )
    assert difference.p == pytest.approx(exact, abs=5 * math.sqrt(exact * (1 - exact) / 40_000))


@pytest.mark.parametrize("seeds", [(1, 1), (3, 3), (2, 3)])
def test_equal_arms_have_difference_zero_and_p_one(seeds):
    rng = np.random.default_rng(8)
    one, counts = rng.gamma(1.0, size=333), bleu_counts(rng, 1, 333, 1)[0, :, 0]
    arms = dict(zip("ab", seeds, strict=True))
    measures = [
        Measure("m", share, {label: means(np.tile(one, (number, 1))) for label, number in arms.items()}),
        Measure("BLEU-4", bleu4, {label: np.tile(counts, (number, 1, 1)) for label, number in arms.items()}),
    ]
    _, differences = estimate(measures, ["a", "b"], "a", 1000, 0)
    for difference in differences:
        assert difference.p == difference.p_holm == 1
        assert (difference.value, difference.low, difference.high) == pytest.approx((0, 0, 0), abs=1e-12)


def test_p_counts_the_observed_assignment_and_is_never_zero():
    assert p_value(0, 9999) == 1e-4 and p_value(9999, 9999) == 1
    assert at_least(0.5, np.array([0.5, -0.5, 0.4, np.nan, -0.6, 0.5 - 1e-15])) == 5
    arms = {"a": means(np.full(100, 2.0)), "b": means(np.ones(100))}
    assert estimate([Measure("m", share, arms)], ["a", "b"], "b", 500, 0)[1][0].p == 1 / 501


# --------------------------------------------------------------------------------------------------------------------
# Holm
# --------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # 4 * .005, 3 * .01, 2 * .03, then .04 lifted to .06
        ([0.5, 0.4], [0.8, 0.8]),
        ([0.6, 0.7, 0.02], [1, 1, 0.06]),
        ([0.01, 0.01, 0.01], [0.03, 0.03, 0.03]),
        ([0.2], [0.2]),
        ([], []),
    ],
)
def test_holm_by_hand(p_values, adjusted):
    assert holm(p_values) == pytest.approx(adjusted)


# --------------------------------------------------------------------------------------------------------------------
# validation by simulation
# --------------------------------------------------------------------------------------------------------------------
def per_image_scores(rng, worlds: int, images: int, arms: int, seeds: int = 1) -> np.ndarray:
    """CIDEr-D-like values (worlds, images, arms, seeds): skewed, many zeros, images that are hard for all arms.

    All arms come from one distribution; a value's expectation is 1.
    """
    difficulty = rng.gamma(1.0, size=(worlds, images, 1, 1))
    zero = rng.random((worlds, images, arms, seeds)) < 0.3
    return np.where(zero, 0.0, difficulty * rng.gamma(2.0, 0.5, size=zero.shape) / 0.7)


def bleu_counts(rng, worlds: int, images: int, arms: int, match: float = 0.6) -> np.ndarray:
    """Ten counts of captions of about ten words, (worlds, images, arms, 10); images that are hard for all arms."""
    skill = rng.beta(10 * match, 10 * (1 - match), size=(worlds, images, 1))
    words = 4 + rng.poisson(6.0, size=(worlds, images, arms))
    matches = [rng.binomial(words, skill)]
    for order in range(1, 4):  # an n-gram can match where its beginning does
        matches.append(rng.binomial(np.minimum(matches[-1], words - order), 0.6))
    guesses = [words - order for order in range(4)]
    reference = 4 + rng.poisson(6.5, size=(worlds, images, 1)) + np.zeros_like(words)
    return np.stack([*matches, *guesses, words, reference], axis=-1).astype(float)


def mean_measures(values: np.ndarray) -> list[Measure]:
    """One measure for each world of (worlds, images, arms, seeds)."""
    arms = range(values.shape[2])
    return [Measure(f"{i}", share, {f"{a}": means(world[:, a].T) for a in arms}) for i, world in enumerate(values)]


def bleu_measures(counts: np.ndarray) -> list[Measure]:
    arms = range(counts.shape[2])
    return [Measure(f"{i}", bleu4, {f"{a}": world[None, :, a] for a in arms}) for i, world in enumerate(counts)]


@pytest.mark.parametrize("kind", ["mean", "BLEU"])
def test_95_percent_intervals_cover_between_93_and_97_percent(kind, record_property):
    """1000 worlds of 300 images: the standard error of a coverage is .007, so .02 is almost three of them."""
    worlds = 1000
    rng = np.random.default_rng(9)
    if kind == "mean":
        values = per_image_scores(rng, worlds, 300, 2)
        values[:, :, 1] += 0.1 * rng.gamma(1.0, size=(worlds, 300, 1))  # a true difference of 0.1
        measures, truth = mean_measures(values), (1.0, 1.1)
    else:
        two = [bleu_counts(np.random.default_rng([10, seed]), worlds, 300, 1, m) for seed, m in enumerate((0.6, 0.63))]
        # What BLEU is in the whole population: of 600,000 images, known 45 times better than from 300.
        whole = [bleu_counts(rng, 1, 600_000, 1, m)[0, :, 0].sum(0) for m in (0.6, 0.63)]
        measures, truth = bleu_measures(np.concatenate(two, axis=2)), tuple(bleu4(sums) for sums in whole)
    cells, differences = estimate(measures, ["0", "1"], "0", 2000, 0)
    covered = {
        "score": np.mean([cells["1", m.name].low <= truth[1] <= cells["1", m.name].high for m in measures]),
        "difference": np.mean([d.low <= truth[1] - truth[0] <= d.high for d in differences]),
    }
    for what, share_covered in covered.items():
        record_property(f"coverage, {what}, {kind}", float(share_covered))
        print(f"coverage of 95 % intervals, {what}, {kind}: {share_covered:.3f}")
        assert 0.93 <= share_covered <= 0.97, what


@pytest.mark.parametrize(
    ("kind", "seeds", "worlds"), [("mean", (1, 1, 1, 1), 1000), ("mean", (1, 3, 1, 3), 1000), ("BLEU", (1, 1, 1), 700)]
)
def test_false_positives_stay_below_5_percent(kind, seeds, worlds, record_property):
    """Arms from one distribution: any rejection after Holm is false, and so is any plain p < .05.

    The standard error of a rate of .05 over 1000 worlds is .007 (700: .008). All worlds meet the same 3000 exchanges,
    which moves the level of .05 / 6 by .0017, and six pairs with it by up to .010 (.05 / 3: .0023, .007). Together
    .012 (.011); two of them are allowed.
    """
    arms = "0123"[: len(seeds)]
    rng = np.random.default_rng(11)
    if kind == "mean":
        values = per_image_scores(rng, worlds, 100, 4, 3)
        of_arm = dict(zip(arms, seeds, strict=True))
        measures = [
            Measure(m.name, m.score, {label: m.statistics[label][:number] for label, number in of_arm.items()})
            for m in mean_measures(values)
        ]
    else:
        measures = bleu_measures(bleu_counts(rng, worlds, 100, len(arms)))
    _, differences = estimate(measures, arms, "0", 3000, 0)
    p, p_holm = (np.array([getattr(d, name) for d in differences]).reshape(worlds, -1) for name in ("p", "p_holm"))
    family, single = np.mean(p_holm.min(1) <= 0.05), np.mean(p <= 0.05)
    record_property(f"family-wise false positives, {kind}, seeds {seeds}", float(family))
    print(f"false positives, {kind}, seeds {seeds}: family-wise after Holm {family:.3f}, of one test {single:.3f}")
    assert family <= 0.05 + 0.024
    assert 0.03 <= single <= 0.065  # a test that never rejects would pass the line above
    assert np.mean(p.min(1) <= 0.05) > 0.10  # the family's rate without the correction


def test_true_differences_are_found():
    """Power: a tenth of a standard deviation, paired, over 1000 images is seen nearly always, and only there."""
    rng = np.random.default_rng(12)
    values = per_image_scores(rng, 200, 1000, 3)
    values[:, :, 2] += 0.3
    _, differences = estimate(mean_measures(values), list("012"), "0", 1000, 0)
    found = np.array([d.p_holm <= 0.05 for d in differences]).reshape(200, 3).mean(0)  # 1-0, 2-0, 1-2
    assert found[0] < 0.1 and found[1] > 0.95 and found[2] > 0.95
