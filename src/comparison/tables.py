"""A comparison as text for the terminal, Markdown, LaTeX (booktabs), CSV, and plain data for JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from src.comparison.arms import Comparison
from src.comparison.estimates import Difference
from src.comparison.numbers import HEAD, MISSING, PLANNED, brackets, compared, mean_and_std, number, planned
from src.comparison.scores import direction
from src.comparison.seeds import LEGEND

COLUMNS = ("arm", "seeds", "score", "mean", "std", "low", "high")
AGAINST = ("baseline", "difference", "difference_low", "difference_high", "p", "p_holm")
OVER_SEEDS = ("n", "seeds_difference", "seeds_low", "seeds_high", "seeds_p", "seeds_p_holm", "seeds_p_level")
OVER_SEEDS += ("detectable", "word")


# --------------------------------------------------------------------------------------------------------------------
# whole tables
# --------------------------------------------------------------------------------------------------------------------
def text(comparison: Comparison) -> str:
    """The planned contrasts, then one aligned block per score: every arm, and what it is above the baseline."""
    head = ("arm", "seeds", "mean ± std", "95 % over images", f"minus {comparison.baseline}", *HEAD[1:])
    blocks = [f"{comparison.split}, {comparison.size}, {comparison.resamples} resamples"]
    if comparison.planned:
        rows = [("arm", "minus", *PLANNED), *([d.arm, d.other, *planned(d)] for d in comparison.planned)]
        blocks.append("\n".join([_title(comparison), *_aligned(rows, left=2)]))
    for score in comparison.scores:
        rows = [head, *(_row(comparison, arm.label, score) for arm in comparison.arms)]
        blocks.append("\n".join([_named(score), *_aligned(rows, left=1)]))
    return "\n\n".join([*blocks, LEGEND, *([_bullets(comparison.notes)] if comparison.notes else [])]) + "\n"


def markdown(comparison: Comparison) -> str:
    """Planned contrasts, arms by scores, then the differences of all pairs, then the notes."""
    scores = [
        ["arm", "seeds", *map(_named, comparison.scores)],
        *(
            [arm.label, str(len(arm.runs)), *(_cell(comparison, arm.label, score) for score in comparison.scores)]
            for arm in comparison.arms
        ),
    ]
    plan = [["contrast", *PLANNED], *([_pair(d), *planned(d)] for d in comparison.planned)]
    pairs = [
        ["score", "arm minus other", *HEAD],
        *([d.score, _pair(d), *compared(d)] for d in comparison.differences),
    ]
    parts = [
        f"{comparison.split}, {comparison.size}. Mean over seeds ± standard deviation over seeds [95 % interval over "
        "images].",
        *([f"{_title(comparison)}:", _markdown_table(plan, left=1)] if comparison.planned else []),
        _markdown_table(scores, left=1),
        *([_markdown_table(pairs, left=2)] if comparison.differences else []),
        LEGEND.replace("<", r"\<"),
        *([_bullets(comparison.notes)] if comparison.notes else []),
    ]
    return "\n\n".join(parts) + "\n"


def latex(comparison: Comparison) -> str:
    """A table environment for the package booktabs: arms by scores, the best mean of each score in bold; below them the
    planned contrasts, or without a plan every arm against the baseline."""
    best = {score: _best(comparison, score) for score in comparison.scores}
    lines = []
    for arm in comparison.arms:
        cells, intervals = [escaped(arm.label), str(len(arm.runs))], ["", ""]
        for score in comparison.scores:
            cell = comparison.cells[arm.label, score]
            cells.append(_latex_cell(comparison, arm.label, score, bold=cell is not None and cell.mean == best[score]))
            intervals.append("" if cell is None else rf"{{\scriptsize ${brackets(cell.low, cell.high)}$}}")
        lines += [cells, intervals]
    if comparison.planned:
        head, held = PLANNED, _title(comparison)
        against = [[d.score, _pair(d), *planned(d)] for d in comparison.planned]
    else:
        head, held = HEAD, f"every arm and {comparison.baseline}, unplanned"
        found = [d for d in comparison.differences if comparison.baseline in (d.arm, d.other)]
        against = [[d.score, _pair(d), *compared(d)] for d in found]
    caption = (
        f"{comparison.split}, {comparison.size}: mean over seeds, standard deviation over seeds where there are "
        f"several, and under them the 95 % bootstrap interval over images. Below, paired by seed: {held}; {LEGEND}"
    )
    tables = [_tabular(["arm", "seeds", *map(_named, comparison.scores)], lines, "lr" + "c" * len(comparison.scores))]
    if against:
        rows = [[*map(escaped, row[:2]), *map(_latex_number, row[2:])] for row in against]
        tables.append(_tabular(["score", "arm minus other", *head], rows, "ll" + "r" * len(head)))
    body = "\n\n  \\bigskip\n".join(tables)
    return f"\\begin{{table}}\n  \\centering\n{body}\n  \\caption{{{escaped(caption)}}}\n\\end{{table}}\n"


def csv_text(comparison: Comparison) -> str:
    """One line per arm and score, against the baseline, then one per planned contrast with another arm. Numbers in
    full; empty where there is none."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS + AGAINST + OVER_SEEDS)
    lines = [(arm.label, comparison.baseline, score) for arm in comparison.arms for score in comparison.scores]
    lines += [(d.arm, d.other, d.score) for d in comparison.planned if d.other != comparison.baseline]
    seeds = {arm.label: len(arm.runs) for arm in comparison.arms}
    for label, other, score in lines:
        cell, d = comparison.cells[label, score], comparison.difference(label, other, score)
        own = [None] * 4 if cell is None else [cell.mean, cell.std, cell.low, cell.high]
        against = [None] * (len(AGAINST) + len(OVER_SEEDS) - 1)
        if d is not None:
            test, verdict = d.seeds, d.verdict
            against = [d.value, d.low, d.high, d.p, d.p_holm, test.n, test.value, test.low, test.high, test.p]
            against += [verdict.p_holm, verdict.p_level, test.detectable, d.word]
        writer.writerow([label, seeds[label], score, *own, other, *against])
    return file.getvalue()


