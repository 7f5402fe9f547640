"""Rows of predictions.jsonl as per-image statistics, from whose sums the scores follow.

Means of the per-image values, over the images that have one; truth/KIND as ``src.metrics.truth`` defines it, true
statements over statements (how many a caption makes is read from the caption); BLEU from n-gram counts, recomputed from
captions and references, and METEOR from its own counts, since no per-image BLEU or METEOR adds up to that of a corpus.

Of the nats that all references of a picture cost, and their tokens:
    loss        nats / tokens, with the right picture
    gap/loss    (nats with another picture - nats) / tokens: what the right picture is worth to this captioner
    gain/loss   (nats of the blind run - nats) / tokens: what seeing is worth, ``src.comparison.gains``
and of the statements of captions and the facts of scenes
    truth_f1    2 P R / (P + R), P = true statements / statements, R = facts found / facts: saying less lowers R
Images of which a row tells its ``story`` are summed by story, so that answers of one story are drawn together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from src.comparison.runs import Arm, Run
from src.comparison.scores import BLEU, F1, GAIN, GAP, METEOR, PARTS, Table, has_parts, is_number
from src.errors import UserError
from src.metrics.bleu import bleu, bleu_statistics
from src.metrics.extra import METEOR_COUNTS
from src.metrics.meteor import COUNTS, Unavailable, meteor, meteor_statistics
from src.metrics.ngrams import ReferenceNgrams
from src.metrics.tokens import TOKENS
from src.scenes.reader import KINDS, parse

STATEMENTS = {f"truth/{kind}": kind for kind in KINDS}
AGAIN = "run src.evaluate on this run again."
STORY = "story"  # of a row: the id of the document that it is an answer in


@dataclass(frozen=True)
class Measure:
    """A score as a function of sums over images, or over stories where images belong to some.

    ``score``: sums (..., k) -> (...), nan where there is nothing to score; ``statistics``: for each arm that has the
    score, what is summed, (seeds, images, k); ``seeds``: which seeds these are, by arm; None: 0, 1, ...
    """

    name: str
    score: Callable[[np.ndarray], np.ndarray]
    statistics: Mapping[str, np.ndarray]
    seeds: Mapping[str, Sequence[int]] | None = None

    def seeds_of(self, label: str) -> Sequence[int]:
        return range(len(self.statistics[label])) if self.seeds is None else self.seeds[label]


def make_measures(
    names: Sequence[str],
    arms: Sequence[Arm],
    tables: Sequence[Table],
    ids: Sequence[str],
    blind: Mapping[int, Run] | None = None,
) -> list[Measure]:
    """A measure for each score, over the images ``ids``; ``tables`` are those of all runs, arm after arm.

    ``blind``: by the identity of a run the one that its gain is one on; a seed without has no gain.
    """
    of_run = dict(zip([id(run) for arm in arms for run in arm.runs], tables, strict=True))
    counts, story = _BleuCounts(), stories_of(tables, ids)

    def rows(run: Run) -> list[dict]:
        return [of_run[id(run)][name] for name in ids]

    def statistics(name: str, run: Run) -> np.ndarray:
        other = (blind or {})[id(run)] if name == GAIN else None
        return _statistics(name, run, rows(run), counts, None if other is None else rows(other))

    measures = []
    for name in names:
        there = {arm.label: arm.runs for arm in arms if all(_has(name, of_run[id(run)]) for run in arm.runs)}
        if name == GAIN:
            gaining = {label: tuple(run for run in runs if id(run) in (blind or {})) for label, runs in there.items()}
            there = {label: runs for label, runs in gaining.items() if runs}
        summed = {
            label: by_story(np.stack([statistics(name, run) for run in runs]), story) for label, runs in there.items()
        }
        seeds = {label: [run.seed for run in runs] for label, runs in there.items()}
        measures.append(Measure(name, _score_of(name), summed, seeds))
    return measures


def stories_of(tables: Sequence[Table], ids: Sequence[str]) -> list[str] | None:
    """The story of each image, as some run tells it; None unless all images have one."""
    found = [next((table[id][STORY] for table in tables if STORY in table[id]), None) for id in ids]
    return None if None in found else found


def by_story(statistics_SIK: np.ndarray, story: Sequence[str] | None) -> np.ndarray:
    """Statistics (seeds, images, k) summed over the images of each story, (seeds, stories, k)."""
    if story is None:
        return statistics_SIK
    _, place = np.unique(story, return_inverse=True)
    summed = np.zeros((len(statistics_SIK), place.max() + 1, statistics_SIK.shape[-1]))
    np.add.at(summed, (slice(None), place), statistics_SIK)
    return summed


def _score_of(name: str) -> Callable[[np.ndarray], np.ndarray]:
    if name in BLEU:
        return partial(_corpus_bleu, BLEU.index(name))
    return meteor if name == METEOR else _f1 if name == F1 else share


def _statistics(
    name: str, run: Run, rows: Sequence[dict], counts: _BleuCounts, blind: Sequence[dict] | None
) -> np.ndarray:
    """What is summed over images, (images, k): ten n-gram counts, METEOR's 23, or how much and of how much.

    ``blind``: rows of the run that a gain is one on.
    """
    if name in PARTS:
        return _sums(name, run, rows, blind)
    if name in BLEU:
        return counts.of(run, rows)
    if name == METEOR:
        return np.array([_meteor_row(run, row) for row in rows], dtype=float)
    values = [row.get(name) for row in rows]
    for row, value in zip(rows, values, strict=True):
        if value is not None and not is_number(value):
            raise UserError(f"{_where(run)}: {name} of {row['id']} is not a number; {AGAIN}")
    if name in STATEMENTS:
        return _statements(name, run, rows, values)
    return np.array([[0.0, 0.0] if value is None else [value, 1.0] for value in values])


def _sums(name: str, run: Run, rows: Sequence[dict], blind: Sequence[dict] | None) -> np.ndarray:
    """Nats and tokens (images, 2), or true statements, statements, facts found and facts (images, 4)."""
    for row in rows:
        wrong = next((field for field in PARTS[name] if not is_number(row.get(field))), None)
        if wrong is not None:
            raise UserError(f"{_where(run)}: {wrong} of {row['id']} is not a number; {AGAIN}")
    columns = {field: np.array([row[field] for row in rows], dtype=float) for field in PARTS[name]}
    if name == F1:
        return np.stack(list(columns.values()), axis=1)
    nats = columns["nats"]
    if name == GAP:
        nats = columns["nats_shuffled"] - nats
    elif name == GAIN:
        nats = np.array([row["nats"] for row in blind or ()], dtype=float) - nats
    return np.stack([nats, columns["tokens_read"]], axis=1)


def _statements(name: str, run: Run, rows: Sequence[dict], shares: Sequence[float | None]) -> np.ndarray:
    """True statements and statements of one kind, (images, 2), from the share of each caption that is true."""
    counts = [sum(said.kind == STATEMENTS[name] for said in parse(row["caption"]).statements) for row in rows]
    for row, share_true, count in zip(rows, shares, counts, strict=True):
        if (share_true is None) != (count == 0):
            raise UserError(f"{_where(run)}: {name} of {row['id']} does not fit its caption; {AGAIN}")
    true = [0 if count == 0 else round(share_true * count) for share_true, count in zip(shares, counts, strict=True)]
    return np.array([true, counts], dtype=float).T


def share(sums: np.ndarray) -> np.ndarray:
    """Hits over chances, or the mean where every image is one chance: (..., 2) -> (...); nan without chances."""
    with np.errstate(invalid="ignore"):
        return sums[..., 0] / sums[..., 1]


def _f1(sums: np.ndarray) -> np.ndarray:
    """Harmonic mean of the shares of true statements and of facts found, (..., 4) -> (...); nan without either."""
    precision, recall = share(sums[..., :2]), share(sums[..., 2:])
    both = precision + recall
    with np.errstate(invalid="ignore"):
        return np.where(both == 0, 0.0, 2 * precision * recall / both)


def _corpus_bleu(order: int, sums: np.ndarray) -> np.ndarray:
    return bleu(sums)[..., order]


def _meteor_row(run: Run, row: dict) -> list[int]:
    counts = row.get(METEOR_COUNTS)
    if not isinstance(counts, list) or len(counts) != COUNTS or not all(map(is_number, counts)):
        raise UserError(f"{_where(run)}: {METEOR_COUNTS} of {row['id']} are not {COUNTS} numbers; {AGAIN}")
    return counts


def with_meteor_counts(tables: Sequence[Table]) -> tuple[list[Table], list[str]]:
    """The tables, rows that have METEOR without its counts (they were not always written) counted again, by Java.

    Where that cannot be, the tables as they are, in which such a run has no METEOR, and a note that says so.
    """
    rows = [row for table in tables for row in table.values() if METEOR in row and METEOR_COUNTS not in row]
    if not rows:
        return list(tables), []
    try:
        found = meteor_statistics([row["caption"] for row in rows], [row["references"] for row in rows])
    except Unavailable as error:
        return list(tables), [
            "METEOR of a corpus does not follow from that of its captions, which is all that some runs have, and they "
            f"cannot be counted again here: {error} These runs are compared without it; where Java is, src.evaluate "
            f"with metrics=[meteor] writes {METEOR_COUNTS}."
        ]
    counts = {id(row): own.tolist() for row, own in zip(rows, found, strict=True)}
    again = [
        {name: {**row, METEOR_COUNTS: counts[id(row)]} if id(row) in counts else row for name, row in table.items()}
        for table in tables
    ]
    return again, []


def tokens_of(run: Run) -> str:
    """What its BLEU, ROUGE-L and CIDEr-D count, of ``TOKENS``; runs did not always say it."""
    return run.metrics.get("tokens", "words")


class _BleuCounts:
    """N-gram counts of a run's captions; references that several runs share are tokenised once, captions likewise."""

    def __init__(self) -> None:
        self._references: list[tuple[str, list[list[str]], ReferenceNgrams]] = []
        self._counts: dict[int, np.ndarray] = {}  # by the identity of a run, which outlives this

    def of(self, run: Run, rows: Sequence[dict]) -> np.ndarray:
        """(images, 10), as ``src.metrics.bleu`` has them."""
        if id(run) not in self._counts:
            ngrams = self._ngrams(tokens_of(run), [row["references"] for row in rows])
            captions = ngrams.look_up([TOKENS[tokens_of(run)](row["caption"]) for row in rows])
            self._counts[id(run)] = bleu_statistics(ngrams, captions).astype(float)
        return self._counts[id(run)]

    def _ngrams(self, tokens: str, references: list[list[str]]) -> ReferenceNgrams:
        for counted, known, ngrams in self._references:
            if (counted, known) == (tokens, references):
                return ngrams
        ngrams = ReferenceNgrams([[TOKENS[tokens](text) for text in own] for own in references])
        self._references.append((tokens, references, ngrams))
        return ngrams


