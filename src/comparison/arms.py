"""Arms held against one another: every score with its interval, every pair of arms with its difference and test.

What an interval is about. The images are drawn again, the trained models are what they are: an image's value for an arm
is the mean over the arm's seeds, and corpus scores (BLEU, METEOR) are taken of each seed and then averaged. Seeds are
NOT drawn again, although there are two-way bootstraps that would (Owen 2007, "The pigeonhole bootstrap"): with the two
to five seeds that trainings allow, drawing seeds with replacement gives intervals that claim 95 % and cannot hold it.
The variance of S drawn seeds is too small by (S - 1) / S on average, and it is estimated from S values; where the
scatter of seeds dominates, 1.96 such standard errors cover a normal score's mean with probability
P(|t| < 1.96 sqrt((S - 1) / S)), t with S - 1 degrees of freedom: .60 for two seeds, .75 for three, .85 for five, and
percentile intervals cover less still. So the seeds are reported as what they are, a few numbers with a standard
deviation, next to an interval that keeps what it promises; Bouthillier et al. 2021, "Accounting for variance in machine
learning benchmarks", is why one should look at both. The notes say so, and name the differences that are significant
over images but no larger than what seeds can do.

The test of a pair exchanges the two arms' statistics of an image, those of all seeds at once; its test statistic is the
difference of the scores of the seeds' pooled statistics, which for means is the difference itself.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from src.comparison.measures import (
    AGAIN,
    BLEU,
    METEOR,
    Measure,
    make_measures,
    read_table,
    score_names,
    shared_images,
    tokens_of,
    with_meteor_counts,
)
from src.comparison.resampling import at_least, draws, exchanged, holm, interval, p_value, signs
from src.comparison.runs import Arm, Run
from src.errors import UserError

BASELINE = "blind"
ALLOWED = ("split", "references", "tokens", "decoding", "data")
FEW = 50  # images; below, percentile intervals are noticeably too narrow
LEAST = 100  # resamples below which there is no 2.5th percentile to speak of
SIGNIFICANT = 0.05
NAMED = 6  # settings that a note lists


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
    """Arm minus other in a score's own units, paired over images; ``low`` to ``high`` is its 95 % interval."""

    arm: str
    other: str
    score: str
    value: float
    low: float
    high: float
    p: float  # two-sided paired permutation test over images
    p_holm: float  # after Holm over all pairs of that score


@dataclass(frozen=True)
class Comparison:
    """``cells``: by arm's label and score; None where the arm lacks that score.

    ``differences``: all pairs of arms that both have the score, score by score; the baseline is always the ``other``.
    """

    arms: tuple[Arm, ...]
    scores: tuple[str, ...]
    baseline: str
    split: str
    images: int
    resamples: int
    cells: dict[tuple[str, str], Cell | None]
    differences: tuple[Difference, ...]
    notes: tuple[str, ...]

    def against_baseline(self, arm: str, score: str) -> Difference | None:
        """The arm's difference to the baseline; None for the baseline itself and where one of them has no score."""
        wanted = (arm, self.baseline, score)
        return next((d for d in self.differences if (d.arm, d.other, d.score) == wanted), None)


