"""How much of what captions say is true, where the true scene is known (``data=scenes``).

The statements of a caption and their truth are those of ``scenes.check``; nothing is compared with references.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from src.errors import UserError
from src.scenes.check import Verdict, check
from src.scenes.reader import KINDS
from src.scenes.world import Scene


@dataclass(frozen=True)
class Truth:
    """Scores between 0 and 1; None where there is nothing to take a share of.

    ``corpus`` holds, over all captions,
        truth          the share of the captions that are entirely true
        truth/KIND     the share of the statements of that kind that are true, for each of ``scenes.reader.KINDS``
        coverage       the share of a scene's things that its caption describes without a mistake, mean over captions
        truth_f1       2 P R / (P + R), P: the share of all statements that are true, R: the share of all things that
                       are described without a mistake; 0 where none is
    and ``per_image`` the first three of every caption alone, by picture id, and the counts of which P and R are made:
        P = sum of true_statements / sum of statements        R = sum of facts_found / sum of facts (things)

    ``truth`` alone rewards captions that say little, and ``coverage`` does not see what is false beside what is right.
    P and R are shares of sums: a caption that says nothing has no P of its own, adds nothing to that of all, and R 0.
    """

    corpus: dict[str, float | None]
    per_image: dict[str, dict[str, float | int | None]]


def truth_scores(predictions: Mapping[str, str], scenes: Mapping[str, Scene]) -> Truth:
    """Hold every caption against the scene of the same id. Raises UserError for an id without a scene."""
    unknown = sorted(predictions.keys() - scenes.keys())
    if unknown:
        raise UserError(f"{len(unknown)} captions have no scene to be checked against, the first is {unknown[0]!r}.")
    verdicts = {name: check(caption, scenes[name]) for name, caption in predictions.items()}
    counts = {name: _counts(verdict) for name, verdict in verdicts.items()}
    corpus = {**_scores(verdicts.values()), "truth_f1": _f1(counts.values())}
    return Truth(corpus, {name: {**_scores([verdict]), **counts[name]} for name, verdict in verdicts.items()})


def _counts(verdict: Verdict) -> dict[str, int]:
    return {
        "true_statements": sum(verdict.truths),
        "statements": len(verdict.truths),
        "facts_found": verdict.described,
        "facts": verdict.things,
    }


def _f1(counts: Collection[Mapping[str, int]]) -> float | None:
    if not counts:
        return None
    true, said, found, there = (sum(column) for column in zip(*(own.values() for own in counts), strict=True))
    if not found:
        return 0.0
    precision, recall = true / said, found / there  # who describes a thing has made a true statement
    return 2 * precision * recall / (precision + recall)


def _scores(verdicts: Iterable[Verdict]) -> dict[str, float | None]:
    verdicts = list(verdicts)
    truths: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    for verdict in verdicts:
        for statement, true in zip(verdict.reading.statements, verdict.truths, strict=True):
            truths[statement.kind].append(true)
    return {
        "truth": _mean([verdict.entirely_true for verdict in verdicts]),
        **{f"truth/{kind}": _mean(of_kind) for kind, of_kind in truths.items()},
        "coverage": _mean([verdict.mentioned for verdict in verdicts]),
    }


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
