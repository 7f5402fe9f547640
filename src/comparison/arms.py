"""Arms held against one another: every score, every pair of arms, and what a reader has to know beside them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from src.comparison.comparable import check_comparable
from src.comparison.estimates import Cell, Difference, estimate
from src.comparison.measures import METEOR, make_measures, read_table, score_names, shared_images, with_meteor_counts
from src.comparison.notes import note_on_images, notes_on_design, notes_on_reading, notes_on_scores
from src.comparison.runs import Arm
from src.errors import UserError

BASELINE = "blind"
LEAST = 100  # resamples below which there is no 2.5th percentile to speak of


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
    same gives the same numbers. ``allow``: in what the runs may differ, of comparable.ALLOWED. Raises UserError for
    runs that cannot be compared, for damaged files, and for a score or baseline that is not there.
    """
    if resamples < LEAST:
        raise UserError(f"resamples={resamples} are too few for a 95 % interval; {LEAST} is the least, 10000 is good.")
    labels = [arm.label for arm in arms]
    baseline = _baseline(labels, baseline)
    runs = [run for arm in arms for run in arm.runs]
    differing = check_comparable(runs, allow)
    tables = [read_table(run) for run in runs]
    ids = shared_images(runs, tables, differ="references" in allow)
    names = score_names(tables, scores)
    tables, unavailable = with_meteor_counts(tables) if METEOR in names else (tables, [])
    measures = make_measures(names, arms, tables, ids)
    cells, differences = estimate(measures, labels, baseline, resamples, seed)
    whole = all(len(table) == len(ids) for table in tables)
    notes = [
        *notes_on_design(arms, differing),
        *([] if whole else [note_on_images(len(ids))]),
        *unavailable,
        *notes_on_scores(arms, measures, cells, whole),
        *notes_on_reading(cells, differences, resamples),
    ]
    split = ", ".join(dict.fromkeys(str(run.metrics.get("split")) for run in runs))
    return Comparison(tuple(arms), names, baseline, split, len(ids), resamples, cells, tuple(differences), tuple(notes))


def _baseline(labels: Sequence[str], wanted: str | None) -> str:
    if wanted is None:
        return BASELINE if BASELINE in labels else labels[0]
    if wanted not in labels:
        raise UserError(f"baseline={wanted} is none of the arms; they are: {'; '.join(labels)}.")
    return wanted
