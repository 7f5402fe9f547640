"""Checks of the configuration that need no data: each answers in one sentence before any work is done."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.errors import UserError
from src.records import run_config


def check(cfg: DictConfig) -> None:
    """Refuse unknown options, unset values, and options that the chosen parts refuse. Raises UserError."""
    try:
        OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key or 'configuration'}: {str(error).splitlines()[0]}") from error
    for key, node in _targets(cfg):
        _check_options(key, node)
    _rehearse_fusion(cfg)
    if cfg.trainer.max_steps == -1 and cfg.trainer.max_epochs in (-1, None):
        raise UserError("Training would never end: set trainer.max_steps or trainer.max_epochs.")


def use_previous_language(cfg: DictConfig) -> DictConfig:
    """With ``language.weights=<run folder>``, take tokenizer and model settings from that run.

    Dropout stays as asked for now: it says how a model trains, not what it is.
    """
    weights = cfg.language.get("weights")
    if weights is None:
        return cfg
    language = OmegaConf.merge(run_config(weights).language, {"weights": str(Path(weights))})
    if "dropout" in cfg.language.model and "dropout" in language.model:
        language.model.dropout = cfg.language.model.dropout
    OmegaConf.set_struct(cfg, False)
    cfg.language = language
    OmegaConf.set_struct(cfg, True)
    return cfg


def _targets(node: DictConfig, key: str = "") -> Iterator[tuple[str, DictConfig]]:
    """Every node that names a class or function of this project, with its key."""
    if str(node.get("_target_", "")).startswith("src."):
        yield key, node
    for name in node:
        if OmegaConf.is_dict(node._get_node(name)) and node[name] is not None:
            yield from _targets(node[name], f"{key}.{name}".lstrip("."))


def _check_options(key: str, node: DictConfig) -> None:
    """The options of ``node`` must be parameters of its target, and of the annotated simple type."""
    from hydra.utils import get_object

    try:
        target = get_object(node._target_)
    except Exception as error:
        raise UserError(f"{key}._target_={node._target_} cannot be loaded: {str(error).splitlines()[0]}") from error
    parameters = inspect.signature(target).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    for name in node:
        if name.startswith("_"):
            continue
        if name not in parameters:
            near = difflib.get_close_matches(name, parameters, 1)
            hint = f"; did you mean {key}.{near[0]}?" if near else f"; it knows {', '.join(parameters)}."
            raise UserError(f"{key} has no option {name!r}{hint}")
        _check_type(f"{key}.{name}", node[name], parameters[name].annotation)


def _check_type(key: str, value, annotation) -> None:
    simple = {"int": int, "float": (int, float), "bool": bool, "str": str}
    wanted = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    if wanted not in simple or value is None:
        return
    right = isinstance(value, simple[wanted]) and (wanted == "bool" or not isinstance(value, bool))
    if not right:
        raise UserError(f"{key} must be of type {wanted}; got {value!r}.")


def _rehearse_fusion(cfg: DictConfig) -> None:
    """Build the fusion without memory, between stand-ins for vision and language, so that it can refuse its options."""
    import torch
    from hydra.utils import instantiate

    from src.contracts import LanguageSpec, VisionSpec

    vision = VisionSpec(width=768, tokens=49, pooled_width=768, image_size=224, levels=12)
    language = LanguageSpec(width=768, layers=12, heads=12, vocabulary=1000, context=1024, bos=0, eos=1, pad=2)
    with torch.device("meta"):
        instantiate_plainly(cfg.fusion, instantiate)(vision, language)


def instantiate_plainly(node: DictConfig, instantiate):
    """Hydra's instantiate, with a UserError raised inside shown as itself."""
    from hydra.errors import InstantiationException

    try:
        return instantiate(node)
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise
