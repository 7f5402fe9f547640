"""What of the options of src.train does not go together, as far as the configuration itself tells.

Classes refuse their own pairs in their constructors too, so that a mechanism of one's own needs no entry here. But
importing them takes seconds, and a wrong command is to be answered in less than two: nothing heavy is imported here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig, OmegaConf

from src.config.added_keys import run_config
from src.config.classes import lineage, trait
from src.errors import UserError

SIZES = ("width", "layers", "heads", "context")  # of language models; of those that are named:
GPT2 = {
    "gpt2": (768, 12, 12, 1024),
    "gpt2-medium": (1024, 24, 16, 1024),
    "gpt2-large": (1280, 36, 20, 1024),
    "gpt2-xl": (1600, 48, 25, 1024),
}


class Known:
    """Options as attributes. What is not told (null, or not there) is nan: every comparison with it is false."""

    def __init__(self, options: Mapping):
        self._options = options

    def __getattr__(self, name: str):
        value = self._options.get(name)
        return math.nan if value in (None, "???") else value


class Parts(NamedTuple):
    """``language``: the sizes of the model; ``vision``: also how many levels it hands out; ``data``: whether any of the
    data sets is ``text_only`` or ``interleaved``."""

    fusion: Known
    language: Known
    vision: Known
    data: Known


class Pair(NamedTuple):
    """``wrong``: whether options exclude each other; ``says``: the sentence, in which options stand by their names."""

    wrong: Callable[[Parts], bool]
    says: str


# By the class that one of the options belongs to.
PAIRS = {
    "src.fusion.clipcap.ClipCap": (
        Pair(
            lambda p: p.fusion.mapper == "transformer" and p.language.width % p.fusion.heads > 0,
            "fusion.heads={fusion.heads} must divide the language model's width {language.width}.",
        ),
        Pair(
            lambda p: p.data.interleaved,
            "fusion=clipcap reads one picture per text, and these data have several; use fusion=flamingo.",
        ),
    ),
    "src.fusion.coca.CoCa": (
        Pair(
            lambda p: p.language.layers < 2,
            "fusion=coca needs a language model of at least 2 blocks, one per half; this has {language.layers}.",
        ),
        Pair(
            lambda p: p.fusion.n_uni >= p.language.layers,
            "fusion.n_uni={fusion.n_uni} leaves no block for the upper half: the language model has {language.layers}.",
        ),
        Pair(
            lambda p: p.language.width % p.fusion.pooler_heads > 0,
            "fusion.pooler_heads={fusion.pooler_heads} must divide the language model's width {language.width}.",
        ),
        Pair(
            lambda p: p.fusion.contrastive_weight == p.fusion.caption_weight == 0,
            "fusion.contrastive_weight and fusion.caption_weight are both 0; one of them must be above.",
        ),
    ),
    "src.fusion.flamingo.Flamingo": (
        Pair(
            lambda p: p.fusion.gate is False and p.fusion.gate_init != 0,
            "fusion.gate_init={fusion.gate_init} needs fusion.gate=true.",
        ),
    ),
    "src.fusion.srau.SRAU": (
        Pair(
            lambda p: p.fusion.level_source == "vision" and p.fusion.levels > p.vision.levels,
            "fusion.levels={fusion.levels} is more than the {vision.levels} levels that the vision encoder hands out; "
            "use fewer, or fusion.level_source=encoder.",
        ),
    ),
    "src.fusion.vcgpt.VCGPT": (
        Pair(
            lambda p: p.fusion.wf_init == "zero" and not p.fusion.self_ensemble,
            "fusion.wf_init=zero without fusion.self_ensemble gives constant logits; use wf_init=normal.",
        ),
    ),
    "src.vision.vit.ViT": (
        Pair(
            lambda p: p.vision.image_size % p.vision.patch > 0,
            "vision.patch={vision.patch} must divide vision.image_size={vision.image_size}; the picture is cut into "
            "whole patches.",
        ),
        Pair(
            lambda p: p.vision.stem == "conv" and p.vision.patch not in [2**i for i in range(1, 20)],
            "vision.stem=conv halves the picture step by step: vision.patch must be 2, 4, 8 or a further power of two; "
            "got {vision.patch}.",
        ),
    ),
}


def check_fit(cfg: DictConfig) -> None:
    """Refuse options of src.train that exclude each other, without building anything. Raises UserError."""
    _check_made_later(cfg)
    _check_trainer(cfg)
    _check_regime(cfg)
    _check_heard(cfg)
    for group in ("language.model", "vision"):
        node = OmegaConf.select(cfg, group)
        if "heads" in node and node.get("width", 0) % node.heads:
            raise UserError(f"{group}.heads={node.heads} must divide {group}.width={node.width}.")
    parts = _parts(cfg)
    for target in (cfg.fusion._target_, cfg.vision._target_):
        for pair in PAIRS.get(target, ()):
            if pair.wrong(parts):
                raise UserError(pair.says.format(**parts._asdict()))
    if "members" in cfg.data:
        check_mixture(cfg.data.members, cfg.data.weights, cfg.data.schedule)
    if parts.data.text_only and trait(cfg.fusion._target_, "sees") is not False:
        raise UserError("This fusion reads pictures and the data has none; use fusion=blind or data with pictures.")
    _check_task(cfg)
    _check_positions(cfg, parts.language.context)
    if cfg.resume not in (None, "auto"):
        run_config(str(cfg.resume))


def use_previous_language(cfg: DictConfig) -> DictConfig:
    """With ``language.weights=<run folder>``, take tokenizer and model settings from that run.

    Dropout stays as asked for now: it says how a model trains, not what it is.
    """
    weights = cfg.language.get("weights")
    if weights is None:
        return cfg
    folder = Path(weights).expanduser()
    language = OmegaConf.merge(run_config(folder).language, {"weights": str(folder)})
    if "dropout" in cfg.language.model and "dropout" in language.model:
        language.model.dropout = cfg.language.model.dropout
    OmegaConf.set_struct(cfg, False)
    cfg.language = language
    OmegaConf.set_struct(cfg, True)
    return cfg


def _parts(cfg: DictConfig) -> Parts:
    levels = {"src.vision.vit.ViT": cfg.vision.get("layers"), "src.vision.efficientnet_lite.EfficientNetLite0": 0}
    vision = {**cfg.vision, "levels": levels.get(cfg.vision._target_)}
    targets = [member.source._target_ for member in _members(cfg).values()]
    data = {
        "text_only": any(trait(target, "has_images") is False for target in targets),
        "interleaved": any(trait(target, "interleaved") is True for target in targets),
    }
    return Parts(*map(Known, (cfg.fusion, language_sizes(cfg), vision, data)))


def language_sizes(cfg: DictConfig) -> dict[str, int]:
    """Width, layers, heads and context of the language model, as far as its options tell."""
    model = cfg.language.model
    named = dict(zip(SIZES, GPT2.get(model.get("name"), ()), strict=False))
    return named | {name: model[name] for name in SIZES if name in model}


def _members(cfg: DictConfig) -> dict[str, DictConfig]:
    """The data sets by the groups of their options."""
    members = cfg.data.get("members")
    return {"data": cfg.data} if members is None else {f"data.members.{name}": one for name, one in members.items()}


def _check_made_later(cfg: DictConfig) -> None:
    """What is given the other parts when it is made says so with ``_partial_``, and nothing else does."""
    for key in ("fusion", "language.model"):
        if not OmegaConf.select(cfg, key).get("_partial_"):
            raise UserError(f"{key} needs the line _partial_: true below its _target_; it is made when its parts are.")
    for key in ("vision", "decode", *(f"{group}.source" for group in _members(cfg))):
        if OmegaConf.select(cfg, key).get("_partial_"):
            raise UserError(f"{key} is made of its options alone; leave out the line _partial_: true.")


def _check_trainer(cfg: DictConfig) -> None:
    trainer = cfg.trainer
    if trainer.max_steps == -1 and trainer.max_epochs in (-1, None):
        if trainer.get("max_time"):
            raise UserError(
                f"trainer.max_time={trainer.max_time} does not say how many steps the learning rate is to come down "
                "in; set trainer.max_steps or trainer.max_epochs too."
            )
        raise UserError("Training would never end: set trainer.max_steps or trainer.max_epochs.")
    devices = trainer.devices
    many = len(devices) if OmegaConf.is_list(devices) else devices if isinstance(devices, int) else 1
    if trainer.strategy == "single_device" and many > 1:
        raise UserError(f"trainer.strategy=single_device and trainer.devices={trainer.devices} exclude each other.")
    if trainer.accelerator == "cpu" and devices != "auto" and not re.fullmatch(r"\d+", str(devices)):
        raise UserError(f"trainer.devices={devices} with trainer.accelerator=cpu: say how many processes.")
    if trainer.strategy == "fsdp" and (cfg.compile or cfg.val_captions):
        option = "compile=true" if cfg.compile else f"val_captions={cfg.val_captions}"
        raise UserError(f"{option} needs all weights on one device; leave it out, or use trainer.strategy=ddp.")
    if trainer.strategy == "fsdp" and trainer.precision in ("16-mixed", "64-true"):
        raise UserError(f"trainer.strategy=fsdp does not do trainer.precision={trainer.precision}; use bf16-mixed.")
    if cfg.optim.get("loss_spike") is not None and trainer.precision == "16-mixed":
        raise UserError("optim.loss_spike does not work with trainer.precision=16-mixed; use bf16-mixed or 32-true.")


def _check_regime(cfg: DictConfig) -> None:
    regime = cfg.regime
    for part in ("language", "vision"):
        if regime[f"train_{part}"] is True and regime[f"lr_{part}"] == 0:
            other = "regime=frozen_lm" if part == "language" else "regime.train_vision=false"
            raise UserError(
                f"regime.lr_{part}=0 while regime.train_{part}=true would train nothing; give a rate, or use {other}."
            )
    if not (regime.train_language or cfg.language.weights or cfg.language.get("init") == "pretrained"):
        raise UserError(
            "regime=frozen_lm would freeze a language model with random weights; "
            "give language.weights=<run folder>, or use regime=finetune_lm."
        )


def _check_heard(cfg: DictConfig) -> None:
    """Options that were added (+data.p_next=0.5) where nothing reads them."""
    if cfg.language.model._target_ == "src.language.load.tiny":
        for name in {"name", "init"} & set(cfg.language):
            raise UserError(f"language.{name} belongs to language=gpt2 and language=hub; language=tiny is made anew.")
    if "members" not in cfg.data and (added := sorted({"schedule", "weights"} & set(cfg.data))):
        raise UserError(f"data.{added[0]} belongs to data=mixture; here is a single data set.")
    for group, options in _members(cfg).items():
        if options.get("by_length") and trait(options.source._target_, "streamed") is True:
            raise UserError(f"{group}.by_length=true needs all captions at once; this data set is a stream.")
        interleaved = trait(options.source._target_, "interleaved") is True
        single, several = ("captions_per_image", "image_tag", "by_length", "cache_dir"), ("max_images", "p_next")
        for name in set(single if interleaved else several) & set(options):
            kind = "single pictures" if interleaved else "documents with several pictures"
            raise UserError(f"{group}.{name} belongs to data of {kind}, and these are others.")


def _check_task(cfg: DictConfig) -> None:
    """What is asked of a captioner on the first data set must be what these data and the mechanism are for."""
    task, source = cfg.get("task"), next(iter(_members(cfg).values())).source._target_
    if task is None:
        return
    if trait(source, "has_images") is False or trait(source, "task") != ("stories" if task == "stories" else "caption"):
        what = "documents with several pictures" if task == "stories" else "captioned pictures"
        raise UserError(f"task={task} needs {what}, and these data have others; leave task= out.")
    needed = "Retriever" if task == "retrieval" else "Writer"
    if needed not in lineage(cfg.fusion._target_):
        raise UserError(f"task={task} needs a mechanism that is a {needed}, and this is none; choose another fusion=.")


def check_mixture(members: Mapping, weights: Mapping[str, float], schedule: str) -> None:
    """Refuse weights that do not fit the data sets of a mixture. Raises UserError."""
    if set(members) != set(weights):
        raise UserError(
            f"data.weights must name the data sets of data.members, {', '.join(members)}; got {', '.join(weights)}."
        )
    if min(weights.values()) < 0 or max(weights.values()) == 0:
        raise UserError(f"data.weights must be 0 or more and not all 0; got {dict(weights)}.")
    if schedule not in ("accumulate", "round_robin"):
        raise UserError(f"data.schedule must be accumulate or round_robin; got {schedule!r}.")


def _check_positions(cfg: DictConfig, context: int | float) -> None:
    """Captions with a prefix must fit into the language model, as far as its size is known (else it is nan).

    Prefixes of mechanisms that do not call them ``prefix_length`` are met when the data are built.
    """
    prefix = cfg.fusion.get("prefix_length", 0)
    for group, asked in {**_members(cfg), "decode": cfg.decode}.items():
        if asked.max_tokens + max(0, prefix - 1) > context:
            beside = f" with fusion.prefix_length={prefix}" if prefix else ""
            ours = ", or raise language.model.context" if "context" in cfg.language.model else ""
            raise UserError(
                f"{group}.max_tokens={asked.max_tokens}{beside} does not fit: the language model reads {context} "
                f"positions; lower {group}.max_tokens{ours}."
            )
