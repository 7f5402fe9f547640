"""METEOR: published scores, hostile captions, and a Java that is missing, silent or dies."""

from __future__ import annotations

import json
import os
import shutil
import stat
import time
from pathlib import Path

import pytest

from src.metrics.meteor import Unavailable, meteor

java = pytest.mark.skipif(shutil.which("java") is None, reason="no Java here")


@java
@pytest.mark.slow
@pytest.mark.parametrize("name", ["flickr30k_magic_result", "mscoco_baselines_mscoco_in_domain_clipretrieval"])
def test_published_scores(name):
    folder = os.environ.get("CAPTION_METRIC_FIXTURE")
    if not folder:
        pytest.skip("CAPTION_METRIC_FIXTURE does not name a folder of system outputs with known scores")
    known = json.loads((Path(folder) / "expected_scores.json").read_text())
    rows = json.loads((Path(folder) / f"{name}.json").read_text())
    found = meteor([row["prediction"] for row in rows], [row["captions"] for row in rows])
    assert found[-1] == pytest.approx(known[name]["recomputed_pycocoevalcap_1.2"]["METEOR"], abs=1e-9)


@java
@pytest.mark.slow
def test_hostile_captions_shift_nothing():
    good = "a dog runs through the grass"
    nasty = ["", "\r", "a\u2028b", "\x0c", "🙂", "|||", "...", "word " * 2000, "a\nb"]
    predictions = [x for caption in nasty for x in (caption, good)]
    scores = meteor(predictions, [[good, "the dog is running"]] * len(predictions))
    assert len(scores) == len(predictions) + 1
    assert scores[1:-1:2] == [scores[1]] * len(nasty) and scores[1] > 0.9
    assert all(score < 0.2 for score in scores[0:-1:2])


def test_without_java_there_is_a_reason(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(Unavailable, match="needs Java"):
        meteor(["a dog"], [["a dog"]])


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("exit 3", "ended too early"),
        ("cat > /dev/null", "took too long"),
        ("sleep 60", "too long"),
        ("read line; kill -9 $$", "ended too early"),
        ("while read line; do echo 0,5; done", "answered '0,5' where a score was due"),
    ],
)
def test_a_java_that_dies_or_says_nothing_ends(tmp_path, monkeypatch, script, message):
    stand_in(tmp_path, monkeypatch, script)
    with pytest.raises(Unavailable, match=message):
        meteor(["a dog"], [["a dog"]], timeout=2)


def test_a_java_that_never_reads_ends(tmp_path, monkeypatch):
    """More captions than fit into the pipe: writing them would wait for ever."""
    stand_in(tmp_path, monkeypatch, "sleep 300")
    started = time.monotonic()
    with pytest.raises(Unavailable, match="took too long"):
        meteor(["a dog runs through the grass"] * 5000, [["a dog"]] * 5000, timeout=2)
    assert time.monotonic() - started < 30


def stand_in(tmp_path: Path, monkeypatch, script: str) -> None:
    """A command java that is this shell script."""
    fake = tmp_path / "java"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
