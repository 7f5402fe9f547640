"""How much of what captions say is true, where the true scene is known (``data=scenes``).

The statements of a caption and their truth are those of ``scenes.check``; nothing is compared with references.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
    and ``per_image`` the same for every caption alone, by picture id.
    """

    corpus: dict[str, float | None]
    per_image: dict[str, dict[str, float | None]]


def truth_scores(predictions: Mapping[str, str], scenes: Mapping[str, Scene]) -> Truth:
    """Hold every caption against the scene of the same id. Raises UserError for an id without a scene."""
    unknown = sorted(predictions.keys() - scenes.keys())
    if unknown:
        raise UserError(f"{len(unknown)} captions have no scene to be checked against, the first is {unknown[0]!r}.")
    verdicts = {name: check(caption, scenes[name]) for name, caption in predictions.items()}
    return Truth(_scores(verdicts.values()), {name: _scores([verdict]) for name, verdict in verdicts.items()})


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
