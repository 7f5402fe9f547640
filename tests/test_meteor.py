"""METEOR: published scores, hostile captions, and a Java that is missing, silent or dies."""

from __future__ import annotations

import json
import os
import shutil
import stat
import time
from pathlib import Path

import numpy as np
import pytest

from src.metrics.meteor import Unavailable, _counts, meteor, meteor_statistics

java = pytest.mark.skipif(shutil.which("java") is None, reason="no Java here")


# What the program answered to SCORE (caption against references, see below), and then to EVAL.
ANSWERS = {
    "6.0 6.0 2.0 2.0 4.0 4.0 2.0 2.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 1.0 6.0 6.0": 1.0,
    "2.0 8.0 1.0 3.0 0.0 0.0 1.0 1.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 1.0 1.0 1.0": 0.025157232704402517,
    "3.0 6.0 0.0 3.0 1.0 1.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 1.0 1.0 0.0 1.0 2.0 2.0 3.0": 0.19638766085805057,
    "0.0 2.0 0.0 1.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0": 0.0,
    "3.0 6.0 3.0 3.0 0.0 0.0 2.0 2.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 0.0 2.0 2.0 2.0": 0.07511737089201878,
    "8.0 8.0 4.0 4.0 0.0 0.0 4.0 4.0 0.0 0.0 0.0 0.0 1.0 1.0 0.0 0.0 0.0 0.0 0.0 0.0 3.0 5.0 5.0": 0.1833086916526158,
}
WHOLE = 0.19329796490457016
ASKED = {
    "a dog runs through the grass": ["a dog runs through the grass", "the dog is running"],
    "a man": ["A woman rides a bike down the road"],
    "dogs running fast": ["a dog runs", "the dog is quick and running"],
    "": ["a dog"],
    "the the the": ["the cat sat on the mat"],
    "a large canine is jogging over the meadow": ["a big dog is running over the field"],
}


def test_scores_follow_from_the_counts_as_in_the_program():
    """Of the corpus as well, which is not the mean of its captions' (.247 here)."""
    counts = np.array([_counts(answer) for answer in ANSWERS])
    assert counts[0].tolist() == [6, 6, 2, 2, 4, 4, 2, 2, *[0] * 13, 6, 6]  # without its chunk: nothing is out of order
    assert meteor(counts).tolist() == pytest.approx(list(ANSWERS.values()), abs=1e-15)
    assert meteor(counts.sum(0)) == pytest.approx(WHOLE, abs=1e-15)
    assert meteor(counts[None, :, :]).shape == (1, 6)
    assert meteor(np.zeros(23)) == 0


@java
@pytest.mark.slow
def test_the_counts_are_the_programs():
    counts = meteor_statistics(list(ASKED), list(ASKED.values()))
    assert counts.tolist() == [_counts(answer) for answer in ANSWERS]
    assert meteor_statistics([], []).shape == (0, 23)


@java
@pytest.mark.slow
@pytest.mark.parametrize("name", ["flickr30k_magic_result", "mscoco_baselines_mscoco_in_domain_clipretrieval"])
def test_published_scores(name):
    folder = os.environ.get("CAPTION_METRIC_FIXTURE")
    if not folder:
        pytest.skip("CAPTION_METRIC_FIXTURE does not name a folder of system outputs with known scores")
    known = json.loads((Path(folder) / "expected_scores.json").read_text())
    rows = json.loads((Path(folder) / f"{name}.json").read_text())
    counts = meteor_statistics([row["prediction"] for row in rows], [row["captions"] for row in rows])
    assert meteor(counts.sum(0)) == pytest.approx(known[name]["recomputed_pycocoevalcap_1.2"]["METEOR"], abs=1e-9)


@java
@pytest.mark.slow
def test_hostile_captions_shift_nothing():
    good = "a dog runs through the grass"
    nasty = ["", "\r", "a\u2028b", "\x0c", "🙂", "|||", "...", "word " * 2000, "a\nb"]
    predictions = [x for caption in nasty for x in (caption, good)]
    scores = meteor(meteor_statistics(predictions, [[good, "the dog is running"]] * len(predictions)))
    assert len(scores) == len(predictions)
    assert (scores[1::2] == scores[1]).all() and scores[1] > 0.9
    assert (scores[0::2] < 0.2).all()


def test_without_java_there_is_a_reason(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(Unavailable, match="needs Java"):
        meteor_statistics(["a dog"], [["a dog"]])


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("exit 3", "ended too early"),
        ("cat > /dev/null", "took too long"),
        ("sleep 60", "too long"),
        ("read line; kill -9 $$", "ended too early"),
        ("while read line; do echo 0,5; done", "answered '0,5' where 23 counts were due"),
    ],
)
def test_a_java_that_dies_or_says_nothing_ends(tmp_path, monkeypatch, script, message):
    stand_in(tmp_path, monkeypatch, script)
    with pytest.raises(Unavailable, match=message):
        meteor_statistics(["a dog"], [["a dog"]], timeout=2)


def test_a_java_that_never_reads_ends(tmp_path, monkeypatch):
    """More captions than fit into the pipe: writing them would wait for ever."""
    stand_in(tmp_path, monkeypatch, "sleep 300")
    started = time.monotonic()
    with pytest.raises(Unavailable, match="took too long"):
        meteor_statistics(["a dog runs through the grass"] * 5000, [["a dog"]] * 5000, timeout=2)
    assert time.monotonic() - started < 30


def stand_in(tmp_path: Path, monkeypatch, script: str) -> None:
    """A command java that is this shell script."""
    fake = tmp_path / "java"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
