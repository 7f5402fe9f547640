"""What the verbs share at the command line: wrong words and errors as one sentence.

Hydra composes the configuration only after it has begun the run, and answers wrong words with several lines. So the
words of a command are composed once more here, before: 0.1 s.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from src.config.help import FLAGS, help_text
from src.config.machine_faults import explaining_machine_faults
from src.config.streams import prepare_streams
from src.errors import UserError
from src.records.newest import newest_run
from src.records.secrets import masked

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

SWEEP, PLAIN = (
    ("-m", "--multirun"),
    ("-r", "--run"),
)  # Hydra's other flags ask about the configuration
ALTERNATIVES = 10  # values of a sweep that are looked at before it starts, 0.1 s each; every job looks at its own


def verb(task: Callable) -> Callable:
    """Decorate a Hydra task: a UserError or a missing value becomes ``error: <sentence>``, exit status 2.

    The configuration is called what the file of the task is called. Its options are checked before the task, and where
    that file is the command, before Hydra begins.
    """
    command = Path(task.__code__.co_filename).stem

    @functools.wraps(task)
    def wrapped(config):
        from src.config.checks import check_options

        def checked():
            check_options(command, config)
            settle_runs(config)
            with explaining_machine_faults():
                return task(config)

        return _answer(checked)

    if task.__module__ == "__main__":
        prepare_streams()
        if set(FLAGS) & set(sys.argv[1:]):
            print(help_text(command, task.__globals__["__doc__"]))
            sys.exit(0)
        if command == "train":
            from src.config.resume import completed

            sys.argv[1:] = _answer(lambda: completed(sys.argv[1:]))
        _answer(lambda: check_words(command, sys.argv[1:]))
    return wrapped


def settle_runs(cfg: DictConfig) -> None:
    """``run=latest``, and folders above runs, in ``cfg`` and told. Raises UserError where there is none."""
    given = cfg.get("run")
    if given is None:
        return
    words = list(given) if OmegaConf.is_list(given) else [str(given)]
    settled = [newest_run(word) for word in words]
    for word, run in zip(words, settled, strict=True):
        if word != run:
            print(f"run: {run}", flush=True)
    cfg.run = settled if OmegaConf.is_list(given) else settled[0]


def _answer(work: Callable):
    """The result of ``work``; errors of the user end the process with one sentence."""
    try:
        return work()
    except MissingMandatoryValue as error:
        sentence = f"{error.full_key}= is missing; say {error.full_key}=<value> (what it means: conf/)."
    except UserError as error:
        sentence = str(error)
    print(f"error: {sentence}", file=sys.stderr, flush=True)
    sys.exit(2)


def check_words(command: str, words: Sequence[str]) -> None:
    """Refuse a command line that Hydra could not compose, or whose options are wrong. Raises UserError.

    Of a sweep every value is looked at once, beside the first ones of the other options.
    """
    from src.config.checks import check_options, check_required
    from src.config.earlier import use_earlier
    from src.config.fit import check_fit
    from src.config.resume import resumed

    flags = {word for word in words if word.startswith("-")}
    if flags - {*SWEEP, *PLAIN}:
        return
    overrides = parse([word for word in words if word not in flags])
    sweep = bool(flags & set(SWEEP))
    for override in overrides:
        check_word(command, override, sweep)
    for chosen in _alternatives(overrides):
        check_required(chosen, sweep)
        cfg = compose(command, chosen, overrides, sweep)
        check_options(command, cfg)
        if command == "train":
            cfg = resumed(cfg, chosen, say=lambda note: None)
        if command == "train" and not OmegaConf.missing_keys(cfg):
            try:
                cfg = use_earlier(cfg)
            except UserError:
                continue  # a run that is not there yet: its job says so, and the others of a sweep go on
            check_fit(cfg)


def parse(words: Sequence[str]) -> list[Override]:
    """Hydra's reading of "key=value"; UserError for what it cannot read."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    found = []
    for word in words:
        try:
            found.append(OverridesParser.create().parse_override(word))
        except HydraException as error:
            raise UserError(
                f"{masked(word)!r} cannot be read as option=value ({str(error).splitlines()[0]}); "
                "special characters need quotes, as in 'data.root=\"my folder\"'."
            ) from error
    return found


