"""The test over seeds holds what it promises: by hand, against scipy's own tests, and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from src.comparison.estimates import estimate
from src.comparison.measures import Measure, share
from src.comparison.plan import Plan, make_plan
from src.comparison.resampling import holm
from src.comparison.seeds import (
    LESS,
    WORDS,
    SeedTest,
    Verdict,
    detectable,
    level_test,
    paired,
    t_interval,
    t_test,
    unplanned,
    verdicts,
)
from src.errors import UserError

SEEDS = 5
# Scores of a control and four arms in many studies: a seed moves all arms together, and each of them alone.
TOGETHER, ALONE = 3.0, 1.0
OF_DIFFERENCE = ALONE * math.sqrt(2)  # standard deviation of an arm minus the control, which share what seeds do


def studies(rng: np.random.Generator, number: int, arms: int, seeds: int = SEEDS) -> np.ndarray:
    """Scores (studies, arms, seeds) of arms that do not differ."""
    together = rng.normal(0, TOGETHER, size=(number, 1, seeds))
    return together + rng.normal(0, ALONE, size=(number, arms, seeds))


def one_value_an_image(per_seed: dict[str, list[float]]) -> Measure:
    """A measure whose score of a seed is that value, on three images."""
    statistics = {
        label: np.stack([np.array([[value - 1, 1.0], [value, 1.0], [value + 1, 1.0]]) for value in values])
        for label, values in per_seed.items()
    }
    return Measure("m", share, statistics)


# --------------------------------------------------------------------------------------------------------------------
# one pair
# --------------------------------------------------------------------------------------------------------------------
def test_a_pair_by_hand():
    """Differences 1, 2, 3: mean 2, standard deviation 1, t = 2 sqrt(3) with 2 degrees of freedom."""
    test = paired({0: 2.0, 1: 5.0, 2: 9.0}, {0: 1.0, 1: 3.0, 2: 6.0})
    assert (test.n, test.left_out, test.value, test.std) == (3, 0, 2.0, 1.0)
    half = 4.302652729911275 / math.sqrt(3)  # the t table: .975 with 2 degrees of freedom
    assert (test.low, test.high) == pytest.approx((2 - half, 2 + half)) and test.half_width == pytest.approx(half)
    t = 2 * math.sqrt(3)
    assert test.p == pytest.approx(1 - t / math.sqrt(2 + t * t))  # Student's t with 2 degrees of freedom is closed
    assert test.flipped() == paired({0: 1.0, 1: 3.0, 2: 6.0}, {0: 2.0, 1: 5.0, 2: 9.0})


def test_only_shared_seeds_are_paired_and_the_others_counted():
    first, second = {0: 1.0, 1: 2.0, 7: 100.0}, {1: 1.0, 0: 0.5, 3: -100.0, 4: 0.0}
    test = paired(first, second)
    assert (test.n, test.left_out, test.value) == (2, 3, 0.75)
    assert paired({0: 1.0}, {1: 1.0}) == SeedTest(0, 2)


def test_without_scatter_or_with_one_seed_there_is_no_test():
    one = paired({3: 1.0}, {3: 0.5})
    assert (one.n, one.value, one.p, one.low, one.detectable, one.half_width) == (1, 0.5, None, None, None, None)
    copies = paired({0: 1.0, 1: 1.0, 2: 1.0, 3: 1.0, 4: 1.0}, dict.fromkeys(range(5), 0.5))
    assert (copies.n, copies.value, copies.p) == (5, 0.5, None)
    assert unplanned(copies).word == verdicts([copies], 10.0)[0].word == "open"


def test_formulas_are_scipys_own():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 40, SEEDS))
    theirs = stats.ttest_rel(first, second, axis=-1)
    assert t_test(first - second) == pytest.approx(theirs.pvalue)
    interval = theirs.confidence_interval(0.95)
    low, high = t_interval(first - second)
    assert low == pytest.approx(interval.low) and high == pytest.approx(interval.high)
    above = stats.ttest_rel(first + 1.5, second, axis=-1, alternative="greater").pvalue
    below = stats.ttest_rel(first - 1.5, second, axis=-1, alternative="less").pvalue
    d = first - second
    assert level_test(d.mean(-1), d.std(-1, ddof=1), SEEDS, 1.5) == pytest.approx(np.maximum(above, below))


# --------------------------------------------------------------------------------------------------------------------
# contrasts and words
# --------------------------------------------------------------------------------------------------------------------
def exactly(value: float, std: float, n: int = SEEDS) -> SeedTest:
    """A test with exactly this mean and standard deviation."""
    standard = stats.norm.ppf((np.arange(n) + 0.5) / n)
    values = value + std * (standard - standard.mean()) / standard.std(ddof=1)
    return paired(dict(enumerate(values.tolist())), dict.fromkeys(range(n), 0.0))


def test_holm_runs_over_all_planned_contrasts_also_those_without_a_test():
    tests = [exactly(2.0, 1.0), exactly(5.0, 1.0), SeedTest(1, 8, 0.3)]
    found = verdicts(tests, margin=3.0)
    assert [v.p_holm for v in found[:2]] == pytest.approx(holm([tests[0].p, tests[1].p, 1.0])[:2])
    levels = [level_test(t.value, t.std, t.n, 3.0) for t in tests[:2]]
    assert [v.p_level for v in found[:2]] == pytest.approx(holm([*levels, 1.0])[:2])
    assert (found[2].p, found[2].p_holm, found[2].p_level, found[2].word) == (None, None, None, "open")
    assert all(v.p_level is None for v in verdicts(tests))


@pytest.mark.parametrize(
    ("verdict", "word"),
    [
        (Verdict(5, True, 0.01, p_holm=0.04), "shown"),
        (Verdict(5, True, 0.01, p_holm=0.04, p_level=0.04), "shown, level"),
        (Verdict(5, True, 0.30, p_holm=0.60, p_level=0.04), "level"),
        (Verdict(5, True, 0.04, p_holm=0.08, p_level=0.04), "level"),
        (Verdict(5, True, 0.01, p_holm=0.05), "hint"),
        (Verdict(4, True, 0.01, p_holm=0.01, p_level=0.01), "hint"),
        (Verdict(4, True, 0.30, p_holm=0.30, p_level=0.01), "open"),
        (Verdict(5, False, 1e-9), "hint"),
        (Verdict(2, False, 0.049), "hint"),
        (Verdict(5, False, 0.05), "open"),
        (Verdict(1, False, 0.01), "open"),
        (Verdict(9, False, None), "open"),
    ],
)
def test_the_wording_rule(verdict, word):
    assert verdict.word == word


def test_the_rule_is_the_tables():
    assert [(one.word, one.seeds, one.planned) for one in (*WORDS, LESS)] == [
        ("shown", 5, True),
        ("level", 5, True),
        ("hint", 2, False),
    ]


def test_only_planned_contrasts_of_the_primary_are_more_than_a_hint():
    rng = np.random.default_rng(1)
    control = rng.normal(size=SEEDS)
    scores = {"a": control, "b": control + 5 + 0.1 * rng.normal(size=SEEDS), "c": control + 9 + rng.normal(size=SEEDS)}
    primary = one_value_an_image({label: values.tolist() for label, values in scores.items()})
    other = Measure("other", primary.score, primary.statistics)
    plan = Plan((("a", "b"),), "m", margin=6.0)
    _, differences = estimate([primary, other], list("abc"), "a", 100, 0, plan)
    words = {(d.score, d.arm, d.other): d.word for d in differences}
    assert words == {
        ("m", "a", "b"): "shown, level",  # in the order of the plan, although a is the baseline
        ("m", "c", "a"): "hint",
        ("m", "b", "c"): "hint",
        ("other", "a", "b"): "hint",
        ("other", "c", "a"): "hint",
        ("other", "b", "c"): "hint",
    }


def test_an_arm_that_is_the_same_for_every_seed_stands_beside_each():
    measure = one_value_an_image({"a": [1.0, 2.0, 4.0], "start": [1.0]})
    (alone,) = estimate([measure], ["start", "a"], "start", 100, 0)[1]
    (beside,) = estimate([measure], ["start", "a"], "start", 100, 0, fixed=["start"])[1]
    assert (alone.seeds.n, alone.seeds.left_out) == (1, 2)
    assert beside.seeds == paired({0: 1.0, 1: 2.0, 2: 4.0}, dict.fromkeys(range(3), 1.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"contrasts": [["a", "b"]] * 5}, "contrasts= has 5 pairs, and at most 4 can be planned; leave some out."),
        ({"contrasts": [["a", "a"]]}, "contrasts=[[a,a]] must hold pairs of two different arms"),
        ({"contrasts": [["a", "b", "c"]]}, "contrasts=[[a,b,c]] must hold pairs of two different arms"),
        ({"contrasts": [["a", "x"]]}, "contrasts=[[a,x]]: x is none of the arms; they are: a; b; c."),
        ({"contrasts": [["a", "b"], ["b", "a"]]}, "contrasts=[[a,b]] is there twice; leave one out."),
        ({"contrasts": [["a", "b"]], "margin": -1.0}, "margin=-1.0 must be a number of at least 0"),
        ({"margin": 0.1}, "margin=0.1 is about planned contrasts, and there are none; add contrasts="),
        ({"primary": "SPICE"}, "primary=SPICE has no value per image in these runs; there are CIDEr-D, loss."),
    ],
)
def test_plans_that_cannot_be_are_refused(options, message):
    given = {"contrasts": [], "primary": None, "margin": None, **options}
    with pytest.raises(UserError) as caught:
        make_plan(**given, labels=list("abc"), there=["CIDEr-D", "loss"])
    assert str(caught.value).startswith(message)


def test_four_contrasts_and_a_margin_of_zero_are_a_plan():
    pairs = [["a", "b"], ["a", "c"], ["d", "a"], ["b", "c"]]
    plan = make_plan(pairs, None, 0, list("abcd"), ["loss", "CIDEr-D"])
    assert plan == Plan((("a", "b"), ("a", "c"), ("d", "a"), ("b", "c")), "CIDEr-D", 0)
    assert make_plan([], None, None, ["a"], ["gain/loss", "CIDEr-D"]).primary == "gain/loss"
    assert make_plan([], None, None, ["a"], ["answers/right"]).primary == "answers/right"


# --------------------------------------------------------------------------------------------------------------------
# validation by simulation; standard errors of rates: .05 of 20,000 is .0015, .8 of 20,000 is .0028
# --------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_intervals_over_seeds_cover_95_percent(seeds, record_property):
    """1.96 for t covers .88 with five seeds; unpaired standard errors, here over twice as wide, cover nearly all."""
    scores = studies(np.random.default_rng(2), 20_000, 2, seeds)
    scores[:, 1] += 0.7
    low, high = t_interval(scores[:, 1] - scores[:, 0])
    covered = np.mean((low <= 0.7) & (high >= 0.7))
    record_property(f"coverage over {seeds} seeds", float(covered))
    print(f"coverage of 95 % t intervals, {seeds} seeds: {covered:.4f}")
    assert 0.93 <= covered <= 0.97 and covered == pytest.approx(0.95, abs=5 * 0.0016)


def test_the_difference_of_arms_is_paired_by_seed():
    """Through ``estimate``: what seeds do to both arms cancels, so that it finds what an unpaired test would not."""
    scores = studies(np.random.default_rng(3), 400, 2, 5)
    scores[:, 1] += detectable(OF_DIFFERENCE, 5)
    worlds = [one_value_an_image({"a": a.tolist(), "b": b.tolist()}) for b, a in scores]
    found = [estimate([world], ["a", "b"], "b", 1, 0)[1][0].seeds.p < 0.05 for world in worlds]
    unpaired = stats.ttest_ind(scores[:, 1], scores[:, 0], axis=-1).pvalue < 0.05
    assert np.mean(found) == pytest.approx(0.8, abs=0.08) and np.mean(unpaired) < 0.3


def families(rng: np.random.Generator, number: int, shift=(0.0, 0.0, 0.0, 0.0)) -> np.ndarray:
    """Per-seed differences (studies, 4, seeds) of four arms to one control."""
    scores = studies(rng, number, 5)
    return scores[:, 1:] - scores[:, :1] + np.asarray(shift)[:, None]


def test_four_contrasts_with_one_control_err_in_5_percent_of_studies(record_property):
    """Holm's bound, and what it is a bound for: the words of whole studies, a fifth of which would err uncorrected."""
    p_values = t_test(families(np.random.default_rng(4), 20_000))
    family = np.mean([min(holm(own)) < 0.05 for own in p_values.tolist()])
    record_property("family-wise error over seeds", float(family))
    uncorrected = np.mean(p_values.min(1) < 0.05)
    print(f"family-wise error, four contrasts of five seeds: {family:.4f}; uncorrected {uncorrected:.4f}")
    assert 0.03 <= family <= 0.05 + 3 * 0.0016
    assert uncorrected > 0.12


