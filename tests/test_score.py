"""``python -m src.score`` as a user types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = json.loads((ROOT / "tests" / "golden" / "captions.json").read_text(encoding="utf-8"))


def score(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "src.score", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


@pytest.fixture
def files(tmp_path) -> Path:
    """A folder with p.json (COCO results) and r.json (Karpathy, of which only the split test is predicted)."""
    rows = [{"image_id": id, "caption": caption} for id, caption in GOLDEN["predictions"].items()]
    images = [
        {"filename": f"{id}.jpg", "imgid": number, "split": "test", "sentences": [{"raw": text} for text in texts]}
        for number, (id, texts) in enumerate(GOLDEN["references"].items())
    ]
    images.append({"filename": "other.jpg", "imgid": 99, "split": "train", "sentences": [{"raw": "Not predicted."}]})
    (tmp_path / "p.json").write_text(json.dumps(rows))
    (tmp_path / "r.json").write_text(json.dumps({"images": images}))
    return tmp_path


def test_table_and_metrics_beside_the_predictions(files):
    answer = score(files, "predictions=p.json", "references=r.json", "split=test")
    assert answer.returncode == 0 and not answer.stderr
    metrics = json.loads((files / "p.metrics.json").read_text())
    assert metrics["split"] == "test" and metrics["pictures"] == 8 and metrics["cost"] == {}
    assert {name: metrics["scores"][name] for name in GOLDEN["corpus"]} == pytest.approx(GOLDEN["corpus"], abs=1e-6)
    assert f"{'CIDEr-D':<12}{GOLDEN['corpus']['CIDEr-D']:>10.4f}" in answer.stdout
    assert "note: CIDEr-D of only 8 pictures" in answer.stdout and "written: p.metrics.json" in answer.stdout
    assert sorted(path.name for path in files.iterdir()) == ["p.json", "p.metrics.json", "r.json"]


@pytest.mark.parametrize(("output", "written"), [("new/folder", "new/folder/metrics.json"), ("own.json", "own.json")])
def test_output_may_be_a_folder_or_a_file(files, output, written):
    assert score(files, "predictions=p.json", "references=r.json", "split=test", f"output={output}").returncode == 0
    assert "CIDEr-D" in json.loads((files / written).read_text())["scores"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "predictions=<file> is missing"),
        (["predictions=p.json"], "references=<file> is missing"),
        (["predictions=nowhere.json", "references=r.json"], "nowhere.json can't be read: No such file or directory."),
        (["predictions=p.json", "references=r.json"], "1 of 9 pictures have no prediction, for example other;"),
        (
            ["predictions=p.json", "references=r.json", "split=val"],
            "has no split val; it has test (8), train (1).",
        ),
        (["predictions=r.json", "references=p.json"], "r.json should hold a list of"),
    ],
)
def test_mistakes_are_one_sentence(files, arguments, message):
    answer = score(files, *arguments)
    assert answer.returncode == 2 and answer.stdout == ""
    assert answer.stderr.startswith("error: ") and message in answer.stderr and answer.stderr.count("\n") == 1
    assert sorted(path.name for path in files.iterdir()) == ["p.json", "r.json"]


def test_a_mistyped_key_is_named(files):
    answer = score(files, "prediction=p.json", "references=r.json")
    assert answer.returncode != 0 and "Could not override 'prediction'" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_starts_without_torch(files):
    """A mistake must show at once; loading torch alone takes seconds."""
    code = "import sys, src.score; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0
