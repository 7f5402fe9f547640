"""Does a model look at the right picture of a story? Scores of ``data=scenes_interleaved``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

VERDICTS = ("right", "other_picture", "neither")


@dataclass(frozen=True)
class Asked:
    """One sentence to finish: what kind of trait it asks for, the right answer, and what the other pictures answer."""

    kind: str
    right: str
    others: frozenset[str]


def judge(said: str, asked: Asked) -> str:
    """ "right", "other_picture" (true of another picture of the story) or "neither"; only the first word counts."""
    word = next(iter(said.split()), "")
    return "right" if word == asked.right else "other_picture" if word in asked.others else "neither"


def answer_scores(said: Mapping[str, str], asked: Mapping[str, Asked]) -> list[dict[str, float | None]]:
    """For each answer 1 or 0, in the order of ``said``: right, of another picture, neither; and right among those of
    its kind, None at the others."""
    kinds = sorted({one.kind for one in asked.values()})
    rows = []
    for id, answer in said.items():
        verdict, kind = judge(answer, asked[id]), asked[id].kind
        scores = {f"answers/{name}": float(verdict == name) for name in VERDICTS}
        rows.append(scores | {f"answers/{k}": float(verdict == "right") if k == kind else None for k in kinds})
    return rows


def shares(rows: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """The mean of each score over the answers that have it; None where none has."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    values = {name: [row[name] for row in rows if row.get(name) is not None] for name in names}
    return {name: sum(found) / len(found) if found else None for name, found in values.items()}