def compare(
    arms: Sequence[Arm],
    scores: Sequence[str] | None = None,
    baseline: str | None = None,
    resamples: int = 10_000,
    seed: int = 0,
    allow: Collection[str] = (),
) -> Comparison:
    """Everything about ``scores`` (None: all that have per-image values; BLEU-4 stands for BLEU).

    ``baseline``: an arm's label; None: "blind" where there is one, else the first. ``seed``: of the resampling; the
    same gives the same numbers. ``allow``: in what the runs may differ, of ``ALLOWED``. Raises UserError for runs that
    cannot be compared, for damaged files, and for a score or baseline that is not there.
    """
    if resamples < LEAST:
        raise UserError(f"resamples={resamples} are too few for a 95 % interval; {LEAST} is the least, 10000 is good.")
    labels = [arm.label for arm in arms]
    baseline = _baseline(labels, baseline)
    runs = [run for arm in arms for run in arm.runs]
    differing = _check_comparable(runs, allow)
    tables = [read_table(run) for run in runs]
    ids = shared_images(runs, tables, differ="references" in allow)
    names = score_names(tables, scores)
    tables, unavailable = with_meteor_counts(tables) if METEOR in names else (tables, [])
    measures = make_measures(names, arms, tables, ids)
    cells, differences = estimate(measures, labels, baseline, resamples, seed)
    whole = all(len(table) == len(ids) for table in tables)
    notes = [
        *_notes_on_design(arms, differing),
        *([] if whole else [_note_on_images(len(ids))]),
        *unavailable,
        *_notes_on_scores(arms, measures, cells, whole),
        *_notes_on_reading(cells, differences, resamples),
    ]
    split = ", ".join(dict.fromkeys(str(run.metrics.get("split")) for run in runs))
    return Comparison(tuple(arms), names, baseline, split, len(ids), resamples, cells, tuple(differences), tuple(notes))


# --------------------------------------------------------------------------------------------------------------------
# estimates
# --------------------------------------------------------------------------------------------------------------------
def estimate(
    measures: Sequence[Measure], labels: Sequence[str], baseline: str, resamples: int, seed: int
) -> tuple[dict[tuple[str, str], Cell | None], list[Difference]]:
    """Cells by (label, score), and the differences of all pairs.

    All arms and scores meet the same resampled images. Arms without a measure's statistics, or for which it is
    undefined on these images for any seed, get None.
    """
    measures = [_defined(measure) for measure in measures]
    bootstrap = _bootstrap(measures, resamples, np.random.default_rng([seed, 0]))
    extreme = _permute(measures, labels, baseline, resamples, np.random.default_rng([seed, 1]))
    cells: dict[tuple[str, str], Cell | None] = {}
    differences: list[Difference] = []
    for measure in measures:
        for label in labels:
            cells[label, measure.name] = _cell(measure, label, bootstrap)
        pairs = _pairs(measure, labels, baseline)
        p_values = [p_value(extreme[(measure.name, *pair)], resamples) for pair in pairs]
        for (arm, other), p, p_holm in zip(pairs, p_values, holm(p_values), strict=True):
            value = cells[arm, measure.name].mean - cells[other, measure.name].mean
            low, high = interval(bootstrap[measure.name, arm] - bootstrap[measure.name, other])
            differences.append(Difference(arm, other, measure.name, value, low, high, p, p_holm))
    return cells, differences


def _defined(measure: Measure) -> Measure:
    """The measure with those arms only for which it is defined on all images."""
    kept = {
        label: statistics
        for label, statistics in measure.statistics.items()
        if not np.isnan(measure.score(statistics.sum(1))).any()
    }
    return Measure(measure.name, measure.score, kept)


def _pairs(measure: Measure, labels: Sequence[str], baseline: str) -> list[tuple[str, str]]:
    """(arm, other) for all pairs of arms with the score; the baseline comes second."""
    there = [label for label in labels if label in measure.statistics]
    return [(b, a) if a == baseline else (a, b) for a, b in itertools.combinations(there, 2)]


def _cell(measure: Measure, label: str, bootstrap: Mapping[tuple[str, str], np.ndarray]) -> Cell | None:
    if label not in measure.statistics:
        return None
    per_seed = measure.score(measure.statistics[label].sum(1))
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
    measures: Sequence[Measure], labels: Sequence[str], baseline: str, resamples: int, rng: np.random.Generator
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
    tests = [(measure, *pair) for measure in measures for pair in _pairs(measure, labels, baseline)]
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


# --------------------------------------------------------------------------------------------------------------------
# what may be compared
# --------------------------------------------------------------------------------------------------------------------
def _baseline(labels: Sequence[str], wanted: str | None) -> str:
    if wanted is None:
        return BASELINE if BASELINE in labels else labels[0]
    if wanted not in labels:
        raise UserError(f"baseline={wanted} is none of the arms; they are: {'; '.join(labels)}.")
    return wanted


