"""Every option of every command is checked here before any work, and before anything heavy is imported."""

from __future__ import annotations

import ast
import difflib
import functools
import os
import re
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from src.config import table
from src.config.classes import HOME, LOGGER, check_targets, defined, flatten, parameters
from src.errors import UserError
from src.kinds import Rule, as_written, check_kinds, rule
from src.records.secrets import is_secret

LEASED = "FUSION_SWEEP_LEASE"  # set where a sweep gave a job its GPU: the job is not to go to the CPU unnoticed
LISTED = 12  # options that a suggestion lists at most
# What other programs call options of src.train, and what a suggestion of those ends in.
SYNONYMS = {
    **dict.fromkeys(("lr", "learning_rate"), "regime.lr_fusion"),
    **dict.fromkeys(("epochs", "num_epochs", "n_epochs"), "trainer.max_epochs"),
    **dict.fromkeys(("steps", "num_steps", "iterations"), "trainer.max_steps"),
    **dict.fromkeys(("device", "gpu", "gpus", "cuda", "cpu"), "trainer.accelerator"),
}
ENDINGS = {
    "regime.lr_fusion": " (and regime.lr_language, regime.lr_vision)?",
    "trainer.max_epochs": " (with trainer.max_steps=-1)?",
    "trainer.accelerator": " (auto, gpu or cpu; how many: trainer.devices)?",
}


def check_options(command: str, cfg: DictConfig) -> None:
    """Refuse unknown options, wrong types and values out of range, in whatever way they came in; see the table.

    Imports nothing heavy. What is missing (???) is left to the command. Raises UserError.
    """
    plain = resolved(cfg)
    check_targets(cfg)
    check_secrets(cfg)
    for key, value in _options(plain):
        if isinstance(value, dict):
            _check_class(key, value)
        elif value != "???":
            _check_option(command, key, value)


def resolved(cfg: DictConfig) -> dict:
    """Plain values with interpolations filled in; what is missing stays "???". Raises UserError."""
    try:
        return OmegaConf.to_container(cfg, resolve=True)
    except InterpolationToMissingValueError as error:
        missing = next(key for key, value in flatten(OmegaConf.to_container(cfg)) if value == "???")
        raise UserError(f"{missing}= is missing; say {missing}=<value> (what it means: conf/).") from error
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key or 'configuration'}: {str(error).splitlines()[0]}") from error


def _options(node: dict, key: str = "") -> Iterator[tuple[str, object]]:
    """Every option with its value; a node that names a class is one value, and so is every such node inside of it."""
    for name, value in node.items():
        inside = f"{key}.{name}".lstrip(".")
        if inside == "hydra":
            continue  # Hydra knows its own
        if isinstance(value, dict):
            if "_target_" in value:
                yield inside, value
                value = {name: one for name, one in value.items() if isinstance(one, dict)}
            yield from _options(value, inside)
        else:
            yield inside, value


def _check_option(command: str, key: str, value) -> None:
    asked = table.rule_of(command, key)
    group, _, name = key.rpartition(".")
    if asked is None and command == "train" and group == "trainer":
        asked = _lightning_options().get(name)
    if asked is None:
        asked = _written(command).get(key)
    if asked is None:
        known = known_options(command)
        if key in groups(command) or any(one.startswith(f"{key}.") for one in known):
            raise UserError(f"{key} must be a group of options ({key}.<name>=...); got {as_written(value)}.")
        if member := re.match(r"data\.members\.[^.]+\.", key):
            known = [one.replace("data.", member[0], 1) for one in known]
        raise UserError(f"{key}={as_written(value)} is no option of src.{command}; {suggest_option(key, known)}")
    if not asked.fits(value):
        raise UserError(f"{key} must be {asked.description}; got {as_written(value)}.")


def known_options(command: str) -> list[str]:
    """The options that the tables and conf/ have, and those that Lightning's trainer adds."""
    added = [f"trainer.{name}" for name in _lightning_options()] if command == "train" else []
    known = [*table.COMMANDS[command], *_written(command), *added]
    return list(dict.fromkeys(key for key in known if "*" not in key and "_target_" not in key))


