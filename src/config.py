"""Checks of the configuration that need no data: each answers in one sentence before any work is done."""

from __future__ import annotations

import ast
import difflib
import hashlib
import inspect
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.errors import UserError
from src.records import is_secret, run_config

if TYPE_CHECKING:
    from src.contracts import Source
    from src.fusion.base import Fusion

HOME = Path(__file__).resolve().parents[1]

# Hydra would call anything that can be imported, os.system too, and configurations travel with run folders.
ROOMS = ("data", "decoding", "fusion", "language", "text", "tracking", "vision")  # whose classes configurations name
LOGGER = re.compile(r"lightning\.pytorch\.loggers\.[A-Z]\w*")  # of the library, by their short names only


def data_sets(cfg: DictConfig) -> dict[str, DictConfig]:
    """The data sets of a configuration by name; a single one is named ""."""
    return dict(cfg.data.members) if "members" in cfg.data else {"": cfg.data}


def check(cfg: DictConfig) -> dict[str, Source]:
    """Refuse unknown options, options that the chosen parts refuse, parts that do not fit, and data that are not here.

    Returns the data sources by name, since making them is how their files are looked for. The cheap checks come first,
    and nothing heavier than torch is imported. Raises UserError.
    """
    try:
        OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key or 'configuration'}: {str(error).splitlines()[0]}") from error
    check_targets(cfg)
    check_secrets(cfg)
    for key, node in _targets(cfg):
        _check_options(key, node)
    if cfg.trainer.max_steps == -1 and cfg.trainer.max_epochs in (-1, None):
        raise UserError("Training would never end: set trainer.max_steps or trainer.max_epochs.")
    if not (cfg.regime.train_language or cfg.language.weights or cfg.language.get("init") == "pretrained"):
        raise UserError(
            "regime=frozen_lm would freeze a language model with random weights; "
            "give language.weights=<run folder>, or use regime=finetune_lm."
        )
    if cfg.optim.reduction not in ("token_mean", "sequence_sum"):
        raise UserError(f"optim.reduction must be token_mean or sequence_sum; got {cfg.optim.reduction!r}.")
    if "members" in cfg.data:
        from src.data.mixture import check_mixture

        check_mixture(cfg.data.members, cfg.data.weights, cfg.data.schedule)
    from src.metrics.extra import check_names

    check_names(cfg.metrics)
    if cfg.val_captions < 0:
        raise UserError(f"val_captions must be 0 or more; got {cfg.val_captions}.")
    fusion = _rehearse_fusion(cfg)
    sources = {name: make(node.source) for name, node in data_sets(cfg).items()}
    for source in sources.values():
        _check_source(source, fusion, cfg.test_split)
    return sources


def _check_source(source: Source, fusion: Fusion, test_split: str) -> None:
    if fusion.sees and not source.has_images:
        raise UserError("This fusion reads pictures and the data has none; use fusion=blind or data with pictures.")
    for split in ("train", "val", *([test_split] if source.has_images else [])):
        if split not in source.splits():
            raise UserError(
                f"The data has no split {split!r}, only {', '.join(source.splits())}; see test_split= and data=."
            )


# Neither what is learnt nor how it is scored depends on these.
INCIDENTAL = (
    *("name", "sweep", "resume", "samples", "val_captions", "logger"),
    *("data.workers", "data.root", "data.source.root", "data.cache_dir", "data.max_skipped", "data.source.max_skipped"),
)


def config_hash(cfg: DictConfig) -> str:
    """sha256 of everything that a run's results depend on: equal for the same run asked for twice."""
    plain = OmegaConf.to_container(cfg, resolve=False)
    plain.pop("hydra", None)
    plain = OmegaConf.to_container(OmegaConf.create({**plain, "name": ""}), resolve=True)
    flat = {key: value for key, value in flatten(plain) if not is_below(key, INCIDENTAL)}
    return hashlib.sha256(json.dumps(flat, sort_keys=True, default=str).encode()).hexdigest()


