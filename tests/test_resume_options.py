"""A run is gone on with as it was begun: its options need not be said again, and those that do not fit are named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest import ROOT
from omegaconf import OmegaConf

from src.config.added_keys import run_config
from src.config.command_line import check_words, compose, parse
from src.config.resume import completed, resumed
from src.errors import UserError
from src.records.folder import checkpoint_path, removed_where_nothing_came_of_it
from src.training.checkpoints import unfinished

STOPPED = ROOT / "tests" / "golden" / "commit_25be8f1" / "stopped"


def gone_on_with(*words: str, folder: Path = STOPPED) -> tuple[dict, list[str]]:
    """The options of ``resume=<folder>`` with ``words``, and the notes."""
    words, notes = completed([f"resume={folder}", *words]), []
    check_words("train", words)
    cfg = resumed(compose("train", words, parse(words)), words, say=notes.append)
    return OmegaConf.to_container(cfg), notes


def test_the_options_are_those_of_the_folder():
    words = completed([f"resume={STOPPED}"])
    assert {"fusion=srau", "decode=greedy", "debug=smoke", "data=scenes"} <= set(words)
    assert not [word for word in words if word.startswith("experiment=")]
    options, notes = gone_on_with()
    assert options == {**OmegaConf.to_container(run_config(STOPPED)), "resume": str(STOPPED)} and notes == []
    assert (
        gone_on_with("fusion=srau", "fusion.levels=2", "debug=smoke", "data.batch_size=4")[0] == options
    )  # said again


def test_a_run_on_other_data_is_not_looked_for_in_the_default_ones(tmp_path):
    folder = shutil.copytree(STOPPED, tmp_path / "run")
    for name in ("SHA256SUMS", "environment.json"):
        (folder / name).unlink()
    cfg = run_config(folder)
    cfg.data.root = cfg.data.source.root = "here"
    cfg.data.source._target_ = "src.data.folder.Folder"
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(cfg))
    options, notes = gone_on_with("data=folder", "data.root=there", folder=folder)
    assert options["data"]["source"]["root"] == options["data"]["root"] == "there"
    assert "data.root=there instead of here, data.source.root=there instead of here" in notes[0]


@pytest.mark.parametrize(
    ("words", "note"),
    [
        (["trainer.max_steps=80"], "trainer.max_steps=80 instead of 60"),
        (["regime.lr_fusion=1e-4", "samples=4"], "regime.lr_fusion=0.0001 instead of 0.002, samples=4 instead of 2"),
        (["decode=beam", "decode.max_tokens=6"], "decode._target_=src.decoding.beam.BeamSearch instead of"),
        (["optim=guarded"], "optim.loss_spike=5.0 instead of None"),
        (["+trainer.max_time=00:01:00:00"], "trainer.max_time=00:01:00:00 instead of None"),
    ],
)
def test_what_may_change_is_named(words, note):
    options, notes = gone_on_with(*words)
    assert len(notes) == 1 and notes[0].startswith(f"note: {STOPPED} goes on with ") and note in notes[0]
    key, _, value = note.partition(" instead")[0].partition("=")
    assert str(OmegaConf.select(OmegaConf.create(options), key.rpartition(" ")[2])) == value


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("fusion.tau=0.3", r"was begun with fusion.tau=0.2 and cannot go on with 0.3; leave that out"),
        ("fusion=clipcap", r"was begun with fusion._target_=src.fusion.srau.SRAU and cannot go on with src.fusion"),
        ("data.batch_size=8", r"was begun with data.batch_size=4"),
        ("seed=1", r"was begun with seed=0"),
        ("experiment=scenes_features", r"was begun with experiment=null; leave experiment=scenes_features out"),
        ("debug=overfit", r"was begun with debug=smoke; leave debug=overfit out"),
        ("language.model.width=32", r"was begun with language.model.width=16"),
    ],
)
def test_what_a_run_cannot_go_on_with_is_refused(word, sentence):
    with pytest.raises(UserError, match=sentence):
        gone_on_with(word)


def test_resume_auto_says_what_keeps_it_from_going_on(tmp_path, capsys):
    folder = shutil.copytree(STOPPED, tmp_path / "stopped")
    cfg = run_config(folder)
    assert unfinished(cfg, tmp_path / "new") == folder and not capsys.readouterr().out
    cfg.fusion.tau, cfg.samples, cfg.trainer.max_steps = 0.3, 9, 100
    assert unfinished(cfg, tmp_path / "new") is None
    assert capsys.readouterr().out == (
        f"note: resume=auto begins anew: {folder} has fusion.tau=0.2 (here 0.3), trainer.max_steps=60 (here 100).\n"
    )


# ------------------------------------------------------------------------------------------------- failed starts
def begun(folder: Path) -> Path:
    """What a start leaves."""
    shutil.copytree(STOPPED / "tokenizer", folder / "tokenizer")
    (folder / "log").mkdir()
    for name in ("config.yaml", "environment.json", "SHA256SUMS"):
        shutil.copy(STOPPED / name, folder)
    return folder


@pytest.mark.parametrize("error", [UserError("no data"), KeyboardInterrupt(), SystemExit(143)])
def test_a_failed_start_leaves_no_folder(error, tmp_path):
    folder = begun(tmp_path / "scenes-srau" / "date")
    with pytest.raises(type(error)), removed_where_nothing_came_of_it(folder, "scenes-srau"):
        raise error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["checkpoints/last.ckpt", "log/metrics.csv", "stdout.log", "result.json"])
def test_what_came_of_a_run_is_kept(name, tmp_path):
    folder = begun(tmp_path / "run")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("something")
    with pytest.raises(UserError), removed_where_nothing_came_of_it(folder, "run"):
        raise UserError("no luck")
    assert (folder / name).exists() and (folder / "config.yaml").exists()


def test_a_wrong_folder_is_called_that(tmp_path):
    with pytest.raises(UserError, match=r"is not a run folder: it has no config\.yaml"):
        checkpoint_path(tmp_path)
    (tmp_path / "config.yaml").touch()
    with pytest.raises(UserError, match=r"best\.ckpt is missing: training did not get that far"):
        checkpoint_path(tmp_path)
