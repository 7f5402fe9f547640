"""What earlier runs decide of a configuration.

language.weights=<run>    the language model and its tokenizer
weights=<run>             the same, and all else begins at what the run has learnt: its mechanism must be the one
                          that is asked for (src.build.begin_at)
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from src.config.added_keys import run_config
from src.config.classes import check_saved, flatten
from src.errors import UserError

OWN = ("dropout", "weights")  # what may differ: how a part trains, and where it comes from


def use_earlier(cfg: DictConfig) -> DictConfig:
    """``cfg`` with what the runs that it names decide. Raises UserError where they are none, or do not fit."""
    return _use_language(_begin_at(cfg))


def _begin_at(cfg: DictConfig) -> DictConfig:
    weights = cfg.get("weights")
    if weights is None:
        return cfg
    folder = Path(weights).expanduser()
    earlier = run_config(folder)
    if cfg.language.weights not in (None, weights, str(folder)):
        raise UserError("weights= brings the language model of its run; leave language.weights= out.")
    trained = earlier.regime.train_language or earlier.language.weights  # else it is the checkpoint that it was there
    for part in ("projector", "fusion", "vision", *(() if trained else ("language",))):
        _require_same(folder, part, earlier.get(part), cfg.get(part))
    OmegaConf.set_struct(cfg, False)
    cfg.weights = str(folder)
    if trained:
        cfg.language.weights = str(folder)
    OmegaConf.set_struct(cfg, True)
    return cfg


def _require_same(folder: Path, part: str, there: DictConfig | None, here: DictConfig | None) -> None:
    """Raises UserError, naming the first option, unless a part is what it was."""
    before, now = (dict(flatten(OmegaConf.to_container(one, resolve=True))) if one else {} for one in (there, here))
    for name in sorted(before.keys() | now.keys(), key=lambda name: (name != "_target_", name)):
        if name.rpartition(".")[2] not in OWN and before.get(name) != now.get(name):
            raise UserError(
                f"weights={folder} was trained with {part}.{name}={before.get(name)}, and here it is {now.get(name)}; "
                f"give the {part} options of its config.yaml."
            )


def _use_language(cfg: DictConfig) -> DictConfig:
    """With ``language.weights=<run folder>``, take tokenizer and model settings from that run.

    Dropout stays as asked for now: it says how a model trains, not what it is.
    """
    weights = cfg.language.get("weights")
    if weights is None:
        return cfg
    folder = Path(weights).expanduser()
    earlier = run_config(folder)
    check_saved(OmegaConf.masked_copy(earlier, ["language"]), folder)
    if earlier.regime.get("lora"):
        raise UserError(
            f"{folder} has adapters beside the language model that it took; add them to it (python -m src.export "
            f"run={folder} to=<folder>), and give that folder as language.weights."
        )
    language = OmegaConf.merge(earlier.language, {"weights": str(folder)})
    if "dropout" in cfg.language.model and "dropout" in language.model:
        language.model.dropout = cfg.language.model.dropout
    OmegaConf.set_struct(cfg, False)
    cfg.language = language
    OmegaConf.set_struct(cfg, True)
    return cfg
