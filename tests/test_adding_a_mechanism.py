"""A new mechanism costs two files: the README's paragraph, followed to the letter, in a copy of the project."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.slow
def test_two_files_and_every_contract_runs_over_them(tmp_path):
    for name in ("src", "conf", "tests", "pyproject.toml"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tmp_path / name)
    source = (ROOT / "src/fusion/cross_attention.py").read_text()
    (tmp_path / "src/fusion/mine.py").write_text(
        source.replace("PlainCrossAttention", "Mine").replace(
            "h_BTD = h_BTD + self.drop(", "h_BTD = h_BTD - self.drop("
        )
    )
    yaml = (ROOT / "conf/fusion/cross_attention.yaml").read_text()
    (tmp_path / "conf/fusion/mine.yaml").write_text(
        yaml.replace("src.fusion.cross_attention.PlainCrossAttention", "src.fusion.mine.Mine")
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    contract = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "contract and mine"]
    answer = subprocess.run(contract, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    passed = re.search(r"(\d+) passed", answer.stdout)
    assert answer.returncode == 0 and int(passed[1]) >= 12, answer.stdout[-3000:]
    train = [sys.executable, "-m", "src.train", "fusion=mine", "debug=smoke", f"hydra.run.dir='{tmp_path}/run'"]
    subprocess.run(train, cwd=tmp_path, env=environment, check=True, capture_output=True, timeout=300)
    assert (tmp_path / "run" / "metrics.json").is_file()
