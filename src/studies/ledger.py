"""What a study keeps under experiments/<study>: enough to go on from, and to conclude from, when no run folder is left.

registered.yaml     the plan as it was when the study began; its sha256 stands in every result
trials.jsonl        one line a trial of tuning: arm, options, validation loss, machine
rows/<name>/        the same of systems that train nothing: the nearest training picture, people
runs/<name>/        of every final what src.compare reads (configuration, scores, per-picture numbers; no weights), and
                    study.json: arm, seed, steps, machine, seconds, validation curve; measures.json: numbers of the
                    plan's measures by name, where these leave any
deviations.jsonl    what went otherwise than planned
README.md, *.md, *.png     what src.studies.conclude makes of them
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from omegaconf import OmegaConf

from src.comparison.runs import Run, find_runs
from src.errors import UserError
from src.records.files import read_jsonl, seal, write_json, write_jsonl, write_text
from src.studies.plan import Arm, Plan, read_plan

KEPT = ("commit", "uncommitted_changes", "python", "packages", "machine", "choices")  # of environment.json: no paths
DROPPED = ("ROUGE-L", "BLEU-4", "METEOR")  # of predictions.jsonl, with lists and scores by kind: nothing needs them


class Ledger:
    """``folder``: experiments/<study>. Raises UserError for files there that are damaged or not of this study."""

    def __init__(self, folder: Path, plan: Plan):
        self.folder, self.plan = folder, plan
        registered = folder / "registered.yaml"
        if registered.is_file():
            self.registered = read_plan(registered)
            if self.registered.name != plan.name:
                raise UserError(f"{folder} holds the study {self.registered.name}; give {plan.name} another name.")
        else:
            self.registered = plan
            write_text(registered, OmegaConf.to_yaml(OmegaConf.structured(plan)))

    # -------------------------------------------------------------------------------------------------- deviations
    @property
    def deviations(self) -> list[str]:
        """Sentences: how the plan was changed since it was registered, and what happened."""
        changed = []
        before, now = (OmegaConf.to_container(OmegaConf.structured(one)) for one in (self.registered, self.plan))
        for key in before:
            if key != "limits" and before[key] != now[key]:
                changed.append(f"The plan's {key} was {_short(before[key])} and is {_short(now[key])} now.")
        return changed + [line["what"] for line in read_jsonl(self.folder / "deviations.jsonl")]

    def deviate(self, sentence: str) -> None:
        path = self.folder / "deviations.jsonl"
        write_jsonl(path, [*read_jsonl(path), {"what": sentence}])

    # -------------------------------------------------------------------------------------------------- tuning
    def trials(self, arm: Arm) -> dict[int, dict]:
        """The lines of an arm by the number of the trial."""
        label = f"{arm.regime}/{arm.tuned_as}"
        return {line["trial"]: line for line in self._trials() if line["arm"] == label}

    def add_trial(self, line: Mapping) -> None:
        write_jsonl(self.folder / "trials.jsonl", [*self._trials(), {**line, "plan": self.plan.sha256}])

    def _trials(self) -> list[dict]:
        return read_jsonl(self.folder / "trials.jsonl")

    def chosen(self, arm: Arm) -> tuple[str, ...]:
        """The options with the lowest validation loss; none where nothing is tuned. Raises UserError without any."""
        finished = [line for line in self.trials(arm).values() if line["val_loss"] is not None]
        if not self.plan.tuning.trials:
            return ()
        if not finished:
            raise UserError(f"No trial of {arm.label} has finished, so it cannot be trained; see its logs.")
        return tuple(min(finished, key=lambda line: (line["val_loss"], line["trial"]))["options"])

    # -------------------------------------------------------------------------------------------------- finals
    def add_final(self, run: Path, arm: Arm, seed: int, steps: int, about: Mapping) -> None:
        """Keep of a finished run what is compared; in one move, so that half of one never looks like a whole."""
        study = {"arm": arm.label, "seed": seed, "steps": steps, "plan": self.plan.sha256, **about}
        self._keep(run, self.place(arm, seed, steps), study)

    def add_row(self, run: Path, name: str) -> None:
        """The same of a system that trains nothing."""
        self._keep(run, self.folder / "rows" / name, {"row": name, "plan": self.plan.sha256})

    def rows(self) -> dict[str, dict]:
        """The scores of what trains nothing, by its name; those that are there."""
        places = {name: self.folder / "rows" / name / "metrics.json" for name in self.plan.rows}
        there = {name: path for name, path in places.items() if path.is_file()}
        return {name: json.loads(path.read_text(encoding="utf-8"))["scores"] for name, path in there.items()}

    def _keep(self, run: Path, place: Path, study: dict) -> None:
        (found,) = find_runs(str(run))
        making = place.with_name(f".{place.name}")
        shutil.rmtree(making, ignore_errors=True)
        for own in (run, *_evaluations(run)):
            target = making / own.relative_to(run)
            target.mkdir(parents=True)
            shutil.copy(own / "metrics.json", target / "metrics.json")
            if (own / "predictions.jsonl").is_file():
                write_jsonl(target / "predictions.jsonl", map(_slim, read_jsonl(own / "predictions.jsonl")))
        shutil.copy(run / "config.yaml", making / "config.yaml")
        environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
        write_json(making / "environment.json", {key: environment[key] for key in KEPT if key in environment})
        if measures := _measures(run, [measure.command for measure in self.plan.measures]):
            write_json(making / "measures.json", measures)
        write_json(making / "study.json", {**study, "validation": found.curve("val/loss")})
        for own in (making, *_evaluations(making)):
            seal(own, *(path.name for path in own.iterdir() if path.is_file() and path.name != "SHA256SUMS"))
        shutil.rmtree(place, ignore_errors=True)
        making.rename(place)

    def place(self, arm: Arm, seed: int, steps: int) -> Path:
        return self.folder / "runs" / f"{arm.regime}-{arm.name}-s{seed}-{steps}"

    def has(self, arm: Arm, seed: int, steps: int) -> bool:
        return (self.place(arm, seed, steps) / "study.json").is_file()

    def about(self, arm: Arm, seed: int, steps: int) -> dict:
        return json.loads((self.place(arm, seed, steps) / "study.json").read_text(encoding="utf-8"))

    def measures(self, arm: Arm, seed: int, steps: int) -> dict[str, float | None]:
        """What the plan's measures found of a final, by name; None where there was nothing to measure."""
        path = self.place(arm, seed, steps) / "measures.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def finals(self, arm: Arm, steps: int) -> dict[int, Run]:
        """The finals of an arm at a length by seed, in the plan's order."""
        there = [seed for seed in self.plan.seeds if self.has(arm, seed, steps)]
        return {seed: find_runs(str(self.place(arm, seed, steps)))[0] for seed in there}

    def forget(self, seed: int, sentence: str) -> None:
        """Take the finals of a seed out, and say why."""
        for place in (self.folder / "runs").glob(f"*-s{seed}-*"):
            shutil.rmtree(place)
        self.deviate(sentence)

    def complete(self, seed: int) -> bool:
        return all(self.has(arm, seed, steps) for arm in self.plan.arms() for steps in arm.lengths)

    def grounds(self, seed: int) -> set[str]:
        """On what kinds of machine, with which trainings before it, the finals of a seed were made."""
        places = (self.folder / "runs").glob(f"*-s{seed}-*/study.json")
        return {json.loads(path.read_text(encoding="utf-8"))["ground"] for path in places}


def _measures(run: Path, commands: Sequence[str]) -> dict[str, float | None]:
    """The ``scores`` that commands left in a run, <run>/<command>/<command>.json."""
    found = {}
    for path in (run / command / f"{command}.json" for command in commands):
        if path.is_file():
            found |= json.loads(path.read_text(encoding="utf-8")).get("scores", {})
    return found


def _evaluations(run: Path) -> list[Path]:
    return sorted(path.parent for path in (run / "evaluate").glob("*/metrics.json"))


def _slim(row: dict) -> dict:
    """The caption and the numbers of a picture."""
    dropped = {name for name, x in row.items() if x is None or isinstance(x, list) or name in DROPPED or "/" in name}
    return {name: round(x, 4) if isinstance(x, float) else x for name, x in row.items() if name not in dropped}


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