@functools.cache
def _written(command: str) -> dict[str, Rule]:
    """The options that stand in conf/ for a command, whatever is chosen, with the types of their defaults.

    For those that the table says nothing about. Options of classes are not among them: other classes have others.
    """
    files = {HOME / "conf" / f"{command}.yaml": ""}
    files |= {path: f"{group}." for group in groups(command) for path in (HOME / "conf" / group).glob("*.yaml")}
    found = {}
    for path, prefix in files.items():
        text = path.read_text(encoding="utf-8")
        plain = OmegaConf.to_container(OmegaConf.create(text))
        if "_target_" in plain or "@package _global_" in text:  # the latter change options that stand elsewhere
            continue
        for key, value in _options(plain):
            if key != "defaults":
                found[prefix + key] = table.rule_of_default(value)
    return found


def suggest_option(key: str, known: Iterable[str]) -> str:
    """ "did you mean optim.warmup?", or the options of its group."""
    known, (group, _, name) = list(dict.fromkeys(known)), key.rpartition(".")
    if SYNONYMS.get(name) in known:
        return f"did you mean {SYNONYMS[name]}{ENDINGS.get(SYNONYMS[name], '?')}"
    beside = [one for one in known if one.rpartition(".")[0] == group]
    alike = difflib.get_close_matches(name, [one.rpartition(".")[2] for one in beside], 1)
    if alike:
        return f"did you mean {group}.{alike[0]}?".replace(" .", " ")
    alike = [one for one in known if one.rpartition(".")[2] == name] or difflib.get_close_matches(key, known, 1, 0.8)
    if alike:
        return f"did you mean {alike[0]}?"
    beside = beside or [one for one in known if "." not in one]
    return f"the options are {', '.join(beside[:LISTED])}{' ...' if beside[LISTED:] else '.'}"


def suggest_choice(name: str, known: list[str], group: str) -> str:
    """The same for a word behind ``group=``."""
    alike = difflib.get_close_matches(name, known, 1)
    return f"did you mean {group}={alike[0]}?" if alike else f"choose from {', '.join(known)}."


@functools.cache
def groups(command: str = "train") -> tuple[str, ...]:
    """The folders of conf/ that a command chooses from, decode of src.evaluate for example."""
    written = OmegaConf.load(HOME / "conf" / f"{command}.yaml").get("defaults", [])
    names = (str(next(iter(entry))) for entry in written if OmegaConf.is_dict(entry))
    return tuple(name.removeprefix("optional ") for name in names if "/" not in name)  # hydra/..., debug/small


def choices(group: str) -> list[str]:
    """The words that may stand behind ``<group>=``."""
    return sorted(path.stem for path in (HOME / "conf" / group).glob("[!_]*.yaml"))


def check_required(words: Iterable[str], sweep: bool) -> None:
    """Refuse to begin without what an experiment requires (???): with OmegaConf the default below it would win.

    ``words``: "option=value"; of a ``sweep`` the experiment may give the values too. Raises UserError.
    """
    said = dict(word.lstrip("+").partition("=")[::2] for word in words)
    name, going_on = said.get("experiment", "").strip("'\""), said.get("resume", "null") not in ("null", "auto")
    if name in choices("experiment") and not going_on:
        missing = sorted(required(name, sweep) - set(said))
        if missing:
            raise UserError(
                f"experiment={name} needs {missing[0]}; say {missing[0]}=<value> (what it means: "
                f"conf/experiment/{name}.yaml)."
            )


def required(experiment: str, sweep: bool = False) -> set[str]:
    """The options that conf/experiment/<experiment>.yaml, or what it starts from, leaves to the command line."""
    written = OmegaConf.to_container(OmegaConf.load(HOME / "conf" / "experiment" / f"{experiment}.yaml"))
    below = (entry for entry in written.pop("defaults", []) if isinstance(entry, str) and entry != "_self_")
    found = set().union(*(required(name, sweep) for name in below))
    for key, value in flatten(written):
        key = key.removeprefix("hydra.sweeper.params.") if sweep else key
        found = found | {key} if value == "???" else found - {key}
    return found


