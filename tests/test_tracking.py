"""What W&B and TensorBoard are told, read back from their files; nobody is logged in, and nothing leaves the folder."""

from __future__ import annotations

import http.server
import json
import os
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from random import Random

import pytest
from commands import run
from conftest import ROOT
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from PIL import Image
from test_verbs import SMOKE

from src import tracking
from src.config.make import make
from src.errors import UserError
from src.records.wandb_file import _framed, _messages, settle
from src.tasks import wandb_run
from src.tasks.wandb_run import log_later, run_id, sweep_name

KEY = "0123456789abcdef" * 3  # looks like an API key
EVERY_STEP = "trainer.log_every_n_steps=1"


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Nobody is logged in, no server is near, the home directory is new and empty."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("WANDB_", "XDG_"))]:
            patch.delenv(name)
        patch.setenv("HOME", str(home))
        patch.setenv("MPLCONFIGDIR", str(home / "matplotlib"))
        patch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
        patch.setenv("WANDB_ERROR_REPORTING", "false")
        yield home


def settings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("WANDB_")}


def wandb_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.wandb"))


def records(path: Path):
    """Every record of a .wandb file: after 7 bytes, protobuf messages in the log format of LevelDB, blocks of 32 KiB.

    https://github.com/google/leveldb/blob/main/doc/log_format.md
    """
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, message = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        message += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or its last part
            yield Record.FromString(message)
            message = b""


class Logged:
    """One W&B run as its file tells it."""

    def __init__(self, path: Path):
        self.history, self.summary, self.artifacts, self.exits = [], {}, [], []
        for record in records(path):
            if record.HasField("run"):
                self.run = record.run
            elif record.HasField("history"):
                self.history.append(dict(map(_item, record.history.item)))
            elif record.HasField("summary"):
                self.summary |= dict(map(_item, record.summary.update))
            elif record.HasField("artifact"):
                self.artifacts.append(record.artifact)
            elif record.HasField("exit"):
                self.exits.append(record.exit.exit_code)
        self.config = {item.key: json.loads(item.value_json) for item in self.run.config.update}

    def curve(self, name: str) -> dict[int, float]:
        return {row["trainer/global_step"]: row[name] for row in self.history if name in row}


def _item(item) -> tuple[str, object]:
    return item.key or ".".join(item.nested_key), json.loads(item.value_json)


# ------------------------------------------------------------------------------------------------- the real command
@pytest.fixture(scope="module")
def tracked(alone, tmp_path_factory):
    """A tiny offline run: its folder and what the command said."""
    folder = tmp_path_factory.mktemp("runs") / "srau"
    return folder, run("src.train", *SMOKE, EVERY_STEP, "logger=wandb", f"hydra.run.dir='{folder}'")


def test_an_offline_run_holds_everything(tracked, alone):
    folder, answer = tracked
    (file,) = wandb_files(folder)
    logged = Logged(file)
    assert logged.exits == [0] and "note:" not in answer.stdout
    assert answer.stdout.splitlines()[-1] == f"W&B: upload with: wandb sync {file.parent}"

    assert {"train/loss", "train/gradient_norm", "lr-AdamW/fusion"} <= set().union(*logged.history)
    assert set(logged.curve("train/loss")) == {0, 1, 2, 3} and set(logged.curve("val/loss")) == {1, 3}
    local = (folder / "log" / "metrics.csv").read_text()
    assert "train/loss" in local and "lr-AdamW/fusion" in local

    metrics = json.loads((folder / "metrics.json").read_text())
    for score, value in metrics["scores"].items():
        assert logged.summary.get(f"test/{score}") == (value if value is None else pytest.approx(value)), score
    assert logged.summary["cost/parameters/trainable"] == metrics["cost"]["parameters"]["trainable"]
    assert logged.summary["cost/training_flops"] == metrics["cost"]["training_flops"]

    assert logged.run.project == "vision-language-fusion" and logged.run.job_type == "train"
    assert logged.run.display_name == "scenes-srau-finetune_lm-s0" and logged.run.resume
    wanted = {"fusion=srau", "data=scenes", "regime=finetune_lm", "vision=vit", "language=tiny"}
    assert set(logged.run.tags) == wanted
    assert logged.config["fusion"]["tau"] == 0.2 and logged.config["choices"]["fusion"] == "srau"
    assert not list(alone.rglob("*wandb*"))


