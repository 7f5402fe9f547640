"""A study in Weights & Biases, where arms have ``logger=wandb``: what it concluded, beside its trainings, as one group.

train, tune    job types of the trainings; what each of them is stands in its labels: arm, seed, steps, plan
study          one run: the tables ``contrasts``, ``arms`` and ``finals``, and the figures
arm            a run an arm and seed, a row a length: what panels draw as curves, with a band over seeds

The last two are made of what the study keeps, under the same ids whenever it is concluded: W&B has them once.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from src.comparison.estimates import Difference
from src.config.classes import HOME
from src.errors import UserError
from src.records.wandb_runs import Session, group_of, table, wandb_mode
from src.studies.concluded import SCORES, Concluded, read
from src.studies.plan import Arm, Plan

if TYPE_CHECKING:
    from src.studies.ledger import Ledger

PREFIX = "final/"  # of what an arm's runs log: FLOP, seconds, steps and SCORES


def logs(arm: Arm) -> bool:
    """Whether its trainings log to W&B."""
    return [option for option in arm.options if option.startswith("logger=")][-1:] == ["logger=wandb"]


def labels(plan: Plan, arm: Arm, name: str, seed: int, steps: int, job: str) -> tuple[str, ...]:
    """The options that tell W&B what a training is; none where it does not log there. ``job``: train or tune."""
    if not logs(arm):
        return ()
    told = {"arm": arm.label, "seed": seed, "steps": steps, "training": f"{arm.label} {steps} steps"}
    words = [_quoted(f"{key}={value}") for key, value in (_study(plan) | told).items()]
    return (f"name={_quoted(name)}", f"logger.job_type={job}", f"logger.labels=[{','.join(words)}]")


def _logger(arm: Arm) -> DictConfig:
    """conf/logger/wandb.yaml with the arm's own options. Hydra does not compose another command within one."""
    written = OmegaConf.load(HOME / "conf" / "logger" / "wandb.yaml")
    own = [option.removeprefix("logger.") for option in arm.options if option.startswith("logger.")]
    return OmegaConf.merge(written, OmegaConf.from_dotlist(own))


def _study(plan: Plan) -> dict[str, str]:
    return {"study": plan.name, "plan": plan.sha256[:12]}


def _quoted(text: str) -> str:
    from hydra.core.override_parser.types import Quote, QuotedString

    return QuotedString(text, Quote.single).with_quotes()


# --------------------------------------------------------------------------------------------------------------------
# what was concluded
# --------------------------------------------------------------------------------------------------------------------
def mirror(ledger: Ledger, folder: Path) -> None:
    """Tell W&B what the ledger holds, where an arm logs there. ``folder``: of the runs; what is offline lies there.

    What goes wrong is one sentence and ends nothing: it is all in the ledger.
    """
    arm = next(filter(logs, ledger.plan.arms()), None)
    if arm is None:
        return
    try:
        _send(read(ledger.folder, ledger.plan), arm, folder)
    except Exception as error:  # wandb has many of its own
        cause = f"{type(error).__name__}: {error}".splitlines()[0]
        print(f"note: W&B has not got the study ({cause}); it is all in {ledger.folder}, do=conclude tries again.")


def _send(study: Concluded, arm: Arm, folder: Path) -> None:
    """Raises UserError for a server that falls silent, and what wandb raises."""
    logger = _logger(arm)
    if (mode := wandb_mode(logger.mode)) == "disabled":
        return
    plan, session = study.plan, Session(mode, folder, silent=True)
    folder.mkdir(parents=True, exist_ok=True)

    def run(job: str, told: Mapping, log: Sequence[Mapping], config: Mapping) -> str:
        name = "-".join([plan.name, *map(str, told.values())])
        digest = hashlib.sha256("\n".join([plan.name, plan.sha256, *map(str, told.values())]).encode())
        id = digest.hexdigest()[:16]
        for earlier in folder.glob(f"wandb/offline-run-*-{id}"):
            shutil.rmtree(earlier)
        begun = session.begin(
            project=str(logger.project),
            entity=logger.entity,
            id=id,  # without resume: what W&B has under this id is replaced
            name=name,
            group=group_of(plan.name),
            job_type=job,
            tags=[f"{key}={value}" for key, value in _study(plan).items()],
            config={"labels": {**_study(plan), **{key: str(value) for key, value in told.items()}}, **config},
        )
        for row in log:
            begun.log(dict(row))
        url = begun.url if session.mode == "online" else ""
        if not session.finish(0):
            raise UserError("its server fell silent")
        return url

    try:
        url = run("study", {}, [_whole(study)], {"plan": asdict(plan)})
        for label in dict.fromkeys(row["arm"] for row in study.arms):
            for seed in dict.fromkeys(row["seed"] for row in study.finals):
                run("arm", {"arm": label, "seed": seed}, curve(study, label, seed), {})
    finally:
        session.close()
    if session.mode == "offline":
        print(f"W&B: python -m src.sync run={folder} uploads the study", flush=True)
    else:
        print(f"W&B: {url}", flush=True)


def _whole(study: Concluded) -> dict:
    """Tables and figures."""
    import wandb

    tables = {"contrasts": [contrast(d) for d in study.contrasts], "arms": study.arms, "finals": study.finals}
    shown: dict = {name: table(rows) for name, rows in tables.items() if rows}
    for name in ("curves", "tuning"):
        if (study.folder / f"{name}.png").is_file():
            shown[f"figures/{name}"] = wandb.Image(str(study.folder / f"{name}.png"))
    return shown


def contrast(d: Difference) -> dict:
    """A planned contrast as the row of a table; ``low`` to ``high``: over seeds, 95 %."""
    seeds, verdict = d.seeds, d.verdict
    row = {"arm": d.arm, "other": d.other, "score": d.score, "difference": d.mean, "n": seeds.n}
    row |= {
        "low": seeds.low,
        "high": seeds.high,
        "p": seeds.p,
        "p (Holm)": verdict.p_holm,
        "p (level)": verdict.p_level,
    }
    return row | {"word": d.word, "detectable": seeds.detectable, "low (images)": d.low, "high (images)": d.high}


def curve(study: Concluded, arm: str, seed: int) -> list[dict]:
    """A row a length of one arm and seed, ascending. FLOP and seconds are means over the seeds: where all have their
    points at one place, W&B can draw a band through them."""
    spent = {row["steps"]: row for row in study.arms if row["arm"] == arm}
    rows = []
    for row in study.finals:
        if (row["arm"], row["seed"]) == (arm, seed):
            own = {"steps": row["steps"], **{what: spent[row["steps"]][what] for what in ("flop", "seconds")}}
            own |= {score: row[score] for score in SCORES}
            rows.append({f"{PREFIX}{name}": value for name, value in own.items() if value is not None})
    return rows
