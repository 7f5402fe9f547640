"""`make lint` and the pre-commit hooks are the same seven checks, and each finds what it is there for."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

# check -> what it must find, and what it must let pass
PLANTED = {
    "formats": {
        "a.yaml": ("a: [1, 2", "a: [1, 2]\n"),
        "a.json": ('{"a": 1,}', '{"a": 1}'),
        "a.jsonl": ('{"a": 1}\n{"a"', '{"a": 1}\n{"a": 2}\n'),
        "a.ipynb": ("", '{"cells": []}'),
        "a.cff": ("a: b: c", "a: b\n"),
    },
    "size": {"a.ckpt": ("x" * 2_000_001, "x" * 2_000_000)},
    "markers": {
        "a.py": ("<<<<<<< HEAD\n", "a << 7\n"),
        "a.md": ("here\n=======\nthere\n", "Title\n=====\n"),
        "b.md": (">>>>>>> other\n", "> > > > > > > a quotation\n"),
    },
    "whitespace": {
        "a.py": ("a = 1 \n", "a = 1\n"),
        "b.py": ("a = 1", "a = 1\n"),
        "a.md": ("text\n\n", "text\n\nmore\n"),
        "a.yaml": ("a: 1\t\n", "a: 1\n"),
        "a.html": (None, "written by a program "),
    },
}
# A mechanism of one's own whose promises differ from the base class's, and which takes for granted what may be missing.
UNTRUE = """
from torch import Tensor

from src.contracts import Language, Memory, Text, Visual
from src.fusion.base import Writer
from src.layers.attention import CrossAttention
from src.layers.cache import Cache
from src.layers.lists import ModuleList
from src.layers.notes import Aux


class Mine(Writer):
    def __init__(self, vision, language):
        super().__init__(vision, language)
        self.cross = ModuleList(CrossAttention(8, 8, 1) for _ in range(2))

    def encode(self, lm: Language, visual: Visual, aux: Aux | None = None) -> Memory:
        return Memory(tokens=visual.tokens_INC)

    def decode(
        self, lm: Language, memory: Memory, text: Text, cache: Cache | None = None, aux: Aux | None = None
    ) -> Tensor:
        h_BTD, walk = lm.begin(lm.embed(text.ids_BT), text, cache)
        keys, values = self.cross[0].keys_values(h_BTD)
        return h_BTD
"""
FAULTS = {
    "aux: Aux | None = None) -> Memory": ("aux: Aux) -> Memory", "reportIncompatibleMethodOverride"),
    "visual.tokens_INC": ("visual.valid_IN", "reportArgumentType"),  # a mask that may be None
    "return h_BTD": ("return aux['attention'][0]", "reportOptionalSubscript"),
    "lm.begin": ("lm.start", "reportAttributeAccessIssue"),  # what no language model promises
    "keys_values": ("keysvalues", "reportCallIssue"),  # a list that knows its modules
}
CASES = [(check, name, *contents) for check, files in PLANTED.items() for name, contents in files.items()]


@pytest.fixture
def files():
    """The script of the checks, which is no module of the project."""
    specification = importlib.util.spec_from_file_location("files", ROOT / ".ci" / "files.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("check", "name", "wrong", "right"), CASES, ids=[f"{case[0]}-{case[1]}" for case in CASES])
def test_each_check_finds_its_fault_and_no_other(files, tmp_path, monkeypatch, capsys, check, name, wrong, right):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    path.write_text(right)
    assert files.main(check, name) == 0 and not capsys.readouterr().out
    if wrong is not None:
        path.write_text(wrong)
        assert files.main(check, name) == 1 and capsys.readouterr().out.startswith(name)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 has no reader of TOML")
def test_toml_is_read_as_well(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.toml").write_text("a = \n")
    assert files.main("formats", "a.toml") == 1


@pytest.mark.skipif(not shutil.which("git"), reason="there is no git")
def test_new_files_are_looked_at_before_they_are_added_and_ignored_ones_are_not(tmp_path):
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    (tmp_path / ".gitignore").write_text("runs/\n")
    (tmp_path / "runs").mkdir()
    for name in ("runs/a.yaml", "b.yaml"):
        (tmp_path / name).write_text("a: [")
    command = [sys.executable, str(ROOT / ".ci" / "files.py"), "formats"]
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert answer.returncode == 1 and answer.stdout.startswith("b.yaml:") and "runs" not in answer.stdout


PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("basedpyright", path=PATH), reason="basedpyright is not installed")
def test_the_type_checker_finds_broken_promises(tmp_path):
    shutil.copytree(ROOT / "src", tmp_path / "src")
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text().replace("venv =", "# venv ="))
    rooms = tmp_path / "src" / "fusion"
    (rooms / "right.py").write_text(UNTRUE)
    for number, (right, (wrong, _)) in enumerate(FAULTS.items()):
        assert UNTRUE.count(right) == 1
        (rooms / f"wrong{number}.py").write_text(UNTRUE.replace(right, wrong))
    files = [rooms / "right.py", *rooms.glob("wrong*.py")]
    command = [shutil.which("basedpyright", path=PATH), "--outputjson", "--pythonpath", sys.executable, *files]
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    found = {(Path(fault["file"]).name, fault["rule"]) for fault in json.loads(answer.stdout)["generalDiagnostics"]}
    assert found == {(f"wrong{number}.py", rule) for number, (_, rule) in enumerate(FAULTS.values())}


def test_the_hooks_are_what_make_lint_runs():
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repo["repo"] == "local" and len(repo["hooks"]) == 7
    assert all(hook["language"] == "system" and hook["pass_filenames"] is False for hook in repo["hooks"])
    (recipe,) = re.findall(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    lines = [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe.splitlines()]
    assert [hook["entry"] for hook in repo["hooks"]] == lines
