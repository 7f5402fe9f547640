"""Finished runs, read back from their folders, and grouped into arms: runs that differ in nothing but the seed."""

from __future__ import annotations

import csv
import glob
import itertools
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from src.config.added_keys import decoding_without_absent, run_config
from src.config.classes import flatten
from src.config.make import INCIDENTAL, is_below
from src.errors import UserError
from src.records.files import SUMS, listed, verify

# What may differ between runs of one arm. How they decode is looked at by src.compare, which knows what was scored;
# extra metrics change no other score.
WITHIN_ARM = ("seed", "decode", "metrics", *INCIDENTAL)
SYSTEMS = ("fusion", "pipeline")  # groups of conf/ that name what is compared
SHORT = re.compile(r"^(fusion|regime)\.")  # left out of labels


@dataclass(frozen=True)
class Run:
    """One run folder, or one of its evaluations.

    ``config``: flat, "fusion.tau" -> value, with options that were added since (src.config.added_keys); ``metrics``,
    ``environment``: the JSON files, where added options of the decoder are left out that change nothing; ``rows``:
    predictions.jsonl, one dict per picture (id, caption, references, per-image scores).
    """

    folder: Path
    config: dict
    metrics: dict
    environment: dict
    rows: list[dict] = field(repr=False)

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @property
    def scores(self) -> dict[str, float | None]:
        return self.metrics["scores"]

    @property
    def batches_sha256(self) -> str | None:
        """Which pictures it was trained on, in which order."""
        return self.metrics.get("cost", {}).get("batches_sha256")

    @property
    def fusion(self) -> str:
        """The word after ``fusion=``; of a system that trains nothing, after ``pipeline=``."""
        group = next(group for group in SYSTEMS if f"{group}._target_" in self.config)
        return self.environment.get("choices", {}).get(group) or self.config[f"{group}._target_"].split(".")[-2]

    @cached_property
    def settings(self) -> dict:
        """The configuration without what is incidental: equal for all seeds of an arm."""
        return {key: value for key, value in self.config.items() if not is_below(key, WITHIN_ARM)}

    def curve(self, column: str) -> list[tuple[int, float]]:
        """(step, value) of one column of the training log, such as "val/loss"; empty where it was not logged.

        Raises UserError when the log is damaged.
        """
        verify(self.folder, "log")
        points: dict[int, float] = {}
        for path in [*sorted((self.folder / "log").glob("before-*.csv")), self.folder / "log" / "metrics.csv"]:
            if path.is_file():  # of a resumed run, the later file knows better
                with open(path, newline="", encoding="utf-8") as file:
                    points |= {int(row["step"]): float(row[column]) for row in csv.DictReader(file) if row.get(column)}
        return sorted(points.items())


@dataclass(frozen=True)
class Arm:
    """Runs of one setting, ordered by seed. ``label``: what tells it from the other arms that it is compared with."""

    label: str
    runs: tuple[Run, ...]


def find_runs(patterns: str | Iterable[str], evaluation: str | None = None) -> list[Run]:
    """Every finished run in the folders that ``patterns`` name (a folder, a folder of runs, or a glob), sorted.

    ``evaluation``: read the results in ``<run>/evaluate/<evaluation>`` (``src.evaluate`` wrote them), or those of a
    further data set of that name (``data=mixture`` writes them to ``<run>/<name>``), instead of the run's own. Raises
    UserError if there is none, or if a file is damaged.
    """
    patterns = [patterns] if isinstance(patterns, str) else [str(pattern) for pattern in patterns]
    named = [Path(path) for pattern in patterns for path in glob.glob(str(Path(pattern).expanduser()))]
    folders = sorted({run for path in named for run in _run_folders(path)})
    results = folders if evaluation is None else [_results(folder, evaluation) for folder in folders]
    for result in results:
        verify(result, "metrics.json")  # one that was lost is not one that never was
    runs = [
        _read(folder, result)
        for folder, result in zip(folders, results, strict=True)
        if (result / "metrics.json").is_file()
    ]
    if not runs:
        what = "a finished run" if evaluation is None else f"a run with evaluate/{evaluation} or {evaluation}"
        raise UserError(f"runs={','.join(patterns)} names no folder of {what}; a finished run has metrics.json.")
    return runs


def group(runs: Sequence[Run]) -> list[Arm]:
    """Arms in the order of their first run. Raises UserError if an arm has a seed twice."""
    arms: list[list[Run]] = []
    for run in runs:
        own = next((arm for arm in arms if arm[0].settings == run.settings), None)
        if own is None:
            arms.append(own := [])
        own.append(run)
    labels = _labels([arm[0] for arm in arms])
    for arm in arms:
        arm.sort(key=lambda run: run.seed)
        for one, other in itertools.pairwise(arm):
            if one.seed == other.seed:
                raise UserError(f"{one.folder} and {other.folder} are the same setting and seed; leave one out.")
    return [Arm(label, tuple(arm)) for label, arm in zip(labels, arms, strict=True)]


