"""Checkpoints that survive kills and faults, and going on from them as if there had been no break."""

from __future__ import annotations

import io
import shutil
import zipfile
from pathlib import Path

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from omegaconf import DictConfig
from torch import distributed

from src import records
from src.config import config_hash
from src.errors import UserError

PREVIOUS = "previous.ckpt"  # what last.ckpt was before it was written for the last time


class SafeCheckpointIO(TorchCheckpointIO):
    """Writes beside and renames, and keeps the last but one: whatever happens while writing, one good file is there."""

    def save_checkpoint(self, checkpoint: dict, path, storage_options=None) -> None:
        buffer, path = io.BytesIO(), Path(path)
        torch.save(checkpoint, buffer)
        if path.name == "last.ckpt" and path.exists():
            path.replace(path.with_name(PREVIOUS))
        try:
            records.write_bytes(path, buffer.getbuffer())
        except OSError as error:
            raise UserError(f"{path} cannot be written ({error.strerror}); earlier checkpoints are kept.") from error


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint file: a kill while writing, a full disk or a flipped bit; None for a good one.

    torch writes checksums into its files but does not look at them.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            wrong = archive.testzip()
    except (OSError, zipfile.BadZipFile, EOFError) as error:
        return str(error) or "it ends too early"
    return None if wrong is None else f"{wrong} in it is not what was written"


class BestCheckpoint(ModelCheckpoint):
    """``best.ckpt`` by validation loss and ``last.ckpt``. Lightning's own forgets the best so far in another folder."""

    def __init__(self, run: Path):
        super().__init__(run / "checkpoints", "best", "val/loss", save_last=True, enable_version_counter=False)

    def load_state_dict(self, state_dict: dict) -> None:
        def here(path: str) -> str:
            return str(Path(self.dirpath) / Path(path).name) if path else path

        moved = {key: here(state_dict[key]) for key in ("best_model_path", "kth_best_model_path", "last_model_path")}
        best = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **moved, "best_k_models": best, "dirpath": self.dirpath})


class RandomState(Callback):
    """The random generators of every process, so that dropout after a break is what it would have been without one."""

    def __init__(self) -> None:
        self.saved: dict | None = None

    def state_dict(self) -> dict:
        here = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            here["cuda"] = torch.cuda.get_rng_state()
        everywhere = [here]
        if distributed.is_available() and distributed.is_initialized():
            everywhere = [None] * distributed.get_world_size()
            distributed.all_gather_object(everywhere, here)
        return {"processes": everywhere}

    def load_state_dict(self, state_dict: dict) -> None:
        self.saved = state_dict

    def on_train_start(self, trainer, module) -> None:
        if self.saved is None:
            return
        here = self.saved["processes"][trainer.global_rank]
        torch.set_rng_state(here["cpu"])
        if "cuda" in here and torch.cuda.is_available():
            torch.cuda.set_rng_state(here["cuda"])


def unfinished(cfg: DictConfig, run: Path) -> Path | None:
    """The folder whose training ``resume=auto`` goes on with: the newest beside ``run`` of the same configuration.

    It has a checkpoint and no result yet.
    """
    wanted = config_hash(cfg)
    folders = [path.parent for path in run.parent.glob("*/config.yaml") if records.resumable(path.parent)]
    for folder in sorted(folders, key=lambda path: (path / "checkpoints").stat().st_mtime, reverse=True):
        if not (folder / "result.json").is_file() and config_hash(records.run_config(folder)) == wanted:
            return folder
    return None


def take_over(earlier: Path, run: Path) -> Path:
    """Copy the best checkpoint and the log of ``earlier`` into ``run``; returns the checkpoint to go on from.

    That is the last good one. The log so far becomes ``log/before-<n>.csv``. Raises UserError when there is nothing to
    go on from.
    """
    last = _last_good(earlier)
    best = records.checkpoint_path(earlier)
    if earlier.resolve() != run.resolve():
        records.write_bytes(run / "checkpoints" / best.name, best.read_bytes())
    logs = sorted((earlier / "log").glob("before-*.csv"))
    if (earlier / "log" / "metrics.csv").is_file():
        logs.append(earlier / "log" / "metrics.csv")
    (run / "log").mkdir(parents=True, exist_ok=True)
    for number, log in enumerate(logs, 1):
        copy = run / "log" / f"before-{number}.csv"
        if not copy.exists():
            shutil.copyfile(log, copy)
    return last


def _last_good(run: Path) -> Path:
    last, previous = run / "checkpoints" / "last.ckpt", run / "checkpoints" / PREVIOUS
    if not records.resumable(run):
        return records.checkpoint_path(run, "last")  # which says what is missing
    wrong = damage(last)
    if wrong is None:
        return last
    if previous.exists() and damage(previous) is None:
        print(f"{last} is damaged ({wrong}); going on from {previous.name} instead.", flush=True)
        return previous
    raise UserError(f"{last} is damaged ({wrong}) and there is no earlier one; train this run again.")
