"""Which scores there are in rows of predictions.jsonl, in which order they stand, and which way is better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from src.errors import UserError

BLEU = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4")
METEOR = "METEOR"
LOSS, GAP, GAIN, F1 = "loss", "gap/loss", "gain/loss", "truth_f1"
# What rows hold for scores of sums, over which no mean is taken
PARTS = {
    LOSS: ("nats", "tokens_read"),
    GAP: ("nats", "nats_shuffled", "tokens_read"),
    GAIN: ("nats", "tokens_read"),  # and the same of a blind run
    F1: ("true_statements", "statements", "facts_found", "facts"),
}
FIELDS = frozenset(field for fields in PARTS.values() for field in fields)
FIRST = ("accuracy", GAIN, GAP, LOSS, "CIDEr-D", "truth", "coverage", F1)
# A human caption scores no higher in BLEU-4 than captioners do that are far behind it in CIDEr-D; neither leads.
ASKED_FOR = (*BLEU, "ROUGE-L")

LESS_IS_BETTER = (LOSS, "perplexity", "match/loss")
DESCRIPTIVE = ("length", "vocabulary")  # more is neither better nor worse

Table = dict[str, dict]  # a run's rows by image id


def direction(score: str) -> int:
    """1 where more is better, -1 where less is, 0 where neither."""
    return -1 if score in LESS_IS_BETTER else 0 if score in DESCRIPTIVE else 1


def is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def has_parts(name: str, row: Mapping) -> bool:
    return all(field in row for field in PARTS[name])


def score_names(there: Sequence[str], wanted: Sequence[str] | None) -> tuple[str, ...]:
    """The scores to show of those that are ``there``: what was asked for, or all but ``ASKED_FOR``.

    The loss comes along wherever rows have it. Raises UserError for scores that are not there.
    """
    if wanted is None:
        return tuple(name for name in there if name not in ASKED_FOR) or tuple(there)
    for name in wanted:
        check_score("scores", name, there)
    return tuple(dict.fromkeys([*wanted, *(name for name in there if name == LOSS)]))


def check_score(option: str, name: str, there: Sequence[str]) -> None:
    """Raises UserError for a score that is none of those ``there``; BLEU-4 stands for BLEU."""
    known = [*there, *(BLEU if BLEU[-1] in there else ())]
    if name not in known:
        listed = ", ".join(dict.fromkeys(known))
        raise UserError(f"{option}={name} has no value per image in these runs; there are {listed}.")


def scores_there(tables: Sequence[Table], gains: bool) -> list[str]:
    """All scores that rows have or that follow from them, in the order in which they are shown.

    ``gains``: whether some run has a blind one to gain on. Raises UserError if there is none.
    """
    keys: dict[str, None] = {}
    numbers: set[str] = set()
    words = {"id", "caption", "references"}
    for row in (row for table in tables for row in table.values()):
        for key, value in row.items():
            keys.setdefault(key)
            if value is not None:
                (numbers if is_number(value) else words).add(key)
        keys |= dict.fromkeys(name for name in PARTS if has_parts(name, row) and (gains or name != GAIN))
    there = [key for key in keys if key not in FIELDS and (key in numbers or key not in words)]
    if not there:
        raise UserError("None of these runs has a score per image, so there is nothing to compare; see src.evaluate.")
    return sorted(there, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
