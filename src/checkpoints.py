"""Going on with a run in a new folder: what the first attempt had reached counts as if there had been no break."""

from __future__ import annotations

import shutil
from pathlib import Path

from lightning.pytorch.callbacks import ModelCheckpoint

from src import records


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


def take_over(earlier: Path, run: Path) -> Path:
    """Copy the best checkpoint and the log of ``earlier`` into ``run``; returns the checkpoint to go on from.

    The log so far becomes ``log/before-<n>.csv``. Raises UserError when there is nothing to go on from.
    """
    last = records.checkpoint_path(earlier, "last")
    best = records.checkpoint_path(earlier)
    if earlier.resolve() != run.resolve():
        (run / "checkpoints").mkdir(parents=True, exist_ok=True)
        shutil.copyfile(best, run / "checkpoints" / best.name)
    logs = sorted((earlier / "log").glob("before-*.csv"))
    if (earlier / "log" / "metrics.csv").is_file():
        logs.append(earlier / "log" / "metrics.csv")
    (run / "log").mkdir(parents=True, exist_ok=True)
    for number, log in enumerate(logs, 1):
        copy = run / "log" / f"before-{number}.csv"
        if not copy.exists():
            shutil.copyfile(log, copy)
    return last
