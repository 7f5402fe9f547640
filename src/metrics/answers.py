"""Does a model look at the right picture of a story? Scores of ``data=scenes_interleaved``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


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


def answer_scores(said: Mapping[str, str], asked: Mapping[str, Asked]) -> dict[str, float | None]:
    """Shares of the answers, by id: right, of another picture, of neither; and the share right of each kind."""
    verdicts = {id: judge(answer, asked[id]) for id, answer in said.items()}
    scores = {f"answers/{v}": _share(list(verdicts.values()), v) for v in ("right", "other_picture", "neither")}
    for kind in sorted({a.kind for a in asked.values()}):
        scores[f"answers/{kind}"] = _share([v for id, v in verdicts.items() if asked[id].kind == kind], "right")
    return scores


def _share(verdicts: Sequence[str], wanted: str) -> float | None:
    return sum(v == wanted for v in verdicts) / len(verdicts) if verdicts else None
