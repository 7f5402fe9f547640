"""What W&B is told of a study, read back from its files; nobody is logged in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image
from test_compare import edit
from test_gains import trained
from test_tracking import CONFIG, KEY, Logged, Silent, wandb_files
from test_tracking import alone as alone  # the fixture

from src import tracking
from src.config.command_line import check_words, compose
from src.records.wandb_file import gather, settle
from src.records.wandb_runs import Session
from src.studies import work as studies_work
from src.studies.conclude import conclude
from src.studies.concluded import SCORES, read
from src.studies.ledger import Ledger
from src.studies.mirror import labels, mirror
from src.studies.plan import read_plan
from src.studies.work import Work
from src.tasks.wandb_run import named

SEEDS, LENGTHS, FLOPS = (1, 2, 3), (4, 8), {"blind": 100, "srau": 150}
PLAN = {
    "name": "looks",
    "question": "Does it look?",
    "options": ["logger=wandb", "logger.project=mechanisms"],
    "regimes": {
        "tuned": {
            "options": ["regime=finetune_lm"],
            "lengths": list(LENGTHS),
            "arms": {"blind": ["fusion=blind"], "srau": ["fusion=srau"]},
        }
    },
    "tuning": {"trials": 0, "steps": 4, "seed": 1000, "space": []},
    "seeds": list(SEEDS),
    "cooldown": 0.2,
    "warmup": 1,
    "contrasts": [["tuned/srau", "tuned/blind"]],
    "primary": "gain/loss",
    "limits": {"hours": 1, "memory_gb": 1, "disk_gb": 1},
}


def ledger_of(folder: Path, **changed) -> Ledger:
    """A study without results, in ``folder``/experiments/looks."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.yaml").write_text(yaml.safe_dump({**PLAN, **changed}))
    return Ledger(folder / "experiments" / "looks", read_plan(folder / "plan.yaml"))


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Ledger:
    """A study that has been concluded, of two arms, two lengths and three seeds."""
    folder = tmp_path_factory.mktemp("study")
    ledger = ledger_of(folder)
    for arm in ledger.plan.arms():
        for steps in LENGTHS:
            for seed in SEEDS:
                run = trained(folder / f"{steps}", arm.name, seed, 0.0 if arm.name == "blind" else 0.02 * steps)
                cost = {"batches_sha256": f"{seed}", "training_flops": FLOPS[arm.name], "train_seconds": seed * steps}
                edit(run / "metrics.json", lambda content, cost=cost: content.update(cost=cost))
                ledger.add_final(run, arm, seed, steps, {"ground": "here"})
    conclude(ledger, "python -m src.study plan=plan.yaml")
    return ledger


@pytest.fixture(scope="module")
def told(alone, study, tmp_path_factory) -> tuple[Path, list[Logged]]:
    """Where its trainings lay, and what W&B was told."""
    folder = tmp_path_factory.mktemp("runs") / "looks"
    mirror(study, folder)
    return folder, [Logged(file) for file in wandb_files(folder)]


def tables(logged: Logged) -> dict[str, list[dict]]:
    contents = [entry for artifact in logged.artifacts for entry in artifact.manifest.contents]
    found = {}
    for entry in contents:
        if entry.path.endswith(".table.json"):
            table = json.loads(Path(entry.local_path).read_text())
            found[entry.path.partition(".")[0]] = [
                dict(zip(table["columns"], row, strict=True)) for row in table["data"]
            ]
    return found


def of_job(told, job: str) -> list[Logged]:
    return [logged for logged in told[1] if logged.run.job_type == job]


# --------------------------------------------------------------------------------------------------------------------
# what was concluded
# --------------------------------------------------------------------------------------------------------------------
def test_contrasts_arms_and_finals_are_tables_of_one_run(told, study):
    (one,) = of_job(told, "study")
    assert one.run.run_group == "looks" and one.run.project == "mechanisms" and one.exits == [0]
    assert one.config["plan"]["question"] == "Does it look?" and one.config["labels"]["study"] == "looks"
    found, data = tables(one), json.loads((study.folder / "comparison-8.json").read_text())
    (contrast,), (planned,) = found["contrasts"], [d for d in data["differences"] if d["verdict"]["planned"]]
    assert (contrast["arm"], contrast["other"], contrast["score"]) == ("tuned/srau", "tuned/blind", "gain/loss")
    seeds, verdict = planned["seeds"], planned["verdict"]
    assert (contrast["difference"], contrast["n"]) == (pytest.approx(seeds["value"]), 3)
    assert [contrast[name] for name in ("low", "high", "p", "detectable")] == pytest.approx(
        [seeds[name] for name in ("low", "high", "p", "detectable")]
    )
    assert contrast["p (Holm)"] == pytest.approx(verdict["p_holm"]) and contrast["p (level)"] is None  # no margin
    assert contrast["word"] == planned["word"] == "hint"  # three seeds
    assert (contrast["low (images)"], contrast["high (images)"]) == pytest.approx((planned["low"], planned["high"]))

    assert len(found["finals"]) == 12 and len(found["arms"]) == 4
    for arm in data["arms"]:
        rows = [row for row in found["finals"] if row["arm"] == arm["label"] and row["steps"] == 8]
        assert [row["seed"] for row in rows] == list(SEEDS) == [row["seconds"] / 8 for row in rows]
        assert {row["flop"] for row in rows} == {8 * FLOPS[arm["label"].split("/")[1]]}
        for score in SCORES:
            assert [row[score] for row in rows] == pytest.approx(arm["scores"][score]["per_seed"])
        (row,) = [row for row in found["arms"] if row["arm"] == arm["label"] and row["steps"] == 8]
        assert (row["n"], row["seconds"]) == (3, 16)
        assert row["gain/loss std"] == pytest.approx(arm["scores"]["gain/loss"]["std"])
    assert one.summary["figures/curves._type"] == "image-file" and "figures/tuning._type" not in one.summary