def plain(comparison: Comparison) -> dict:
    """Everything, for JSON."""
    return {
        "split": comparison.split,
        "images": comparison.images,
        "stories": comparison.stories,
        "resamples": comparison.resamples,
        "baseline": comparison.baseline,
        "plan": asdict(comparison.plan),
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
        "differences": [{**asdict(difference), "word": difference.word} for difference in comparison.differences],
        "notes": list(comparison.notes),
    }


def escaped(words: str) -> str:
    """Text as LaTeX reads it."""
    special = {**{char: "\\" + char for char in "&%$#_{}"}, "\\": r"\textbackslash{}", "±": r"$\pm$"}
    special |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$"}
    return "".join(special.get(char, char) for char in words)


# --------------------------------------------------------------------------------------------------------------------
# parts of tables
# --------------------------------------------------------------------------------------------------------------------
def _title(comparison: Comparison) -> str:
    """Above the planned contrasts."""
    plan = comparison.plan
    margin = "no margin" if plan.margin is None else f"margin {plan.margin:g}"
    return f"planned contrasts of {plan.primary}, {margin}, Holm over {len(plan.contrasts)}"


def _named(score: str) -> str:
    return score if direction(score) >= 0 else f"{score} (less is better)"


def _pair(d: Difference) -> str:
    return f"{d.arm} minus {d.other}"


def _row(comparison: Comparison, label: str, score: str) -> list[str]:
    cell = comparison.cells[label, score]
    own = [MISSING] * 3
    if cell is not None:
        own = [str(len(cell.per_seed)), mean_and_std(cell), brackets(cell.low, cell.high)]
    return [label, *own, *compared(comparison.against_baseline(label, score))]


def _cell(comparison: Comparison, label: str, score: str) -> str:
    cell = comparison.cells[label, score]
    return MISSING if cell is None else f"{mean_and_std(cell)} {brackets(cell.low, cell.high)}"


def _latex_cell(comparison: Comparison, label: str, score: str, bold: bool) -> str:
    cell = comparison.cells[label, score]
    if cell is None:
        return "--"
    mean = rf"\mathbf{{{number(cell.mean)}}}" if bold else number(cell.mean)
    std = "" if cell.std is None else rf" \pm {number(cell.std)}"
    return f"${mean}{std}$"


def _latex_number(cell: str) -> str:
    """Signs as signs and not as hyphens."""
    return f"${cell}$" if cell != MISSING and cell[0] in "+-[" else escaped(cell)


def _best(comparison: Comparison, score: str) -> float:
    """The best mean; nan where neither more nor less is better."""
    means = [cell.mean for arm in comparison.arms if (cell := comparison.cells[arm.label, score]) is not None]
    way = direction(score)
    return max(means, key=lambda mean: way * mean, default=float("nan")) if way else float("nan")


def _aligned(rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Columns of equal width, two spaces apart; the first ``left`` are flush left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  "
        + "  ".join(
            f"{cell:<{width}}" if place < left else f"{cell:>{width}}"
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _tabular(head: Sequence[str], rows: Sequence[Sequence[str]], columns: str) -> str:
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"  \toprule", rf"  {' & '.join(map(escaped, head))} \\"]
    lines += [r"  \midrule", *(rf"  {' & '.join(row)} \\" for row in rows), r"  \bottomrule", r"\end{tabular}"]
    return "\n".join(f"  {line}" for line in lines)


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