def test_captions_come_with_pictures_references_and_scores(tracked):
    folder, _ = tracked
    logged = Logged(wandb_files(folder)[0])
    (artifact,) = logged.artifacts
    contents = {entry.path: Path(entry.local_path) for entry in artifact.manifest.contents}
    assert all(folder in path.parents and path.is_file() for path in contents.values())
    assert sum(path.startswith("media/images/") for path in contents) == 4  # SMOKE asks for four samples
    table = json.loads(contents["samples.table.json"].read_text())
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert table["columns"][:4] == ["picture", "id", "caption", "references"] and "CIDEr-D" in table["columns"]
    for shown, row in zip(table["data"], rows[:4], strict=True):
        told = dict(zip(table["columns"], shown, strict=True))
        assert told["id"] == row["id"] and told["caption"] == row["caption"]
        assert told["references"] == "\n".join(row["references"]) and told["CIDEr-D"] == row["CIDEr-D"]
        assert contents[told["picture"]["path"]].read_bytes()[1:4] == b"PNG"


def test_an_offline_run_that_has_moved_is_synced_whole(tracked, alone, tmp_path):
    """Every file that its upload reads lies in the moved folder, and no record has changed otherwise."""
    folder, answer = tracked
    assert "python -m src.sync run=<folder>" in answer.stdout
    moved = tmp_path / "another place" / "run"
    shutil.copytree(folder, moved, symlinks=True)
    (before,), (file,) = wandb_files(folder), wandb_files(moved)
    answer = run("src.sync", f"run='{moved}'", ok=False)  # there is no login here
    assert "5 files of tables are named where they are now" in answer.stdout  # four pictures, one table
    contents = [entry for artifact in Logged(file).artifacts for entry in artifact.manifest.contents]
    assert len(contents) == 5
    for entry in contents:
        assert moved in Path(entry.local_path).parents and Path(entry.local_path).stat().st_size == entry.size
    assert settle(file, moved) == 0
    assert settle(file, folder) == 5 and list(records(file)) == list(records(before))
    Path(contents[0].local_path).unlink()  # one that a record names: wandb leaves others beside them
    with pytest.raises(UserError, match="is missing; move the run folder with all that is in its wandb/"):
        settle(file, moved)


def test_what_is_found_out_later_goes_into_the_run_s_own(tracked, alone, tmp_path):
    folder = shutil.copytree(tracked[0], tmp_path / "run", symlinks=True)
    (first,) = wandb_files(folder)
    answer = run("src.seeing", f"run={folder}", "captions=4", "samples=2")
    assert answer.stdout.splitlines()[-1] == f"W&B: python -m src.sync run={folder} uploads it"
    (later,) = set(wandb_files(folder)) - {first}
    before, now = Logged(first), Logged(later)
    for same in ("run_id", "project", "display_name", "job_type", "tags"):
        assert getattr(now.run, same) == getattr(before.run, same), same
    assert now.run.resume and now.config["fusion"] == before.config["fusion"] and now.exits == [0]
    shown = {path.name.split("_")[0] for path in (later.parent / "files").rglob("seeing/*.png")}
    assert shown == {path.stem for path in (folder / "seeing").glob("*.png")} >= {"kinds", "captions"}
    contents = {entry.path: Path(entry.local_path) for one in now.artifacts for entry in one.manifest.contents}
    assert all(folder in path.parents for path in contents.values())
    table = json.loads(contents["seeing/words.table.json"].read_text())
    rows = [json.loads(line) for line in (folder / "seeing" / "words.jsonl").read_text().splitlines()]
    assert [dict(zip(table["columns"], row, strict=True)) for row in table["data"]] == rows
    told = json.loads((folder / "seeing" / "seeing.json").read_text())
    for name, count in (("kinds", len(told["by_kind"])), ("sites", len(told["sites"]))):
        assert len(json.loads(contents[f"seeing/{name}.table.json"].read_text())["data"]) == count > 0


