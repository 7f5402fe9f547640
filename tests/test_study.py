"""A study by a registered plan: what is refused, what is drawn, what is said, and that it goes on from what is kept."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from commands import run
from conftest import ROOT
from test_compare import edit
from test_gains import trained
from test_study_in_wandb import LENGTHS, SEEDS, ledger_of

from src.comparison.runs import Arm, find_runs
from src.comparison.seeds import paired, t_interval
from src.errors import UserError
from src.launch.pool import Job
from src.studies.conclude import best_of, conclude, has_converged
from src.studies.draws import settings
from src.studies.ledger import Ledger
from src.studies.plan import read_plan
from src.studies.predict import Prediction, too_much
from src.studies.probe import Measured
from src.studies.work import Work

SMOKE = ROOT / "conf" / "study" / "smoke.yaml"
PLANS = sorted((ROOT / "conf" / "study").glob("*.yaml"))


def changed(folder: Path, **options) -> Path:
    """The smoke plan with some of its parts replaced; keys with __ for the dot."""
    plan = yaml.safe_load(SMOKE.read_text())
    for key, value in options.items():
        *path, last = key.split("__")
        node = plan
        for name in path:
            node = node[name]
        node[last] = value
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan))
    return folder / "plan.yaml"


# ------------------------------------------------------------------------------------------------------------ the plan
@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_every_plan_can_be_read_and_keeps_its_hash(path, tmp_path):
    plan = read_plan(path)
    assert plan.sha256 == read_plan(path).sha256
    dear = yaml.safe_load(path.read_text())
    dear["limits"]["hours"] += 1
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(dear))
    assert read_plan(tmp_path / "plan.yaml").sha256 == plan.sha256
    dear["margin"] = 0.123
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(dear))
    assert read_plan(tmp_path / "plan.yaml").sha256 != plan.sha256


def test_what_was_run_belongs_to_the_plan_that_stands_in_conf():
    """New options of plans leave the hash of registered ones alone."""
    for trials in (ROOT / "experiments").glob("*/trials.jsonl"):
        plan = read_plan(ROOT / "conf" / "study" / f"{trials.parent.name.removesuffix('_study')}.yaml")
        assert {json.loads(line)["plan"] for line in trials.read_text().splitlines()} == {plan.sha256}


WRONG = {
    "five contrasts": ({"contrasts": [["tuned/prefix", "tuned/blind"]] * 5}, "5 contrasts are too many"),
    "an arm that is none": ({"contrasts": [["tuned/srau", "tuned/blind"]]}, "names tuned/srau, which is none of the"),
    "a contrast of one": ({"contrasts": [["tuned/blind"]]}, "must name two arms"),
    "one seed": ({"seeds": [1]}, "must be several different ones"),
    "a seed twice": ({"seeds": [1, 1]}, "must be several different ones"),
    "the seed of the tuning": ({"seeds": [1, 1000]}, "seed 1000 is that of the tuning"),
    "lengths that fall": ({"regimes__tuned__lengths": [60, 30]}, "ascending"),
    "a control's own length": (
        {"regimes__tuned__controls__encoder__lengths": [45]},
        "among those of its regime",
    ),
    "a control of nothing": ({"regimes__tuned__controls__encoder__inherits": "srau"}, "which is no arm of tuned"),
    "no blind arm": (
        {"regimes__tuned__arms": {"prefix": ["fusion=prefix"]}, "regimes__tuned__controls": {}, "contrasts": []},
        "has none",
    ),
    "no cool-down": ({"cooldown": 0}, "must be a share above 0 and below 1"),
    "a margin of nothing": ({"margin": 0}, "must be above 0"),
    "a word for a number": ({"warmup": "some"}, "warmup"),
    "an unknown key": ({"seed": 3}, "seed"),
    "a folder outside": ({"name": "../x"}, "name of a folder"),
    "tuning of nobody": ({"tuning__further": {"srua": ["dropout=choice(0,1)"]}}, "srua, which is no arm"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_a_plan_is_one_sentence(case, tmp_path):
    options, sentence = WRONG[case]
    with pytest.raises(UserError) as error:
        read_plan(changed(tmp_path, **options))
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_a_plan_that_is_not_there_or_lacks_something(tmp_path):
    with pytest.raises(UserError, match="is no file"):
        read_plan(tmp_path / "none.yaml")
    (tmp_path / "half.yaml").write_text("name: half\nquestion: what?\n")
    with pytest.raises(UserError, match=r"half\.yaml"):
        read_plan(tmp_path / "half.yaml")


# ------------------------------------------------------------------------------------------------------------ the draws
def test_arms_share_the_draws_of_the_options_that_they_share():
    rate, drop = "regime.lr_fusion=tag(log, interval(1e-4, 1e-2))", "dropout=choice(0, 0.1)"
    plain, further = settings([rate, drop], 200, 7), settings([rate, "fusion.tau=range(0, 3)", drop], 200, 7)
    assert [(one[0], one[1]) for one in plain] == [(one[0], one[2]) for one in further]
    assert settings([rate, drop], 3, 7) == plain[:3] and settings([rate], 3, 8) != settings([rate], 3, 7)
    rates = np.log10([float(one[0].partition("=")[2]) for one in plain])
    assert rates.min() >= -4 and rates.max() <= -2 and abs(rates.mean() + 3) < 0.15  # uniform in the exponent
    assert 70 < sum(one[1] == "dropout=0" for one in plain) < 130
    assert {one[1] for one in further} == {f"fusion.tau={i}" for i in range(3)}
    with pytest.raises(UserError, match="is no dimension"):
        settings(["dropout=0.1"], 1, 0)


def test_best_of_k_is_the_mean_over_all_ways_to_draw_k():
    losses = [3.0, 1.0, 2.0]
    for k in (1, 2, 3):
        every = [min(drawn) for drawn in itertools.product(losses, repeat=k)]
        assert best_of(losses)[k - 1] == pytest.approx(np.mean(every))


def test_converged_is_what_has_stopped_to_gain():
    assert has_converged([[100, 1.0], [200, 0.5], [300, 0.5], [400, 0.499]])
    assert not has_converged([[100, 1.0], [200, 0.5], [300, 0.48], [400, 0.45]])
    assert not has_converged([[100, 1.0]])


# ------------------------------------------------------------------------------------------------------------ limits
def test_too_much_says_what_to_cut(tmp_path):
    plan = read_plan(changed(tmp_path, limits={"hours": 1, "memory_gb": 1, "disk_gb": 1}))
    work = Work(plan, Ledger(tmp_path / "kept", plan), tmp_path / "runs", [{}])
    measured = {arm.label: Measured(10, 0.1, 1, 1, 900, 1e6, 30) for arm in plan.arms()}
    prediction = Prediction({"tuning": 1.0, "finals of 30 steps": 2.0, "finals of 60 steps": 4.0}, 0.5, 0.1)
    sentence = too_much(work, prediction, measured)
    assert sentence.startswith(
        "The study would take 7.0 hours where 1 may be spent; cut: the length of 60 steps saves 4.0"
    )
    assert "a seed saves 3.0 h" in sentence and "a trial of each arm saves 30.0 min" in sentence
    assert too_much(work, Prediction({"tuning": 0.5}, 0.5, 0.1), measured) is None


# ------------------------------------------------------------------------------------------------------------ for real
def study(plan: Path, folder: Path) -> list[str]:
    return [f"plan={plan}", f"output='{folder}/experiments'", f"runs='{folder}/runs'", "jobs=2"]


@pytest.mark.slow
def test_a_study_that_is_killed_goes_on_from_what_is_kept(tmp_path):
    arms = {"blind": ["fusion=blind"], "prefix": ["fusion=prefix"]}
    small = {"regimes__tuned__arms": arms, "regimes__tuned__lengths": [4, 10], "regimes__tuned__controls": {}}
    small |= {"contrasts": [["tuned/prefix", "tuned/blind"]], "tuning__trials": 1, "tuning__steps": 4, "warmup": 1}
    plan = changed(tmp_path, **small)
    words, kept = study(plan, tmp_path), tmp_path / "experiments" / "smoke"
    command = [sys.executable, "-m", "src.study", *words]
    with open(tmp_path / "log", "wb") as log:
        child = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 300
    while not list(kept.glob("runs/*-s1-4/study.json")) and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    child.send_signal(signal.SIGTERM)
    assert child.wait(60) == 130, (tmp_path / "log").read_text()[-2000:]
    assert "interrupted" in (tmp_path / "log").read_text()
    before = {path: path.stat().st_mtime_ns for path in kept.glob("runs/*/study.json")}
    trials = (kept / "trials.jsonl").read_text()
    shutil.rmtree(tmp_path / "runs")  # another machine: all that is left is what is committed

    said = run("src.study", *words).stdout
    assert "Predicted for what was missing" in said
    assert (kept / "trials.jsonl").read_text() == trials and len(trials.splitlines()) == 2
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(list(kept.glob("runs/*/study.json"))) == 2 * 2 * 2
    assert not list((tmp_path / "runs").rglob("*.ckpt"))
    about = json.loads((kept / "runs" / "tuned-prefix-s2-10" / "study.json").read_text())
    assert about["plan"] == read_plan(plan).sha256 and len(about["validation"]) >= 1

    again = run("src.study", *words).stdout  # nothing is left: not even a step is measured
    assert "ms a step" not in again and f"written: {kept}" in again

    readme = (kept / "README.md").read_text()
    assert "2 of 2 seeds are complete" in readme and "None." in readme
    runs = {arm: find_runs(str(kept / "runs" / f"tuned-{arm}-s*-10")) for arm in ("prefix", "blind")}
    loss = {arm: {own.seed: own.scores["loss"] for own in Arm(arm, tuple(found)).runs} for arm, found in runs.items()}
    test = paired(loss["blind"], loss["prefix"])  # gain/loss of the arm minus 0, the blind arm's own
    comparison = json.loads((kept / "comparison-10.json").read_text())
    planned = next(d for d in comparison["differences"] if d["score"] == "gain/loss")
    assert planned["seeds"]["value"] == pytest.approx(test.value, abs=1e-3) and planned["seeds"]["n"] == 2
    assert f"tuned/prefix minus tuned/blind: {planned['seeds']['value']:+.4f}" in readme

    plan.write_text(plan.read_text().replace("margin: 0.05", "margin: 0.5"))
    said = run("src.study", *words, "do=conclude").stdout
    assert "The plan's margin was 0.05 and is 0.5 now." in (kept / "README.md").read_text()


def test_a_seed_that_was_begun_elsewhere_is_made_again(tmp_path, monkeypatch):
    plan = read_plan(SMOKE)
    ledger = Ledger(tmp_path / "kept", plan)
    work = Work(plan, ledger, tmp_path / "runs", [{}])
    arm = next(plan.arms())
    for seed, ground in ((1, work.ground), (2, "another machine; before: none")):
        place = ledger.place(arm, seed, 30)
        place.mkdir(parents=True)
        (place / "study.json").write_text(json.dumps({"ground": ground}))
    work._clear_ground(1)
    work._clear_ground(2)
    assert ledger.has(arm, 1, 30) and not ledger.has(arm, 2, 30)
    assert ledger.deviations == [f"Seed 2 was begun on another machine; before: none and made again on {work.ground}."]


def test_measures_are_kept_of_every_final_and_tabulated_over_seeds(tmp_path, monkeypatch):
    measures = [{"command": "preserve", "options": ["tokens=900"]}, {"command": "seeing", "options": []}]
    ledger = ledger_of(tmp_path, measures=measures)
    work = Work(ledger.plan, ledger, tmp_path / "runs", [{}])

    def command(command, words, log):
        folder = Path(words[0].removeprefix("run="))
        assert words[1:] == (["tokens=900"] if command == "preserve" else [])
        blind, seed = folder.name.startswith("blind"), int(folder.name[-1])
        if command == "seeing" and blind:
            return f"{folder} does not look."
        found = (
            {"preserve/weights": 0.1 * seed, "preserve/cloze": None} if command == "preserve" else {"seeing/nats": 1.0}
        )
        (folder / command).mkdir()
        (folder / command / f"{command}.json").write_text(json.dumps({"scores": found, "more": 1}))

    monkeypatch.setattr(Work, "_command", staticmethod(command))
    for arm, seed, steps in itertools.product(ledger.plan.arms(), SEEDS, LENGTHS):
        own = trained(tmp_path / str(steps), arm.name, seed, 0.0 if arm.name == "blind" else 0.1)
        cost = {"batches_sha256": f"{seed}", "training_flops": 1, "train_seconds": 1}
        edit(own / "metrics.json", lambda content, cost=cost: content.update(cost=cost))
        work._kept(Job(("fusion=x",), None, own), arm, seed, steps)
    (_, srau) = ledger.plan.arms()
    assert ledger.measures(srau, 2, 4) == {"preserve/weights": 0.2, "preserve/cloze": None, "seeing/nats": 1.0}
    conclude(ledger, "python -m src.study plan=plan.yaml")
    readme = (ledger.folder / "README.md").read_text()
    section = readme[readme.index("## Measures, 8 steps") :]
    low, high = t_interval(np.array([0.1, 0.2, 0.3]))
    assert "| arm | preserve/weights | preserve/cloze | seeing/nats |" in section
    assert f"| tuned/srau | 0.2000 [{low:.4f}, {high:.4f}] | - | 1.0000 [1.0000, 1.0000] |" in section
    assert "| preserve/weights | tuned/srau minus tuned/blind | +0.0000 | 3 | - | - | open |" in section
    assert "src.seeing: tuned/blind does not look." in section and str(tmp_path) not in section


def test_a_measure_that_refuses_says_why_and_one_that_breaks_ends_the_study(tmp_path):
    said = Work._command("preserve", [f"run={tmp_path}/nowhere"], tmp_path / "log")
    assert said.startswith(f"{tmp_path}/nowhere is not a run folder")
    with pytest.raises(RuntimeError, match=r"src\.preserved failed"):
        Work._command("preserved", [], tmp_path / "log")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("plan=none.yaml",), "plan=none.yaml is no file"),
        ((), "plan"),
        (("plan=conf/study/smoke.yaml", "do=something"), "study.do must be all, predict or conclude"),
        (("plan=conf/study/smoke.yaml", "jobs=0"), "jobs must be"),
    ],
)
def test_a_wrong_command_is_one_sentence(words, sentence):
    answer = run("src.study", *words, ok=False)
    assert answer.returncode == 2 and sentence.replace("study.do", "do") in answer.stderr
    assert answer.stderr.count("\n") == 1