def test_arms_are_runs_with_a_row_a_length_at_one_place_for_all_seeds(told, study):
    runs = of_job(told, "arm")
    assert len(runs) == len({one.run.run_id for one in runs}) == 6
    assert {one.run.run_group for one in runs} == {"looks"}
    finals = {(row["arm"], row["seed"], row["steps"]): row for row in read(study.folder).finals}
    for one in runs:
        arm, seed = one.config["labels"]["arm"], int(one.config["labels"]["seed"])
        assert [row["final/steps"] for row in one.history] == list(LENGTHS)
        for row in one.history:
            steps = row["final/steps"]
            assert row["final/flop"] == steps * FLOPS[arm.split("/")[1]] and row["final/seconds"] == 2 * steps
            for score in SCORES:
                assert row[f"final/{score}"] == pytest.approx(finals[arm, seed, steps][score])
        assert one.summary["final/gain/loss"] == pytest.approx(finals[arm, seed, 8]["gain/loss"])


def test_concluded_again_the_runs_are_the_same(told, study, capsys):
    folder, before = told
    mirror(study, folder)
    again = [Logged(file) for file in wandb_files(folder)]
    assert sorted(one.run.run_id for one in again) == sorted(one.run.run_id for one in before)
    assert not any(one.run.resume for one in again)  # resumed, they would have every row twice
    assert capsys.readouterr().out == f"W&B: python -m src.sync run={folder} uploads the study\n"
    assert all(settle(file, folder) == 0 for file in wandb_files(folder))


def test_another_plan_is_another_run(told, study, tmp_path):
    other = ledger_of(tmp_path, question="Does it really look?")
    (tmp_path / "experiments" / "looks").rename(tmp_path / "aside")
    (tmp_path / "experiments" / "looks").symlink_to(study.folder)
    mirror(other, tmp_path / "runs")
    ids = {Logged(file).run.run_id for file in wandb_files(tmp_path / "runs")}
    assert len(ids) == 7 and not ids & {one.run.run_id for one in told[1]}


