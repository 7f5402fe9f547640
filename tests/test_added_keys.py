"""An option that is new changes neither what earlier runs mean nor what they are called."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from omegaconf import OmegaConf
from test_runs import write_run

from src.comparison.runs import find_runs, group
from src.config import added_keys
from src.config.added_keys import run_config
from src.config.make import config_hash
from src.pretrained import restore_captioner
from src.records.files import write_json
from src.training.checkpoints import unfinished

RUN = ROOT / "tests" / "golden" / "commit_25be8f1" / "run"
HASH = "62ecba3fe866285ecb06235e41ad7821c963cdee12b838acf030dc965f4b1c7e"  # as that commit computed it


def hash_with(**options) -> str:
    """Of the golden run's configuration; ``options``: flat keys with __ for the dot."""
    cfg = run_config(RUN)
    for key, value in options.items():
        OmegaConf.update(cfg, key.replace("__", "."), value, force_add=True)
    return config_hash(cfg)


def without(*keys: str) -> dict:
    """The golden run's configuration as if there had been none of ``keys`` yet."""
    plain = yaml.safe_load((RUN / "config.yaml").read_text())
    for key in keys:
        *path, last = key.split(".")
        node = plain
        for name in path:
            node = node[name]
        del node[last]
    return plain


def written(folder: Path, plain: dict) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(plain))
    return folder


def test_an_earlier_configuration_has_the_hash_that_it_had():
    assert hash_with() == HASH
    assert hash_with(seed=1) != HASH


def test_the_value_that_says_what_absence_says_does_not_count(monkeypatch):
    assert hash_with(projector=None) != HASH  # what a row is for
    rows = {"projector": None, "decode.order": "sum", "src.fusion.srau.SRAU.tilt": 0.0, "data.shuffle": True}
    monkeypatch.setattr(added_keys, "ABSENT", {**added_keys.ABSENT, **rows})
    same = {"projector": None, "decode__order": "sum", "fusion__tilt": 0.0, "data__shuffle": True}
    monkeypatch.setattr(added_keys, "_takes", lambda place, target, name: True)
    assert hash_with(**same) == HASH
    others = {"projector": "mlp", "decode__order": "mean", "fusion__tilt": 0.5, "data__shuffle": False}
    hashes = {hash_with(**{**same, key: value}) for key, value in others.items()}
    assert len(hashes) == len(others) and HASH not in hashes


@pytest.mark.parametrize("row", ["fusion.tau", "src.fusion.srau.SRAU.tau"])
def test_a_run_without_the_option_is_read_with_the_earlier_function(row, monkeypatch, tmp_path):
    """tau as if it were new: earlier runs were computed with .3, whatever conf/ or the constructor have by now."""
    earlier = without("fusion.tau")
    monkeypatch.setattr(added_keys, "ABSENT", {**added_keys.ABSENT, row: 0.3})
    run, copy = written(tmp_path / "run", earlier), tmp_path / "copy"
    assert run_config(run).fusion.tau == 0.3
    other = {**earlier, "fusion": {"_target_": "src.fusion.clipcap.ClipCap", "_partial_": True}}
    assert "tau" not in run_config(written(copy, other)).fusion  # which ClipCap would refuse
    assert config_hash(run_config(run)) == config_hash(OmegaConf.create(earlier))
    for name in ("tokenizer", "checkpoints"):
        (run / name).symlink_to(RUN / name)
    assert restore_captioner(run).fusion.tau == 0.3


@pytest.mark.parametrize(
    ("fusion", "old", "new"),
    [
        ("coca.CoCa", {"xattn_out_init": "zero"}, {"start": "neutral", "dropout": 0.0}),
        ("vcgpt.VCGPT", {"wf_init": "normal"}, {"start": "paper"}),
    ],
)
def test_a_renamed_option_is_read_by_its_new_name_and_counted_by_its_old_one(fusion, old, new, tmp_path):
    plain = without()
    earlier = {**plain, "fusion": {"_target_": f"src.fusion.{fusion}", "_partial_": True, **old}}
    read = run_config(written(tmp_path, earlier))
    assert {name: read.fusion[name] for name in new} == new and not old.keys() & read.fusion.keys()
    assert config_hash(read) == config_hash(OmegaConf.create(earlier))
    read.fusion.start = {"neutral": "paper", "paper": "neutral"}[new["start"]]
    assert config_hash(read) != config_hash(OmegaConf.create(earlier))


def test_members_of_a_mixture_have_the_options_of_data(monkeypatch, tmp_path):
    monkeypatch.setattr(added_keys, "ABSENT", {"data.shuffle": True})
    plain = without()
    plain["data"] = {"members": {"pairs": plain["data"]}}
    assert run_config(written(tmp_path, plain)).data.members.pairs.shuffle is True


def test_a_configuration_with_another_value_does_not_go_on_with_an_earlier_run(monkeypatch, tmp_path):
    monkeypatch.setattr(added_keys, "ABSENT", {"fusion.tau": 0.3})
    earlier = written(tmp_path / "earlier", without("fusion.tau"))
    (earlier / "checkpoints").mkdir()
    (earlier / "checkpoints" / "last.ckpt").touch()
    asked = run_config(earlier)
    assert unfinished(asked, tmp_path / "new") == earlier
    asked.fusion.tau = 0.2  # a new default
    assert unfinished(asked, tmp_path / "new") is None


def test_runs_before_and_after_are_one_arm(monkeypatch, tmp_path):
    monkeypatch.setattr(added_keys, "ABSENT", {"projector": None, "decode.rule": "sum"})
    for seed, options in enumerate([{}, {"projector": None}, {"projector": "mlp"}]):
        folder = write_run(tmp_path / f"r{seed}", seed=seed, **options)
        rule = {"rule": "sum"} if seed else {}
        decoding = {"method": "BeamSearch", "beams": 5, **rule}
        write_json(folder / "metrics.json", {"split": "test", "scores": {"CIDEr-D": 0.5}, "decoding": decoding})
    one, other = group(find_runs(str(tmp_path)))
    assert [run.seed for run in one.runs] == [0, 1] and [run.seed for run in other.runs] == [2]
    assert one.runs[0].metrics == one.runs[1].metrics
    assert (one.label, other.label) == ("srau projector=None", "srau projector=mlp")
