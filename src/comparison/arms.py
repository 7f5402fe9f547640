"""Arms held against one another: every score, every pair of arms, and what a reader has to know beside them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from src.comparison.comparable import check_comparable
from src.comparison.estimates import Cell, Difference, estimate
from src.comparison.gains import blind_runs, is_blind, trains_nothing
from src.comparison.measures import has_nats, make_measures, read_table, shared_images, stories_of, with_meteor_counts
from src.comparison.notes import note_on_images, notes_on_design, notes_on_reading, notes_on_scores, notes_on_stories
from src.comparison.notes_on_seeds import notes_on_gains, notes_on_plan, notes_on_seeds
from src.comparison.plan import NO_PLAN, Plan, make_plan
from src.comparison.runs import Arm, Run
from src.comparison.scores import METEOR, Table, score_names, scores_there
from src.errors import UserError

BASELINE = "blind"
LEAST = 100  # resamples below which there is no 2.5th percentile to speak of


@dataclass(frozen=True)
class Comparison:
    """``cells``: by arm's label and score; None where the arm lacks that score.

    ``differences``: all pairs of arms that both have the score, score by score; the baseline is always the ``other``,
    unless a planned contrast has it otherwise. ``plan``: with its primary score. ``stories``: how many there are, where
    images are drawn by story; None: one by one.
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
    plan: Plan = NO_PLAN
    stories: int | None = None

    def difference(self, arm: str, other: str, score: str) -> Difference | None:
        """``arm`` minus ``other``, whichever way round it was tested; None where it was not."""
        for found in self.differences:
            if (found.arm, found.other, found.score) == (arm, other, score):
                return found
            if (found.arm, found.other, found.score) == (other, arm, score):
                return found.flipped()
        return None

    def against_baseline(self, arm: str, score: str) -> Difference | None:
        """The arm's difference to the baseline; None for the baseline itself and where one of them has no score."""
        return self.difference(arm, self.baseline, score)

    @property
    def planned(self) -> list[Difference]:
        """The planned contrasts of the primary score, in the plan's order; those that could be measured."""
        found = (self.difference(*pair, self.plan.primary) for pair in self.plan.contrasts if self.plan.primary)
        return [difference for difference in found if difference is not None]

    @property
    def size(self) -> str:
        """What the scores are about, in words."""
        if self.stories is None:
            return f"{self.images:,} images"
        return f"{self.images:,} answers in {self.stories:,} stories"


def compare(
    arms: Sequence[Arm],
    scores: Sequence[str] | None = None,
    baseline: str | None = None,
    resamples: int = 10_000,
    seed: int = 0,
    allow: Collection[str] = (),
    contrasts: Sequence[Sequence[str]] = (),
    primary: str | None = None,
    margin: float | None = None,
) -> Comparison:
    """Everything about ``scores`` (None: all that have per-image values, but BLEU and ROUGE-L).

    ``baseline``: an arm's label; None: "blind" where there is one, else the first. ``seed``: of the resampling; the
    same gives the same numbers. ``allow``: in what the runs may differ, of comparable.ALLOWED. ``contrasts``,
    ``primary`` and ``margin``: what the runs were made for, ``plan.make_plan``. Raises UserError for runs that cannot
    be compared, for damaged files, for a score or arm that is not there, and for a plan that cannot be.
    """
    if resamples < LEAST:
        raise UserError(f"resamples={resamples} are too few for a 95 % interval; {LEAST} is the least, 10000 is good.")
    labels = [arm.label for arm in arms]
    baseline = _baseline(labels, baseline)
    runs = [run for arm in arms for run in arm.runs]
    differing = check_comparable(runs, allow)
    tables = [read_table(run) for run in runs]
    ids = shared_images(runs, tables, differ="references" in allow)
    blind = _blind_runs(arms, tables)
    there = scores_there(tables, gains=any(id(run) in blind and not is_blind(run) for run in runs))
    plan = make_plan(contrasts, primary, margin, labels, there)
    names = score_names(there, scores)
    if contrasts or primary:
        names = tuple(dict.fromkeys((plan.primary, *names)))
    tables, unavailable = with_meteor_counts(tables) if METEOR in names else (tables, [])
    measures = make_measures(names, arms, tables, ids, blind)
    fixed = [arm.label for arm in arms if trains_nothing(arm.runs[0])]
    cells, differences = estimate(measures, labels, baseline, resamples, seed, plan, fixed)
    whole = all(len(table) == len(ids) for table in tables)
    story = stories_of(tables, ids)
    notes = [
        *notes_on_design(arms, differing),
        *notes_on_plan(plan, differences),
        *notes_on_seeds(arms, differences, fixed),
        *([] if whole else [note_on_images(len(ids))]),
        *notes_on_stories(tables, story),
        *unavailable,
        *notes_on_gains(arms, names, blind),
        *notes_on_scores(arms, measures, cells, whole),
        *notes_on_reading(cells, differences, resamples),
    ]
    split = ", ".join(dict.fromkeys(str(run.metrics.get("split")) for run in runs))
    return Comparison(
        tuple(arms),
        names,
        baseline,
        split,
        len(ids),
        resamples,
        cells,
        tuple(differences),
        tuple(notes),
        plan,
        None if story is None else len(set(story)),
    )


def _baseline(labels: Sequence[str], wanted: str | None) -> str:
    if wanted is None:
        return BASELINE if BASELINE in labels else labels[0]
    if wanted not in labels:
        raise UserError(f"baseline={wanted} is none of the arms; they are: {'; '.join(labels)}.")
    return wanted


def _blind_runs(arms: Sequence[Arm], tables: Sequence[Table]) -> dict[int, Run]:
    """By the identity of a run the blind one that it is held against, where both say what they cost in nats."""
    runs = [run for arm in arms for run in arm.runs]
    telling = {id(run) for run, table in zip(runs, tables, strict=True) if has_nats(table)}
    return {one: other for one, other in blind_runs(arms).items() if {one, id(other)} <= telling}
