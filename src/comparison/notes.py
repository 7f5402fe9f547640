"""What a reader of a comparison has to know beside its numbers, of design, scores and images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from src.comparison.estimates import Cell, Difference
from src.comparison.measures import AGAIN, STORY, Measure, tokens_of
from src.comparison.resampling import p_value
from src.comparison.runs import Arm, Run
from src.comparison.scores import BLEU, GAIN, GAP, LOSS, Table

FEW = 50  # images; below, percentile intervals are noticeably too narrow
SIGNIFICANT = 0.05
ROUNDED = 5e-5  # what rows of four decimals may be off by, as studies keep them
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
        "Tests over seeds are about other trainings, and the word follows from them alone; intervals and p-values over "
        f"images are about other images for the models as they were trained (seeds: {seeds})."
    ]
    settings = [arm.runs[0].settings for arm in arms]
    keys = sorted({key for own in settings for key in own if not key.startswith("fusion.")})
    changed = [key for key in keys if any(own.get(key) != settings[0].get(key) for own in settings)]
    if changed:
        more = f" and {len(changed) - NAMED} more" if len(changed) > NAMED else ""
        notes.append(f"The arms differ in more than the fusion: {', '.join(changed[:NAMED])}{more}.")
    if any(key.startswith("language.tokenizer.") for key in changed):
        notes.append("The arms' vocabularies differ, so that their losses, nats of unlike tokens, do not compare.")
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
        odd = [
            (run, value)
            for arm in there
            for run, value in _by_run(arm, measure, cells)
            if (corpus := run.scores.get(name)) is not None and abs(corpus - value) > ROUNDED
        ]
        if whole and odd and name != LOSS:  # that of metrics.json reads first references only
            run, value = odd[0]
            otherwise.append(
                f"{name} of {run.folder} is {run.scores[name]:.4f} in its metrics.json and {value:.4f} by its "
                f"predictions.jsonl; {AGAIN}"
            )
    notes = [f"Not defined for {labels}: {', '.join(names)}." for labels, names in absent.items()]
    if scarce:
        notes.append(f"Resting on fewer than {FEW} images, so with intervals that are too narrow: {'; '.join(scarce)}.")
    return notes + otherwise


def _by_run(arm: Arm, measure: Measure, cells: Cells) -> Iterator[tuple[Run, float]]:
    """Each run of an arm that has the score, and its score."""
    of_seed = {run.seed: run for run in arm.runs}
    values = cells[arm.label, measure.name].per_seed
    return ((of_seed[seed], value) for seed, value in zip(measure.seeds_of(arm.label), values, strict=True))


def _fewest_images(measure: Measure, label: str) -> int:
    """On how many images (stories) an arm's score rests, for the seed with the fewest.

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
    # A blind arm gains 0 on itself and loses 0 by a shuffled picture, by definition.
    if any(c is not None and c.flat and not (name in (GAIN, GAP) and c.mean == 0) for (_, name), c in cells.items()):
        notes.append(
            "An interval of no width says that all images agree; what would happen less than about three times in as "
            "many images is not excluded."
        )
    pairs = max((sum(d.score == name for d in differences) for name in {d.score for d in differences}), default=0)
    if pairs * p_value(0, resamples) > SIGNIFICANT:
        notes.append(f"With {pairs} pairs no p-value can pass Holm's correction at resamples={resamples}; take more.")
    return notes


def notes_on_stories(tables: Sequence[Table], story: Sequence[str] | None) -> list[str]:
    """How answers are drawn that stand in stories."""
    if story is not None:
        return [
            f"Answers of one story are not independent, so the {len(set(story))} stories are drawn, and they are what "
            '"over images" is about.'
        ]
    if any("answer" in row or STORY in row for table in tables for row in table.values()):
        return [
            "Not all rows say which story they are from, so answers are drawn one by one as if they were independent, "
            f"and intervals over images are too narrow; {AGAIN}"
        ]
    return []
