"""Sweeps by the real command: failures, a kill in the middle, and the same command given again."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from commands import run
from conftest import ROOT
from test_verbs import SMOKE

from src.config.added_keys import run_config
from src.config.checks import LEASED
from src.launch.hydra_plugins.process_pool import _folder
from src.launch.pool import Job, Pool, leases

pytestmark = pytest.mark.slow
SWEEP = ("-m", *SMOKE, "trainer.max_steps=2", "hydra.launcher.jobs=2")


def results(folder) -> dict[str, float]:
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("*/result.json")}


def start(*arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "src.train", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def processes_naming(text: str) -> list[str]:
    listed = subprocess.run(["ps", "-A", "-o", "pid=,args="], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if text in line]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lm")
    run("src.train", "fusion=blind", *SMOKE, f"hydra.run.dir='{folder}'")
    return folder


def test_a_sweep_survives_a_failing_job_and_a_kill(pretrained, tmp_path):
    """2 x 3 jobs; in one half of them the language model is missing at first."""
    missing, sweep = tmp_path / "later", tmp_path / "sweep"
    arguments = [*SWEEP, f"language.weights={pretrained},{missing}", "seed=0,1,2", f"hydra.sweep.dir='{sweep}'"]
    arguments += ["fusion=clipcap"]

    killed = start(*arguments)
    while not results(sweep) and killed.poll() is None:
        time.sleep(0.2)
    first = results(sweep)
    assert 1 <= len(first) < 3, killed.stdout.read()
    killed.send_signal(signal.SIGINT)
    said = killed.communicate(timeout=60)[0]
    assert killed.returncode == 130 and "goes on where it stopped" in said
    assert not processes_naming(str(sweep))  # no child outlives its sweep

    answer = run("src.train", *arguments, ok=False)
    assert answer.returncode == 1
    second = results(sweep)
    assert len(second) == 3 and first.items() <= second.items()  # what was finished was not run again
    failed = [line for line in answer.stdout.splitlines() if "failed:" in line]
    assert len(failed) == 3 and all(f"{missing} is not a run folder" in line for line in failed)
    assert "3 of 6 jobs have results" in answer.stdout

    missing.symlink_to(pretrained)
    answer = run("src.train", *arguments)
    third = results(sweep)
    assert len(third) == 6 and second.items() <= third.items()
    assert "6 of 6 jobs have results" in answer.stdout and "failed" not in answer.stdout
    for name in third:
        value = json.loads((sweep / name / "result.json").read_text())["value"]
        assert any(name in line and f"{value:.4f}" in line for line in answer.stdout.splitlines())


def test_a_job_that_was_cut_off_continues_and_its_first_attempt_is_kept(tmp_path):
    """Also in a folder whose name has the characters that quote values."""
    here = tmp_path / "it's \\'100 %'\\"
    here.mkdir()
    arguments = [*SWEEP, "fusion=blind", "seed=0"]
    run("src.train", *arguments, cwd=here)
    (folder,) = here.glob("runs/sweep/*/result.json")
    folder = folder.parent
    before = json.loads((folder / "metrics.json").read_text())["scores"]
    (folder / "result.json").unlink()  # as if it had been killed after its last checkpoint
    run("src.train", *arguments, cwd=here)
    aside = folder.with_name(f"{folder.name}~1")
    assert (aside / "checkpoints" / "last.ckpt").is_file()
    assert run_config(folder).resume == str(aside)
    assert json.loads((folder / "metrics.json").read_text())["scores"] == pytest.approx(before)


def test_folders_say_what_tells_jobs_of_one_name_apart(tmp_path):
    """A job that has a folder keeps it, whatever else the sweep has this time."""

    def folders(*overrides: tuple[str, ...]) -> list[str]:
        jobs = [Job(own, None, tmp_path / f"a-s0-{i:08x}") for i, own in enumerate(overrides)]
        return [_folder(job, jobs).name for job in jobs]

    both = folders(("fusion=srau", "vision=vit"), ("fusion=srau", "vision=efficientnet_lite0"))
    assert both == ["a-s0-vision=vit-00000000", "a-s0-vision=efficientnet_lite0-00000001"]
    assert folders(("fusion=srau",)) == ["a-s0-00000000"]
    weights = folders(("language.weights='/home/me/my lm'",), ("+language.weights=null",))
    assert weights == ["a-s0-language.weights=my_lm_-00000000", "a-s0-language.weights=null-00000001"]
    (tmp_path / "a-s0-00000001").mkdir()
    assert folders(("x=1",), ("x=2",)) == ["a-s0-x=1-00000000", "a-s0-00000001"]


def test_a_sweep_that_is_interrupted_does_not_look_finished(tmp_path, capsys, monkeypatch):
    pool = Pool(leases(None, 1), [])
    jobs = [Job((f"seed={i}",), None, tmp_path / f"{i}") for i in range(3)]

    def interrupted(job, lease):
        pool.stopping.set()
        raise KeyboardInterrupt

    monkeypatch.setattr(pool, "_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pool.run(jobs)
    assert re.findall(r"(\d)/3", capsys.readouterr().err)[-1] == "0"


SLOW = """
import signal, sys, time
from pathlib import Path
words = dict(word.split("=", 1) for word in sys.argv[1:])
folder = Path(words["hydra.run.dir"].strip("'"))
def save(*_):
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.ckpt").write_text(words.get("resume", "from the beginning"))
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
if "resume" not in words:
    time.sleep(60)
(folder / "result.json").write_text('{"score": "loss", "value": 1.0}')
"""


def test_a_job_whose_time_is_over_goes_on_in_a_new_process(tmp_path):
    done = []
    pool = Pool([{}], [sys.executable, "-c", SLOW], minutes=5 / 60)
    assert pool.run([Job((), None, tmp_path / "job")], done.append) == {}
    assert (tmp_path / "job~1" / "checkpoints" / "last.ckpt").read_text() == "from the beginning"
    assert [job.folder for job in done] == [tmp_path / "job"] and done[0].result()["value"] == 1.0
    assert (
        pool.run([Job((), None, tmp_path / "job")], done.append) == {} and len(done) == 2
    )  # told again, not run again


def test_a_typo_is_found_before_any_job_starts(tmp_path):
    answer = run("src.train", *SWEEP, "fusion=blind,srua", f"hydra.sweep.dir='{tmp_path}'", ok=False)
    assert "srua" in answer.stderr and not list(tmp_path.glob("*/config.yaml"))


def test_a_secret_is_refused_and_leaves_no_trace(tmp_path):
    answer = run(
        "src.train",
        *SWEEP,
        "fusion=blind",
        "+logger.api_key=0123456789abcdef",
        f"hydra.sweep.dir='{tmp_path}'",
        ok=False,
    )
    assert "looks like a secret" in answer.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and "0123456789abcdef" in path.read_text()]


def test_two_processes_train_together_inside_a_job(tmp_path):
    ddp = ["trainer.devices=2", "trainer.accelerator=cpu", "trainer.strategy=ddp"]
    run("src.train", *SWEEP, *ddp, "fusion=blind", "seed=0", f"hydra.sweep.dir='{tmp_path}'")
    assert len(results(tmp_path)) == 1 and len(list(tmp_path.glob("*/config.yaml"))) == 1


def test_one_lease_per_gpu(monkeypatch):
    import torch

    def gpus(*names):
        return [{"CUDA_VISIBLE_DEVICES": name, LEASED: "1"} for name in names]

    assert leases(["0", "2,3"], None) == gpus("0", "2,3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert leases(None, None) == gpus("0", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    assert leases(None, None) == gpus("5")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cores = len(os.sched_getaffinity(0))
    assert leases(None, 2) == [{"OMP_NUM_THREADS": str(max(1, cores // 2))}] * 2


# ------------------------------------------------------------------------------------------------- search and clusters
def test_a_search_keeps_its_trials_and_goes_on(tmp_path):
    """Its database is in a folder whose name means something in a URL."""
    pytest.importorskip("optuna")
    tmp_path = tmp_path / "which?a=%41#{x}"
    arguments = ["-m", *SMOKE, "trainer.max_steps=2", "test_split=val", "hydra/sweeper=search", "hydra.sweeper.batch=1"]
    arguments += ["fusion=clipcap", "regime.lr_fusion=tag(log,interval(1e-4,1e-2))", "optim.floor=choice(0.0,0.1)"]
    arguments += [f"hydra.sweep.dir='{tmp_path}'"]
    run("src.train", *arguments, "hydra.sweeper.trials=1")
    first = results(tmp_path)
    answer = run("src.train", *arguments, "hydra.sweeper.trials=2")
    second = results(tmp_path)
    assert len(first) == 1 and len(second) == 2 and first.items() <= second.items()
    assert (tmp_path / "search.db").is_file()
    rates = [run_config(tmp_path / name).regime.lr_fusion for name in second]
    assert len(set(rates)) == 2 and all(1e-4 <= rate <= 1e-2 for rate in rates)
    best = max(json.loads((tmp_path / name / "result.json").read_text())["value"] for name in second)
    assert f"best of 2 trials: {best:.4f}" in answer.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("seed=0",), "needs a dimension"),
        (("seed=0,1", "hydra.sweeper.sampler=grid"), "must be tpe or random"),
        (("seed=0,1", "hydra.sweeper.trials=0"), "at least 1"),
    ],
)
def test_a_senseless_search_is_refused(arguments, sentence, tmp_path):
    pytest.importorskip("optuna")
    answer = run("src.train", "-m", "hydra/sweeper=search", *arguments, f"hydra.sweep.dir='{tmp_path}'", ok=False)
    assert answer.returncode == 2 and sentence in answer.stderr


def test_jobs_go_to_a_cluster_through_submitit(tmp_path):
    """Its local executor stands in for SLURM."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    run(
        "src.train",
        *SWEEP[:-1],
        "hydra/launcher=submitit_local",
        "fusion=blind",
        "seed=0",
        f"hydra.sweep.dir='{tmp_path}'",
    )
    assert len(results(tmp_path)) == 1
