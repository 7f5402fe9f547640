"""Numbers of a comparison as text, and a comparison as the cells of a row: the same in every table.

Numbers are in the scores' own units, so differences are absolute: 0.02 is .02 CIDEr-D. A comparison is never shown
without its seeds n, its interval, its test, and the word that follows from them.
"""

from __future__ import annotations

from src.comparison.estimates import Cell, Difference

MISSING = "-"
# Of a difference: over seeds with the word, then over images
HEAD = ("difference", "n", "95 % over seeds", "p", "word", "95 % over images", "p over images")
PLANNED = ("difference", "n", "95 % over seeds", "± half", "p", "p (Holm)", "p (level)", "word", "detectable")
PLANNED += ("95 % over images",)


def number(value: float) -> str:
    """Four decimals, and no minus before a zero."""
    return f"{round(value, 4) + 0.0:.4f}"


def signed(value: float) -> str:
    return f"{round(value, 4) + 0.0:+.4f}"


def brackets(low: float | None, high: float | None, form=number) -> str:
    return MISSING if low is None or high is None else f"[{form(low)}, {form(high)}]"


def mean_and_std(cell: Cell) -> str:
    return number(cell.mean) if cell.std is None else f"{number(cell.mean)} ± {number(cell.std)}"


def p_text(p: float | None) -> str:
    return MISSING if p is None else "< .0001" if p < 0.0001 else f"{p:.4f}"


def compared(d: Difference | None) -> list[str]:
    """The cells under ``HEAD``; one without a difference is none."""
    if d is None:
        return [MISSING] * len(HEAD)
    over_seeds = [brackets(d.seeds.low, d.seeds.high, signed), p_text(d.seeds.p), d.word]
    return [signed(d.mean), str(d.seeds.n), *over_seeds, brackets(d.low, d.high, signed), p_text(d.p_holm)]


def planned(d: Difference) -> list[str]:
    """The cells under ``PLANNED``: also what n seeds reached, and what they could have found."""
    seeds, verdict = d.seeds, d.verdict
    tested = [p_text(seeds.p), p_text(verdict.p_holm), p_text(verdict.p_level), verdict.word]
    interval, half = brackets(seeds.low, seeds.high, signed), _or_missing(seeds.half_width)
    over_images = brackets(d.low, d.high, signed)
    return [signed(d.mean), str(seeds.n), interval, half, *tested, _or_missing(seeds.detectable), over_images]


def _or_missing(value: float | None) -> str:
    return MISSING if value is None else number(value)
