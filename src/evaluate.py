"""Score a trained run again: another split, another decoding.

python -m src.evaluate run=runs/... split=val decode=greedy
"""

from __future__ import annotations

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from src import records
from src.cli import verb
from src.errors import UserError


@hydra.main(version_base="1.3", config_path=str(Path(__file__).resolve().parents[1] / "conf"), config_name="evaluate")
@verb
def main(cfg: DictConfig) -> float:
    """Results go to their own folder: what the run itself wrote stays."""
    run = Path(cfg.run)
    records.checkpoint_path(run)
    from src.build import parameter_counts, restore
    from src.evaluation import evaluate, report

    parts = restore(run, cfg.get("decode"))
    if cfg.split not in parts.source.splits():
        raise UserError(f"split={cfg.split} does not exist; this data has {', '.join(parts.source.splits())}.")
    name = "-".join(filter(None, [cfg.split, HydraConfig.get().runtime.choices.get("decode")]))
    folder = Path(cfg.output) if cfg.output else run / "evaluate" / name
    result = evaluate(parts, cfg.split)
    report(parts, result, folder, {"parameters": parameter_counts(parts.captioner)}, cfg.samples)
    return result.scores["CIDEr-D"]


if __name__ == "__main__":
    main()
