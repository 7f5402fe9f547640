"""What was made at an earlier commit, 25be8f1, is read, gone on with and compared by the code as it is now."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from commands import run
from conftest import ROOT
from omegaconf import OmegaConf
from PIL import Image

from src.build import build
from src.comparison.arms import compare
from src.comparison.runs import find_runs, group
from src.config.added_keys import run_config
from src.config.make import config_hash, make
from src.export import export
from src.loading import features
from src.pretrained import picture_batches, restore_captioner, restore_on
from src.tasks.base import split_loss
from src.tasks.choose import choose

EARLIER = ROOT / "tests" / "golden" / "commit_25be8f1"
HASHES = {
    "run": "62ecba3fe866285ecb06235e41ad7821c963cdee12b838acf030dc965f4b1c7e",
    "stopped": "77899dd83fdc5b8becd7266885bc1065aed12cdb5ea8111956937d5417611c52",
}
LOSSES = {
    39: 3.7678401470184326,
    59: 3.674947500228882,
}  # val/loss of the stopped run, gone on with at that commit


@pytest.fixture
def earlier(tmp_path, monkeypatch) -> Path:
    """A copy to work in; the folder of features is the one that its configurations name."""
    for name in ("run", "stopped", "export"):
        shutil.copytree(EARLIER / name, tmp_path / name)
    shutil.copytree(EARLIER / "features", tmp_path / "data" / "features")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", HASHES)
def test_its_configurations_have_the_hash_that_they_had(name):
    assert config_hash(run_config(EARLIER / name)) == HASHES[name]


def test_its_run_has_the_scores_that_it_had(earlier):
    saved = json.loads((earlier / "run" / "metrics.json").read_text())
    parts = restore_on(earlier / "run", run_config(earlier / "run").data, saved["split"])
    scores = choose(None, parts.source, parts.captioner.fusion).evaluate(parts, saved["split"]).scores
    assert scores.keys() == {*saved["scores"], "gap/loss", "truth_f1"}
    first = [replace(example, captions=example.captions[:1]) for example in parts.data.examples(saved["split"])]
    parts.data._examples[saved["split"]] = first  # the loss was theirs then, and is that of all references now
    loss = split_loss(parts, saved["split"])
    scores |= {"loss": loss, "perplexity": math.exp(loss)}
    for name, score in saved["scores"].items():
        assert scores[name] == (None if score is None else pytest.approx(score, abs=1e-3)), name


def test_its_run_is_exported_as_it_was(earlier):
    export(earlier / "run", earlier / "exported", include=False)
    pictures = [earlier / "picture.png"]
    Image.new("RGB", (40, 30), "red").save(pictures[0])
    said = []
    for folder in ("run", "export", "exported"):
        captioner = restore_captioner(earlier / folder)
        said.append(captioner.caption(picture_batches(captioner, pictures, 1, pytest.fail)))
    assert said[0] == said[1] == said[2] and list(said[0]) == [str(pictures[0])]
    assert run_config(earlier / "export").fusion == run_config(earlier / "exported").fusion


def test_its_run_is_compared_with_one_made_now(earlier):
    other = shutil.copytree(earlier / "run", earlier / "other")
    (other / "SHA256SUMS").unlink()
    cfg = run_config(other)  # as it is written now: with options that there were not yet
    cfg.seed = 1
    OmegaConf.save(cfg, other / "config.yaml")
    (arm,) = group(find_runs([str(earlier / "run"), str(other)]))
    assert [one.seed for one in arm.runs] == [0, 1]
    compare([arm], scores=["CIDEr-D"], baseline=None, resamples=100, allow=[])


def test_its_stopped_run_is_gone_on_with(earlier):
    """By the folder alone, whose options are taken. Its best.ckpt, which later validations beat, was not kept."""
    shutil.copy(earlier / "stopped" / "checkpoints" / "last.ckpt", earlier / "stopped" / "checkpoints" / "best.ckpt")
    answer = run("src.train", "resume=stopped", "hydra.run.dir=more", cwd=earlier)
    assert "going on from stopped/checkpoints/last.ckpt" in answer.stdout and "note:" not in answer.stdout
    (more,) = find_runs(str(earlier / "more"))
    curve = dict(more.curve("val/loss"))
    assert curve.keys() == {19, *LOSSES}
    assert {step: curve[step] for step in LOSSES} == pytest.approx(LOSSES, abs=2e-3)
    assert more.fusion == "srau" and more.environment["choices"]["decode"] == "greedy"
    assert "will be deleted" not in answer.stderr


def test_its_features_are_taken(earlier, monkeypatch):
    monkeypatch.setattr(features, "build", lambda *_: pytest.fail("features are computed again"))
    cfg = run_config(earlier / "run")
    cfg.regime.train_vision = False
    data = build(cfg, {"": make(cfg.data.source)}).data
    assert data.features.keys() == {"train", "val", "test", "compositional"}
    assert len(next(iter(data.train_dataloader())).ids) == cfg.data.batch_size