@functools.cache
def _lightning_options() -> dict[str, Rule]:
    """The parameters of lightning.Trainer with their simple types, read from its source: importing it takes seconds."""
    package = Path(find_spec("lightning").submodule_search_locations[0])
    tree = ast.parse((package / "pytorch" / "trainer" / "trainer.py").read_text(encoding="utf-8"))
    made = defined(defined(tree, "Trainer"), "__init__")
    found = {}
    for parameter in made.args.kwonlyargs:
        annotation = ast.unparse(parameter.annotation)
        kinds = re.findall(r"\b(int|float|bool|str)\b", annotation) + ["None"] * ("Optional" in annotation)
        if parameter.arg not in table.NOT_OURS and kinds:
            found[parameter.arg] = rule(" | ".join(dict.fromkeys(kinds)))
    return found


def _check_class(key: str, node: dict) -> None:
    """The options of ``node`` must be parameters of its target, and what their annotations say.

    The target's source is read, not imported: importing all of them would take seconds.
    """
    target = node["_target_"]
    if LOGGER.fullmatch(target):
        return
    known = parameters(key, target)
    options = {name: value for name, value in node.items() if not name.startswith("_")}
    for name in options:
        if name not in known:
            alike = difflib.get_close_matches(name, known, 1)
            suggestion = f"did you mean {key}.{alike[0]}?" if alike else f"its options are {', '.join(known)}."
            raise UserError(f"{key} has no option {name!r}; {suggestion}")
    check_kinds(key, known, {name: value for name, value in options.items() if value != "???"})


# --------------------------------------------------------------------------------------------------------------------
# what this machine has, and what may be written down
# --------------------------------------------------------------------------------------------------------------------
def check_device(trainer: DictConfig) -> None:
    """Refuse devices that this machine does not have, and say where it trains instead of on a GPU that was named.

    Imports torch, where a GPU is spoken of. Raises UserError.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    wanted = trainer.accelerator in ("gpu", "cuda")
    if trainer.accelerator in ("mps", "tpu"):
        _check_other_device(trainer.accelerator)
    if not (wanted or (named and trainer.accelerator == "auto")):
        return
    import torch

    here = torch.cuda.device_count()
    apple = trainer.accelerator == "gpu" and torch.backends.mps.is_available()
    where = f"CUDA_VISIBLE_DEVICES={named} names none that is here" if named else "this machine has none"
    if wanted and not here and not apple:
        raise UserError(
            f"trainer.accelerator={trainer.accelerator} needs a GPU that torch can use, and {where}; "
            "use trainer.accelerator=auto, and see src.doctor."
        )
    if named and not here and os.environ.get(LEASED):
        raise UserError(f"The GPU {named} that this job of a sweep was given does not answer; see nvidia-smi.")
    if named and not here:
        print(f"note: CUDA_VISIBLE_DEVICES={named} names no GPU that torch can use; training on the CPU.", flush=True)
        return
    devices = trainer.devices
    asked = max(devices) + 1 if OmegaConf.is_list(devices) else devices if isinstance(devices, int) else 0
    if asked > here > 0:
        raise UserError(f"trainer.devices={devices} asks for more than the {here} GPUs that torch can use here.")


def _check_other_device(accelerator: str) -> None:
    from lightning.pytorch.accelerators import AcceleratorRegistry

    if not AcceleratorRegistry[accelerator]["accelerator"].is_available():
        raise UserError(
            f"trainer.accelerator={accelerator} is not available on this machine; use auto, and see src.doctor."
        )


def check_secrets(cfg: DictConfig) -> None:
    """Refuse secrets among the values: every run writes its configuration down, and loggers upload it."""
    for key, value in flatten(OmegaConf.to_container(cfg, resolve=True)):
        if is_secret(key, value):
            raise UserError(
                f"{key} looks like a secret, and the configuration is written into the run folder; leave it out and "
                "set an environment variable instead (WANDB_API_KEY, HF_TOKEN)."
            )
