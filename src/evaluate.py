"""Score a trained run again: another split, another decoding.

python -m src.evaluate run=runs/... split=val decode=greedy
python -m src.evaluate run=runs/... shots=4
"""

from __future__ import annotations

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from src.config.command_line import verb
from src.errors import UserError
from src.metrics.extra import check_names
from src.records.folder import checkpoint_path


@hydra.main(version_base="1.3", config_path=str(Path(__file__).resolve().parents[1] / "conf"), config_name="evaluate")
@verb
def main(cfg: DictConfig) -> float:
    """Results go to their own folder: what the run itself wrote stays."""
    run, metrics = Path(cfg.run), check_names(cfg.metrics, cfg.tokens)
    checkpoint_path(run)
    from src.build import parameter_counts, restore
    from src.tasks.evaluation import evaluate, evaluate_few_shot, report

    sets = restore(run, cfg.get("decode")).data_sets()
    if cfg.data_set not in sets and cfg.data_set:
        known = ", ".join(filter(None, sets)) or "a single one, without a name; leave data_set out"
        raise UserError(f"data_set={cfg.data_set} does not exist; this run has {known}.")
    parts = sets[cfg.data_set or next(iter(sets))]
    if cfg.split not in parts.source.splits():
        raise UserError(f"split={cfg.split} does not exist; this data has {', '.join(parts.source.splits())}.")
    shots = None if cfg.shots is None else f"{cfg.shots}-shot"
    decode, counted = HydraConfig.get().runtime.choices.get("decode"), None if cfg.tokens == "words" else cfg.tokens
    name = "-".join(filter(None, [cfg.data_set, cfg.split, shots, decode, counted]))
    folder = Path(cfg.output) if cfg.output else run / "evaluate" / name
    if cfg.shots is None:
        result = evaluate(parts, cfg.split, metrics, cfg.tokens)
    else:
        result = evaluate_few_shot(parts, cfg.split, cfg.shots, metrics, cfg.tokens)
    report(parts, result, folder, {"parameters": parameter_counts(parts.captioner)}, cfg.samples)
    return result.scores.get("CIDEr-D", result.scores.get("loss"))


if __name__ == "__main__":
    main()
