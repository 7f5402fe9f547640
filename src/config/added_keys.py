"""Options that were added after commit 25be8f1: what a configuration means that does not have them yet.

A row for every new option of a group in conf/ that a run's results depend on: its flat key ("decode.rule", also for the
members of a mixture: "data.rule"), or, where other classes have an option of that name, the class and the name
("src.fusion.srau.SRAU.dropout"); and the value with which everything is computed as it was before there was the option,
whatever the default in conf/ is by now. Saved runs and exports without the option are read as if they had that value,
and that value does not count in the hash of a configuration: finished runs of a sweep stay finished, arms stay one.

An option that got another name, or other words for its values, is read by its new one and counted by its old one.
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
    "weights": None,
    "data.pack": False,
    "data.held_out": None,
    "data.test_fraction": 1.0,
    "src.vision.vit.ViT.recompute": None,
    "src.data.folder.Folder.images": None,
    "src.data.folder.Folder.image_column": None,
    "src.data.folder.Folder.caption_column": None,
    "src.data.folder.Folder.separator": None,
    "optim.cooldown": None,
    "optim.gate_rate": 1.0,
    "src.projectors.mlp.MLP.dropout": 0.0,
    "src.fusion.clipcap.ClipCap.dropout": 0.0,
    "src.fusion.coca.CoCa.dropout": 0.0,
    "src.fusion.cross_attention.PlainCrossAttention.norm_visual": False,
    "src.fusion.cross_attention.PlainCrossAttention.start": "usual",
    "src.fusion.flamingo.Flamingo.dropout": 0.0,
    "src.fusion.srau.SRAU.encoder_form": "early",
    "src.fusion.srau.SRAU.every": 1,
    "src.fusion.srau.SRAU.start": "paper",
}
# class and old name -> new name, and the new word for every old value
RENAMED: dict[str, tuple[str, dict[str, str]]] = {
    "src.fusion.coca.CoCa.xattn_out_init": ("start", {"default": "paper", "zero": "neutral"}),
    "src.fusion.vcgpt.VCGPT.wf_init": ("start", {"normal": "paper", "zero": "neutral"}),
}


def run_config(folder: Path | str) -> DictConfig:
    """The configuration of a run or an export, with the options that were added since. Raises UserError as
    ``written_config`` does."""
    plain = OmegaConf.to_container(written_config(folder))
    for place, node in _groups(plain):
        for old, new, words in _renamed(node):
            if old in node:
                node[new] = words[node.pop(old)]
        for name, value in _added(place, node).items():
            node.setdefault(name, value)
    return OmegaConf.create(plain)


def without_absent(plain: dict) -> dict:
    """A copy of a plain configuration without those added options that say what their absence says, renamed ones by
    their old names."""
    added = {place: _added(place, node) for place, node in _groups(plain)}

    def copied(node: dict, place: str) -> dict:
        kept = {
            name: copied(value, f"{place}.{name}".lstrip(".")) if isinstance(value, dict) else value
            for name, value in node.items()
            if name not in added[place] or value != added[place][name]
        }
        for old, new, words in _renamed(node):
            if new in kept:
                kept[old] = {word: value for value, word in words.items()}[kept.pop(new)]
        return kept

    return copied(plain, "")


def decoding_without_absent(decoding: dict) -> dict:
    """The same of what metrics.json says about decoding: the decoder's class by its short name, beside its options."""
    own = ("decode", f".{decoding.get('method')}")
    added = {key.rpartition(".")[2]: value for key, value in ABSENT.items() if key.rpartition(".")[0].endswith(own)}
    return {name: value for name, value in decoding.items() if name not in added or value != added[name]}


def _renamed(node: dict) -> Iterator[tuple[str, str, dict[str, str]]]:
    """The rows of a class: its option's old name, new name and words."""
    for key, (new, words) in RENAMED.items():
        where, _, old = key.rpartition(".")
        if where == node.get("_target_"):
            yield old, new, words


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
