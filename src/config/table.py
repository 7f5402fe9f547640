"""What each option of each command may be: the one table that the command line is checked against before any work.

Options of a class (a node with ``_target_``) have the types of its constructor's annotations, and ranges by names that
all classes use alike; so a new mechanism needs no entry here, and refuses in its constructor what only it knows.
Nothing heavy is imported, so that a wrong command is answered at once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """``fits``: whether a value is allowed; ``says``: what is, as it stands behind "must be"."""

    says: str
    fits: Callable[[object], bool]

    def __or__(self, other: Rule) -> Rule:
        return Rule(f"{self.says} or {other.says}", lambda value: self.fits(value) or other.fits(value))


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def whole(least: int, most: int | None = None) -> Rule:
    says = f"a whole number of at least {least}" if most is None else f"a whole number from {least} to {most}"
    return Rule(says, lambda value: _is_whole(value) and value >= least and (most is None or value <= most))


def number(interval: str) -> Rule:
    """``interval`` as in mathematics: "[0, 1)" holds 0 and not 1; "(0, inf)" all that is above 0."""
    low, high = map(float, interval[1:-1].split(","))
    at_least, at_most = interval[0] == "[", interval[-1] == "]"
    bounds = [f"{'of at least' if at_least else 'above'} {low:g}"]
    if high != math.inf:
        bounds.append(f"{'at most' if at_most else 'below'} {high:g}")

    def fits(value) -> bool:
        return _is_number(value) and (low < value < high or (at_least and value == low) or (at_most and value == high))

    return Rule(f"a number {' and '.join(bounds)}", fits)


def word(*words: str) -> Rule:
    return Rule(", ".join(words[:-1]) + " or " + words[-1] if words[1:] else words[0], lambda value: value in words)


def several(rule: Rule, length: int | None = None) -> Rule:
    """A list of what ``rule`` allows."""
    many = "" if length is None else f"{length} times "

    def fits(value) -> bool:
        right = isinstance(value, list) and (length is None or len(value) == length)
        return right and all(map(rule.fits, value))

    return Rule(f"a list [...] with {many}{rule.says}", fits)


def _is_devices(value) -> bool:
    if isinstance(value, list):
        return bool(value) and all(_is_whole(one) and one >= 0 for one in value) and len(set(value)) == len(value)
    if isinstance(value, str):
        return value in ("auto", "-1") or re.fullmatch(r"[1-9]\d*|\d+(,\d+)+,?|\d+,", value) is not None
    return _is_whole(value) and (value == -1 or value >= 1)


FLAG = Rule("true or false", lambda value: isinstance(value, bool))
TEXT = Rule("text", lambda value: isinstance(value, str) or _is_number(value))  # a folder may be called 2024
ANYTHING = Rule("anything", lambda value: True)
GROUP = Rule("a group of options", lambda value: isinstance(value, dict))
NOTHING = Rule("null", lambda value: value is None)
TEXTS = Rule("text or a [list] of texts", lambda value: TEXT.fits(value) or several(TEXT).fits(value))
STEPS = whole(1) | word("auto")
SHARE_OR_COUNT = Rule(
    "a share above 0 and at most 1.0, or a whole number of at least 1",
    lambda value: (_is_whole(value) and value >= 1) or (isinstance(value, float) and 0 < value <= 1),
)
DEVICES = Rule("auto, -1 (all), how many, or a list of numbers such as [0,1]", _is_devices)
STRATEGY = Rule(
    "auto, single_device, ddp (or a longer name of it that Lightning has) or fsdp",
    lambda value: re.fullmatch("auto|single_device|fsdp|ddp(_[a-z0-9_]+)?", str(value)) is not None,
)
ENDLESS = Rule("-1 (no limit)", lambda value: _is_whole(value) and value == -1)
METRICS = word("meteor", "spice", "clipscore")  # those of src.metrics.extra
METRICS = METRICS | several(METRICS)
IDS = ("cocoid", "image_id", "id", "imgid", "file_name", "file_stem", "file_number")  # those of src.metrics.ids
TOKENS = word("words", "characters")  # those of src.metrics.tokens
TASK = word("caption", "stories", "retrieval")  # those of src.tasks.choose
SEED = whole(0, 2**32 - 1)  # what numpy takes
COUNT, SIZE, RATE, SHARE = whole(0), whole(1), number("[0, inf)"), number("[0, 1]")


def project(entity: str) -> Rule:
    """A project of Weights & Biases; ``entity``: the option that names its team."""
    says = f"at most 128 characters without / \\ # ? % : (a team is named with {entity}=)"
    return Rule(says, lambda value: TEXT.fits(value) and re.fullmatch(r"[^/\\#?%:]{1,128}", str(value)) is not None)


DATA = {
    "data.root": TEXT,
    "data.batch_size": SIZE,
    "data.captions_per_image": SIZE,
    "data.train_fraction": number("(0, 1]"),
    "data.max_tokens": whole(3),  # start, one token, end
    "data.max_images": SIZE,
    "data.p_next": SHARE,
    "data.workers": COUNT,
    "data.cache_dir": TEXT,
    "data.image_tag": FLAG,
    "data.by_length": FLAG,
    "data.on_error": word("raise", "skip"),
    "data.max_skipped": SHARE,
    "data.schedule": word("accumulate", "round_robin"),
    "data.weights.*": RATE,
}
# What else lightning.Trainer knows may be added (+trainer.deterministic=true); the types are then Lightning's own.
TRAINER = {
    "max_steps": SIZE | ENDLESS,
    "max_epochs": SIZE | ENDLESS | NOTHING,
    "precision": word("auto", "32-true", "bf16-mixed", "16-mixed", "bf16-true", "64-true"),
    "accelerator": word("auto", "cpu", "gpu", "cuda", "mps", "tpu"),
    "devices": DEVICES,
    "strategy": STRATEGY,
    "gradient_clip_val": RATE | NOTHING,
    "accumulate_grad_batches": SIZE,
    "val_check_interval": SHARE_OR_COUNT,
    "log_every_n_steps": SIZE,
    "limit_train_batches": SHARE_OR_COUNT,
    "limit_val_batches": SHARE_OR_COUNT,  # without any there would be no best checkpoint
    "overfit_batches": SHARE_OR_COUNT,
    "num_sanity_val_steps": COUNT | ENDLESS,
}
# What this project gives to lightning.Trainer itself, or cannot do without.
NOT_OURS = (
    *("callbacks", "check_val_every_n_epoch", "default_root_dir", "enable_model_summary", "logger", "plugins"),
    *("barebones", "enable_checkpointing", "fast_dev_run"),
)
TRAIN = {
    "seed": SEED,
    "name": TEXT,
    "resume": TEXT | NOTHING,
    "samples": SIZE,
    "test_split": TEXT,
    "task": TASK | NOTHING,
    "metrics": METRICS,
    "val_captions": COUNT,
    "compile": FLAG,
    "sweep": TEXT,
    **DATA,
    "language.name": TEXT,
    "language.init": word("pretrained", "random"),
    "language.weights": TEXT | NOTHING,
    "language.recompute": FLAG,
    "regime.train_language": FLAG,
    "regime.train_vision": FLAG | word("auto"),
    **{f"regime.lr_{part}": RATE for part in ("fusion", "language", "vision")},
    "optim.betas": several(number("[0, 1)"), 2),
    "optim.weight_decay": RATE,
    "optim.warmup": SHARE,
    "optim.floor": SHARE,
    "optim.reduction": word("token_mean", "sequence_sum"),
    "optim.loss_spike": number("(1, inf)") | NOTHING,
    **{f"trainer.{name}": rule for name, rule in TRAINER.items()},
}
COMPARE = {
    "runs": TEXTS,
    "evaluation": TEXT | NOTHING,
    "baseline": TEXT | NOTHING,
    "scores": TEXTS | NOTHING,
    "resamples": SIZE,
    "allow": TEXTS,
    "output": TEXT,
}
COMMANDS = {
    "train": TRAIN,
    "evaluate": {
        "run": TEXT,
        "split": TEXT,
        "task": TASK | NOTHING,
        "data_set": TEXT | NOTHING,
        **DATA,
        "data.root": TEXT | NOTHING,
        "metrics": METRICS,
        "tokens": TOKENS,
        "shots": COUNT | NOTHING,
        "samples": SIZE,
        "output": TEXT | NOTHING,
    },
    "caption": {"run": TEXT, "images": TEXTS, "output": TEXT | NOTHING, "batch_size": SIZE},
    "explain": {"run": TEXT, "images": TEXTS | NOTHING, "samples": SIZE, "output": TEXT | NOTHING},
    "pipeline": {
        "seed": SEED,
        "name": TEXT,
        "split": TEXT,
        **DATA,
        "metrics": METRICS,
        "tokens": TOKENS,
        "samples": SIZE,
    },
    "score": {
        "predictions": TEXT,
        "references": TEXT | NOTHING,
        "split": TEXT | NOTHING,
        "ids": word(*IDS) | NOTHING,
        "missing": word("refuse", "score_predicted", "empty"),
        "metrics": METRICS,
        "tokens": TOKENS,
        "images": TEXT | NOTHING,
        "clip.model": TEXT,
        "clip.pretrained": TEXT | NOTHING,
        "output": TEXT | NOTHING,
    },
    "compare": {**COMPARE, "along": TEXT | NOTHING},
    "report": {**COMPARE, "pictures": FLAG, "gallery": COUNT | NOTHING},
    "export": {"run": TEXT, "to": TEXT, "frozen": word("reference", "include")},
    "benchmark": {
        "fusions": TEXTS | NOTHING,
        "peers": TEXTS,
        "regimes": TEXTS,
        "sizes": TEXTS,
        **{
            f"size.*.{name}": SIZE
            for name in ("layers", "width", "heads", "vocabulary", "context", "visual_tokens", "visual_width")
        },
        "dropout": number("[0, 1)"),
        "lengths": TEXT | NOTHING,
        "images": SIZE,
        "by_length": FLAG,
        "captions": SIZE,
        "max_tokens": whole(3),
        "decode.batches": several(SIZE),
        "decode.beams": SIZE,
        "decode.tokens": SIZE,
        "encoder": TEXT,
        "repeats": SIZE,
        "seconds": RATE,
        "device": word("auto", "cpu", "cuda"),
        "precision": word("auto", "32-true", "bf16-mixed"),
        "compile": FLAG,
        "seed": SEED,
        "output": TEXT,
    },
    "dashboard": {"project": project("entity"), "entity": TEXT | NOTHING, "output": TEXT},
    "doctor": {"runs": TEXT},
    "sync": {"run": TEXT},
}
# Ranges of constructor options: by names that mean the same everywhere, and what single classes mean by theirs. Classes
# refuse these values themselves too; here it does not take the seconds that importing them takes.
SHARED = {
    **dict.fromkeys(("layers", "heads", "width", "every", "context", "image_size", "patch", "max_tokens"), SIZE),
    **dict.fromkeys(("dropout", "cross_dropout", "encoder_dropout"), number("[0, 1)")),
    "on_error": word("raise", "skip"),
    "max_skipped": SHARE,
}
CLASSES = {
    "src.fusion.clipcap.ClipCap": {"mapper": word("mlp", "transformer"), "prefix_length": SIZE, "clip_length": SIZE},
    "src.fusion.coca.CoCa": {
        "queries": SIZE,
        "pool": word("cascade", "parallel"),
        "n_uni": SIZE | NOTHING,
        "embed_width": SIZE | NOTHING,
        "pooler_heads": SIZE,
        "xattn_out_init": word("default", "zero"),
        "contrastive_weight": RATE,
        "caption_weight": RATE,
        "temperature_init": number("(0, inf)"),
    },
    "src.fusion.flamingo.Flamingo": {
        **dict.fromkeys(("latents", "resampler_layers", "head_width", "ffw_ratio", "max_frames"), SIZE),
        "resampler_width": SIZE | NOTHING,
        "latents_std": number("(0, inf)"),
        "activation": word("sqrelu", "gelu"),
    },
    "src.data.shards.Shards": {"window": SIZE},
    "src.fusion.srau.SRAU": {
        "gate": word("concat", "hidden", "none"),
        "tau": number("[0, 0.5)"),
        "levels": SIZE,
        "level_norm": word("sqrt", "mean"),
        "level_source": word("auto", "vision", "encoder"),
        "encoder_form": word("authors", "early"),
    },
    "src.fusion.vcgpt.VCGPT": {
        "head": word("separate", "shared"),
        "wg": word("copy_trained", "copy_frozen", "tied"),
        "wf_init": word("normal", "zero"),
    },
    "src.decoding.beam.BeamSearch": {"beams": SIZE, "length_penalty": RATE},
    "src.decoding.sample.Sample": {
        "temperature": number("(0, inf)"),
        "top_k": COUNT,
        "top_p": number("(0, 1]"),
        "seed": SEED,
    },
    "src.vision.vit.ViT": {"stem": word("conv", "patch")},
    "src.text.tokenizers.ByteLevelBPE.train": {"vocabulary": whole(260)},  # 256 bytes and 4 special tokens
    "src.language.load.pretrained": {"init": word("pretrained", "random")},
    "src.data.scenes.Scenes": {"seed": SEED, "train": SIZE, "val": SIZE, "test": COUNT, "compositional": COUNT},
    "src.data.stories.ScenesInterleaved": {
        "seed": SEED,
        "train": SIZE,
        "val": SIZE,
        "test": COUNT,
        "pictures": whole(2),
    },
    "src.data.captions_text.CaptionsText": {"validation": number("(0, 1)")},
    "src.tracking.Wandb": {"mode": word("auto", "online", "offline", "disabled"), "project": project("logger.entity")},
}
SIMPLE = {"int": _is_whole, "float": _is_number, "bool": FLAG.fits, "str": lambda value: isinstance(value, str)}
SIMPLE |= {"None": NOTHING.fits, "Sequence[str]": TEXTS.fits}


def rule_of(command: str, key: str) -> Rule | None:
    """The rule of the option ``key`` ("trainer.max_steps") of a command; None where there is no such option.

    Members of a mixture have the options of a data set. A "*" in the table stands for one name.
    """
    rules = COMMANDS[command]
    key = re.sub(r"^data\.members\.[^.]+\.", "data.", key)
    if key in rules:
        return rules[key]
    return rules.get(re.sub(r"^(size\.)[^.]+(?=\.)|(?<=^data\.weights\.)[^.]+$", r"\1*", key))


def rule_for(target: str, name: str) -> Rule | None:
    """The range of the option ``name`` of a ``_target_``, if the tables have one."""
    return CLASSES.get(target, {}).get(name, SHARED.get(name))


def typed(annotation: str) -> Rule | None:
    """The rule of an annotation of simple types, "int | None"; None for others, about which nothing is said."""
    kinds = [kind.strip() for kind in annotation.split("|")]
    if not set(kinds) <= set(SIMPLE):
        return None
    says = " or ".join({"None": "null"}.get(kind, kind) for kind in kinds)
    return Rule(f"of type {says}", lambda value: any(SIMPLE[kind](value) for kind in kinds))


def like(default) -> Rule:
    """The rule of an option of which nothing but its default is known."""
    if isinstance(default, dict):
        return GROUP
    return typed(type(default).__name__) if isinstance(default, bool | int | float) else ANYTHING
