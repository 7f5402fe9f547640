"""Finished runs are found, read back whole or refused, and grouped into arms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from src.comparison.runs import find_runs, group
from src.errors import UserError

BATCHES = "b" * 64


def write_run(folder: Path, fusion: str = "srau", seed: int = 0, **settings) -> Path:
    """A run folder with one picture. ``settings``: flat keys, with __ for the dot."""
    config = {
        "seed": seed,
        "name": folder.name,
        "data": {"workers": seed, "batch_size": 8},
        "fusion": {"_target_": f"src.fusion.{fusion}.Mechanism"},
    }
    for key, value in settings.items():
        *path, last = key.split("__")
        node = config
        for name in path:
            node = node.setdefault(name, {})
        node[last] = value
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    metrics = {"split": "test", "scores": {"CIDEr-D": 0.5}, "cost": {"batches_sha256": BATCHES}}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "predictions.jsonl").write_text(json.dumps({"id": "1", "caption": "a\u2028b"}, ensure_ascii=False) + "\n")
    return folder


def folders(runs) -> list[str]:
    return [run.folder.name for run in runs]


def labels(tmp_path: Path) -> list[str]:
    return [arm.label for arm in group(find_runs(str(tmp_path)))]


# --------------------------------------------------------------------------------------------------------------------
# finding and reading
# --------------------------------------------------------------------------------------------------------------------
def test_a_folder_a_folder_of_runs_a_glob_and_a_list_name_runs(tmp_path):
    for name in ("b", "a", "deep/c"):
        write_run(tmp_path / name)
    (write_run(tmp_path / "unfinished") / "metrics.json").unlink()
    assert folders(find_runs(str(tmp_path / "a"))) == ["a"]
    assert folders(find_runs(str(tmp_path))) == ["a", "b", "c"]
    assert folders(find_runs(str(tmp_path / "[ab]"))) == ["a", "b"]
    assert folders(find_runs([str(tmp_path / "deep"), str(tmp_path / "a"), str(tmp_path / "*")])) == ["a", "b", "c"]


def test_a_run_is_read_back_whole(tmp_path):
    folder = write_run(tmp_path / "r", seed=3, fusion__tau=0.2)
    (folder / "environment.json").write_text(json.dumps({"choices": {"fusion": "mine"}}))
    (folder / "log").mkdir()
    (folder / "log" / "metrics.csv").write_text("step,val/loss,train/loss\n1,,0.9\n2,0.7,\n4,0.5,0.4\n")
    (run,) = find_runs(str(folder))
    assert run.seed == 3 and run.config["fusion.tau"] == 0.2 and run.scores == {"CIDEr-D": 0.5}
    assert run.rows == [{"id": "1", "caption": "a\u2028b"}]  # no line break in JSON lines
    assert run.fusion == "mine" and run.batches_sha256 == BATCHES
    assert run.curve("val/loss") == [(2, 0.7), (4, 0.5)] and run.curve("train/none") == []


def test_an_evaluation_is_read_instead_of_the_run(tmp_path):
    folder = write_run(tmp_path / "r")
    write_run(tmp_path / "without")
    (folder / "evaluate" / "val").mkdir(parents=True)
    (folder / "evaluate" / "val" / "metrics.json").write_text(json.dumps({"split": "val", "scores": {"loss": 1.0}}))
    (run,) = find_runs(str(tmp_path), evaluation="val")
    assert run.metrics["split"] == "val" and run.rows == [] and run.fusion == "srau"
    assert run.batches_sha256 == BATCHES  # what it was trained on stands in the run's own file
    with pytest.raises(UserError, match="names no folder of a run with evaluate/train or train;"):
        find_runs(str(tmp_path), evaluation="train")


def test_a_further_data_set_of_a_mixture_is_read_by_its_name(tmp_path):
    folder = write_run(tmp_path / "r")
    for number, place in enumerate(("stories", "evaluate/stories")):
        (folder / place).mkdir(parents=True)
        (folder / place / "metrics.json").write_text(json.dumps({"split": "test", "scores": {"loss": number}}))
        (run,) = find_runs(str(tmp_path), evaluation="stories")
        assert run.scores == {"loss": number}  # the newer evaluation, where there is one
        assert run.batches_sha256 == BATCHES


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.yaml", "a: [1", r"config.yaml cannot be read \("),
        ("config.yaml", "a: 1", "config.yaml names no seed and fusion"),
        ("config.yaml", "- 1", "config.yaml names no seed and fusion"),
        ("metrics.json", '{"scores": ', r"metrics.json cannot be read \("),
        ("metrics.json", "[]", "metrics.json should hold an object"),
        ("metrics.json", '{"split": "test"}', "metrics.json holds no scores"),
        ("environment.json", "{", r"environment.json cannot be read \("),
        ("predictions.jsonl", '{"id": "1", "capt', r"predictions.jsonl is damaged \("),
    ],
)
def test_damage_is_named_in_one_sentence(tmp_path, file, content, message):
    (write_run(tmp_path / "r") / file).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        find_runs(str(tmp_path))
    assert str(tmp_path / "r" / file) in str(caught.value) and "\n" not in str(caught.value)


def test_nothing_found_is_an_error(tmp_path):
    with pytest.raises(UserError, match="names no folder of a finished run; a finished run has"):
        find_runs([str(tmp_path), str(tmp_path / "nowhere")])


# --------------------------------------------------------------------------------------------------------------------
# grouping
# --------------------------------------------------------------------------------------------------------------------
def test_seeds_of_one_setting_are_one_arm_in_order(tmp_path):
    for seed in (2, 0, 1):
        write_run(tmp_path / f"srau-{9 - seed}", seed=seed, metrics=["meteor"] * (seed == 1), sweep=f"day {seed}")
    write_run(tmp_path / "blind", "blind", seed=0)
    blind, srau = group(find_runs(str(tmp_path)))
    assert (blind.label, srau.label) == ("blind", "srau")
    assert [run.seed for run in srau.runs] == [0, 1, 2]


def test_arms_of_one_fusion_are_told_apart_by_what_differs(tmp_path):
    write_run(tmp_path / "a", fusion__tau=0.1)
    write_run(tmp_path / "b", fusion__tau=0.2)
    write_run(tmp_path / "c", "blind", data__batch_size=16)
    assert labels(tmp_path) == ["srau tau=0.1", "srau tau=0.2", "blind"]


def test_a_class_is_in_the_label_where_nothing_else_tells_arms_apart(tmp_path):
    write_run(tmp_path / "a", data__source={"_target_": "One"})
    write_run(tmp_path / "b", data__source={"_target_": "Other"})
    write_run(tmp_path / "c", data__source={"_target_": "One"}, data__batch_size=16)
    found = labels(tmp_path)
    assert len(set(found)) == 3 and "_target_=One" in found[0] and "_target_=Other" in found[1]


def test_a_class_is_left_out_of_the_label_where_something_else_does(tmp_path):
    write_run(tmp_path / "a", data__source={"_target_": "One", "train": 5})
    write_run(tmp_path / "b", data__source={"_target_": "Other", "train": 6})
    assert labels(tmp_path) == ["srau data.source.train=5", "srau data.source.train=6"]


def test_a_seed_twice_is_refused(tmp_path):
    write_run(tmp_path / "a", seed=1)
    write_run(tmp_path / "b", seed=1)
    with pytest.raises(UserError, match=r"/a and .*/b are the same setting and seed; leave one out"):
        group(find_runs(str(tmp_path)))