def flatten(node, key: str = "") -> Iterator[tuple[str, object]]:
    """Nested dictionaries as ("a.b", value) pairs."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from flatten(value, f"{key}.{name}" if key else str(name))
    else:
        yield key, node


def is_below(key: str, tops: Iterable[str]) -> bool:
    """Whether a flat key is one of ``tops`` or inside one."""
    return any(key == top or key.startswith(f"{top}.") for top in tops)


def check_targets(node: DictConfig, what: str = "") -> None:
    """Refuse every ``_target_`` in ``node`` but public classes, functions and class methods of our rooms, and loggers.

    Only what is written in a file of ours counts, not what that file imports. Raises UserError.
    """
    for key, target in flatten_all(OmegaConf.to_container(node, resolve=True)):
        if re.split(r"[.\[]", key)[-1] == "_target_" and not is_ours(target):
            raise UserError(
                f"{what}{key}={target} is refused: configurations may only name classes of this project "
                f"(src.{', src.'.join(ROOMS)}) and lightning's loggers."
            )


def is_ours(target) -> bool:
    """Whether a ``_target_`` may be called."""
    if not isinstance(target, str):
        return False
    return LOGGER.fullmatch(target) is not None or _written_here(target) is not None


def check_saved(cfg: DictConfig, path: Path) -> None:
    """Refuse a saved configuration that could do more than hold values: foreign classes, and interpolations.

    Interpolations are resolved before a configuration is saved; here they could only read, say, the environment.
    Raises UserError.
    """
    for key, value in flatten_all(OmegaConf.to_container(cfg)):
        if isinstance(value, str) and "${" in value:
            raise UserError(
                f"{path}: {key}={value} is refused: a saved configuration holds values, nothing to look up."
            )
    check_targets(cfg, f"{path}: ")


def check_secrets(cfg: DictConfig) -> None:
    """Refuse secrets among the values: every run writes its configuration down, and loggers upload it."""
    for key, value in flatten(OmegaConf.to_container(cfg, resolve=True)):
        if is_secret(key, value):
            raise UserError(
                f"{key} looks like a secret, and the configuration is written into the run folder; leave it out and "
                "set an environment variable instead (WANDB_API_KEY, HF_TOKEN)."
            )


def flatten_all(node, key: str = "") -> Iterator[tuple[str, object]]:
    """``flatten`` that goes into lists too: ("a[0].b", value)."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from flatten_all(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from flatten_all(value, f"{key}[{number}]")
    else:
        yield key, node


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
    """The options of ``node`` must be parameters of its target, and of the annotated simple type.

    The target's source is read, not imported: importing all of them would take seconds.
    """
    parameters = _parameters(key, node._target_)
    for name in node:
        if name.startswith("_"):
            continue
        if name not in parameters:
            near = difflib.get_close_matches(name, parameters, 1)
            hint = f"; did you mean {key}.{near[0]}?" if near else f"; it knows {', '.join(parameters)}."
            raise UserError(f"{key} has no option {name!r}{hint}")
        _check_type(f"{key}.{name}", node[name], parameters[name])


def _parameters(key: str, target: str) -> dict[str, str]:
    """Names and annotations of the parameters of ``src.<module>.<function, class or Class.method>``."""
    found = _written_here(target)
    if isinstance(found, ast.ClassDef):
        found = _defined(found, "__init__")
    if isinstance(found, ast.FunctionDef):
        every = found.args.args + found.args.kwonlyargs
        return {a.arg: ast.unparse(a.annotation) if a.annotation else "" for a in every}
    return _imported_parameters(key, target)


def _imported_parameters(key: str, target: str) -> dict[str, str]:
    """The same by importing, for classes that inherit their constructor."""
    from hydra.utils import get_object

    try:
        parameters = inspect.signature(get_object(target)).parameters
    except Exception as error:
        raise UserError(f"{key}._target_={target} cannot be loaded: {str(error).splitlines()[0]}") from error
    return {name: str(p.annotation) for name, p in parameters.items()}


def _written_here(target: str) -> ast.ClassDef | ast.FunctionDef | None:
    """Where a room of this project defines ``src.<module>.<class, function or Class.classmethod>``; None elsewhere."""
    parts = target.split(".")
    if parts[0] != "src" or parts[1:2] == [] or parts[1] not in ROOMS or not all(map(str.isidentifier, parts)):
        return None
    for end in range(len(parts) - 1, 0, -1):
        file = HOME.joinpath(*parts[:end]).with_suffix(".py")
        if file.is_file():
            names = parts[end:]
            found = _defined(ast.parse(file.read_text(encoding="utf-8")), names[0])
            if len(names) == 2 and isinstance(found, ast.ClassDef):
                method = _defined(found, names[1])
                alone = {ast.unparse(decorator) for decorator in getattr(method, "decorator_list", ())}
                found = method if alone & {"classmethod", "staticmethod"} else None
            public = len(names) <= 2 and not any(name.startswith("_") for name in names)
            return found if public and isinstance(found, ast.ClassDef | ast.FunctionDef) else None
    return None


def _defined(scope: ast.AST | None, name: str) -> ast.AST | None:
    return next((node for node in getattr(scope, "body", ()) if getattr(node, "name", None) == name), None)


def _check_type(key: str, value, annotation: str) -> None:
    simple = {"int": int, "float": (int, float), "bool": bool, "str": str}
    if annotation not in simple:
        return
    right = isinstance(value, simple[annotation]) and (annotation == "bool" or not isinstance(value, bool))
    if not right:
        raise UserError(f"{key} must be of type {annotation}; got {value!r}.")


def _rehearse_fusion(cfg: DictConfig) -> Fusion:
    """Build the fusion without memory, between stand-ins for vision and language, so that it can refuse its options."""
    import torch

    from src.contracts import LanguageSpec, VisionSpec

    vision = VisionSpec(width=768, tokens=49, pooled_width=768, image_size=224, levels=12)
    language = LanguageSpec(width=768, layers=12, heads=12, vocabulary=1000, context=1024, bos=0, eos=1, pad=2)
    with torch.device("meta"):
        return make(cfg.fusion)(vision, language)


def make(node: DictConfig):
    """Hydra's instantiate, with a UserError raised inside shown as itself."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    check_targets(node)
    try:
        return instantiate(node)
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise
