"""Nothing lost: training that was killed anywhere goes on and ends exactly where it would have without the kill."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from commands import run
from conftest import ROOT
from test_verbs import SMOKE
from trainings import Trainings

from src.comparison.runs import find_runs
from src.errors import UserError
from src.records.folder import Saved
from src.training.checkpoints import LastCheckpoint, SafeCheckpointIO, damage, take_over
from src.training.signals import Interrupts
from src.vision.vit import trained_vision

KILLS = int(os.environ.get("KILLS", "2"))  # per case, one after the other; the long version: KILLS=10
STEPS = max(36, 8 * KILLS)
SIZES = ("vision.width=16", "vision.layers=3", "vision.heads=2", "vision.patch=16", "language.model.heads=2")
SIZES += ("language.model.width=16", "language.model.layers=2", "language.model.dropout=0.1")
LONG = (*SIZES, "language.tokenizer.vocabulary=300", f"trainer.max_steps={STEPS}", "trainer.val_check_interval=6")
LONG += ("trainer.limit_val_batches=1", "trainer.log_every_n_steps=3", "decode=greedy", "decode.max_tokens=6")
LONG += ("resume=auto", "samples=2")
SCENES = ("data.batch_size=2", "data.source.train=26", "data.source.val=4", "data.source.test=4")  # 13 steps an epoch
STORIES = (
    "data=mixture",
    "data.members.pairs.batch_size=2",
    "data.members.pairs.source.train=26",
    "data.members.pairs.source.val=4",
    "data.members.pairs.source.test=4",
    "data.members.stories.batch_size=2",
    "data.members.stories.source.train=20",
    "data.members.stories.source.val=4",
    "data.members.stories.source.test=4",
)
FROZEN = ("regime=frozen_lm", "language.weights=tests/golden/commit_25be8f1/run", "data.pack=false")
CACHED = ("regime.train_vision=false", "data.cache_dir=<here>/features")
CASES = {
    "srau": ("fusion=srau", *SCENES),
    "coca with two loading processes": ("fusion=coca", "fusion.queries=4", *SCENES, "data.workers=2"),
    "accumulated": (
        "fusion=clipcap",
        *SCENES,
        "trainer.accumulate_grad_batches=2",
        f"trainer.max_steps={STEPS * 3 // 4}",
    ),
    "flamingo on a mixture": ("fusion=flamingo", "fusion.latents=4", "fusion.resampler_layers=1", *STORIES),
    "cached features": ("fusion=cross_attention", *SCENES, *CACHED),
    "a frozen language model, one caption a row": ("fusion=vcgpt", *SCENES, *FROZEN),
    "adapters": ("fusion=cross_attention", *SCENES, "regime=lora", FROZEN[1]),
    "two processes": ("fusion=vcgpt", *SCENES, "trainer.devices=2", "trainer.accelerator=cpu", "trainer.strategy=ddp"),
}
LENGTH = (2, -1)  # max_steps and max_epochs of a smoke run
EXACT = {"accumulated": (signal.SIGKILL, 15)}  # the first kill: amid the batches of a step, just behind a validation
GENTLE = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # after which the step is finished and saved


def ended_at(folder: Path) -> dict:
    """All that a training leaves: tensors, optimiser state, scores, predictions and the losses of every step."""
    tensors = {}
    for name in ("last", "best"):
        checkpoint = torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)
        tensors |= {f"{name}/{key}": x for key, x in checkpoint["state_dict"].items()}
        states = checkpoint["optimizer_states"][0]["state"]
        tensors |= {f"{name}/{i}/{key}": x for i, state in states.items() for key, x in state.items()}
    (finished,) = find_runs(str(folder))
    return {
        "tensors": tensors,
        "curves": {name: finished.curve(name) for name in ("train/loss", "val/loss", "lr-AdamW/fusion")},
        "predictions": [path.read_text() for path in sorted(folder.rglob("predictions.jsonl"))],
        "scores": [json.loads(path.read_text())["scores"] for path in sorted(folder.rglob("metrics.json"))],
        "result": (folder / "result.json").read_text(),
        "batches": finished.batches_sha256,
    }


def assert_same(one: dict, other: dict) -> None:
    assert one["tensors"].keys() == other["tensors"].keys()
    assert [name for name, x in one["tensors"].items() if not torch.equal(x, other["tensors"][name])] == []
    assert {key: value for key, value in one.items() if key != "tensors"} == {
        key: value for key, value in other.items() if key != "tensors"
    }


@pytest.fixture(scope="module")
def trainings():
    server = Trainings()
    yield server
    server.close()


def kills(case: str) -> list[tuple[int, int, bool]]:
    """(signal, after how many batches of its process, whether its whole group gets it), hard and gentle in turn.

    After a hard one, training goes on from the last validation, or starts anew.
    """
    chance, share = random.Random(case), 2 * STEPS // 3 // KILLS
    planned = []
    for number in range(KILLS):
        gentle = GENTLE[(number // 2 + list(CASES).index(case) + 2) % len(GENTLE)]
        which = gentle if number % 2 else signal.SIGKILL
        group = which == signal.SIGKILL or (number % 4 == 1) != (case == "two processes")
        planned.append((which, chance.randint(1, share), group))
    return planned


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_killed_training_ends_where_it_would_have_ended(case, trainings, tmp_path):
    """Killed again and again, and gone on with each time: weights, losses, predictions, scores are those of one go."""
    arguments = [*LONG, *(argument.replace("<here>", str(tmp_path)) for argument in CASES[case])]
    status, said = trainings.run(tmp_path / "whole" / "run", *arguments)
    assert status == 0, said
    stepped = 0
    for number, (which, batches, group) in enumerate(kills(case)):
        folder = tmp_path / "killed" / str(number)
        how = {"stop": EXACT[case]} if number == 0 and case in EXACT else {"kill": (which, batches, group)}
        status, said = trainings.run(folder, *arguments, **how)
        assert status == (-which if which == signal.SIGKILL else 128 + which), said
        if which != signal.SIGKILL:
            assert f"stopped by {signal.Signals(which).name} at step" in said and "Traceback" not in said, said
            step = int(said.rpartition(" at step ")[2].partition(";")[0])
            last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
            assert last["global_step"] == step > stepped  # it did go on, and did not start afresh
            stepped = step
    status, said = trainings.run(tmp_path / "killed" / "end", *arguments)
    assert status == 0 and "going on from" in said, said
    assert_same(ended_at(tmp_path / "whole" / "run"), ended_at(tmp_path / "killed" / "end"))
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.slow
def test_a_run_with_a_cool_down_can_be_lengthened(trainings, tmp_path):
    """As if it had been asked for more steps from the beginning: the trunk is shared, to the last bit."""
    once = [word for word in LONG if not word.startswith(("resume=", "trainer.max_steps"))]
    arguments = ["fusion=srau", *SCENES, *once, "optim.warmup=2", "optim.cooldown=0.25", "fusion.start=paper"]
    arguments.append("trainer.accumulate_grad_batches=2")
    folders = {name: tmp_path / name for name in ("short", "longer", "long")}
    status, said = trainings.run(folders["short"], *arguments, "trainer.max_steps=12")
    assert status == 0, said
    trunk = torch.load(folders["short"] / "checkpoints" / "trunk.ckpt", weights_only=True)
    assert trunk["global_step"] == 8
    status, said = trainings.run(folders["longer"], f"resume={folders['short']}", "trainer.max_steps=24")
    assert status == 0 and "trunk" not in said and "trainer.max_steps=24 instead of 12" in said, said
    status, said = trainings.run(folders["long"], *arguments, "trainer.max_steps=24")
    assert status == 0, said
    ends = {name: ended_at(folder) for name, folder in folders.items()}
    assert_same(ends["long"], ends["longer"])
    rates = dict(ends["long"]["curves"]["lr-AdamW/fusion"])
    assert rates[17] == max(rates.values()) > rates[23] > 0  # constant up to step 18
    assert ends["short"]["tensors"].keys() == ends["long"]["tensors"].keys()
    assert ends["short"]["scores"] != ends["long"]["scores"]


@pytest.mark.slow
def test_a_stop_where_validation_is_due_and_where_an_epoch_ends(trainings, tmp_path, monkeypatch):
    """After 6 steps, with a validation; after 13, the first epoch; in SLURM; after 26, the second one."""
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    slurm = {f"SLURM_{name}": "0" for name in ("LOCALID", "PROCID", "NODEID")}
    slurm |= {"SLURM_NTASKS": "1", "SLURM_JOB_ID": "17", "SLURM_JOB_NAME": "x"}
    slurm["PATH"] = f"{scontrol.parent}:{os.environ['PATH']}"
    arguments = [*LONG, "fusion=vcgpt", *SCENES]
    status, said = trainings.run(tmp_path / "whole" / "run", *arguments)
    assert status == 0, said
    stops = {6: (signal.SIGTERM, 6), 13: (signal.SIGINT, 7), 20: (signal.SIGUSR1, 7), 26: (signal.SIGTERM, 6)}
    for step, (number, batches) in stops.items():
        environment = slurm if number == signal.SIGUSR1 else {}
        status, said = trainings.run(tmp_path / "killed" / str(step), *arguments, stop=(number, batches), **environment)
        assert status == 128 + number and "Traceback" not in said, said
        assert f"stopped by {signal.Signals(number).name} at step {step}; resume=auto continues." in said, said
    status, said = trainings.run(tmp_path / "killed" / "30", *arguments, stop=(signal.SIGTERM, 4, True))
    assert status == -signal.SIGKILL, said  # which did not wait for the validation after 30 steps
    assert (tmp_path / "asked").read_text() == "requeue 17\n" and "job 17 is queued again" in (
        tmp_path / "killed" / "20.log"
    ).read_text()
    last = torch.load(tmp_path / "whole" / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == STEPS // 6 * 6  # that of the last validation, also where an earlier one was better
    assert not list(tmp_path.rglob("hpc_ckpt*"))  # Lightning's own, saved in the middle of a step
    status, said = trainings.run(tmp_path / "killed" / "end", *arguments)
    assert status == 0, said
    assert_same(ended_at(tmp_path / "whole" / "run"), ended_at(tmp_path / "killed" / "end"))


@pytest.mark.slow
def test_sharded_training_goes_on_with_whole_weights_and_back(trainings, tmp_path):
    """Stopped twice: sharded, whole, sharded again; it ends as the training that was whole all the time."""
    arguments = [*LONG, *CASES["two processes"], "trainer.max_steps=18", "trainer.precision=32-true", "resume=null"]
    status, said = trainings.run(tmp_path / "whole", *arguments)
    assert status == 0, said
    sharded, before = "trainer.strategy=fsdp", "resume=null"
    for part, (strategy, stop) in enumerate(
        [(sharded, (signal.SIGTERM, 7)), ("", (signal.SIGINT, 6)), (sharded, None)]
    ):
        folder = tmp_path / str(part)
        status, said = trainings.run(folder, *arguments, before, *filter(None, [strategy]), stop=stop)
        assert status == (128 + stop[0] if stop else 0) and "Traceback" not in said, said
        before = f"resume='{folder}'"
    whole, mixed = ended_at(tmp_path / "whole"), ended_at(tmp_path / "2")
    assert mixed["tensors"].keys() == whole["tensors"].keys()
    for name, curve in whole["curves"].items():  # lost moments of the optimiser would show here
        assert [step for step, _ in mixed["curves"][name]] == [step for step, _ in curve]
        assert [y for _, y in mixed["curves"][name]] == pytest.approx([y for _, y in curve], rel=1e-5), name
    said, wanted = (
        [json.loads(line)["caption"] for line in end["predictions"][0].splitlines()] for end in (mixed, whole)
    )
    assert mixed["batches"] == whole["batches"] and said == wanted


@pytest.mark.skipif(KILLS < 10, reason="the long version")
def test_a_sweep_that_is_stopped_saves_and_goes_on(tmp_path):
    steps = ("trainer.max_steps=150", "resume=null")
    command = [sys.executable, "-m", "src.train", "-m", *LONG, *steps, "fusion=srau", *SCENES]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def start(name: str) -> subprocess.Popen:
        return subprocess.Popen([*command, f"hydra.sweep.dir='{tmp_path}/{name}'"], cwd=ROOT, env=environment)

    def finished(name: str) -> Path:
        (result,) = (tmp_path / name).glob("*/result.json")
        return result.parent

    assert start("whole").wait() == 0
    sweep = start("stopped")
    while not list((tmp_path / "stopped").glob("*/checkpoints/last.ckpt")) and sweep.poll() is None:
        time.sleep(0.02)
    sweep.terminate()
    assert sweep.wait() == 130
    (log,) = (tmp_path / "stopped").glob("*/stdout.log")
    assert "stopped by SIGTERM at step" in log.read_text()
    assert start("stopped").wait() == 0
    assert_same(ended_at(finished("whole")), ended_at(finished("stopped")))


# ------------------------------------------------------------------------------------------------- signals
def test_outside_of_a_training_a_signal_ends_the_process(capsys):
    before = signal.getsignal(signal.SIGTERM)
    for number, status in ((signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138)):
        with pytest.raises(SystemExit) as caught, Interrupts():
            os.kill(os.getpid(), number)
            time.sleep(1)
        assert caught.value.code == status
        assert f"stopped by {number.name}; resume=auto goes on" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) is before


def test_in_a_training_it_is_noted_and_a_second_ctrl_c_does_not_wait():
    with pytest.raises(SystemExit) as caught, Interrupts() as interrupts:
        interrupts.under_way = True
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.noted == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
    assert caught.value.code == 130


def test_what_somebody_else_handles_is_left_to_them():
    """submitit puts jobs back into the queue itself."""
    seen = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
    try:
        with Interrupts():
            os.kill(os.getpid(), signal.SIGUSR1)
        assert seen == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before)


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
    shutil.copy(trained / "config.yaml", tmp_path)
    (tmp_path / "checkpoints" / "best.ckpt").write_bytes(broken[fault])
    with pytest.raises(UserError, match=r"best\.ckpt is damaged"):
        Saved.at(tmp_path).checkpoint  # noqa: B018
    with pytest.raises(UserError, match=r"best\.ckpt is damaged"):
        trained_vision(tmp_path)  # vision.weights=<run>


def test_the_last_good_checkpoint_is_gone_on_from(trained, tmp_path):
    """A flipped bit in last.ckpt costs the steps since the one before, and says so."""

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
    io, path = SafeCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint({"step": 1}, path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        io.save_checkpoint({"step": 2}, path)
    assert torch.load(tmp_path / "previous.ckpt") == {"step": 1} and not list(tmp_path.glob(".*"))


def test_a_training_of_epochs_is_kept_to_its_end(tmp_path):
    """8 batches an epoch, in threes, and a validation every thousand steps: hours must not end in no checkpoint."""
    words = ("trainer.max_steps=-1", "trainer.max_epochs=2", "trainer.val_check_interval=1000")
    command = ("src.train", "fusion=clipcap", *SMOKE, *words, "trainer.accumulate_grad_batches=3")
    run(*command, f"hydra.run.dir='{tmp_path}/run'")
    for name in ("best", "last"):
        assert torch.load(tmp_path / "run" / "checkpoints" / f"{name}.ckpt", weights_only=True)["global_step"] == 6
    before = (tmp_path / "run" / "predictions.jsonl").read_bytes()
    (tmp_path / "run" / "result.json").unlink()  # as if it had been killed while it was scored
    answer = run(*command, "resume=auto", f"hydra.run.dir='{tmp_path}/again'")
    assert "going on from" in answer.stdout and (tmp_path / "again" / "predictions.jsonl").read_bytes() == before
    assert torch.load(tmp_path / "again" / "checkpoints" / "best.ckpt", weights_only=True)["global_step"] == 6


def test_what_is_no_number_is_not_saved(tmp_path):
    """A signal between a spoilt step and the look at its loss must not cost the last good checkpoint."""
    saved = []
    module = torch.nn.Linear(2, 2)
    alone = SimpleNamespace(reduce_boolean_decision=lambda decision, all: decision)
    trainer = SimpleNamespace(lightning_module=module, global_step=7, save_checkpoint=saved.append, strategy=alone)
    last = LastCheckpoint(tmp_path, Interrupts(), again=False)
    last._save(trainer)
    module.bias.data[1] = float("inf")
    with pytest.raises(
        UserError, match=r"bias holds nan or infinite numbers after step 7; .* the last checkpoint is ke"
    ):
        last._save(trainer)
    assert saved == [last.path]
    module.bias.requires_grad_(False)  # what is frozen is what it was
    last._save(trainer)


def test_half_a_line_of_the_log_is_not_taken_over(trained, tmp_path):
    earlier = shutil.copytree(trained, tmp_path / "earlier")
    log = earlier / "log" / "metrics.csv"
    log.write_text(log.read_text() + "7,0.53")
    (earlier / "checkpoints" / ".last.ckpt.123.tmp").write_text("half a checkpoint")
    assert take_over(earlier, tmp_path / "run", LENGTH) == earlier / "checkpoints" / "last.ckpt"
    assert (tmp_path / "run" / "log" / "before-1.csv").read_text() == (trained / "log" / "metrics.csv").read_text()
    assert not list(tmp_path.rglob("*.tmp"))


def test_training_does_not_go_on_without_the_best_so_far(trained, tmp_path):
    """Else a later and worse one would be scored in its place."""
    earlier = shutil.copytree(trained, tmp_path / "earlier")
    (earlier / "checkpoints" / "best.ckpt").unlink()
    with pytest.raises(UserError, match=r"best\.ckpt is lost .* train this run again"):
        take_over(earlier, tmp_path / "run", LENGTH)