# --------------------------------------------------------------------------------------------------------------------
# reading rows
# --------------------------------------------------------------------------------------------------------------------
def _where(run: Run) -> str:
    return f"predictions.jsonl of {run.folder}"


def read_table(run: Run) -> Table:
    """The rows by image id. Raises UserError unless each picture of the results has one whole row."""
    if not run.rows:
        raise UserError(f"{run.folder} has no predictions.jsonl, or an empty one; {AGAIN}")
    table: Table = {}
    for number, row in enumerate(run.rows, 1):
        if not (isinstance(row, dict) and isinstance(row.get("id"), str) and isinstance(row.get("caption"), str)):
            raise UserError(f"Line {number} of {_where(run)} has no id and caption; {AGAIN}")
        if row["id"] in table:
            raise UserError(f"{_where(run)} has {row['id']} twice; {AGAIN}")
        if (BLEU[-1] in row or METEOR in row) and not row.get("references"):
            raise UserError(f"Line {number} of {_where(run)} has no references; {AGAIN}")
        table[row["id"]] = row
    expected = run.metrics.get("pictures", len(table))
    if expected != len(table):
        raise UserError(f"{_where(run)} has {len(table)} of the {expected} pictures that were scored; {AGAIN}")
    return table


def has_nats(table: Table) -> bool:
    return _has(GAIN, table)


def _has(name: str, table: Table) -> bool:
    if name in PARTS:
        return any(has_parts(name, row) for row in table.values())
    key = BLEU[-1] if name in BLEU else METEOR_COUNTS if name == METEOR else name
    return any(key in row for row in table.values())


def shared_images(runs: Sequence[Run], tables: Sequence[Table], differ: bool) -> list[str]:
    """Ids that all runs have, in the first one's order; all ids, unless the runs may ``differ``. Raises UserError."""
    for run, table in zip(runs, tables, strict=True):
        if not differ and table.keys() != tables[0].keys():
            raise UserError(f"{runs[0].folder} and {run.folder} describe different pictures; evaluate both again.")
    shared = [id for id in tables[0] if all(id in table for table in tables)]
    if not shared:
        raise UserError("These runs have no picture in common, so nothing can be paired; compare runs on one data set.")
    return shared
