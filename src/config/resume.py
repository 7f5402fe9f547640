"""``resume=<run folder>``: a run goes on with its own options, which need not be said again."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from src.config.added_keys import run_config
from src.config.checks import groups
from src.config.classes import flatten
from src.config.make import INCIDENTAL, check_saved, is_below
from src.errors import UserError
from src.records.files import verify

# What the weights in a checkpoint mean nothing without. Other options may change where a run is gone on with.
FIXED = ("seed", "weights", "data", "vision", "projector", "language", "fusion")
FIXED += ("regime.train_language", "regime.train_vision", "regime.lora")
GLOBAL = ("experiment", "debug")  # groups that change options of other groups


def completed(words: Sequence[str]) -> list[str]:
    """A command line with the groups that the run of ``resume=<run folder>`` was begun with, where it names none.

    Hydra makes the name of the new run folder of them. Raises UserError for what is no run folder.
    """
    said = {key: value for key, value in map(_split, words)}
    folder = said.get("resume", "auto")
    if folder in ("auto", "null") or {"-m", "--multirun"} & set(words):
        return list(words)
    run_config(folder)
    return [*words, *(f"{group}={name}" for group, name in _choices(folder).items() if group not in said and name)]


def resumed(cfg: DictConfig, words: Sequence[str], say: Callable[[str], object]) -> DictConfig:
    """``cfg``, or with ``resume=<run folder>`` the options of that run, and those that ``words`` name.

    ``words``: a completed command line. What changes is told to ``say``, in one sentence. Raises UserError for options
    that the run cannot go on with.
    """
    if cfg.resume in (None, "auto"):
        return cfg
    folder, choices = str(cfg.resume), _choices(str(cfg.resume))
    saved = run_config(folder)
    check_saved(saved, Path(folder) / "config.yaml")
    asked, before = (dict(flatten(OmegaConf.to_container(one, resolve=True))) for one in (cfg, saved))
    named = {"resume"}
    for key, value in map(_split, words):
        if choices.get(key, value) == value and key in groups():
            continue
        if key in GLOBAL:
            raise UserError(f"{folder} was begun with {key}={choices[key] or 'null'}; leave {key}={value} out.")
        named |= {
            name for name in asked.keys() | before.keys() if is_below(name, (key, *_read_from(key, asked, before)))
        }
    changed = {name: asked.get(name) for name in sorted(named) if asked.get(name) != before.get(name)}
    for name, value in changed.items():
        if is_below(name, FIXED) and not is_below(name, INCIDENTAL):
            raise UserError(
                f"{folder} was begun with {name}={before.get(name)} and cannot go on with {value}; leave that out, or "
                "train anew without resume."
            )
        if name in asked:
            OmegaConf.update(saved, name, value, force_add=True)
        else:  # of another class
            group, _, last = name.rpartition(".")
            del OmegaConf.select(saved, group)[last]
    told = [f"{name}={value} instead of {before.get(name)}" for name, value in changed.items() if name != "resume"]
    if told:
        say(f"note: {folder} goes on with {', '.join(told)}.")
    return saved


def _split(word: str) -> tuple[str, str]:
    """Key and value of "key=value"; a quoted value without its quotes, as Hydra reads it."""
    key, _, value = word.lstrip("+").partition("=")
    if value[:1] in ("'", '"'):
        from hydra.core.override_parser.overrides_parser import OverridesParser

        with suppress(HydraException):  # a word that cannot be read is answered where all words are
            return key, str(OverridesParser.create().parse_override(f"{key}={value}").value())
    return key, value


def _choices(folder: str) -> dict[str, str | None]:
    """The words that a run was begun with, by their groups; none where environment.json is lost."""
    path = Path(folder) / "environment.json"
    verify(folder, path.name)
    return json.loads(path.read_text(encoding="utf-8")).get("choices", {}) if path.is_file() else {}


def _read_from(key: str, *both: dict) -> list[str]:
    """The options below that are what the option ``key`` is, in both configurations: data.source.root for data.root."""
    group, _, name = key.rpartition(".")
    alike = (other for other in both[0] if other.startswith(f"{group}.") and other.endswith(f".{name}"))
    return [other for other in alike if all(one.get(other) == one.get(key) for one in both)]
