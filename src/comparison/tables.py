"""A comparison as text for the terminal, Markdown, LaTeX (booktabs), CSV, and plain data for JSON.

Stars stand for the p-value after Holm's correction over all pairs of a score: * below .05, ** below .01, *** below
.001.
Numbers are in the scores' own units, so differences are absolute: 0.02 is .02 CIDEr-D.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from src.comparison.arms import Comparison
from src.comparison.estimates import Cell, Difference

STARS = ((0.001, "***"), (0.01, "**"), (0.05, "*"))
LEGEND = "* p < .05, ** p < .01, *** p < .001, paired permutation test over images, Holm over all pairs of a score"
MISSING = "-"
COLUMNS = ("arm", "seeds", "score", "mean", "std", "low", "high")
AGAINST = ("baseline", "difference", "difference_low", "difference_high", "p", "p_holm")


# --------------------------------------------------------------------------------------------------------------------
# whole tables
# --------------------------------------------------------------------------------------------------------------------
def text(comparison: Comparison) -> str:
    """One aligned block per score: every arm, and what it is above or below the baseline."""
    head = ("arm", "seeds", "mean ± std", "95 % interval", f"minus {comparison.baseline}", "95 % interval", "p (Holm)")
    blocks = [f"{comparison.split}, {comparison.images} images, {comparison.resamples} resamples"]
    for score in comparison.scores:
        rows = [head, *(_row(comparison, arm.label, score) for arm in comparison.arms)]
        blocks.append("\n".join([score, *_aligned(rows)]))
    return "\n\n".join([*blocks, LEGEND, *([_bullets(comparison.notes)] if comparison.notes else [])]) + "\n"


def markdown(comparison: Comparison) -> str:
    """Arms by scores, then the differences of all pairs, then the notes."""
    scores = [
        ["arm", "seeds", *comparison.scores],
        *(
            [arm.label, str(len(arm.runs)), *(_with_stars(comparison, arm.label, score) for score in comparison.scores)]
            for arm in comparison.arms
        ),
    ]
    pairs = [
        ["score", "difference", "value", "95 % interval", "p", "p (Holm)"],
        *(
            [d.score, f"{d.arm} minus {d.other}", signed(d.value), brackets(d, signed), p_text(d.p), _judged(d)]
            for d in comparison.differences
        ),
    ]
    parts = [
        f"{comparison.split}, {comparison.images} images. Mean over seeds ± standard deviation over seeds [95 % "
        f"interval over images]; stars compare with {_cell_text(comparison.baseline)}.",
        _markdown_table(scores, left=1),
        *([_markdown_table(pairs, left=2)] if comparison.differences else []),
        LEGEND.replace("*", r"\*"),
        *([_bullets(comparison.notes)] if comparison.notes else []),
    ]
    return "\n\n".join(parts) + "\n"


def latex(comparison: Comparison) -> str:
    """A table environment for the package booktabs: arms by scores, the best mean of each score in bold."""
    best = {score: _best(comparison, score) for score in comparison.scores}
    lines = [
        r"\begin{table}",
        r"  \centering",
        rf"  \begin{{tabular}}{{lr{'c' * len(comparison.scores)}}}",
        r"    \toprule",
        "    " + " & ".join(["arm", "seeds", *map(escaped, comparison.scores)]) + r" \\",
        r"    \midrule",
    ]
    for arm in comparison.arms:
        cells, intervals = [escaped(arm.label), str(len(arm.runs))], ["", ""]
        for score in comparison.scores:
            cell = comparison.cells[arm.label, score]
            cells.append(_latex_cell(comparison, arm.label, score, bold=cell is not None and cell.mean == best[score]))
            intervals.append("" if cell is None else rf"{{\scriptsize ${brackets(cell)}$}}")
        lines += [f"    {' & '.join(cells)} \\\\", f"    {' & '.join(intervals)} \\\\"]
    caption = (
        f"{comparison.split}, {comparison.images} images: mean over seeds, standard deviation over seeds where there "
        f"are several, and below it the 95 % bootstrap interval over images. Stars: difference to "
        f"{comparison.baseline}; {LEGEND}."
    )
    lines += [r"    \bottomrule", r"  \end{tabular}", rf"  \caption{{{escaped(caption)}}}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def csv_text(comparison: Comparison) -> str:
    """One line per arm and score, numbers in full; empty where there is none."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS + AGAINST)
    for arm in comparison.arms:
        for score in comparison.scores:
            cell, d = comparison.cells[arm.label, score], comparison.against_baseline(arm.label, score)
            own = [None] * 4 if cell is None else [cell.mean, cell.std, cell.low, cell.high]
            against = [None] * 5 if d is None else [d.value, d.low, d.high, d.p, d.p_holm]
            writer.writerow([arm.label, len(arm.runs), score, *own, comparison.baseline, *against])
    return file.getvalue()