def test_the_users_group_goes_first(alone, study, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_GROUP", "mine")
    mirror(study, tmp_path)
    assert {Logged(file).run.run_group for file in wandb_files(tmp_path)} == {"mine"}


@pytest.mark.parametrize("mode", ["shared", "disabled"])
def test_what_cannot_be_told_is_one_sentence(mode, alone, study, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", mode)
    mirror(study, tmp_path)
    said = capsys.readouterr().out
    assert not wandb_files(tmp_path)
    if mode == "disabled":
        assert said == ""
    else:
        assert said.count("\n") == 1 and "WANDB_MODE=shared is not one of" in said and str(study.folder) in said


def test_a_failing_wandb_costs_nothing(alone, study, tmp_path, monkeypatch, capsys):
    def fail(**options):
        raise RuntimeError("disk full\nand more")

    monkeypatch.setattr("wandb.init", fail)
    before = {path: path.read_bytes() for path in study.folder.rglob("*") if path.is_file()}
    mirror(study, tmp_path)
    assert "note: W&B has not got the study (RuntimeError: disk full); it is all in" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in study.folder.rglob("*") if path.is_file()} == before


def test_a_server_that_falls_silent_is_waited_for_once(alone, study, tmp_path, monkeypatch, capsys):
    """Not for every arm and seed."""
    for name, value in {"API_KEY": KEY, "FINISH_TIMEOUT": "2", "HTTP_TIMEOUT": "1", "INIT_TIMEOUT": "5"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    with Silent(begins=True) as address:
        monkeypatch.setenv("WANDB_BASE_URL", address)
        mirror(study, tmp_path)
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and said.startswith("note: W&B has not got the study (")
    assert [Logged(file).run.job_type for file in wandb_files(tmp_path)] == ["study"]


def test_what_w_and_b_did_not_take_ends_the_telling(alone, study, tmp_path, monkeypatch, capsys):
    finish = Session.finish
    monkeypatch.setattr(Session, "finish", lambda self, status: finish(self, status) and False)
    mirror(study, tmp_path)
    assert "note: W&B has not got the study (UserError: its server fell silent); it is all" in capsys.readouterr().out
    assert len(wandb_files(tmp_path)) == 1


def test_without_wandb_nothing_is_told(tmp_path, capsys):
    ledger = ledger_of(tmp_path, options=["logger=wandb", "logger=csv"])
    mirror(ledger, tmp_path / "runs")
    assert not (tmp_path / "runs").exists() and capsys.readouterr().out == ""
    arm = next(ledger.plan.arms())
    assert labels(ledger.plan, arm, "name", 1, 4, "train") == ()


# --------------------------------------------------------------------------------------------------------------------
# its trainings
# --------------------------------------------------------------------------------------------------------------------
def work_of(folder: Path) -> Work:
    ledger = ledger_of(folder)
    return Work(ledger.plan, ledger, folder / "runs" / "looks", [{"OMP_NUM_THREADS": "1"}])


def test_a_training_says_what_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    work = work_of(tmp_path)
    arm = list(work.plan.arms())[1]
    options = work.final(arm, 2, 8)
    check_words("train", options)
    cfg = compose("train", options, [])
    assert cfg.name == "tuned-srau-s2-8" and cfg.logger.job_type == "train" and cfg.logger.project == "mechanisms"
    assert named(cfg.logger.labels) == {
        "study": "looks",
        "plan": work.plan.sha256[:12],
        "arm": "tuned/srau",
        "seed": "2",
        "steps": "8",
        "training": "tuned/srau 8 steps",
    }
    trial = compose("train", work.trial(studies_work.Trial(arm, 0, ("regime.lr_fusion=1e-3",))), [])
    assert trial.logger.job_type == "tune" and trial.name == "tuned-srau-0" and trial.seed == 1000


def test_labels_are_tags_and_keys_to_group_by(alone, tmp_path):
    (tmp_path / "environment.json").write_text('{"choices": {"fusion": "srau"}}')
    tracker = tracking.Wandb("p", None, "offline", "tune", ["arm=tuned/srau", "alone", f"long={'x' * 80}"])
    with tracker.running(CONFIG, tmp_path):
        pass
    (file,) = wandb_files(tmp_path)
    logged = Logged(file)
    assert logged.run.job_type == "tune"
    assert set(logged.run.tags) == {"fusion=srau", "arm=tuned/srau", "alone", f"long={'x' * 59}"}
    assert logged.config["labels"] == {"arm": "tuned/srau", "long": "x" * 80}


@pytest.mark.parametrize(("own", "group"), [(None, "looks"), ("mine", "mine")])
def test_all_trainings_are_of_one_group(own, group, tmp_path, monkeypatch):
    seen = []

    class Pool:
        def __init__(self, leases, command, minutes):
            seen.extend(leases)

        def run(self, jobs, then):
            return {}

    monkeypatch.setattr(studies_work, "Pool", Pool)
    monkeypatch.delenv("WANDB_RUN_GROUP", raising=False)
    if own:
        monkeypatch.setenv("WANDB_RUN_GROUP", own)
    work_of(tmp_path).finals(lambda: None)
    assert seen and all(lease == {"OMP_NUM_THREADS": "1", "WANDB_RUN_GROUP": group} for lease in seen)


def test_of_a_trial_nothing_stays_but_its_line_and_what_it_logged(tmp_path):
    """Of its earlier attempts too, which were cut off."""
    work = work_of(tmp_path)
    arm = list(work.plan.arms())[1]
    job = studies_work.Job((), None, trained(work.folder / "tuning", "srau", 1000, 0.1))
    edit(job.folder / "metrics.json", lambda content: content["scores"].update(loss=2.5))
    edit(job.folder / "metrics.json", lambda content: content["cost"].update(train_seconds=3.0))
    for folder in (job.folder, job.folder.with_name(f"{job.folder.name}~1")):
        own = folder / "wandb" / f"offline-run-{folder.name}-id"
        own.mkdir(parents=True)
        (own / "run-id.wandb").write_bytes(b"")
    work._tell(job, studies_work.Trial(arm, 0, ()))
    assert work.ledger.trials(arm)[0]["val_loss"] == 2.5
    assert list((work.folder / "tuning").iterdir()) == [] and len(wandb_files(work.folder / "wandb")) == 2


def test_what_a_dropped_run_logged_offline_is_kept_whole(alone, tmp_path):
    """Tables and pictures are named where they are now, so that one upload takes the whole study."""
    import wandb

    work = work_of(tmp_path)
    for name in ("a", "b"):
        run = work.folder / name
        run.mkdir(parents=True)
        (run / "environment.json").write_text('{"choices": {}}')
        tracker = tracking.Wandb("p", None, "offline")
        with tracker.running(CONFIG, run):
            picture = wandb.Image(Image.new("RGB", (8, 8)))
            tracker.run.log({"table": wandb.Table(columns=["picture"], data=[[picture]])})
        work._drop(run)
        assert not run.exists()
    files = wandb_files(work.folder)
    assert len(files) == 2 and all(file.parents[1] == work.folder / "wandb" for file in files)
    assert [settle(file, work.folder) for file in files] == [2, 2]  # each a table and its picture
    gather(tmp_path, work.folder)  # of a folder without anything there is nothing to keep
    assert wandb_files(work.folder) == files
