"""What each option of each command may be: the one table that the command line is checked against before any work.

Options of a class (a node with ``_target_``) are no business of this table: their rules are the annotations of its
constructor. Both are of the words of src/kinds.py. Nothing heavy is imported, so that a wrong command is answered at
once.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from src.kinds import (
    BelowOne,
    Count,
    Ge,
    Gt,
    Le,
    Lt,
    Name,
    Project,
    Rate,
    Rule,
    Seed,
    Share,
    Size,
    is_text,
    is_whole,
    rule,
)


def _is_texts(value) -> bool:
    return is_text(value) or (isinstance(value, list) and all(map(is_text, value)))


def _is_devices(value) -> bool:
    if isinstance(value, list):
        return bool(value) and all(is_whole(one) and one >= 0 for one in value) and len(set(value)) == len(value)
    if isinstance(value, str):
        return value in ("auto", "-1") or re.fullmatch(r"[1-9]\d*|\d+(,\d+)+,?|\d+,", value) is not None
    return is_whole(value) and (value == -1 or value >= 1)


def _is_strategy(value) -> bool:
    return re.fullmatch("auto|single_device|fsdp|ddp(_[a-z0-9_]+)?", str(value)) is not None


def _is_pairs(value) -> bool:
    pairs = isinstance(value, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in value)
    return pairs and all(is_text(one) for pair in value for one in pair)


Texts = Annotated[Any, Rule("text or a [list] of texts", _is_texts)]
Pairs = Annotated[list, Rule("a list of [arm,other] pairs", _is_pairs)]
Anything = Annotated[Any, Rule("anything", lambda value: True)]
Group = Annotated[dict, Rule("a group of options", lambda value: isinstance(value, dict))]
ShareOrCount = Annotated[
    float,
    Rule(
        "a share above 0 and at most 1.0, or a whole number of at least 1",
        lambda value: (is_whole(value) and value >= 1) or (isinstance(value, float) and 0 < value <= 1),
    ),
]
ShareOrSteps = Annotated[
    float,
    Rule(
        "a share from 0.0 to 1.0, or a whole number of steps",
        lambda value: (is_whole(value) and value >= 0) or (isinstance(value, float) and 0 <= value <= 1),
    ),
]
Devices = Annotated[Any, Rule("auto, -1 (all), how many, or a list of numbers such as [0,1]", _is_devices)]
Strategy = Annotated[
    str, Rule("auto, single_device, ddp (or a longer name of it that Lightning has) or fsdp", _is_strategy)
]
Endless = Annotated[int, Rule("-1 (no limit)", lambda value: is_whole(value) and value == -1)]
Tokens = Annotated[int, Ge(3)]  # start, one token, end
Metric = Literal["meteor", "spice", "clipscore"]  # those of src.metrics.extra
Metrics = Metric | list[Metric]
Ids = Literal["cocoid", "image_id", "id", "imgid", "file_name", "file_stem", "file_number"]  # those of src.metrics.ids
Words = Literal["words", "characters"]  # those of src.metrics.tokens
Task = Literal["caption", "stories", "retrieval", "vqa", "match", "zero_shot"]  # those of src.tasks.choose

DATA = {
    "data.root": Name,
    "data.batch_size": Size,
    "data.captions_per_image": Size,
    "data.pack": bool,
    "data.train_fraction": Annotated[float, Gt(0), Le(1)],
    "data.held_out": Annotated[float, Gt(0), Lt(1)] | None,
    "data.test_fraction": Annotated[float, Gt(0), Le(1)],
    "data.max_tokens": Tokens,
    "data.max_images": Size,
    "data.p_next": Share,
    "data.workers": Count,
    "data.cache_dir": Name,
    "data.image_tag": bool,
    "data.by_length": bool,
    "data.on_error": Literal["raise", "skip"],
    "data.max_skipped": Share,
    "data.schedule": Literal["accumulate", "round_robin"],
    "data.weights.*": Rate,
}
# What else lightning.Trainer knows may be added (+trainer.deterministic=true); the types are then Lightning's own.
TRAINER = {
    "max_steps": Size | Endless,
    "max_epochs": Size | Endless | None,
    "precision": Literal["auto", "32-true", "bf16-mixed", "16-mixed", "bf16-true", "64-true"],
    "accelerator": Literal["auto", "cpu", "gpu", "cuda", "mps", "tpu"],
    "devices": Devices,
    "strategy": Strategy,
    "gradient_clip_val": Rate | None,
    "accumulate_grad_batches": Size,
    "val_check_interval": ShareOrCount,
    "log_every_n_steps": Size,
    "limit_train_batches": ShareOrCount,
    "limit_val_batches": ShareOrCount,  # without any there would be no best checkpoint
    "overfit_batches": ShareOrCount,
    "num_sanity_val_steps": Count | Endless,
}
# What this project gives to lightning.Trainer itself, or cannot do without.
NOT_OURS = (
    *("callbacks", "check_val_every_n_epoch", "default_root_dir", "enable_model_summary", "logger", "plugins"),
    *("barebones", "enable_checkpointing", "fast_dev_run"),
)
TRAIN = {
    "seed": Seed,
    "name": Name,
    "resume": Name | None,
    "weights": Name | None,
    "samples": Size,
    "test_split": Name | None,
    "task": Task | None,
    "dropout": BelowOne,
    "metrics": Metrics,
    "val_captions": Count,
    "compile": bool,
    "sweep": Name,
    **DATA,
    "language.name": Name,
    "language.source": Literal["package", "hub"],
    "language.init": Literal["pretrained", "random"],
    "language.weights": Name | None,
    "language.recompute": bool,
    "language.lr": Rate,
    "regime.train_language": bool,
    "regime.train_vision": bool | Literal["auto"],
    "regime.lora.rank": Size,
    "regime.lora.alpha": Annotated[float, Gt(0)],
    "regime.lora.targets": Literal["attention", "mlp", "all"],  # those of src.language.adapters
    **{f"regime.lr_{part}": Rate for part in ("fusion", "language", "vision", "pretrained")},
    "optim.betas": tuple[BelowOne, BelowOne],
    "optim.weight_decay": Rate,
    "optim.warmup": ShareOrSteps,
    "optim.cooldown": Annotated[float, Gt(0), Lt(1)] | None,
    "optim.floor": Share,
    "optim.gate_rate": Annotated[float, Gt(0)],
    "optim.reduction": Literal["token_mean", "sequence_sum"],
    "optim.loss_spike": Annotated[float, Gt(1)] | None,
    **{f"trainer.{name}": kind for name, kind in TRAINER.items()},
}
COMPARE = {
    "runs": Texts,
    "evaluation": Name | None,
    "baseline": Name | None,
    "scores": Texts | None,
    "resamples": Size,
    "allow": Texts,
    "contrasts": Pairs,
    "primary": Name | None,
    "margin": Rate | None,
    "output": Name,
}
COMMANDS = {
    "train": TRAIN,
    "evaluate": {
        "run": Name,
        "split": Name,
        "task": Task | None,
        "data_set": Name | None,
        **DATA,
        "data.root": Name | None,
        "metrics": Metrics,
        "tokens": Words,
        "shots": Count | None,
        "samples": Size,
        "output": Name | None,
    },
    "caption": {"run": Name, "images": Texts, "output": Name | None, "batch_size": Size},
    "explain": {"run": Name, "images": Texts | None, "samples": Size, "output": Name | None},
    "seeing": {
        "run": Texts,
        "split": Name,
        "captions": Size,
        "shuffled": Size,
        "samples": Count,
        "output": Name | None,
    },
    "preserve": {
        "run": Texts,
        "split": Name,
        "tokens": Annotated[int, Ge(300)],
        "pictures": Size,
        "of_category": Annotated[int, Ge(2)],
        "output": Name | None,
    },
    "pipeline": {
        "seed": Seed,
        "name": Name,
        "split": Name,
        **DATA,
        "metrics": Metrics,
        "tokens": Words,
        "samples": Size,
    },
    "score": {
        "predictions": Name,
        "references": Name | None,
        "split": Name | None,
        "ids": Ids | None,
        "missing": Literal["refuse", "score_predicted", "empty"],
        "metrics": Metrics,
        "tokens": Words,
        "images": Name | None,
        "clip.model": Name,
        "clip.pretrained": Name | None,
        "output": Name | None,
    },
    "compare": {**COMPARE, "along": Name | None},
    "report": {**COMPARE, "pictures": bool, "gallery": Count | None},
    "export": {"run": Name, "to": Name, "frozen": Literal["reference", "include"]},
    "benchmark": {
        "fusions": Texts | None,
        "peers": Texts,
        "regimes": Texts,
        "sizes": Texts,
        **{
            f"size.*.{name}": Size
            for name in ("layers", "width", "heads", "vocabulary", "context", "visual_tokens", "visual_width")
        },
        "size.*.family": Literal["gpt2", "llama"],
        "size.*.key_value_heads": Size,
        "size.*.mlp": Size,
        "pack": list[bool],
        "dropout": BelowOne,
        "lengths": Name | None,
        "images": Size,
        "by_length": bool,
        "captions": Size,
        "max_tokens": Tokens,
        "decode.batches": list[Size],
        "decode.beams": Size,
        "decode.tokens": Size,
        "encoder": Name,
        "repeats": Size,
        "seconds": Rate,
        "device": Literal["auto", "cpu", "cuda"],
        "precision": Literal["auto", "32-true", "bf16-mixed"],
        "compile": bool,
        "seed": Seed,
        "output": Name,
    },
    "dashboard": {"project": Project, "entity": Name | None, "concluded": Name | None, "output": Name},
    "doctor": {"runs": Name},
    "study": {
        "plan": Name,
        "do": Literal["all", "predict", "conclude"],
        "jobs": Size | None,
        "devices": list[Count] | None,
        "runs": Name,
        "output": Name,
    },
    "sync": {"run": Name},
}


def rule_of(command: str, key: str) -> Rule | None:
    """The rule of the option ``key`` ("trainer.max_steps") of a command; None where there is no such option.

    Members of a mixture have the options of a data set. A "*" in the table stands for one name.
    """
    kinds = COMMANDS[command]
    key = re.sub(r"^data\.members\.[^.]+\.", "data.", key)
    if key not in kinds:
        key = re.sub(r"^(size\.)[^.]+(?=\.)|(?<=^data\.weights\.)[^.]+$", r"\1*", key)
    return rule(kinds[key]) if key in kinds else None


def rule_of_default(default) -> Rule:
    """The rule of an option of which nothing but its default is known."""
    if isinstance(default, dict):
        return rule(Group)
    return rule(type(default) if isinstance(default, bool | int | float) else Anything)
