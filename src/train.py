"""Train a captioner, score it, show what it says.

python -m src.train fusion=srau
python -m src.train -m fusion=blind,cross_attention,clipcap,srau seed=0,1
"""

from __future__ import annotations

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from src.config.command_line import verb
from src.config.earlier import use_earlier
from src.config.machine_faults import explaining_machine_faults
from src.config.make import check, make
from src.config.resume import resumed
from src.errors import UserError
from src.records.files import explaining_full_disk, seal, write_json
from src.records.folder import Saved, complete, removed_where_nothing_came_of_it, write_skipped
from src.records.folder import begin as begin_run
from src.training.signals import Interrupts


@hydra.main(version_base="1.3", config_path=str(Path(__file__).resolve().parents[1] / "conf"), config_name="train")
@verb
def main(cfg: DictConfig) -> float | None:
    """Configuration -> parts -> fit -> best checkpoint -> scores on the test split -> run folder."""
    run = Path(HydraConfig.get().runtime.output_dir)
    with removed_where_nothing_came_of_it(run, cfg.name):
        cfg = use_earlier(resumed(cfg, HydraConfig.get().overrides.task, say=print))
        sources = check(cfg)
        tracker = make(cfg.logger)
        print(f"run folder: {run}", flush=True)
        with Interrupts() as interrupts, explaining_full_disk(run), explaining_machine_faults(run):
            return train(cfg, sources, tracker, run, interrupts)


def train(cfg: DictConfig, sources: dict, tracker, run: Path, interrupts: Interrupts) -> float | None:
    """Everything after the configuration has been checked; None in other processes than the first."""
    from src.benchmarking.flops import training_flops
    from src.build import build, parameter_counts
    from src.tasks.choose import tasks_of
    from src.training.cost import peak_memory_mb

    begin(cfg, run)
    parts = build(cfg, sources)
    tasks = tasks_of(parts, cfg.task, cfg.metrics)
    for name, one in parts.data_sets().items():
        for split in ("train", "val", *([cfg.test_split] if cfg.test_split and one.source.has_images else [])):
            one.data.examples(split)  # a split without examples is found now, not behind the training
        if cfg.test_split:
            tasks[name].check(one, cfg.test_split)
    if cfg.val_captions and not parts.captioner.speaks:
        raise UserError("val_captions asks for captions, and nothing here learns to write any; leave it out.")
    keep_tokenizer(parts, run)
    if cfg.compile:
        parts.captioner.compile_training()
    counts = parameter_counts(parts.captioner)
    print(f"parameters: {counts['trainable']:,} trainable of {counts['total']:,}", flush=True)
    with tracker.running(cfg, run):
        trainer, meter = make_trainer(cfg, run, parts, tracker.loggers, interrupts)
        fit(trainer, parts, cfg)
        cost = {**meter.summary(), "parameters": counts}
        if not trainer.is_global_zero:
            return None
        write_skipped(run, sources.values())
        parts = trained(parts, cfg, run)
        cost["training_flops"] = training_flops(parts.captioner, next(iter(parts.data.val_dataloader())))
        cost["peak_memory_mb"] = peak_memory_mb()
        score, value = finish(parts, tasks, cfg, run, cost)
        tracker.report(parts, cfg, run)
    complete(run, score, value)  # the last act
    return value


def begin(cfg: DictConfig, run: Path) -> None:
    """What a run folder holds from the start. Of several processes only the first writes."""
    from lightning.pytorch.utilities import rank_zero_only

    if rank_zero_only.rank:
        return
    begin_run(run, cfg, HydraConfig.get().runtime.choices)


def keep_tokenizer(parts, run: Path) -> None:
    """Into the run folder, by the first process."""
    from lightning.pytorch.utilities import rank_zero_only

    if not rank_zero_only.rank:
        parts.captioner.tokenizer.save(run / "tokenizer")
        seal(run, "tokenizer")