def curves(arms: Sequence[Arm], key: str) -> dict[str, list[tuple[float, str]]]:
    """Arms that differ in nothing but the number at ``key`` ("data.train_fraction"): label -> (number, arm's label).

    Ordered by that number; arms without it are left out.
    """
    families: list[list[Arm]] = []
    for arm in arms:
        if isinstance(arm.runs[0].settings.get(key), int | float):
            own = next((f for f in families if not _differing(f[0].runs[0], arm.runs[0], but=key)), None)
            if own is None:
                families.append(own := [])
            own.append(arm)
    labels = _labels([family[0].runs[0] for family in families], but=key)
    return {
        label: sorted((arm.runs[0].settings[key], arm.label) for arm in family)
        for label, family in zip(labels, families, strict=True)
    }


def _results(folder: Path, evaluation: str) -> Path:
    """What src.evaluate wrote under that name, else what training wrote for a data set of that name."""
    further = folder / evaluation
    evaluated = folder / "evaluate" / evaluation
    return further if further.is_dir() and not evaluated.is_dir() else evaluated


def _run_folders(path: Path) -> list[Path]:
    """``path`` itself if it is a run folder, else the run folders anywhere below it."""
    if (path / "config.yaml").is_file():
        return [path]
    if not path.is_dir():
        return []
    lost = {file.parent for file in path.rglob(SUMS) if "config.yaml" in listed(file.parent)}  # then reading tells it
    found = lost | {file.parent for file in path.rglob("config.yaml")}
    return [folder for folder in found if "~" not in folder.name]  # ~1: an attempt that a sweep made again


def _read(folder: Path, result: Path) -> Run:
    environment = folder / "environment.json"
    verify(folder, "config.yaml", "environment.json", "metrics.json")
    verify(result, "predictions.jsonl")
    metrics = _json(result / "metrics.json")
    if not isinstance(metrics.get("scores"), dict):
        raise UserError(f"{result / 'metrics.json'} holds no scores; run src.evaluate on this run again.")
    if result != folder and (folder / "metrics.json").is_file():  # the run itself knows what its training cost
        metrics["cost"] = {**_json(folder / "metrics.json").get("cost", {}), **metrics.get("cost", {})}
    if isinstance(metrics.get("decoding"), dict):
        metrics["decoding"] = decoding_without_absent(metrics["decoding"])
    return Run(
        folder,
        _config(folder),
        metrics,
        _json(environment) if environment.is_file() else {},
        _rows(result / "predictions.jsonl"),
    )


def _config(folder: Path) -> dict:
    from omegaconf import OmegaConf
    from yaml import YAMLError

    try:
        config = dict(flatten(OmegaConf.to_container(run_config(folder))))
    except (YAMLError, OSError, ValueError) as error:
        raise UserError(f"{folder / 'config.yaml'} cannot be read ({' '.join(str(error).split())}).") from None
    if "seed" not in config or not any(f"{group}._target_" in config for group in SYSTEMS):
        raise UserError(f"{folder / 'config.yaml'} names no seed and fusion, so it is not that of a training run.")
    return config


def _json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); run src.evaluate on this run again.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} should hold an object; run src.evaluate on this run again.")
    return content


def _rows(path: Path) -> list[dict]:
    if not path.is_file():
        return []
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); run src.evaluate on this run again.") from None


def _labels(runs: Sequence[Run], but: str | None = None) -> list[str]:
    """The fusion's name, and the settings in which arms of one fusion differ from one another; ``but`` is left out."""
    peers = {run.fusion: [other for other in runs if other.fusion == run.fusion] for run in runs}
    keys = {
        fusion: sorted({key for one in own for other in own for key in _differing(one, other, but)})
        for fusion, own in peers.items()
    }
    labels = []
    for run in runs:
        others = [other for other in peers[run.fusion] if other is not run]
        plain = [key for key in keys[run.fusion] if not key.endswith("._target_")]
        # A class is left out of the label where the other settings tell the arms apart.
        alone = all(any(key in plain for key in _differing(run, other, but)) for other in others)
        parts = [f"{SHORT.sub('', key)}={run.settings.get(key)}" for key in (plain if alone else keys[run.fusion])]
        labels.append(" ".join([run.fusion, *parts]))
    return labels


def _differing(one: Run, other: Run, but: str | None = None) -> set[str]:
    """Settings in which two runs differ, without ``but``."""
    keys = one.settings.keys() | other.settings.keys()
    return {key for key in keys if key != but and one.settings.get(key) != other.settings.get(key)}
