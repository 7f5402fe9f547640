"""The house: which file may import which. The floors are data, in src/__init__.py."""

import ast
import itertools
from graphlib import CycleError, TopologicalSorter

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


def test_the_hall_stays_small():
    """Directly in src/: the commands, and the few files that every room shares."""
    assert len(list(SOURCE.glob("*.py"))) <= 21


def test_the_readme_shows_the_floors():
    readme = (ROOT / "README.md").read_text()
    rooms = [name for name in itertools.chain(*src.FLOORS) if (SOURCE / name).is_dir()]
    assert not [name for name in rooms if f"{name}/" not in readme]