def make_trainer(cfg: DictConfig, run: Path, parts, loggers, interrupts: Interrupts):
    """Lightning's Trainer with our callbacks, and the meter that it fills."""
    import logging
    import warnings

    import lightning
    from lightning.pytorch.callbacks import LearningRateMonitor, TQDMProgressBar

    from src.build import precision
    from src.training.caption_curve import CaptionValidation
    from src.training.checkpoints import BestCheckpoint, LastCheckpoint, RandomState, SafeCheckpointIO, TrunkCheckpoint
    from src.training.cost import CostMeter
    from src.training.frozen_states import FrozenStates
    from src.training.frozen_weights import FrozenWeights
    from src.training.validations import TimeLimit, Validations

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # no advertisements between our lines
    warnings.filterwarnings("ignore", ".*Previous log files in this directory will be deleted")  # all but before-*.csv
    warnings.filterwarnings("ignore", "`isinstance\\(treespec, LeafSpec\\)` is deprecated")  # lightning's own business
    lightning.seed_everything(cfg.seed, workers=True, verbose=False)
    meter = CostMeter()
    options = {**OmegaConf.to_container(cfg.trainer, resolve=True), "precision": precision(cfg.trainer.precision)}
    objectives = parts.captioner.objectives.values()
    judged_by = max(one.judged_by for one in objectives)
    callbacks = [
        Validations(options.pop("val_check_interval")),
        BestCheckpoint(run, by_captions=judged_by > 0),
        LastCheckpoint(run, interrupts, again=cfg.resume == "auto"),  # behind the best, which it knows of
        RandomState(),
        FrozenWeights(),
        *([TrunkCheckpoint(run, cfg.optim.cooldown)] if cfg.optim.get("cooldown") else []),
        LearningRateMonitor("step"),
        TQDMProgressBar(refresh_rate=20),
        meter,
    ]
    if not (cfg.compile or any(one.makes_texts for one in objectives)):  # a compiled walk has no place for files
        callbacks.append(FrozenStates(run))
    main_set = next(iter(parts.data_sets().values()))
    if captioned := judged_by or cfg.val_captions:
        if main_set.source.has_images and main_set.source.task == "caption":
            callbacks.insert(0, CaptionValidation(main_set.data, captioned))
    if max_time := options.pop("max_time", None):
        callbacks.append(TimeLimit(max_time))
    if options["strategy"] == "fsdp":
        from src.training.sharding import FullySharded

        options["strategy"] = FullySharded()
    options["accumulate_grad_batches"] *= parts.data.batches_per_update
    trainer = lightning.Trainer(
        default_root_dir=run,
        logger=loggers,
        callbacks=callbacks,
        plugins=[SafeCheckpointIO()],
        enable_model_summary=False,
        check_val_every_n_epoch=None,  # see Validations
        **options,
    )
    return trainer, meter


def fit(trainer, parts, cfg: DictConfig) -> None:
    """Train; a captioner without trainable parameters (blind with a frozen LM) is only saved as it is."""
    from src.training.checkpoints import length_of, take_over, unfinished
    from src.training.freed_memory import keep_freed_memory

    if not parts.captioner.parameter_groups():
        trainer.strategy.connect(parts.captioner)
        trainer.save_checkpoint(Path(trainer.default_root_dir) / "checkpoints" / "best.ckpt", weights_only=True)
        return
    if trainer.strategy.root_device.type == "cpu":
        keep_freed_memory()
    run = Path(trainer.default_root_dir)
    earlier = unfinished(cfg, run) if cfg.resume == "auto" else cfg.resume
    last = take_over(Path(earlier), run, length_of(cfg)) if earlier else None
    if last:
        print(f"going on from {last}", flush=True)
    trainer.fit(parts.captioner, datamodule=parts.data, ckpt_path=last)


def trained(parts, cfg: DictConfig, run: Path):
    """The parts with the weights of the best checkpoint, where captions are made fastest."""
    from src.build import Parts, place
    from src.pretrained import restore_captioner, take_over

    if cfg.trainer.strategy == "fsdp":
        return Parts(restore_captioner(run), parts.data)  # this process has slices of the weights only
    take_over(parts.captioner, Saved.run(run).checkpoint)
    place(parts.captioner, cfg)  # Lightning has moved it to the CPU
    return parts


def finish(parts, tasks: dict, cfg: DictConfig, run: Path, cost: dict) -> tuple[str, float]:
    """Score the best checkpoint, write the results, show some captions. Returns the score that sweeps compare."""
    from src.tasks.base import validation_loss
    from src.tasks.results import report

    results = []
    for name, one in parts.data_sets().items():
        folder = run / name if results else run  # the first data set is the main one
        if not (cfg.test_split and one.source.has_images):
            scores = {"loss": validation_loss(one)}
            write_json(folder / "metrics.json", {"split": "val", "scores": scores, "cost": cost})
            seal(folder, "metrics.json")
            use = "" if one.source.has_images else f"; use it with language.weights={run}"
            print(f"{name} val loss {scores['loss']:.4f} nats{use}".strip())
            results.append(("loss", scores["loss"]))
        else:
            result = tasks[name].evaluate(one, cfg.test_split)
            report(one.data, result, folder, cost, cfg.samples)
            results.append(result.headline)
    return results[0]


if __name__ == "__main__":
    main()
