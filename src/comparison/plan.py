"""What a comparison was made for, stated before its numbers: planned contrasts, the primary score, a margin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from src.comparison.scores import GAIN, check_score, is_number
from src.errors import UserError

MOST = 4  # contrasts; with 16 and n = 5, Holm's correction would want |t| > 6


@dataclass(frozen=True)
class Plan:
    """``contrasts``: (arm, other) by label, arm minus other; ``margin``: in units of the ``primary`` score."""

    contrasts: tuple[tuple[str, str], ...] = ()
    primary: str | None = None
    margin: float | None = None

    def oriented(self, first: str, second: str, baseline: str) -> tuple[str, str]:
        """Two arms in the order of their contrast; without one, the baseline comes second."""
        swap = (second, first) in self.contrasts or ((first, second) not in self.contrasts and first == baseline)
        return (second, first) if swap else (first, second)


NO_PLAN = Plan()


def make_plan(
    contrasts: Sequence[Sequence[str]],
    primary: str | None,
    margin: float | None,
    labels: Sequence[str],
    there: Sequence[str],
) -> Plan:
    """``contrasts``: pairs of ``labels``, at most four; ``there``: the scores that runs have.

    ``primary`` None: the gain on a blind run where it is ``there``, else CIDEr-D, else the first score.

    Raises UserError for a plan that these arms and scores cannot answer.
    """
    pairs = [tuple(map(str, pair)) for pair in contrasts]
    if len(pairs) > MOST:
        raise UserError(f"contrasts= has {len(pairs)} pairs, and at most {MOST} can be planned; leave some out.")
    for pair in pairs:
        said = f"contrasts=[[{','.join(pair)}]]"
        if len(pair) != 2 or pair[0] == pair[1]:
            raise UserError(f"{said} must hold pairs of two different arms: [[arm,other],[arm,other]].")
        unknown = next((label for label in pair if label not in labels), None)
        if unknown is not None:
            raise UserError(f"{said}: {unknown} is none of the arms; they are: {'; '.join(labels)}.")
        if sum(set(pair) == set(other) for other in pairs) > 1:
            raise UserError(f"{said} is there twice; leave one out.")
    if margin is not None and not (is_number(margin) and math.isfinite(margin) and margin >= 0):
        raise UserError(f"margin={margin} must be a number of at least 0, in units of the primary score, or null.")
    if margin is not None and not pairs:
        raise UserError(f"margin={margin} is about planned contrasts, and there are none; add contrasts=[[arm,other]].")
    if primary is not None:
        check_score("primary", primary, there)
    by_itself = next((name for name in (GAIN, "CIDEr-D") if name in there), there[0])
    return Plan(tuple(pairs), primary or by_itself, margin)
