"""Every file that the project writes, cut, emptied, deleted or with a bit flipped: the same result, or one sentence.

What is read back is in ``READ``, everything else in ``UNREAD``; a file in neither fails a test. Then full disks.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import random
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISDIR
from types import SimpleNamespace

import pytest
import torch
from commands import run
from hydra.core.utils import JobStatus
from PIL import Image
from test_verbs import SMOKE

from src.comparison.runs import find_runs
from src.data import faults
from src.data.scenes import Scenes
from src.errors import UserError
from src.export import export, results
from src.loading.features import FeatureCache
from src.metrics.files import read_predictions
from src.pretrained import restore_captioner
from src.records import exported
from src.records.files import SUMS, seal, verify, write_bytes, write_json, write_jsonl, write_text
from src.records.folder import complete, result
from src.records.sheet import write_sheet
from src.records.weights import tensor_hash
from src.training.checkpoints import SafeCheckpointIO, take_over
from src.vision.vit import ViT

FLIPS = 8  # bits per file, at random places
ADVICE = ("again", "restore", "delete", "copy", "give ", "room", "larger disk")  # a sentence says what to do


@pytest.fixture(autouse=True)
def no_waiting_for_disks(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)


# --------------------------------------------------------------------------------------------------------------------
# what there is
# --------------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    """A real run, an evaluation of it, an export, captions, a feature cache, notes on pictures, and a search."""
    here = tmp_path_factory.mktemp("faults")
    run("src.train", *SMOKE, "samples=2", f"hydra.run.dir='{here}/run'")
    evaluation = here / "run" / "evaluate" / "test"
    for name in ("metrics.json", "predictions.jsonl"):
        write_bytes(evaluation / name, (here / "run" / name).read_bytes())
    seal(evaluation, "metrics.json", "predictions.jsonl")
    export(here / "run", here / "export", include=False)
    write_jsonl(here / "captions" / "captions.jsonl", [{"id": f"{i}", "caption": f"a dog {i}"} for i in range(9)])
    seal(here / "captions", "captions.jsonl")
    cached(here)
    Image.new("RGB", (30, 20)).save(here / "one.png")
    noted(here)
    if importlib.util.find_spec("optuna"):
        searched(here)
    return here


def cached(here: Path) -> str:
    """A digest of all features, read from the cache or made."""
    torch.manual_seed(0)
    vision, source = ViT(image_size=32, patch=16, width=16, layers=2, heads=2).eval(), Scenes(train=30, val=2, test=2)
    options = {"levels": 2, "batch_size": 8, "workers": 0, "progress": False}
    visual = FeatureCache.open_or_build(here / "features", vision, source, source.examples("train"), **options)
    found = visual.visual(range(30))
    return tensor_hash({"tokens": found.tokens_IMNC, "pooled": found.pooled_IMC, "levels": found.levels_IMKNC})


def noted(here: Path) -> dict:
    """Which pictures are unreadable; those found readable are noted in data/checked of the working folder."""
    before = Path.cwd()
    os.chdir(here)
    try:
        return faults.unreadable([str(here / "one.png")], "mine", here)
    finally:
        os.chdir(before)


def searched(here: Path) -> tuple:
    """The best trial of a search of three; only missing ones are run."""
    from src.launch.hydra_plugins import search

    def launch(jobs, initial_job_idx):
        def answer(job):
            value = float(job[0].partition("=")[2]) ** 2
            return SimpleNamespace(status=JobStatus.COMPLETED, return_value=value)

        return [answer(job) for job in jobs]

    sweeper = search.Search(trials=3, batch=1, sampler="random", direction="maximize", seed=0)
    sweeper.launcher = SimpleNamespace(launch=launch)
    file = here / "sweep" / "search.db"
    with search._told(file):
        study = sweeper._study(file, [])
        sweeper._search(study, file, [], {"x": lambda trial, name: trial.suggest_float(name, 0, 1)})
        return study.best_value, study.best_params


def weights(folder: Path) -> str:
    captioner = restore_captioner(folder)
    return tensor_hash(captioner.state_dict()) + captioner.tokenizer.backend.to_str()


def compared(here: Path, evaluation: str | None = None) -> tuple:
    (found,) = find_runs(str(here / "run"), evaluation)
    return found.config, found.metrics, found.environment, found.rows


def gone_on_with(here: Path, new: Path | None = None) -> int:
    """The step at which training would go on in the folder ``new``, after a look at the best checkpoint there."""
    new = new or here / "new"
    try:
        step = torch.load(take_over(here / "run", new, ()), weights_only=True)["global_step"]
        assert (new / "checkpoints" / "best.ckpt").read_bytes() == (here / "run/checkpoints/best.ckpt").read_bytes()
        return step
    finally:
        shutil.rmtree(new, ignore_errors=True)


def curves(here: Path) -> list:
    return find_runs(str(here / "run"))[0].curve("val/loss")


def both(*reads: Callable) -> Callable:
    return lambda here: [read(here) for read in reads]


def captioner(here: Path) -> str:
    return weights(here / "run")


EXPORT, CACHE = ("manifest.json", "captioner.yaml", "model.safetensors"), ("tokens", "pooled", "levels", "checksums")
# file: (who reads it, what may come instead of the same result: a step less, or "not finished")
READ: dict[str, tuple[Callable, tuple]] = {
    "run/config.yaml": (both(compared, captioner), ()),
    "run/environment.json": (both(compared, lambda here: results(here / "run")), ()),
    "run/metrics.json": (both(compared, lambda here: results(here / "run")), ()),
    "run/predictions.jsonl": (compared, ()),
    "run/SHA256SUMS": (both(compared, curves, captioner), ()),
    "run/result.json": (lambda here: result(here / "run"), (None,)),  # the run is finished once more
    "run/log/metrics.csv": (curves, ()),
    "run/tokenizer/tokenizer.json": (captioner, ()),
    "run/tokenizer/special_ids.json": (captioner, ()),
    "run/checkpoints/best.ckpt": (both(captioner, gone_on_with), ()),
    "run/checkpoints/last.ckpt": (gone_on_with, (2,)),
    "run/checkpoints/previous.ckpt": (gone_on_with, ()),
    "run/evaluate/test/metrics.json": (lambda here: compared(here, "test"), ()),
    "run/evaluate/test/predictions.jsonl": (lambda here: compared(here, "test"), ()),
    "run/evaluate/test/SHA256SUMS": (lambda here: compared(here, "test"), ()),
    **{f"export/{name}": (lambda here: weights(here / "export"), ()) for name in EXPORT},
    "export/tokenizer/tokenizer.json": (lambda here: weights(here / "export"), ()),
    "export/tokenizer/special_ids.json": (lambda here: weights(here / "export"), ()),
    "export/environment.json": (lambda here: exported.verify(here / "export"), ()),
    "export/metrics.json": (lambda here: exported.verify(here / "export"), ()),
    "export/evaluate/test/metrics.json": (lambda here: exported.verify(here / "export"), ()),
    "captions/captions.jsonl": (
        lambda here: (
            verify(here / "captions", "captions.jsonl"),
            read_predictions(here / "captions/captions.jsonl"),
        ),
        (),
    ),
    "captions/SHA256SUMS": (lambda here: verify(here / "captions", "captions.jsonl"), ()),
    **{f"features/*/{name}.npy": (cached, ()) for name in CACHE},
    "features/*/manifest.json": (cached, ()),
    "data/checked/*.json": (noted, ()),
    "sweep/search.db": (searched, ()),
}
# For people, or read by nobody here; an export's card may be edited.
UNREAD = ("run/samples.png", "export/README.md", "one.png")


def test_every_file_is_looked_at(here):
    found = {path for path in here.rglob("*") if path.is_file()}
    named = {path for pattern in (*READ, *UNREAD) for path in here.glob(pattern)}
    assert found == named


def damages(content: bytes, chance: random.Random) -> Iterator[tuple[str, bytes | None]]:
    yield "emptied", b""
    yield "deleted", None
    for share in (0.3, 0.7):
        yield f"cut at {share}", content[: int(share * len(content))]
    yield "cut by one byte", content[:-1]
    for _ in range(FLIPS):
        place, bit = chance.randrange(len(content)), chance.randrange(8)
        yield f"bit {bit} of byte {place}", content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]


def read_or_refused(read: Callable, here: Path, path: Path, capsys):
    """What ``read`` gives; or None, when it refuses in one sentence that names the file and says what to do."""
    try:
        return read(here)
    except UserError as error:
        sentence = str(error)
    except SystemExit as error:  # outside of @verb: Hydra's sweeper
        assert error.code == 2
        sentence = capsys.readouterr().err
        assert sentence.startswith("error: ")
    assert len(sentence.strip().splitlines()) == 1 and any(word in sentence for word in ADVICE), sentence
    # A cache is named by its folder, damage to the list of sums by what it says of another file.
    assert str(path) in sentence or str(path.parent) in sentence, sentence
    return "refused"


@pytest.mark.parametrize("pattern", READ)
def test_a_damaged_file_changes_nothing_unsaid(pattern, here, capsys):
    if pattern == "sweep/search.db":
        pytest.importorskip("optuna")
    read, instead = READ[pattern]
    (path,) = here.glob(pattern)
    content, whole = path.read_bytes(), read(here)
    for name, damaged in damages(content, random.Random(pattern)):
        try:
            path.write_bytes(damaged) if damaged is not None else path.unlink()
            assert read_or_refused(read, here, path, capsys) in (whole, "refused", *instead), name
        finally:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
    assert read(here) == whole and not list(here.rglob(".*tmp"))


def test_a_number_changed_in_the_database_is_noticed(here, capsys):
    """A flipped bit that leaves an intact database with another best value."""
    pytest.importorskip("optuna")
    path = here / "sweep" / "search.db"
    content, (value, _) = path.read_bytes(), searched(here)
    at = content.index(struct.pack(">d", value))
    path.write_bytes(content[: at + 3] + bytes([content[at + 3] ^ 1]) + content[at + 4 :])
    assert read_or_refused(searched, here, path, capsys) == "refused"
    path.unlink()
    assert searched(here)[1].keys() == {"x"}
    path.write_bytes(content)


def test_a_lost_run_is_not_left_out_of_a_comparison_silently(here):
    for name in ("config.yaml", "metrics.json"):
        path = here / "run" / name
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(UserError, match=f"{name} is missing"):
            find_runs(str(here))
        path.write_bytes(content)


def test_what_was_changed_on_purpose_can_be_read(here):
    """The sentence says how: without its line in SHA256SUMS a file is taken as it is, as in runs from before."""
    path, sums = here / "run" / "metrics.json", here / "run" / SUMS
    content, lines = path.read_bytes(), sums.read_text()
    path.write_bytes(content + b" ")
    with pytest.raises(UserError, match="delete its line"):
        compared(here)
    sums.write_text("".join(line for line in lines.splitlines(True) if "metrics.json" not in line))
    assert compared(here)
    sums.unlink()
    assert compared(here)
    path.write_bytes(content)
    sums.write_text(lines)


def test_a_command_says_it_in_one_sentence(here):
    path = here / "run" / "predictions.jsonl"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"0.", b"1.", 1))
    answer = run("src.compare", f"runs={here}/run", f"output={here}/compared", ok=False)
    path.write_bytes(content)
    assert answer.returncode == 2 and "Traceback" not in answer.stderr
    assert f"error: {path} is not what was written" in answer.stderr and not (here / "compared").exists()


# --------------------------------------------------------------------------------------------------------------------
# full disks
# --------------------------------------------------------------------------------------------------------------------
@contextmanager
def small_disk(place: Path, kilobytes: int) -> Iterator[Path]:
    """A file system of this size; skips the test where none can be mounted."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk needs root")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(disk: Path) -> None:
    """Leave no room at all."""
    with open(disk / "filler", "wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError as error:
            assert error.errno == errno.ENOSPC


def sheet(folder: Path) -> None:
    write_sheet(folder / "samples.png", [Image.effect_noise((224, 224), 99)] * 2, ["a", "b"])


def checkpoint(folder: Path) -> None:
    SafeCheckpointIO().save_checkpoint({"x": torch.arange(4000)}, folder / "last.ckpt")


WRITERS: dict[str, Callable] = {
    "json": lambda folder: write_json(folder / "metrics.json", list(range(2000))),
    "jsonl": lambda folder: write_jsonl(folder / "predictions.jsonl", [{"id": str(i)} for i in range(900)]),
    "sums": lambda folder: seal(folder, "kept"),
    "result": lambda folder: complete(folder, "CIDEr-D", 0.5),
    "pictures": sheet,
    "checkpoint": checkpoint,
    "features": cached,
    "search": searched,
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_told_and_leaves_what_was_there(name, tmp_path, capsys):
    if name == "search":
        pytest.importorskip("optuna")
    write = WRITERS[name]
    with small_disk(tmp_path / "disk", 600) as disk:
        (disk / "kept").write_bytes(b"kept")
        if name not in ("features", "search"):
            write(disk)  # the last good state
        before = {path.name: path.read_bytes() for path in disk.iterdir() if path.is_file()}
        fill(disk)
        with pytest.raises((UserError, SystemExit)) as caught:
            write(disk)
        sentence = str(caught.value) if caught.type is UserError else capsys.readouterr().err
        assert len(sentence.strip().splitlines()) == 1 and any(word in sentence for word in ADVICE)
        assert str(disk) in sentence
        (disk / "filler").unlink()
        after = {path.name: path.read_bytes() for path in disk.iterdir() if path.is_file()}
        after.pop("search.db", None)
        assert after == before and not [path for path in disk.rglob(".*") if path.is_file()]
        write(disk)  # and it works as soon as there is room


def test_writing_fails_anywhere(tmp_path, monkeypatch):
    """Opening, writing, syncing, renaming: the old content stays, and nothing else is left."""
    path = tmp_path / "metrics.json"
    write_json(path, {"a": 1})

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("open", "os.fsync", "os.replace", "Path.mkdir"):
        with monkeypatch.context() as patch:
            patch.setattr(f"src.records.files.{name}", full, raising=False)
            with pytest.raises(
                UserError, match=r"metrics.json cannot be written \(No space left on device\); make room"
            ):
                write_json(path, {"a": 2})
        assert [file.name for file in tmp_path.iterdir()] == ["metrics.json"]
        assert path.read_text() == '{\n  "a": 1\n}\n'


def test_the_name_of_a_file_reaches_the_disk_too(tmp_path, monkeypatch):
    """A machine that goes down takes back what is only in memory, names too."""
    synced = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda d: (synced.append("folder" if S_ISDIR(os.fstat(d).st_mode) else "file"), sync(d))
    )
    monkeypatch.setattr(os, "replace", lambda *names: (synced.append("named"), replace(*names)))
    write_text(tmp_path / "a", "x")
    assert synced == ["file", "named", "folder"]


@pytest.mark.slow
def test_a_training_on_a_full_disk_ends_in_one_sentence(here, tmp_path):
    """It has room for the first checkpoints and not for more; what there is can be read."""
    size = sum(path.stat().st_size for path in (here / "run" / "checkpoints").iterdir()) // 1024
    with small_disk(tmp_path / "disk", size * 2 // 3 + 200) as disk:
        answer = run("src.train", *SMOKE, f"hydra.run.dir='{disk}/run'", ok=False)
        assert answer.returncode == 2 and "Traceback" not in answer.stderr, answer.stderr
        assert "cannot be written (No space left on device); make room" in answer.stderr
        assert not list(disk.rglob("*.tmp"))
        assert gone_on_with(disk, tmp_path / "new") == 2