def plain(comparison: Comparison) -> dict:
    """Everything, for JSON."""
    return {
        "split": comparison.split,
        "images": comparison.images,
        "resamples": comparison.resamples,
        "baseline": comparison.baseline,
        "scores": list(comparison.scores),
        "arms": [
            {
                "label": arm.label,
                "runs": [{"folder": str(run.folder), "seed": run.seed} for run in arm.runs],
                "scores": {
                    score: None if (cell := comparison.cells[arm.label, score]) is None else asdict(cell)
                    for score in comparison.scores
                },
            }
            for arm in comparison.arms
        ],
        "differences": [asdict(difference) for difference in comparison.differences],
        "notes": list(comparison.notes),
    }


# --------------------------------------------------------------------------------------------------------------------
# single numbers
# --------------------------------------------------------------------------------------------------------------------
def number(value: float) -> str:
    """Four decimals, and no minus before a zero."""
    return f"{round(value, 4) + 0.0:.4f}"


def signed(value: float) -> str:
    return f"{round(value, 4) + 0.0:+.4f}"


def brackets(of: Cell | Difference, form=number) -> str:
    return f"[{form(of.low)}, {form(of.high)}]"


def mean_and_std(cell: Cell) -> str:
    return number(cell.mean) if cell.std is None else f"{number(cell.mean)} ± {number(cell.std)}"


def p_text(p: float) -> str:
    return "< .0001" if p < 0.0001 else f"{p:.4f}"


def stars(difference: Difference | None) -> str:
    """By the p-value after Holm; none without a difference."""
    return "" if difference is None else next((mark for level, mark in STARS if difference.p_holm < level), "")


def escaped(words: str) -> str:
    """Text as LaTeX reads it."""
    special = {**{char: "\\" + char for char in "&%$#_{}"}, "\\": r"\textbackslash{}"}
    special |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$"}
    return "".join(special.get(char, char) for char in words)


# --------------------------------------------------------------------------------------------------------------------
# parts of tables
# --------------------------------------------------------------------------------------------------------------------
def _row(comparison: Comparison, label: str, score: str) -> list[str]:
    cell, difference = comparison.cells[label, score], comparison.against_baseline(label, score)
    seeds = next(len(arm.runs) for arm in comparison.arms if arm.label == label)
    own = [MISSING] * 2 if cell is None else [mean_and_std(cell), brackets(cell)]
    against = [MISSING] * 3
    if difference is not None:
        against = [signed(difference.value), brackets(difference, signed), _judged(difference)]
    return [label, str(seeds), *own, *against]


def _judged(difference: Difference) -> str:
    return f"{p_text(difference.p_holm)} {stars(difference)}".rstrip()


def _with_stars(comparison: Comparison, label: str, score: str) -> str:
    cell = comparison.cells[label, score]
    if cell is None:
        return MISSING
    return f"{mean_and_std(cell)}{stars(comparison.against_baseline(label, score))} {brackets(cell)}"


def _latex_cell(comparison: Comparison, label: str, score: str, bold: bool) -> str:
    cell = comparison.cells[label, score]
    if cell is None:
        return "--"
    mean = rf"\mathbf{{{number(cell.mean)}}}" if bold else number(cell.mean)
    std = "" if cell.std is None else rf" \pm {number(cell.std)}"
    mark = stars(comparison.against_baseline(label, score))
    return f"${mean}{std}{f'^{{{mark}}}' if mark else ''}$"


def _best(comparison: Comparison, score: str) -> float:
    means = [cell.mean for arm in comparison.arms if (cell := comparison.cells[arm.label, score]) is not None]
    return max(means, default=float("nan"))


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns of equal width, two spaces apart; the first one is flush left, so is the last with its stars."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    ends = (0, len(widths) - 1)
    return [
        "  "
        + "  ".join(
            f"{cell:<{width}}" if place in ends else f"{cell:>{width}}"
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _markdown_table(rows: Sequence[Sequence[str]], left: int) -> str:
    """The first row is the head; the first ``left`` columns are flush left."""
    rule = [":--" if place < left else "--:" for place in range(len(rows[0]))]
    lines = [rows[0], rule, *rows[1:]]
    return "\n".join(f"| {' | '.join(cell if line is rule else _cell_text(cell) for cell in line)} |" for line in lines)


def _cell_text(words: str) -> str:
    """Text that Markdown shows as it is, inside a table."""
    return "".join(f"\\{char}" if char in "|*_`<" else char for char in words)


def _bullets(notes: Iterable[str]) -> str:
    return "\n".join(f"- {note}" for note in notes)
