"""Checks of the configuration that need no data: each answers in one sentence before any work is done."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from src.config.added_keys import without_absent
from src.config.checks import check_device
from src.config.checks import check_secrets as check_secrets
from src.config.classes import HOME as HOME
from src.config.classes import check_saved as check_saved
from src.config.classes import check_targets, flatten, trait
from src.config.classes import is_ours as is_ours
from src.config.fit import PICTURELESS, check_fit
from src.errors import UserError
from src.records.converted import check_convertible
from src.records.wandb_runs import require_package

if TYPE_CHECKING:
    from src.contracts import Source


def data_sets(cfg: DictConfig) -> dict[str, DictConfig]:
    """The data sets of a configuration by name; a single one is named ""."""
    return dict(cfg.data.members) if "members" in cfg.data else {"": cfg.data}


def check(cfg: DictConfig) -> dict[str, Source]:
    """Refuse options and parts that do not go together, devices and data that are not here.

    Returns the data sources by name, since making them is how their files are looked for. Each option by itself has
    been checked by ``verb``; since then ``cfg`` may have got the language model of an earlier run. Raises UserError.
    """
    check_fit(cfg)
    check_device(cfg.trainer)
    check_convertible(cfg.language.model.get("name") or "")
    if cfg.regime.get("lora"):
        require_package("peft", "regime=lora")
    sees = trait(cfg.fusion._target_, "sees") is not False
    sources = {name: make(node.source) for name, node in data_sets(cfg).items()}
    for number, source in enumerate(sources.values()):  # texts may be read beside the pictures of the first
        _check_source(source, sees and number == 0, cfg.test_split)
    return sources


def _check_source(source: Source, sees: bool, test_split: str | None) -> None:
    if sees and not source.has_images:
        raise UserError(PICTURELESS)
    for split in ("train", "val", *([test_split] if test_split and source.has_images else [])):
        if split not in source.splits():
            raise UserError(
                f"The data has no split {split!r}, only {', '.join(source.splits())}; see test_split= and data=."
            )


# Neither what is learnt nor how it is scored depends on these, but for rounding.
INCIDENTAL = (
    "dropout",  # of which each mechanism has its own, which counts
    *("name", "sweep", "resume", "samples", "val_captions", "logger", "language.recompute", "data.pack"),
    *("data.workers", "data.root", "data.source.root", "data.cache_dir", "data.source.cache_dir"),
    *("data.max_skipped", "data.source.max_skipped"),
    *("language.names", "regime.lr_pretrained"),  # what is chosen among, or taken from; what was stands beside it
)


def config_hash(cfg: DictConfig) -> str:
    """sha256 of everything that a run's results depend on: equal for the same run asked for twice."""
    return hashlib.sha256(json.dumps(counted(cfg), sort_keys=True, default=str).encode()).hexdigest()


def counted(cfg: DictConfig) -> dict[str, object]:
    """The flat options that a run's results depend on."""
    plain = OmegaConf.to_container(cfg, resolve=False)
    plain.pop("hydra", None)
    plain = OmegaConf.to_container(OmegaConf.create({**plain, "name": ""}), resolve=True)
    return {key: value for key, value in flatten(without_absent(plain)) if not is_below(key, INCIDENTAL)}


def is_below(key: str, tops: Iterable[str]) -> bool:
    """Whether a flat key is one of ``tops`` or inside one."""
    return any(key == top or key.startswith(f"{top}.") for top in tops)


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
