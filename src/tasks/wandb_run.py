"""Who a run is in Weights & Biases, and what it is told after its end."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from src.config.added_keys import run_config
from src.config.make import config_hash
from src.errors import UserError
from src.records.wandb_runs import Session, table, wandb_mode
from src.tasks.mirrored import config_choices

LOGGER = "src.tracking.Wandb"
TAGS = ("fusion", "data", "regime", "vision", "language")
LONGEST = 64  # characters of a tag that W&B takes


def identity(cfg: DictConfig, run: Path, job_type: str, labels: Sequence[str]) -> dict:
    """Options of ``wandb.init``, the same whenever something is told to the run."""
    choices = config_choices(run)
    tags = [f"{choice}={choices[choice]}" for choice in TAGS if choices.get(choice)]
    return {
        "resume": "allow",
        "name": cfg.name,
        "group": sweep_name(),
        "job_type": job_type,
        "tags": [tag[:LONGEST] for tag in [*tags, *labels]],
        "config": {**OmegaConf.to_container(cfg, resolve=True), "choices": choices, "labels": named(labels)},
    }


def run_id(cfg: DictConfig, run: Path) -> str:
    """The same for the same configuration in the same folder, and for nothing else.

    A sweep gives a job that it starts again the folder of the attempt that was cut off, so the job continues its own
    W&B run. The configuration alone would not do: somebody who trains it twice would see one run with the curves of
    both. Nor would the folder's name, which every sweep over this configuration chooses alike; hence its whole path.
    """
    return hashlib.sha256(f"{config_hash(cfg)}\n{run.absolute()}".encode()).hexdigest()[:16]


def named(labels: Sequence[str]) -> dict[str, str]:
    """The values of labels by their keys; one without "=" is no key."""
    return dict(label.split("=", 1) for label in labels if "=" in label)


def sweep_name() -> str | None:
    """WANDB_RUN_GROUP, which the sweep launcher sets where the user has not; else the folder of a Hydra multirun."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    named = os.environ.get("WANDB_RUN_GROUP")
    if named or not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return named or None
    return Path(HydraConfig.get().sweep.dir).name


# ------------------------------------------------------------------------------------------------- after its end
def log_later(run: Path, room: str, tables: Mapping[str, Sequence[Mapping]], figures: Sequence[Path]) -> None:
    """What was found out about a finished run, into its own W&B run as "<room>/<name>"; nothing where it has none.

    ``tables``: their rows, none in empty ones. A run that was logged offline stays offline: src.sync uploads all of it.
    What goes wrong is said and ends nothing: it is all in the run folder.
    """
    begun = sorted(run.glob("wandb/*run-*"), key=lambda path: path.name.removeprefix("offline-"))
    logger = run_config(run).get("logger")  # an export has none
    if not begun or logger is None or logger._target_ != LOGGER:
        return
    try:
        _send(run, begun[-1], logger, {f"{room}/{name}": rows for name, rows in tables.items() if rows}, room, figures)
    except Exception as error:  # wandb has many of its own
        cause = f"{type(error).__name__}: {error}".splitlines()[0]
        print(f"note: W&B has not got everything ({cause}); it is all in {run}.", flush=True)


def _send(run: Path, begun: Path, logger: DictConfig, tables: Mapping, room: str, figures: Sequence[Path]) -> None:
    """Into the W&B run that left ``begun`` in the folder. Raises UserError for a server that falls silent, and what
    wandb raises."""
    import wandb

    mode = "offline" if begun.name.startswith("offline-") else wandb_mode(logger.mode)
    if mode == "disabled":
        return
    who = identity(run_config(run), run, logger.job_type, logger.labels)
    session = Session(mode, run, silent=True)
    try:
        own = session.begin(project=str(logger.project), entity=logger.entity, id=begun.name.rsplit("-", 1)[-1], **who)
        own.log({name: table(rows) for name, rows in tables.items()})
        own.log({f"{room}/{file.stem}": wandb.Image(str(file)) for file in figures})
        told = own.url if session.mode == "online" else f"python -m src.sync run={run} uploads it"
        if not session.finish(0):
            raise UserError("its server fell silent")
    finally:
        session.close()
    print(f"W&B: {told}", flush=True)
