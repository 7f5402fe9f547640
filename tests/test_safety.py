"""Folders of strangers execute nothing, and no secret is written down."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import run
from conftest import ROOT
from omegaconf import OmegaConf
from PIL import Image
from test_export import SIZES, make_run
from test_verbs import SMOKE

from src.config.classes import flatten_all, is_ours
from src.config.command_line import check_words, compose
from src.config.earlier import use_earlier
from src.config.make import make
from src.errors import UserError
from src.export import export
from src.pretrained import load, restore_captioner
from src.records import exported
from src.records.environment import environment
from src.records.secrets import is_secret, masked

KEY = "hunter2-hunter2-hunter2"


# --------------------------------------------------------------------------------------------------------------------
# nothing is executed
# --------------------------------------------------------------------------------------------------------------------
REFUSED = [
    "os.system",
    "builtins.eval",
    "subprocess.run",
    "hydra.utils.get_object",
    "torch.load",
    "src.records.files.write_text",  # ours, but in no room whose classes configurations name
    "src.config.make.os",
    "src.text.tokenizers.write_text",  # only imported there
    "src.vision.efficientnet_lite.torch.load",
    "src.vision.efficientnet_lite.pickle.loads",
    "src.text.tokenizers.ByteLevelBPE.save",  # a method
    "src.text.tokenizers._read",
    "src.fusion.srau.SRAU.__init__.__globals__",
    "src.fusion.srau.SRAU.load",
    "src.fusion.nothing.Nothing",
    "src.fusion",
    "src",
    "",
    "src.fusion.../records.write_text",
    "lightning.pytorch.loggers.csv_logs.os.system",
    "lightning.pytorch.loggers.CSVLogger.save",
    None,
    3,
]


@pytest.mark.parametrize("target", REFUSED)
def test_foreign_targets_are_refused_wherever_they_stand(target):
    for node in (
        {"_target_": target},
        {"_target_": "src.decoding.greedy.Greedy", "max_tokens": {"_target_": target}},
        {"_target_": "src.decoding.greedy.Greedy", "max_tokens": [[{"_target_": target}]]},
    ):
        with pytest.raises(
            UserError, match=r"(is refused: configurations may only name classes of this project|cannot be found: )"
        ) as caught:
            make(OmegaConf.create(node))
        assert "\n" not in str(caught.value)


def test_a_target_put_together_by_interpolation(tmp_path):
    node = OmegaConf.create({"a": {"_target_": "${b}", "command": f"touch {tmp_path}/ran"}, "b": "os.system"})
    with pytest.raises(UserError, match=r"_target_=os.system is refused"):
        make(node.a)


def test_every_target_of_the_project_is_allowed():
    found = set()
    for path in (ROOT / "conf").rglob("*.yaml"):
        if "hydra" not in path.relative_to(ROOT).parts:  # launchers and sweepers are Hydra's, no run keeps them
            for key, value in flatten_all(OmegaConf.to_container(OmegaConf.load(path))):
                if key.endswith("_target_"):
                    found.add(value)
    assert len(found) > 20 and all(map(is_ours, found)), sorted(found)
    assert is_ours("lightning.pytorch.loggers.CSVLogger")  # what runs of earlier versions name


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "run", "fusion=clipcap", *SIZES)


@pytest.fixture
def picture(tmp_path) -> Path:
    Image.effect_noise((50, 60), 80).convert("RGB").save(tmp_path / "noise.png")
    return tmp_path / "noise.png"


@pytest.mark.parametrize("key", ["fusion", "vision", "decode", "language.model", "data.source", "logger"])
def test_a_run_folder_that_names_a_foreign_class(key, tiny_run, tmp_path):
    folder = shutil.copytree(tiny_run, tmp_path / "run")
    cfg = OmegaConf.load(folder / "config.yaml")
    OmegaConf.update(cfg, key, {"_target_": "os.system", "command": f"touch {tmp_path}/ran"}, merge=False)
    OmegaConf.save(cfg, folder / "config.yaml")
    for read in (restore_captioner, load):
        with pytest.raises(UserError, match=rf"{folder}: {key}._target_=os.system is refused"):
            read(folder)
    assert not (tmp_path / "ran").exists()


def test_the_language_model_of_a_stranger(tiny_run, tmp_path):
    """Of whose configuration the options of language are taken over."""
    folder = shutil.copytree(tiny_run, tmp_path / "run")
    for key, value, message in (
        ("language.model._target_", "os.system", "language.model._target_=os.system is refused"),
        ("language.name", "${oc.env:HOME}", "language.name=.* is refused: a saved configuration holds values"),
    ):
        cfg = OmegaConf.load(tiny_run / "config.yaml")
        OmegaConf.update(cfg, key, value)
        OmegaConf.save(cfg, folder / "config.yaml")
        with pytest.raises(UserError, match=f"{folder}: {message}"):
            check_words("train", [f"language.weights={folder}"])
            use_earlier(compose("train", [f"language.weights={folder}"], []))


def test_the_command_line_refuses_it_too(tiny_run, picture, tmp_path):
    folder = shutil.copytree(tiny_run, tmp_path / "run")
    cfg = OmegaConf.load(folder / "config.yaml")
    cfg.decode = {"_target_": "os.system", "command": f"touch {tmp_path}/ran"}
    OmegaConf.save(cfg, folder / "config.yaml")
    answer = run("src.caption", f"run={folder}", f"images={picture}", ok=False)
    assert "decode._target_=os.system is refused" in answer.stderr and "Traceback" not in answer.stderr
    other = "fusion._target_=os.system", f"hydra.run.dir='{tmp_path}/new'"
    answer = run("src.train", *SMOKE, *other, ok=False)
    assert "fusion._target_=os.system is refused" in answer.stderr and "Traceback" not in answer.stderr
    assert not (tmp_path / "ran").exists()


def test_an_export_whose_manifest_agrees_with_its_malice(tiny_run, tmp_path):
    """Hashes protect from damage; the check of classes protects from people."""
    export(tiny_run, tmp_path / "to", include=False)
    path = tmp_path / "to" / "captioner.yaml"
    cfg = OmegaConf.to_container(OmegaConf.load(path))
    command = {"_target_": "os.system", "command": f"touch {tmp_path}/ran"}
    for key, value, message in (
        ("vision", command, "vision._target_=os.system is refused"),
        ("name", "${oc.env:HOME}", "name=.* is refused: a saved configuration holds values"),
    ):
        OmegaConf.save({**cfg, key: value}, path)
        manifest = json.loads((tmp_path / "to" / "manifest.json").read_text())
        manifest["files"]["captioner.yaml"]["sha256"] = exported.sha256(path)
        (tmp_path / "to" / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(UserError, match=message):
            load(tmp_path / "to")
    assert not (tmp_path / "ran").exists()


class Touch:
    """Unpickling it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("of", ["run", "export"])
