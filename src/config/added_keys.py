"""Options that were added after commit 25be8f1: what a configuration means that does not have them yet.

A row for every new option of a group in conf/ that a run's results depend on: its flat key ("decode.rule", also for the
members of a mixture: "data.rule"), or, where other classes have an option of that name, the class and the name
("src.fusion.srau.SRAU.dropout"); and the value with which everything is computed as it was before there was the option,
whatever the default in conf/ is by now. Saved runs and exports without the option are read as if they had that value,
and that value does not count in the hash of a configuration: finished runs of a sweep stay finished, arms stay one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from src.config.classes import is_ours, parameters
from src.records.folder import written_config

ABSENT: dict[str, object] = {
    "task": None,
    "data.pack": False,
    "src.data.folder.Folder.images": None,
    "src.data.folder.Folder.image_column": None,
    "src.data.folder.Folder.caption_column": None,
    "src.data.folder.Folder.separator": None,
    "src.fusion.srau.SRAU.encoder_form": "early",
}


def run_config(folder: Path | str) -> DictConfig:
    """The configuration of a run or an export, with the options that were added since. Raises UserError as
    ``written_config`` does."""
    plain = OmegaConf.to_container(written_config(folder))
    for place, node in _groups(plain):
        for name, value in _added(place, node).items():
            node.setdefault(name, value)
    return OmegaConf.create(plain)


def without_absent(plain: dict) -> dict:
    """A copy of a plain configuration without those added options that say what their absence says."""
    added = {place: _added(place, node) for place, node in _groups(plain)}

    def copied(node: dict, place: str) -> dict:
        return {
            name: copied(value, f"{place}.{name}".lstrip(".")) if isinstance(value, dict) else value
            for name, value in node.items()
            if name not in added[place] or value != added[place][name]
        }

    return copied(plain, "")


def decoding_without_absent(decoding: dict) -> dict:
    """The same of what metrics.json says about decoding: the decoder's class by its short name, beside its options."""
    own = ("decode", f".{decoding.get('method')}")
    added = {key.rpartition(".")[2]: value for key, value in ABSENT.items() if key.rpartition(".")[0].endswith(own)}
    return {name: value for name, value in decoding.items() if name not in added or value != added[name]}


def _groups(node, place: str = "") -> Iterator[tuple[str, dict]]:
    """All groups of a plain configuration with their flat keys; the whole of it has the key ""."""
    if isinstance(node, dict):
        yield place, node
        for name, value in node.items():
            yield from _groups(value, f"{place}.{name}".lstrip("."))


def _added(place: str, node: dict) -> dict[str, object]:
    """The rows of one group: name -> value. Of a class only what it takes: configurations of others lack it rightly."""
    group, target = re.sub(r"^data\.members\.[^.]+", "data", place), node.get("_target_")
    found = {}
    for key, value in ABSENT.items():
        where, _, name = key.rpartition(".")
        if where == target or (where == group and (target is None or _takes(place, target, name))):
            found[name] = value
    return found


def _takes(place: str, target: str, name: str) -> bool:
    """Whether a class of ours has the option; others, which are refused later, are not even looked at."""
    return is_ours(target) and name in parameters(place, target)