def _check_comparable(runs: Sequence[Run], allow: Collection[str]) -> dict[str, str]:
    """What differs between runs although it should not, and is allowed: aspect -> how. Raises UserError otherwise."""
    unknown = [aspect for aspect in allow if aspect not in ALLOWED]
    if unknown:
        raise UserError(f"allow={unknown[0]} means nothing here; it can be {', '.join(ALLOWED)}.")
    differing: dict[str, str] = {}
    for aspect in ALLOWED:
        for run in runs:
            other, how = _mismatch(aspect, run, runs)
            if not how:
                continue
            if aspect not in allow:
                raise UserError(
                    f"{other.folder} and {run.folder} differ in their {aspect} ({how}), so their scores cannot be "
                    f"compared; allow=[{aspect}] compares them all the same."
                )
            differing.setdefault(aspect, how)
    return differing


def _mismatch(aspect: str, run: Run, runs: Sequence[Run]) -> tuple[Run, str]:
    """The run that ``run`` is held against, and in which way they differ; "" where they do not."""
    other = runs[0]
    if aspect == "split":
        ours, theirs = (str(r.metrics.get("split")) for r in (run, other))
        return other, f"{theirs} against {ours}" if ours != theirs else ""
    if aspect == "references":
        ours, theirs = (str(r.metrics.get("references_sha256")) for r in (run, other))
        return other, f"sha256 {theirs[:12]} against {ours[:12]}" if ours != theirs else ""
    if aspect == "tokens":
        ours, theirs = tokens_of(run), tokens_of(other)
        return other, f"{theirs} against {ours}" if ours != theirs else ""
    if aspect == "decoding":
        # null says that nothing was decoded; a run without the key is older than that word.
        other = next((r for r in runs if r.metrics.get("decoding", {}) is not None), run)
        if run.metrics.get("decoding", {}) is None:
            return other, ""
        ours, theirs = (r.metrics.get("decoding") for r in (run, other))
        if ours is None or theirs is None:
            return other, "" if ours == theirs else f"{(run if ours is None else other).folder} does not name its own"
        keys = [key for key in {**theirs, **ours} if ours.get(key) != theirs.get(key)]
        return other, ", ".join(f"{key} {theirs.get(key)} against {ours.get(key)}" for key in keys)
    # Runs of one seed should have met the same batches; a run that did not record them says nothing.
    other = next((r for r in runs if r.seed == run.seed and r.batches_sha256), run)
    same = run.batches_sha256 in (None, other.batches_sha256)
    return other, "" if same else f"other training batches with seed {run.seed}"


# --------------------------------------------------------------------------------------------------------------------
# notes
# --------------------------------------------------------------------------------------------------------------------
Cells = Mapping[tuple[str, str], Cell | None]


def _note_on_images(shared: int) -> str:
    return (
        f"Only the {shared} images that all runs share are compared; their CIDEr-D still weighs words by the "
        "references of all images of each run."
    )


def _notes_on_design(arms: Sequence[Arm], differing: Mapping[str, str]) -> list[str]:
    """What the runs are, and what follows for the reading of every number."""
    seeds = ", ".join(f"{arm.label} {len(arm.runs)}" for arm in arms)
    notes = [
        "Intervals and p-values are about other images for the models as they were trained; they say nothing about "
        f"other seeds (seeds: {seeds})."
    ]
    if any(len(arm.runs) == 1 for arm in arms):
        notes.append("An arm with one seed has no standard deviation: how much another training changes is not known.")
    if len({tuple(run.seed for run in arm.runs) for arm in arms}) > 1:
        notes.append("The arms do not have the same seeds.")
    settings = [arm.runs[0].settings for arm in arms]
    keys = sorted({key for own in settings for key in own if not key.startswith("fusion.")})
    changed = [key for key in keys if any(own.get(key) != settings[0].get(key) for own in settings)]
    if changed:
        more = f" and {len(changed) - NAMED} more" if len(changed) > NAMED else ""
        notes.append(f"The arms differ in more than the fusion: {', '.join(changed[:NAMED])}{more}.")
    counted = {tokens_of(run) for arm in arms for run in arm.runs}
    if counted == {"characters"}:
        notes.append("BLEU, ROUGE-L and CIDEr-D count characters here, so they compare with no scores by words.")
    notes += [f"Allowed, but not like with like: {aspect} ({how})." for aspect, how in differing.items()]
    return notes