def test_what_is_found_out_later_costs_nothing_where_it_cannot_be_told(tracked, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(tracked[0], tmp_path / "run", symlinks=True)

    def broken(*_, **__):
        raise OSError("no room")

    monkeypatch.setattr(wandb_run, "Session", broken)
    log_later(folder, "room", {"rows": [{"a": 1}], "none": []}, [])
    assert "W&B has not got everything (OSError: no room); it is all in" in capsys.readouterr().out
    shutil.rmtree(folder / "wandb")  # never logged there
    log_later(folder, "room", {"rows": [{"a": 1}]}, [])
    assert capsys.readouterr().out == ""


def test_records_of_any_length_are_framed_as_they_are_read(tmp_path):
    chance = Random(0)
    messages = [chance.randbytes(n) for n in (1, 32754, 32754 - 7, 1, 100_000, 0, 70_000, 32754 - 14, 5)]
    content = b":W&B\xe1\xbe\x00" + _framed(messages)
    assert list(_messages(content, tmp_path)) == messages
    assert list(_messages(content[:-2], tmp_path)) == messages[:-1]  # a kill left the last one unfinished
    with pytest.raises(UserError, match="is damaged at byte 7;"):
        list(_messages(content[:14] + b"x" + content[15:], tmp_path))


def test_nothing_to_sync_is_one_sentence(tmp_path):
    assert "holds nothing that was logged offline" in run("src.sync", f"run={tmp_path}", ok=False).stderr


def test_gates_and_attention_are_figures_in_the_run_folder(tracked):
    folder, _ = tracked
    media = wandb_files(folder)[0].parent / "files" / "media" / "images"
    kinds = [path.name.split("_")[0] for path in (media / "diagnostics").iterdir()]
    assert {kind: kinds.count(kind) for kind in kinds} == {"attention": 4, "occlusion": 4, "visual": 1, "language": 1}
    (sheet,) = media.glob("samples_sheet*.png")
    assert sheet.read_bytes() == (folder / "samples.png").read_bytes()


def test_the_dashboard_reads_what_is_logged(tracked):
    pytest.importorskip("wandb_workspaces")
    from src import dashboard

    logged = Logged(wandb_files(tracked[0])[0])
    assert {f"test/{score}" for score in dashboard.SCORES} <= set(logged.summary)
    assert set(dashboard.CURVES) <= set().union(*logged.history)
    metrics = json.loads((tracked[0] / "metrics.json").read_text())
    for cost in dashboard.COSTS:
        value = metrics["cost"]
        for key in cost.split("/")[1:]:
            value = value[key]  # step_ms is null in so short a run, and then not logged
        assert logged.summary.get(cost) == value
    group, choice = dashboard.FUSION.split(".")
    assert logged.config[group][choice] == "srau"
    assert "samples._type" in logged.summary and "samples_sheet._type" in logged.summary


def test_a_failing_training_leaves_a_finished_run(alone, tmp_path):
    broken = ("regime.lr_fusion=1e38", "regime.lr_language=1e38", "regime.lr_vision=1e38", "optim.warmup=0.0")
    command = [*SMOKE, EVERY_STEP, *broken, "logger=wandb", f"hydra.run.dir='{tmp_path}/run'"]
    answer = run("src.train", *command, ok=False)
    assert answer.returncode == 2 and "lower the learning rates" in answer.stderr
    (file,) = wandb_files(tmp_path)
    logged = Logged(file)
    assert logged.exits == [2] and logged.curve("train/loss")
    assert f"wandb sync {file.parent}" in answer.stdout and not (tmp_path / "run" / "result.json").exists()


@pytest.mark.slow
def test_a_stopped_job_leaves_a_finished_run(alone, tmp_path):
    """As sweeps stop their jobs: SIGTERM to the whole process group, W&B's own processes included."""
    command = [*SMOKE, EVERY_STEP, "trainer.max_steps=100000", "logger=wandb", f"hydra.run.dir='{tmp_path}'"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(tmp_path / "said", "wb") as said:
        child = subprocess.Popen(
            [sys.executable, "-m", "src.train", *command],
            cwd=ROOT,
            env=environment,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
        try:
            while not (tmp_path / "checkpoints" / "last.ckpt").is_file() and child.poll() is None:
                time.sleep(0.1)
            os.killpg(child.pid, signal.SIGTERM)
            assert child.wait(30) == 128 + signal.SIGTERM
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
    logged = Logged(wandb_files(tmp_path)[0])
    assert logged.exits == [143] and logged.curve("train/loss")


@pytest.mark.slow
def test_jobs_of_a_sweep_are_runs_of_one_group_and_a_repeated_job_goes_on_with_its_own(alone, tmp_path, monkeypatch):
    sweep = tmp_path / "ablation"
    command = ["-m", *SMOKE, EVERY_STEP, "logger=wandb", "trainer.max_steps=2", "hydra.launcher.jobs=2"]
    command += ["fusion=flamingo,blind", f"hydra.sweep.dir='{sweep}'"]
    run("src.train", *command)
    logged = {file: Logged(file) for file in wandb_files(sweep)}
    assert len(logged) == 2 and len({one.run.run_id for one in logged.values()}) == 2
    assert {one.run.run_group for one in logged.values()} == {"ablation"}
    assert all(one.exits == [0] for one in logged.values())
    for file, one in logged.items():
        gates = [name for name in set().union(*one.history) if name.startswith("fusion/tanh_alpha/")]
        figures = {path.name.split("_")[0] for path in (file.parent / "files").rglob("diagnostics/*.png")}
        if one.config["choices"]["fusion"] == "flamingo":
            assert gates and "tanh" in figures
        else:
            assert not gates and not figures  # it sees no pictures, so there is nothing to look into
        assert one.artifacts

    again = next(file for file, one in logged.items() if one.config["choices"]["fusion"] == "blind")
    folder = again.parents[2]
    (folder / "result.json").unlink()  # as if it had been cut off
    monkeypatch.setenv("WANDB_RUN_GROUP", "mine")
    run("src.train", *command)
    (file,) = wandb_files(folder)
    assert Logged(file).run.run_group == "mine"  # what the user says goes first
    assert Logged(file).run.run_id == logged[again].run.run_id and Logged(file).run.resume
    earlier = folder.with_name(f"{folder.name}~1") / "wandb" / again.parent.name
    said = (folder / "stdout.log").read_text().splitlines()[-1].removeprefix("W&B: upload with: ")
    assert earlier.is_dir() and shlex.split(said) == ["wandb", "sync", str(earlier), str(file.parent)]


@pytest.mark.slow
def test_of_two_processes_one_logs(alone, tmp_path):
    both = ("trainer.devices=2", "trainer.accelerator=cpu", "trainer.strategy=ddp", "trainer.max_steps=2")
    run("src.train", *SMOKE, EVERY_STEP, *both, "fusion=clipcap", "logger=wandb", f"hydra.run.dir='{tmp_path}'")
    (file,) = wandb_files(tmp_path)
    logged = Logged(file)
    assert logged.exits == [0] and set(logged.curve("train/loss")) == {0, 1} and "test/CIDEr-D" in logged.summary


def test_tensorboard_has_scalars_scores_and_the_sheet(alone, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run("src.train", *SMOKE, EVERY_STEP, "fusion=blind", "logger=tensorboard", f"hydra.run.dir='{tmp_path}'")
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("train/loss")] == [0, 1, 2, 3]
    assert {"val/loss", "train/gradient_norm", "lr-AdamW/language"} <= set(board.Tags()["scalars"])
    scores = json.loads((tmp_path / "metrics.json").read_text())["scores"]
    assert board.Scalars("test/loss")[0].value == pytest.approx(scores["loss"], rel=1e-5)
    assert board.Images("samples")[0].width == Image.open(tmp_path / "samples.png").width
    assert "fusion" in (tmp_path / "tensorboard" / "hparams.yaml").read_text()
    assert "train/loss" in (tmp_path / "log" / "metrics.csv").read_text() and not list(tmp_path.rglob("wandb"))


# ------------------------------------------------------------------------------------------------- before any work
@pytest.mark.parametrize(
    ("wanted", "environment", "mode"),
    [
        ("auto", {}, "offline"),
        ("auto", {"WANDB_API_KEY": KEY}, "online"),
        ("auto", {"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}, "offline"),
        ("auto", {"WANDB_MODE": "dryrun"}, "offline"),
        ("online", {"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}, "online"),
        ("offline", {"WANDB_API_KEY": KEY}, "offline"),
        ("disabled", {"WANDB_MODE": "online"}, "disabled"),
        ("online", {"LOCAL_RANK": "1"}, "disabled"),
    ],
)
def test_mode(wanted, environment, mode, alone, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    before = settings()
    assert tracking.wandb_mode(wanted) == mode
    assert settings() == before
    assert not list(alone.rglob("*wandb*"))


@pytest.mark.parametrize(
    ("wanted", "environment", "sentence"),
    [
        ("online", {}, "wandb login"),
        ("on", {}, "must be auto, online, offline, disabled"),
        ("auto", {"WANDB_API_KEY": "short"}, "not usable"),
        ("auto", {"WANDB_MODE": "shared"}, "WANDB_MODE=shared"),
    ],
)
def test_a_mode_that_cannot_be(wanted, environment, sentence, alone, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=sentence):
        tracking.wandb_mode(wanted)


def test_online_without_a_login_is_said_before_any_work(alone, tmp_path):
    answer = run("src.train", *SMOKE, "logger=wandb", "logger.mode=online", f"hydra.run.dir='{tmp_path}/run'", ok=False)
    assert answer.returncode == 2 and "needs a W&B login" in answer.stderr and "Traceback" not in answer.stderr
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize("logger", ["tensorboard", "wandb"])
def test_a_missing_package_is_one_sentence(logger, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    node = OmegaConf.load(ROOT / "conf" / "logger" / f"{logger}.yaml")
    with pytest.raises(UserError, match=f"logger={logger} needs a package: pip install {logger}"):
        make(node)


# ------------------------------------------------------------------------------------------------- who a run is
CONFIG = OmegaConf.create(
    {"name": "one", "seed": 0, "samples": 4, "resume": None, "logger": {}, "fusion": {"tau": 0.2}}
)


def test_a_run_is_its_configuration_in_its_folder(tmp_path):
    first = run_id(CONFIG, tmp_path / "sweep" / "job")
    assert first == run_id(OmegaConf.merge(CONFIG, {"resume": "job~1", "samples": 9}), tmp_path / "sweep/job")
    others = [
        run_id(OmegaConf.merge(CONFIG, {"seed": 1}), tmp_path / "sweep" / "job"),
        run_id(CONFIG, tmp_path / "sweep" / "2026-11-21_12-00-00"),
        run_id(CONFIG, tmp_path / "another sweep" / "job"),
    ]
    assert len({first, *others}) == 4


def test_the_name_of_a_sweep(monkeypatch):
    monkeypatch.delenv("WANDB_RUN_GROUP", raising=False)
    monkeypatch.setattr(HydraConfig, "initialized", lambda: False)
    assert sweep_name() is None
    monkeypatch.setenv("WANDB_RUN_GROUP", "mine")
    assert sweep_name() == "mine"


def test_the_upload_command_names_earlier_attempts_first_and_quotes(tmp_path):
    run = tmp_path / "my runs" / "job"
    names = {"job~1": "offline-run-20260101_000000-abc", "job~2": "offline-run-20260102_000000-abc"}
    for attempt, name in names.items():
        (run.with_name(attempt) / "wandb" / name).mkdir(parents=True)
    (run.with_name("job~1") / "wandb" / "offline-run-20260101_000000-other").mkdir()
    own = run / "wandb" / "offline-run-20260103_000000-abc"
    own.mkdir(parents=True)
    folders = [run.with_name(attempt) / "wandb" / name for attempt, name in names.items()]
    assert tracking.sync_command(own) == "wandb sync " + " ".join(f"'{folder}'" for folder in [*folders, own])


# ------------------------------------------------------------------------------------------------- the life of a run
def span(tracker: tracking.Tracker, folder: Path, error: BaseException | None = None) -> None:
    """A run without training, that logs one table."""
    import wandb

    folder.mkdir()
    (folder / "environment.json").write_text('{"choices": {"fusion": "srau", "data": null}}')
    with tracker.running(CONFIG, folder):
        picture = wandb.Image(Image.new("RGB", (8, 8)))
        tracker.run.log({"table": wandb.Table(columns=["picture"], data=[[picture]])})
        if error:
            raise error


def test_two_runs_of_one_process_share_nothing(alone, tmp_path):
    before = settings()
    for name in ("a", "b"):
        span(tracking.Wandb("p", None, "offline"), tmp_path / name)
    assert settings() == before
    logged = [Logged(file) for file in wandb_files(tmp_path)]
    assert len({one.run.run_id for one in logged}) == 2 and all(one.exits == [0] for one in logged)
    for name, one in zip(("a", "b"), logged, strict=True):
        assert one.run.tags == ["fusion=srau"] and len(one.artifacts) == 1
        paths = [Path(entry.local_path) for entry in one.artifacts[0].manifest.contents]
        assert paths and all(tmp_path / name in path.parents for path in paths)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("bug"), 1),
        (UserError("wrong"), 2),
        (KeyboardInterrupt(), 130),
        (SystemExit(1), 1),
        (SystemExit(143), 143),
        (SystemExit(0), 1),
    ],
)
def test_a_run_is_finished_whatever_ends_it(error, status, alone, tmp_path):
    with pytest.raises(type(error)):
        span(tracking.Wandb("p", None, "offline"), tmp_path / "run", error)
    assert Logged(wandb_files(tmp_path)[0]).exits == [status]


def test_only_the_first_process_logs(alone, tmp_path, monkeypatch):
    from lightning.pytorch.utilities import rank_zero_only

    monkeypatch.setattr(rank_zero_only, "rank", 1)
    tracker = tracking.Wandb("p", None, "offline")
    with tracker.running(CONFIG, tmp_path):
        assert len(tracker.loggers) == 1
    assert not list(tmp_path.rglob("*wandb*"))


class Silent:
    """A server that takes requests and never answers; with ``begins`` it answers what a run needs to begin."""

    def __init__(self, begins: bool):
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                words = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or "{}")
                if not server.begins:
                    server.end.wait()
                    return
                server.begins = words.get("operationName") != "UpsertBucket"
                project = {"id": "p", "name": "x", "entity": {"id": "e", "name": "me"}}
                bucket = {
                    "id": "b",
                    "name": words["variables"].get("name", "r"),
                    "displayName": "r",
                    "project": project,
                }
                bucket |= {"config": "{}", "historyLineCount": 0, "logLineCount": 0, "eventsLineCount": 0}
                answer = json.dumps({"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_):
                pass

        self.begins, self.end = begins, threading.Event()
        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True

    def __enter__(self) -> str:
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.http.server_port}"

    def __exit__(self, *_) -> None:
        self.end.set()
        self.http.shutdown()


def test_a_server_that_falls_silent_costs_neither_time_nor_results(tracked, alone, tmp_path, monkeypatch):
    """The run ends like one without it, and says how to upload what it has kept."""
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "3")
    monkeypatch.setenv("WANDB_HTTP_TIMEOUT", "1")
    with Silent(begins=True) as address:
        monkeypatch.setenv("WANDB_BASE_URL", address)
        answer = run("src.train", *SMOKE, EVERY_STEP, "logger=wandb", f"hydra.run.dir='{tmp_path}/run'")
    (file,) = wandb_files(tmp_path)
    assert "W&B has not taken everything within 3 s" in answer.stdout
    assert answer.stdout.splitlines()[-1] == f"W&B: upload with: wandb sync {file.parent}"
    assert set(Logged(file).curve("train/loss")) == {0, 1, 2, 3}
    same = (tracked[0] / "predictions.jsonl").read_bytes()
    assert (tmp_path / "run" / "predictions.jsonl").read_bytes() == same


def test_a_server_that_never_answers_leaves_the_run_offline(alone, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "2")
    (tmp_path / "environment.json").write_text('{"choices": {}}')
    with Silent(begins=False) as address:
        monkeypatch.setenv("WANDB_BASE_URL", address)
        tracker, began = tracking.Wandb("p", None, "online"), time.monotonic()
        with tracker.running(CONFIG, tmp_path):
            tracker.loggers[-1].log_metrics({"train/loss": 1.5}, step=3)
        assert time.monotonic() - began < 60  # seconds on a machine with other work; nothing is waited for twice
    (file,) = [path for path in wandb_files(tmp_path) if path.parent.name.startswith("offline-run")]
    assert Logged(file).curve("train/loss") == {3: 1.5} and Logged(file).exits == [0]
    said = capsys.readouterr().out
    assert "note: W&B cannot be reached" in said and f"wandb sync {file.parent}" in said


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_server_that_refuses_leaves_the_run_offline(mode, alone, tmp_path, monkeypatch, capsys):
    import wandb

    asked = []

    def refuse(**options):
        asked.append(options["mode"])
        if options["mode"] == "online":
            raise wandb.errors.CommError("connection refused\nlong story")
        raise RuntimeError("far enough")

    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(wandb, "init", refuse)
    (tmp_path / "environment.json").write_text('{"choices": {}}')
    tracker, before = tracking.Wandb("p", None, mode), settings()
    with pytest.raises(RuntimeError, match="far enough"):
        with tracker.running(CONFIG, tmp_path):
            pass
    assert asked == list(dict.fromkeys([mode, "offline"])) and settings() == before
    assert ("cannot be reached (connection refused)" in capsys.readouterr().out) == (mode == "online")


def test_a_broken_mirror_costs_no_result(tmp_path, capsys):
    class Broken(tracking.Tracker):
        def mirror(self, parts, cfg, run):
            raise OSError("disk full")

        def close(self, status):
            raise OSError("network gone")

    tracker = Broken()
    with tracker.running(CONFIG, tmp_path):
        tracker.report(None, CONFIG, tmp_path)
    said = capsys.readouterr().out
    assert "Broken has not got everything (OSError: disk full)" in said and "network gone" in said
    with pytest.raises(KeyError), tracker.running(CONFIG, tmp_path):  # what ended the run is not hidden
        raise KeyError


def test_stopping_is_left_to_whoever_sees_to_it_already():
    def handler(*_):
        pass

    before = signal.signal(signal.SIGTERM, handler)
    try:
        with tracking.interruptible():
            assert signal.getsignal(signal.SIGTERM) is handler
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with pytest.raises(SystemExit) as stopped, tracking.interruptible():
            os.kill(os.getpid(), signal.SIGTERM)
        assert stopped.value.code == 143 and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
