"""A concluded study as it lies in experiments/<study>: its words, its contrasts, and its numbers as rows of tables."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from src.comparison.estimates import Difference
from src.comparison.seeds import SeedTest, Verdict
from src.errors import UserError
from src.studies.plan import Plan, read_plan

SCORES = ("gain/loss", "gap/loss", "loss", "CIDEr-D")  # of the rows


@dataclass(frozen=True)
class Concluded:
    """``comparisons``: what src.compare's JSON holds, by length in steps, ascending."""

    folder: Path
    plan: Plan
    comparisons: dict[int, dict]

    @property
    def contrasts(self) -> list[Difference]:
        """The planned ones, in the plan's order."""
        rows = []
        for data in self.comparisons.values():
            order = [tuple(contrast) for contrast in data["plan"]["contrasts"]]
            planned = [one for one in map(_difference, data["differences"]) if one.verdict.planned]
            rows += sorted(planned, key=lambda one: order.index((one.arm, one.other)))
        return rows

    @cached_property
    def finals(self) -> list[dict]:
        """One row an arm, length and seed: FLOP and seconds of the training, and its scores; None where it has none."""
        return [
            row for steps, data in self.comparisons.items() for arm in data["arms"] for row in self._rows(arm, steps)
        ]

    def _rows(self, arm: dict, steps: int) -> Iterator[dict]:
        cells = {score: arm["scores"].get(score) for score in SCORES}
        for place, run in enumerate(arm["runs"]):
            metrics = self.folder / "runs" / Path(run["folder"]).name / "metrics.json"
            cost = json.loads(metrics.read_text(encoding="utf-8"))["cost"]
            flop = None if cost.get("training_flops") is None else float(cost["training_flops"] * steps)
            scores = {score: None if cell is None else cell["per_seed"][place] for score, cell in cells.items()}
            spent = {"flop": flop, "seconds": cost["train_seconds"]}
            yield {"arm": arm["label"], "seed": run["seed"], "steps": steps, **spent, **scores}

    @cached_property
    def arms(self) -> list[dict]:
        """One row an arm and length: means over seeds, and of every score its standard deviation over them."""
        found: dict[tuple[str, int], list[dict]] = {}
        for row in self.finals:
            found.setdefault((row["arm"], row["steps"]), []).append(row)
        rows = []
        for (arm, steps), own in found.items():
            cells = next(one for one in self.comparisons[steps]["arms"] if one["label"] == arm)["scores"]
            row = {"steps": steps, "arm": arm, "n": len(own)}
            row |= {what: _mean([one[what] for one in own]) for what in ("flop", "seconds")}
            for score in SCORES:
                cell = cells.get(score) or {}
                row |= {score: cell.get("mean"), f"{score} std": cell.get("std")}
            rows.append(row)
        return rows

    @property
    def sections(self) -> dict[str, str]:
        """README.md by its headings, "" above the first; without pictures of, and links to, what lies beside it."""
        text = (self.folder / "README.md").read_text(encoding="utf-8")
        text = re.sub(r"^!\[.*\]\(.*\)\n?", "", text.partition("\n")[2], flags=re.MULTILINE)
        text = re.sub(r"\[([^\]]*)\]\((?!https?:)[^)]*\)", r"\1", text)
        above, *parts = re.split(r"^## ", text, flags=re.MULTILINE)
        named = (part.partition("\n") for part in parts)
        return {"": above.strip(), **{heading: body.strip() for heading, _, body in named}}


def read(folder: Path, plan: Plan | None = None) -> Concluded:
    """``plan``: as it is now; None: as it was registered. Raises UserError for a folder of no concluded study."""
    comparisons = {}
    for path in folder.glob("comparison-*.json"):
        comparisons[int(path.stem.partition("-")[2])] = json.loads(path.read_text(encoding="utf-8"))
    if not (folder / "registered.yaml").is_file() or not (folder / "README.md").is_file() or not comparisons:
        raise UserError(f"{folder} holds no concluded study; run it to its end: python -m src.study plan=<its plan>.")
    return Concluded(folder, plan or read_plan(folder / "registered.yaml"), dict(sorted(comparisons.items())))


def _difference(data: dict) -> Difference:
    parts = {"seeds": SeedTest(**data["seeds"]), "verdict": Verdict(**data["verdict"])}
    return Difference(**{name: value for name, value in data.items() if name != "word"} | parts)


def _mean(values: list[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None
