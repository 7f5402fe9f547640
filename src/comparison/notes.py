"""What a reader of a comparison has to know beside its numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from src.comparison.estimates import Cell, Difference
from src.comparison.measures import AGAIN, BLEU, Measure, tokens_of
from src.comparison.resampling import p_value
from src.comparison.runs import Arm

FEW = 50  # images; below, percentile intervals are noticeably too narrow
SIGNIFICANT = 0.05
NAMED = 6  # settings that a note lists

Cells = Mapping[tuple[str, str], Cell | None]


def note_on_images(shared: int) -> str:
    return (
        f"Only the {shared} images that all runs share are compared; their CIDEr-D still weighs words by the "
        "references of all images of each run."
    )


def notes_on_design(arms: Sequence[Arm], differing: Mapping[str, str]) -> list[str]:
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


def notes_on_scores(arms: Sequence[Arm], measures: Sequence[Measure], cells: Cells, whole: bool) -> list[str]:
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


def notes_on_reading(cells: Cells, differences: Sequence[Difference], resamples: int) -> list[str]:
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