def _notes_on_scores(arms: Sequence[Arm], measures: Sequence[Measure], cells: Cells, whole: bool) -> list[str]:
    """Scores that are not there, that rest on few images, and that are not those of metrics.json.

    The last can be told only where the ``whole`` of the images of each run is compared.
    """
    absent: dict[str, list[str]] = {}
    scarce, otherwise = [], []
    for measure in measures:
        name = measure.name
        there = [arm for arm in arms if cells[arm.label, name] is not None]
        without = [arm.label for arm in arms if cells[arm.label, name] is None]
        if without:
            absent.setdefault(", ".join(without), []).append(name)
        few = [arm.label for arm in there if _fewest_images(measure, arm.label) < FEW]
        if few:
            scarce.append(f"{name} of {', '.join(few)}")
        runs = [run for arm in there for run in arm.runs]
        ours = [value for arm in there for value in cells[arm.label, name].per_seed]
        theirs = [run.scores.get(name) for run in runs]
        odd = [i for i, corpus in enumerate(theirs) if corpus is not None and abs(corpus - ours[i]) > 1e-6]
        if whole and odd:
            otherwise.append(
                f"{name} of {runs[odd[0]].folder} is {theirs[odd[0]]:.4f} in its metrics.json and "
                f"{ours[odd[0]]:.4f} by its predictions.jsonl; {AGAIN}"
            )
    notes = [f"Not defined for {labels}: {', '.join(names)}." for labels, names in absent.items()]
    if scarce:
        notes.append(f"Resting on fewer than {FEW} images, so with intervals that are too narrow: {'; '.join(scarce)}.")
    return notes + otherwise


def _fewest_images(measure: Measure, label: str) -> int:
    """On how many images an arm's score rests, for the seed with the fewest.

    BLEU-4 rests on those that have four words in a row right: if those are few, its fourth root hides how much one of
    them counts.
    """
    statistics = measure.statistics[label]  # (seeds, images, k)
    if measure.name in BLEU:
        statistics = statistics[..., [BLEU.index(measure.name)]]
    return int((statistics != 0).any(-1).sum(-1).min())


def _notes_on_reading(cells: Cells, differences: Sequence[Difference], resamples: int) -> list[str]:
    """Where the numbers are weaker than they look."""
    notes = []
    if any(cell is not None and cell.flat for cell in cells.values()):
        notes.append(
            "An interval of no width says that all images agree; what would happen less than about three times in as "
            "many images is not excluded."
        )
    pairs = max((sum(d.score == name for d in differences) for name in {d.score for d in differences}), default=0)
    if pairs * p_value(0, resamples) > SIGNIFICANT:
        notes.append(f"With {pairs} pairs no p-value can pass Holm's correction at resamples={resamples}; take more.")
    scattered = [
        f"{d.score} of {d.arm} and {d.other}"
        for d in differences
        if d.p_holm <= SIGNIFICANT and _within_seeds(cells, d)
    ]
    if scattered:
        notes.append(
            "Significant over images, but within two standard errors of what seeds do: " + "; ".join(scattered) + "."
        )
    return notes


def _within_seeds(cells: Cells, difference: Difference) -> bool:
    """Whether the difference is at most two standard errors of the difference of two means over seeds."""
    two = [cells[label, difference.score] for label in (difference.arm, difference.other)]
    if any(cell.std is None for cell in two):
        return False
    error = math.sqrt(sum(cell.std**2 / len(cell.per_seed) for cell in two))
    return abs(difference.value) <= 2 * error
