"""Which classes a configuration may name, and what their constructors take: read from the source, without importing."""

from __future__ import annotations

import ast
import copy
import difflib
import functools
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, ListConfig, OmegaConf

from src.errors import UserError

HOME = Path(__file__).resolve().parents[2]

# Hydra would call anything that can be imported, os.system too, and configurations travel with run folders.
# The rooms whose classes configurations name:
ROOMS = (
    "data",
    "decoding",
    "fusion",
    "language",
    "objectives",
    "pipelines",
    "projectors",
    "text",
    "tracking",
    "vision",
)
REFUSED = (
    f"is refused: configurations may only name classes of this project (src.{', src.'.join(ROOMS)}) and lightning's "
    "loggers."
)
LOGGER = re.compile(r"lightning\.pytorch\.loggers\.[A-Z]\w*")  # of the library, by their short names only


def plain(node: DictConfig) -> dict[str, Any]:
    """The values of a configuration as Python's own, with all interpolations resolved."""
    return cast(dict[str, Any], OmegaConf.to_container(node, resolve=True))  # of a DictConfig always a dictionary


def texts(value: ListConfig | list | str) -> list[str]:
    """The words of an option that is text, or a list of texts."""
    return [str(word) for word in value] if isinstance(value, list | ListConfig) else [str(value)]


def flatten(node, key: str = "") -> Iterator[tuple[str, object]]:
    """Nested dictionaries as ("a.b", value) pairs."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from flatten(value, f"{key}.{name}" if key else str(name))
    else:
        yield key, node


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


def check_targets(node: DictConfig, what: str = "") -> None:
    """Refuse every ``_target_`` in ``node`` but public classes, functions and class methods of our rooms, and loggers.

    Only what is written in a file of ours counts, not what that file imports. Raises UserError.
    """
    for key, target in flatten_all(OmegaConf.to_container(node, resolve=True)):
        if re.split(r"[.\[]", key)[-1] == "_target_" and not is_ours(target):
            raise UserError(f"{what}{key}={target} {_misspelt(target) or REFUSED}")


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


def _misspelt(target) -> str | None:
    """What is wrong with the name of a class of ours that is not there; None for whatever else."""
    parts = target.split(".") if isinstance(target, str) else []
    public = all(part.isidentifier() and not part.startswith("_") for part in parts)
    if parts[:1] != ["src"] or parts[1:2] == [] or parts[1] not in ROOMS or len(parts) < 3 or not public:
        return None
    file = HOME.joinpath(*parts[:-1]).with_suffix(".py")
    where = file.relative_to(HOME).as_posix()
    if not file.is_file():
        below = HOME.joinpath(*parts[:-2]).with_suffix(".py").is_file()  # a class, and something inside it
        return None if below else f"cannot be found: there is no {where}."
    there = [name for node in _parsed(file).body if not (name := getattr(node, "name", "_")).startswith("_")]
    alike = difflib.get_close_matches(parts[-1], there, 1) or there
    return f"cannot be found: {where} has {', '.join(alike)}, and no {parts[-1]}."


def is_ours(target) -> bool:
    """Whether a ``_target_`` may be called."""
    if not isinstance(target, str):
        return False
    return LOGGER.fullmatch(target) is not None or _written_here(target) is not None


def parameters(key: str, target: str) -> dict[str, str]:
    """Names and annotations of the parameters of ``src.<module>.<function, class or Class.method>``."""
    found = _written_here(target)
    if isinstance(found, ast.ClassDef):
        lineage = list(_lineage(target, found))
        if any("dataclass" in ast.unparse(decorator) for decorator in found.decorator_list):
            return {name: kind for cls in reversed(lineage) for name, kind in _fields(cls).items()}
        made = (defined(cls, "__init__") for cls in lineage)
        found = next((one for one in made if one is not None), None)
    if isinstance(found, ast.FunctionDef):
        every = [a for a in found.args.args + found.args.kwonlyargs if a.arg not in ("self", "cls")]
        return {a.arg: ast.unparse(a.annotation) if a.annotation else "" for a in every}
    return _imported_parameters(key, target)


def _fields(cls: ast.ClassDef) -> dict[str, str]:
    """The annotated fields of a dataclass."""
    written = {ast.unparse(s.target): ast.unparse(s.annotation) for s in cls.body if isinstance(s, ast.AnnAssign)}
    return {name: kind for name, kind in written.items() if not kind.startswith("ClassVar")}


def trait(target: str, name: str):
    """What a class says of itself, ``sees = False`` for example; None where neither it nor its bases here say it."""
    found = _written_here(target)
    for cls in _lineage(target, found) if isinstance(found, ast.ClassDef) else ():
        for statement in cls.body:
            if isinstance(statement, ast.Assign | ast.AnnAssign) and isinstance(statement.value, ast.Constant):
                targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
                if any(ast.unparse(one) == name for one in targets):
                    return statement.value.value
    return None


def lineage(target: str) -> list[str]:
    """The names of a class and of its bases, as far as they are written in rooms of ours."""
    found = _written_here(target)
    return [cls.name for cls in _lineage(target, found)] if isinstance(found, ast.ClassDef) else []


def static_method(target: str, name: str) -> Callable | None:
    """A static method of a class here, ``refusals`` for example, made of its own lines alone; None where there is none.

    It finds no other names, not even Python's own: NameError.
    """
    found = _written_here(target)
    lineage = _lineage(target, found) if isinstance(found, ast.ClassDef) else ()
    method = copy.deepcopy(next(filter(None, (defined(cls, name) for cls in lineage)), None))
    if not isinstance(method, ast.FunctionDef):
        return None
    method.decorator_list = []
    names = {"__builtins__": {}}
    exec(compile(ast.Module([method], []), target, "exec"), names)  # annotations stay text, as in this file
    return names[name]


def _lineage(target: str, cls: ast.ClassDef) -> Iterator[ast.ClassDef]:
    """A class, then its bases and theirs, as far as they are written in rooms of ours."""
    yield cls
    home = target.rpartition(".")[0]
    imported = {
        alias.asname or alias.name: statement.module
        for statement in _parsed((HOME / home.replace(".", "/")).with_suffix(".py")).body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    for name in map(ast.unparse, cls.bases):
        base = f"{imported.get(name, home)}.{name}"
        found = _written_here(base)
        if isinstance(found, ast.ClassDef):
            yield from _lineage(base, found)


def _imported_parameters(key: str, target: str) -> dict[str, str]:
    """The same by importing, for classes that inherit the constructor of a class that is not ours."""
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
            found = defined(_parsed(file), names[0])
            if len(names) == 2 and isinstance(found, ast.ClassDef):
                method = defined(found, names[1])
                alone = {ast.unparse(decorator) for decorator in getattr(method, "decorator_list", ())}
                found = method if alone & {"classmethod", "staticmethod"} else None
            public = len(names) <= 2 and not any(name.startswith("_") for name in names)
            return found if public and isinstance(found, ast.ClassDef | ast.FunctionDef) else None
    return None


@functools.cache
def _parsed(file: Path) -> ast.Module:
    """Once for all the jobs of a sweep."""
    return ast.parse(file.read_text(encoding="utf-8"))


def defined(scope: ast.AST | None, name: str) -> ast.AST | None:
    return next((node for node in getattr(scope, "body", ()) if getattr(node, "name", None) == name), None)
