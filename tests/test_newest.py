"""run=latest and run=<folder above>: which run is meant."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from commands import run
from omegaconf import OmegaConf

from src.config.command_line import settle_runs
from src.errors import UserError
from src.records.newest import newest_run


def made(folder: Path, when: int, weights: bool = True) -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text("seed: 0\n")
    if weights:
        (folder / "checkpoints" / "best.ckpt").write_bytes(b"")
        os.utime(folder / "checkpoints" / "best.ckpt", (when, when))
    return folder


def test_the_newest_run_with_weights_is_meant(tmp_path):
    old, new = made(tmp_path / "a" / "1", 100), made(tmp_path / "b" / "2", 200)
    made(tmp_path / "b" / "3", 300, weights=False)  # stopped before its first checkpoint
    assert newest_run("latest", tmp_path) == str(new)
    assert newest_run(str(tmp_path / "a"), tmp_path) == str(old)
    assert newest_run(str(old), tmp_path) == str(old)  # a run is itself
    assert newest_run("/nowhere", tmp_path) == "/nowhere"  # whoever reads it says what is wrong
    with pytest.raises(UserError, match=r"run=latest: .* holds no run with weights yet"):
        newest_run("latest", tmp_path / "b" / "3")


def test_a_run_called_latest_is_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made(Path("latest"), 100)
    made(Path("runs/x"), 200)
    assert newest_run("latest") == "latest"


def test_lists_of_runs_and_commands_without_any(tmp_path, capsys):
    one, other = made(tmp_path / "a" / "1", 100), made(tmp_path / "b" / "2", 200)
    cfg = OmegaConf.create({"run": [str(one), str(tmp_path / "b")]})
    settle_runs(cfg)
    assert list(cfg.run) == [str(one), str(other)] and capsys.readouterr().out == f"run: {other}\n"
    without = OmegaConf.create({"seed": 0})
    settle_runs(without)
    assert without == {"seed": 0}


def test_told_by_the_commands(tmp_path):
    (tmp_path / "runs").mkdir()
    refused = run("src.evaluate", "run=latest", cwd=tmp_path, ok=False)
    assert refused.stderr == "error: run=latest: runs holds no run with weights yet; give run=<folder>.\n"