def test_pickles_are_not_unpickled(of, tiny_run, tmp_path):
    folder = shutil.copytree(tiny_run, tmp_path / "run")
    weights = folder / "checkpoints" / "best.ckpt"
    if of == "export":
        export(tiny_run, tmp_path / "to", include=False)
        folder, weights = tmp_path / "to", tmp_path / "to" / "model.safetensors"
    torch.save({"state_dict": Touch(tmp_path / "ran"), "frozen": {}}, weights)
    if of == "export":
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["files"]["model.safetensors"]["sha256"] = exported.sha256(weights)
        (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"cannot be read|is not executed") as caught:
        load(folder)
    assert not (tmp_path / "ran").exists() and "\n" not in str(caught.value) and "\x1b" not in str(caught.value)
    pickle.loads(pickle.dumps(Touch(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()  # so the trap works


# --------------------------------------------------------------------------------------------------------------------
# secrets
# --------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        (f"logger.api_key={KEY}", "logger.api_key=***"),
        (f"+logger.api_key={KEY}", "+logger.api_key=***"),
        (f"++api_key={KEY}", "++api_key=***"),
        (f"logger.password=two words {KEY}", "logger.password=***"),
        (f"HF_TOKEN={KEY}", "HF_TOKEN=***"),
        (f"a.access-key={KEY}", "a.access-key=***"),
        (f"logger={{_target_:x,api_key:{KEY},project:p}}", "logger={_target_:x,api_key:***,project:p}"),
        (f"logger={{api_key: '{KEY} b', project: p}}", "logger={api_key: ***, project: p}"),
        (f"data.root=https://me:{KEY}@host/data", "data.root=https://me:***@host/data"),
        ("decode.max_tokens=12", "decode.max_tokens=12"),
        ("language.tokenizer.vocabulary=300", "language.tokenizer.vocabulary=300"),
        ("optim.reduction=token_mean", "optim.reduction=token_mean"),
        ("language.weights=runs/a:b@c", "language.weights=runs/a:b@c"),
        ("data.image_tag=true", "data.image_tag=true"),
        ("fusion=srau,clipcap", "fusion=srau,clipcap"),
    ],
)
def test_commands_are_written_without_secrets(argument, expected, monkeypatch):
    assert masked(argument) == expected
    monkeypatch.setattr(sys, "argv", ["x", "fusion=srau", argument])
    command = environment()["command"]
    assert command.endswith(f" fusion=srau {expected}") and KEY not in command


def test_secrets_of_the_environment_are_known_by_value(monkeypatch):
    monkeypatch.setenv("COMET_API_KEY", KEY)
    monkeypatch.setenv("SHORT_TOKEN", "srau")  # would be found in half of all commands
    assert masked(f"name=my-{KEY}-run fusion=srau") == "name=my-***-run fusion=srau"
    assert is_secret("name", f"x{KEY}") and not is_secret("name", "srau")


@pytest.mark.parametrize(
    ("key", "value", "secret"),
    [
        ("logger.api_key", KEY, True),
        ("logger.api_key", None, False),
        ("logger.api_key", "", False),
        ("max_tokens", 12, False),
        ("hf_token", 12, False),
        ("data.files", ["a", f"ftp://me:{KEY}@host"], True),
        ("data.files", ["a", "b.txt"], False),
    ],
)
def test_values_that_must_not_be_saved(key, value, secret):
    assert is_secret(key, value) is secret


def test_no_run_folder_holds_a_secret(tmp_path, monkeypatch):
    """What the environment has is not written down; what the command line has is refused before anything is."""
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("HF_TOKEN", KEY)
    answer = run("src.train", *SMOKE, f"+logger.api_key={KEY}", f"hydra.run.dir='{tmp_path}/refused'", ok=False)
    assert "logger.api_key looks like a secret" in answer.stderr and "Traceback" not in answer.stderr
    answer = run("src.train", *SMOKE, f"name={KEY}", f"hydra.run.dir='{tmp_path}/refused'", ok=False)
    assert "name looks like a secret" in answer.stderr
    run("src.train", *SMOKE, "trainer.max_steps=1", "fusion=clipcap", f"hydra.run.dir='{tmp_path}/run'")
    run("src.export", f"run={tmp_path}/run", f"to={tmp_path}/to")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 15 and not [path for path in files if KEY.encode() in path.read_bytes()]


def test_exports_of_older_runs_are_masked(tiny_run, tmp_path):
    folder = shutil.copytree(tiny_run, tmp_path / "run")
    cfg = OmegaConf.load(folder / "config.yaml")
    OmegaConf.update(cfg, "trainer.password", KEY, force_add=True)
    cfg.logger = {"_target_": "lightning.pytorch.loggers.CometLogger", "api_key": KEY}
    OmegaConf.save(cfg, folder / "config.yaml")
    command = f"python -m src.train +logger.api_key={KEY} fusion=clipcap"
    (folder / "environment.json").write_text(json.dumps({"command": command, "choices": {"fusion": "clipcap"}}))
    export(folder, tmp_path / "to", include=False)
    written = {path.name: path.read_text(errors="replace") for path in (tmp_path / "to").rglob("*") if path.is_file()}
    assert not [name for name, text in written.items() if KEY in text]
    assert "python -m src.train +logger.api_key=*** fusion=clipcap" in written["README.md"]


WATCHED = """
import socket, sys
from src import train
asked = []
def watch(name):
    made = getattr(socket.socket, name)
    def seen(self, address):
        if self.family != socket.AF_UNIX:
            asked.append(address)
        return made(self, address)
    setattr(socket.socket, name, seen)
watch("connect")
watch("connect_ex")
look_up = socket.getaddrinfo
socket.getaddrinfo = lambda host, *more, **how: (asked.append(host), look_up(host, *more, **how))[1]
train.main()
print("asked:", asked)
"""


@pytest.mark.slow
def test_a_training_speaks_to_nobody(tmp_path):
    """Nothing is uploaded, counted or looked up anywhere unless a logger or a part of a hub is asked for."""
    command = [sys.executable, "-c", WATCHED, *SMOKE, f"hydra.run.dir='{tmp_path}/run'"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert answer.returncode == 0, answer.stderr[-2000:]
    assert answer.stdout.splitlines()[-1] == "asked: []"
