"""Nothing lost: training that was killed anywhere goes on and ends exactly where it would have without the kill."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from test_verbs import SMOKE, run

from src.build import load_checkpoint
from src.checkpoints import SafeCheckpointIO, damage
from src.errors import UserError

SIZES = ("vision.width=32", "vision.layers=3", "language.model.width=32", "language.model.layers=2")
LONG = (*SIZES, "language.model.dropout=0.1", "trainer.max_steps=160", "trainer.val_check_interval=7")
LONG += ("trainer.limit_val_batches=1", "decode.max_tokens=6")
SCENES = ("data.batch_size=4", "data.source.train=50", "data.source.val=4", "data.source.test=8")  # 13 steps an epoch
STORIES = (
    "data=mixture",
    "data.members.pairs.batch_size=4",
    "data.members.pairs.source.train=50",
    "data.members.pairs.source.val=4",
    "data.members.pairs.source.test=8",
    "data.members.stories.batch_size=2",
    "data.members.stories.source.train=20",
    "data.members.stories.source.val=4",
    "data.members.stories.source.test=4",
)
CASES = {
    "srau": ("fusion=srau", *SCENES),
    "coca with two loading processes": ("fusion=coca", "fusion.queries=4", *SCENES, "data.workers=2"),
    "accumulated": ("fusion=clipcap", *SCENES, "trainer.accumulate_grad_batches=2", "trainer.max_steps=80"),
    "flamingo on a mixture": ("fusion=flamingo", "fusion.latents=4", "fusion.resampler_layers=1", *STORIES),
    "two processes": ("fusion=vcgpt", *SCENES, "trainer.devices=2", "trainer.accelerator=cpu", "trainer.strategy=ddp"),
}
KILLS = int(os.environ.get("KILLS", "1"))  # per case; the long version: KILLS=10


def start(arguments) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "src.train", *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )


def kill_while_it_trains(arguments, folder: Path, seconds: float) -> None:
    """SIGKILL for the whole process group, some time after the first checkpoint."""
    process = start([*arguments, f"hydra.run.dir='{folder}'"])
    while not (folder / "checkpoints" / "last.ckpt").exists() and process.poll() is None:
        time.sleep(0.02)
    time.sleep(seconds)
    finished = (folder / "result.json").exists()
    os.killpg(process.pid, signal.SIGKILL)
    said = process.communicate()[0].decode(errors="replace")
    assert not finished, said


def ended_at(folder: Path) -> tuple[dict, str, list[str]]:
    """Weights and optimiser state at the end, the predictions, and the losses of validation."""
    from src.runs import find_runs

    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    moments = {
        f"{i}/{name}": value
        for i, state in last["optimizer_states"][0]["state"].items()
        for name, value in state.items()
    }
    (finished,) = find_runs(str(folder))
    predictions = "".join(path.read_text() for path in sorted(folder.rglob("predictions.jsonl")))
    return {**last["state_dict"], **moments}, predictions, finished.curve("val/loss")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    found = {}

    def end(case: str):
        if case not in found:
            folder = tmp_path_factory.mktemp("whole") / "run"
            run("src.train", *LONG, *CASES[case], f"hydra.run.dir='{folder}'")
            found[case] = ended_at(folder)
        return found[case]

    return end


@pytest.mark.slow
@pytest.mark.parametrize("number", range(KILLS))
@pytest.mark.parametrize("case", CASES)
def test_killed_training_ends_where_it_would_have_ended(case, number, uninterrupted, tmp_path):
    arguments = [*LONG, *CASES[case], "resume=auto"]
    kill_while_it_trains(arguments, tmp_path / "first", random.Random(f"{case}{number}").uniform(0, 1.0))
    run("src.train", *arguments, f"hydra.run.dir='{tmp_path}/second'")
    weights, predictions, losses = uninterrupted(case)
    own_weights, own_predictions, own_losses = ended_at(tmp_path / "second")
    assert weights.keys() == own_weights.keys()
    assert [name for name in weights if not torch.equal(weights[name], own_weights[name])] == []
    assert own_predictions == predictions and own_losses == losses
    assert list((tmp_path / "second" / "log").glob("before-1.csv"))  # it did go on, and did not start afresh


# ------------------------------------------------------------------------------------------------- checkpoint files
@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "blind"
    run("src.train", "fusion=blind", *SMOKE, f"hydra.run.dir='{folder}'")
    return folder


@pytest.mark.parametrize("fault", ["cut", "empty", "flipped"])
def test_a_damaged_checkpoint_is_named(fault, trained, tmp_path):
    whole = (trained / "checkpoints" / "best.ckpt").read_bytes()
    assert damage(trained / "checkpoints" / "best.ckpt") is None
    place = whole.index(b"data/0") + 5_000
    broken = {
        "cut": whole[: len(whole) // 2],
        "empty": b"",
        "flipped": whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :],
    }
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.ckpt").write_bytes(broken[fault])
    with pytest.raises(UserError, match=r"best\.ckpt is damaged"):
        load_checkpoint(tmp_path)


def test_the_last_good_checkpoint_is_gone_on_from(trained, tmp_path):
    """A flipped bit in last.ckpt costs the steps since the one before, and says so."""
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    shutil.copy(folder / "checkpoints" / "last.ckpt", folder / "checkpoints" / "previous.ckpt")
    last = folder / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-1000])
    answer = run("src.train", "fusion=blind", *SMOKE, f"resume={folder}", f"hydra.run.dir='{tmp_path}/more'")
    assert "is damaged" in answer.stdout and "going on from previous.ckpt" in answer.stdout
    (folder / "checkpoints" / "previous.ckpt").unlink()
    answer = run("src.train", "fusion=blind", *SMOKE, f"resume={folder}", f"hydra.run.dir='{tmp_path}/no'", ok=False)
    assert "is damaged" in answer.stderr and "train this run again" in answer.stderr


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path, monkeypatch):
    from src import checkpoints

    io, path = SafeCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint({"step": 1}, path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints.records, "write_bytes", full)
    with pytest.raises(UserError, match="No space left on device"):
        io.save_checkpoint({"step": 2}, path)
    assert torch.load(tmp_path / "previous.ckpt") == {"step": 1} and not list(tmp_path.glob(".*"))
