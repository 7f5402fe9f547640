"""The house: which file may import which. The floors are data, in src/__init__.py."""

import ast
import functools
import itertools
import json
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from conftest import ROOT

import src

SOURCE = ROOT / "src"
FILES = {
    ".".join(("src", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(SOURCE.rglob("*.py"))
    if "hydra_plugins" not in path.parts  # Hydra's namespace: nobody imports it
}
FLOOR = {room: level for level, rooms in enumerate(src.FLOORS) for room in rooms}


def room(module: str) -> str:
    """``src.data.folder`` -> ``data``."""
    return module.split(".")[1]


def imports(module: str) -> set[str]:
    """The files of ours that ``module`` imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            below = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in FILES else node.module for name in below}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name in FILES and name != "src"}


def test_every_room_has_a_floor():
    assert sorted(FLOOR) == sorted({room(module) for module in FILES if module != "src"} | {"launch"})
    assert len(FLOOR) == sum(map(len, src.FLOORS)), "a room lies on two floors"


@pytest.mark.parametrize("module", sorted(set(FILES) - {"src"}))
def test_imports_only_go_down(module):
    there = {other for other in imports(module) if room(other) != room(module)}
    assert not [other for other in there if FLOOR[room(other)] >= FLOOR[room(module)]]


def test_no_circles_inside_a_room_either():
    graph = {module: imports(module) - {module} for module in FILES}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


# --------------------------------------------------------------------------------------------------------------------
# every name leads somewhere: an import inside a function is first tried by whoever needs it
# --------------------------------------------------------------------------------------------------------------------
# A module, or a name of one, in a yaml file or a command line; what a class has is its own affair.
WRITTEN = re.compile(r"\bsrc(?:\.[a-z_]\w*)+(?:\.[A-Z]\w*)?")
# In a notebook, or in a program inside a test.
IMPORTED = re.compile(r"^\s*from (src[\w.]*) import ([\w, ]+)$", re.MULTILINE)


def is_file(module: str) -> bool:
    return (ROOT / f"{module.replace('.', '/')}.py").is_file()


@functools.cache
def names_of(module: str) -> set[str]:
    """What may be imported from a file of ours: its own names, and those it imports."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {alias.asname or alias.name for alias in node.names}
    return found


def leads_somewhere(name: str) -> bool:
    """``src.data``, ``src.data.folder``, ``src.data.folder.Folder``: a room, a file, or a name in one."""
    module, _, last = name.rpartition(".")
    return is_file(name) or (ROOT / name.replace(".", "/")).is_dir() or (is_file(module) and last in names_of(module))


def imported(text: str) -> Iterator[str]:
    """Of a text that is or holds a program."""
    yield from (f"{module}.{name.strip()}" for module, names in IMPORTED.findall(text) for name in names.split(","))


def named(path: Path) -> Iterator[str]:
    """All of ours that a file imports or, where it is configuration, names."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        text = "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
        yield from imported(text)
    if path.suffix != ".py":
        yield from WRITTEN.findall(text)
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "src":
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("src."))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from WRITTEN.findall(node.value) if path.is_relative_to(SOURCE) else imported(node.value)


READ = [
    path
    for pattern in ("src/**/*.py", "tests/*.py", "conf/**/*.yaml", "notebooks/*.ipynb", "experiments/**/*", "**/*.md")
    for path in sorted(ROOT.glob(pattern))
    if path.suffix in (".py", ".yaml", ".ipynb", ".md") and ".venv" not in path.parts and "golden" not in path.parts
]
MADE = {"own_fusion.ipynb": {"src.fusion.added.Added"}}  # by the notebook itself


@pytest.mark.parametrize("path", [*READ, ROOT / "Makefile"], ids=lambda path: str(path.relative_to(ROOT)))
def test_every_name_of_ours_leads_somewhere(path):
    lost = {name for name in named(path) if not leads_somewhere(name)}
    assert lost <= MADE.get(path.name, set())


def test_names_that_lead_nowhere_are_found(tmp_path):
    lost = "from src.records.environment." + "environment import environment"  # in two, or this file fails itself
    (tmp_path / "a.py").write_text(f"def f():\n    {lost}")
    (tmp_path / "b.py").write_text(f"PROGRAM = {lost!r}")
    (tmp_path / "a.ipynb").write_text(json.dumps({"cells": [{"source": [lost]}]}))
    (tmp_path / "a.yaml").write_text("_target_: src.data.folder.Fodler")
    for path in tmp_path.iterdir():
        assert not all(map(leads_somewhere, named(path))), path
    assert all(map(leads_somewhere, ("src.data", "src.data.folder", "src.data.folder.Folder", "src.train.main")))


def test_the_hall_stays_small():
    """Directly in src/: the commands, and the few files that every room shares."""
    assert len({path.stem for path in SOURCE.glob("*.py")} - set(src.FLOORS[-1])) <= 9


def test_the_readme_shows_the_floors():
    readme = (ROOT / "README.md").read_text()
    rooms = [name for name in itertools.chain(*src.FLOORS) if (SOURCE / name).is_dir()]
    assert not [name for name in rooms if f"{name}/" not in readme]
