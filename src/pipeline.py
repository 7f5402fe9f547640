"""Caption a split with a system that trains nothing, and score it: a run folder that src.compare and src.report read.

python -m src.pipeline pipeline=nearest data=flickr8k data.root=<folder> vision=efficientnet_lite0
python -m src.pipeline pipeline=human data=flickr8k data.root=<folder>
python -m src.pipeline pipeline=human pipeline.wrong=true data=flickr8k data.root=<folder>
"""

from __future__ import annotations

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from src.config.classes import trait
from src.config.command_line import verb
from src.config.make import data_sets, make
from src.errors import UserError
from src.metrics.extra import check_names
from src.records.files import explaining_full_disk
from src.records.folder import begin, complete, write_skipped


@hydra.main(version_base="1.3", config_path=str(Path(__file__).resolve().parents[1] / "conf"), config_name="pipeline")
@verb
def main(cfg: DictConfig) -> float:
    """Encoder, if one is needed, and data -> speaker -> captions and scores of the split -> run folder."""
    metrics = check_names(cfg.metrics, cfg.tokens)
    sees = trait(cfg.pipeline._target_, "sees")
    source = make(one_data_set(cfg).source)
    check(source, cfg.split, sees)
    from src.build import build_pictures, build_vision, cached_features
    from src.tasks.captioning import Captioning, mean_over
    from src.tasks.results import report

    vision = build_vision(cfg) if sees else None
    if vision is not None and not vision.pretrained:
        raise UserError("A pipeline needs a trained encoder, and this one has random weights; see vision.weights=.")
    run, choices = Path(HydraConfig.get().runtime.output_dir), HydraConfig.get().runtime.choices
    print(f"run folder: {run}", flush=True)
    with explaining_full_disk(run):
        begin(run, cfg, choices)
        data = build_pictures(cfg.data, cfg.seed, source, vision)
        if vision is not None:
            splits = ["train", cfg.split]
            data.features = cached_features(data, cfg.data.cache_dir, vision, splits, levels=0, tokens=False)
        system = make(cfg.pipeline)(vision, data)
        task, rounds = Captioning(metrics, cfg.tokens), list(system.rounds(cfg.split))
        result = mean_over([task.answered(speaker, own, cfg.split) for speaker, own in rounds])
        result.remarks["notes"] |= system.notes
        size = sum(parameter.numel() for parameter in vision.parameters()) if vision else 0
        parameters = {"trainable": 0, "total": size, "vision": size}
        report(rounds[0][1], result, run, {"parameters": parameters}, cfg.samples)
        write_skipped(run, [source])
        complete(run, *result.headline)
    return result.headline[1]


def one_data_set(cfg: DictConfig) -> DictConfig:
    """Raises UserError for data=mixture."""
    found = data_sets(cfg)
    if "" not in found:
        raise UserError(f"A pipeline reads one data set, and these are {', '.join(found)}; choose another data=.")
    return found[""]


def check(source, split: str, sees: bool) -> None:
    """Raises UserError for what can neither be remembered nor looked up; what does not see remembers nothing."""
    if source.interleaved or not source.has_images:
        raise UserError(f"A pipeline needs captioned pictures, and data={source.name} has others; choose others.")
    if sees and split == "train":
        raise UserError("split=train is what is remembered: every picture would find itself; use val or test.")
    if split not in source.splits():
        raise UserError(f"split={split} does not exist; this data has {', '.join(source.splits())}.")


if __name__ == "__main__":
    main()
