"""Upload a run that was logged offline to Weights & Biases, from wherever its folder lies now.

python -m src.sync run=runs/...

``wandb sync`` alone does so too while the folder lies where it was made. Needs a login (``wandb login``).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from src.config.command_line import verb
from src.errors import UserError
from src.records.wandb_file import settle
from src.records.wandb_runs import attempts


@hydra.main(version_base="1.3", config_path=str(Path(__file__).resolve().parents[1] / "conf"), config_name="sync")
@verb
def main(cfg: DictConfig) -> None:
    """Name the files of tables where they are now, then hand over to ``wandb sync``."""
    run = Path(cfg.run)
    folders = list(dict.fromkeys(one for own in run.glob("wandb/offline-run-*") for one in attempts(own)))
    if not folders:
        raise UserError(f"{run} holds nothing that was logged offline; give a run folder of logger=wandb.")
    moved = sum(settle(file, one.parents[1]) for one in folders for file in one.glob("*.wandb"))
    if moved:
        print(f"{moved} files of tables are named where they are now", flush=True)
    sys.exit(subprocess.run([sys.executable, "-m", "wandb", "sync", *map(str, folders)]).returncode)


if __name__ == "__main__":
    main()