def check_word(command: str, override: Override, sweep: bool) -> None:
    """What is wrong with one override by itself. Raises UserError."""
    from src.config.checks import choices, groups, suggest_choice

    key, word = override.key_or_group, masked(override.input_line)
    if override.is_sweep_override() and not sweep:
        raise UserError(f"{word}: several values are a sweep, which needs -m; a list is written [a,b].")
    if key.partition(".")[0].partition("/")[0] == "hydra":
        return
    if override.is_delete():
        raise UserError(f"{word} is refused: options can be changed, but not taken out.")
    if key in groups(command) and override.package is None:
        known = choices(key)
        for name in (one.partition("=")[2].strip("'\"") for one in _values(override)):
            if name not in known and not name.startswith("["):
                raise UserError(f"{key}={name} is not in conf/{key}; {suggest_choice(name, known, key)}")


def _alternatives(overrides: Sequence[Override]) -> Iterator[list[str]]:
    """Command lines without sweeps: the first value of each option, then each further value of one of them."""
    values = [_values(override) for override in overrides]
    yield [found[0] for found in values if found]
    others = ((place, value) for place, found in enumerate(values) for value in found[1:])
    for _, (place, value) in zip(range(ALTERNATIVES), others, strict=False):
        yield [value if i == place else found[0] for i, found in enumerate(values) if found]


def _values(override: Override) -> list[str]:
    """The override with each of its values; none where only Hydra or a search can say what they are."""
    from hydra.core.override_parser.types import ValueType

    from src.config.checks import choices

    if not override.is_sweep_override():
        return [override.input_line]
    if override.value_type == ValueType.GLOB_CHOICE_SWEEP:
        names = override.value().filter(choices(override.key_or_group))
        return [f"{override.get_key_element()}={name}" for name in names]
    if not override.is_choice_sweep():
        return []
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


def compose(command: str, words: Sequence[str], overrides: Sequence[Override], sweep: bool = False) -> DictConfig:
    """The configuration as Hydra makes it. Raises UserError with what is wrong with ``overrides``."""
    from hydra import compose, initialize_config_dir
    from hydra.core.hydra_config import HydraConfig

    from src.config.checks import groups, resolved
    from src.config.classes import HOME

    with initialize_config_dir(str(HOME / "conf"), version_base="1.3"):
        try:
            cfg = compose(command, list(words), return_hydra_config=True)
        except Exception as error:  # OmegaConf's kinds and, for odd words, Python's own
            chosen = [word for word in words if word.partition("=")[0] in groups(command)]
            raise UserError(_why(command, overrides, chosen, error)) from error
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(cfg)  # names of runs are made of what was chosen
    try:
        plain = OmegaConf.to_container(cfg)
        plain.pop("hydra")
        made = OmegaConf.create(resolved(OmegaConf.create(plain)))
        key = "hydra.sweep.dir" if sweep else "hydra.run.dir"
        check_place(key, Path(OmegaConf.select(cfg, key)))
        return made
    finally:
        HydraConfig.instance().cfg = before


def check_place(key: str, folder: Path) -> None:
    """Refuse a folder that cannot be made: Hydra makes it before anything of ours is asked. Raises UserError."""
    there = next(one for one in (folder, *folder.absolute().parents) if os.path.lexists(one))
    if not there.is_dir() or not os.access(there, os.W_OK):
        wrong = "cannot be written to" if there.is_dir() else "is no folder"
        raise UserError(f"{folder} cannot be made: {there} {wrong}; choose another place with {key}=<folder>.")


def _why(command: str, overrides: Sequence[Override], chosen: Sequence[str], error: Exception) -> str:
    """The one sentence that Hydra's error means: mostly an option that is not there."""
    from hydra import compose
    from hydra.errors import HydraException

    from src.config.checks import groups, known_options, suggest_option
    from src.config.classes import flatten

    said = " ".join(str(error).split()).partition(" Config search path:")[0]
    try:
        cfg = compose(command, list(chosen))
    except (HydraException, OmegaConfBaseException):
        return said
    here = [key for key, _ in flatten(OmegaConf.to_container(cfg)) if not key.rpartition(".")[2].startswith("_")]
    known = [*here, *known_options(command), *groups(command)]
    for override in overrides:
        key = override.key_or_group
        if key.startswith("hydra") or key in groups(command) or override.package is not None:
            continue
        there = any(one == key or one.startswith(f"{key}.") for one in here)
        if not there and not override.is_add():
            if key in known:
                return f"{masked(override.input_line)} stands in no file here; add it with +{key}=..."
            return f"{masked(override.input_line)} is no option of src.{command}; {suggest_option(key, known)}"
        if there and override.is_add() and not override.is_force_add():
            return f"{masked(override.input_line)}: {key} is there already; leave out the +."
    return said