def test_with_true_differences_the_others_err_no_more():
    """Two of four are really there: a false word for one of the other two stays as rare."""
    p_values = t_test(families(np.random.default_rng(5), 20_000, shift=(8.0, 8.0, 0.0, 0.0))).tolist()
    adjusted = np.array([holm(own) for own in p_values])
    assert np.mean(adjusted[:, 2:].min(1) < 0.05) <= 0.05 + 3 * 0.0016
    assert np.mean(adjusted[:, :2] < 0.05) > 0.95


def test_shown_is_said_of_nothing_in_95_percent_of_studies(record_property):
    """By the words themselves, as a comparison writes them."""
    worlds = families(np.random.default_rng(6), 20_000)
    tests = [[SeedTest(SEEDS, 0, p=p) for p in own] for own in t_test(worlds).tolist()]
    words = [[verdict.word for verdict in verdicts(own)] for own in tests]
    said = np.mean(["shown" in own for own in words])
    record_property("studies of nothing in which something is shown", float(said))
    print(f"'shown' under a null: {said:.4f} of families")
    assert 0.03 <= said <= 0.05 + 3 * 0.0016
    assert np.mean(["hint" in own or "shown" in own for own in words]) > 0.12  # which is why a hint is no more


@pytest.mark.parametrize("sign", [-1, 1])
def test_level_errs_in_5_percent_at_the_margin(sign, record_property):
    d = studies(np.random.default_rng(7), 20_000, 1)[:, 0] / TOGETHER + sign * 4.0
    error = np.mean(level_test(d.mean(-1), d.std(-1, ddof=1), SEEDS, 4.0) < 0.05)
    record_property(f"equivalence at the margin, {sign}", float(error))
    print(f"'level' at the margin: {error:.4f}")
    assert 0.04 <= error <= 0.05 + 3 * 0.0016
    inside = d - sign * 4.0
    assert np.mean(level_test(inside.mean(-1), inside.std(-1, ddof=1), SEEDS, 4.0) < 0.05) > 0.9


@pytest.mark.parametrize("seeds", [2, 3, 5, 8, 20])
def test_the_detectable_difference_is_found_in_80_percent(seeds, record_property):
    differences = np.random.default_rng(8).normal(detectable(OF_DIFFERENCE, seeds), OF_DIFFERENCE, (20_000, seeds))
    power = np.mean(t_test(differences) < 0.05)
    record_property(f"power at the detectable difference, {seeds} seeds", float(power))
    print(f"power at the detectable difference, {seeds} seeds: {power:.4f}")
    assert power == pytest.approx(0.8, abs=0.02)


def test_detectable_before_anything_runs():
    assert detectable(0.022 * math.sqrt(2), 5) == pytest.approx(0.0523, abs=1e-4)
    assert detectable(2.0, 5) == pytest.approx(2 * detectable(1.0, 5)) and detectable(1.0, 10) < detectable(1.0, 5)
    assert detectable(1.0, 10_000) * 100 == pytest.approx(stats.norm.ppf(0.975) + stats.norm.ppf(0.8), abs=1e-3)
    with pytest.raises(UserError, match="n=1 seeds cannot be tested"):
        detectable(1.0, 1)
