"""Machines that lack things: every command still ends well, with the same results, and says what it did without."""

from __future__ import annotations

import csv
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import ROOT
from PIL import Image

NAMES = ("straße", "İğne", "plain", "日本", "ñandú", "été")
CAPTIONS = ("ein Hund auf der Straße .", "ığüşöç İSTANBUL ILIK", "a dog runs", "犬が走る", "el ñandú corre", "l'été")
TINY = (
    *("data=folder", "data.workers=0", "data.batch_size=4", "fusion=clipcap", "samples=3"),
    *("language.model.width=32", "language.model.layers=2", "language.tokenizer.vocabulary=300", "decode.max_tokens=6"),
    *("vision.width=32", "vision.layers=3", "trainer.max_steps=2", "trainer.val_check_interval=2"),
)
# No Java, no GPU of that number, no home, no network, a locale of 128 letters.
POOR = {
    "PATH": "/nowhere",
    **{name: f"/dev/null/{name.lower()}" for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME")},
    "LC_ALL": "C",
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
    "TZ": "Asia/Kathmandu",
    "CUDA_VISIBLE_DEVICES": "7",
    **{name: "http://127.0.0.1:9" for name in ("HTTP_PROXY", "HTTPS_PROXY", "HF_ENDPOINT", "WANDB_BASE_URL")},
}
# As a terminal that speaks Turkish in an encoding of its own (captions have letters that it lacks).
TURKISH = {"LC_ALL": "tr_TR.ISO8859-9", "LANGUAGE": "tr", "PYTHONIOENCODING": "iso8859-9", "TZ": "Pacific/Kiritimati"}


def command(environment: dict[str, str], *words: str, limit: float = 300) -> subprocess.CompletedProcess:
    """The answer of ``python -m`` with nothing of our own environment but these variables."""
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([sys.executable, "-m", *words], cwd=ROOT, env=own, capture_output=True, timeout=limit)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A folder of twelve pictures whose names and captions are in six languages."""
    folder = tmp_path_factory.mktemp("photos")
    with open(folder / "captions.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "caption", "split"])
        for i in range(12):
            name = f"{NAMES[i % 6]}{i}.png"
            Image.effect_noise((40 + i, 50), 80).convert("RGB").save(folder / name)
            table.writerow([name, CAPTIONS[i % 6], ("train", "train", "val", "test")[i % 4]])
    return folder


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory) -> dict[str, tuple[Path, subprocess.CompletedProcess]]:
    """The same training on a poor machine and on one that has everything, but a Turkish terminal."""
    folder, found = tmp_path_factory.mktemp("runs"), {}
    lacking = ("logger=wandb", "metrics=[meteor]")
    for name, environment, more in (("turkish", {**os.environ, **TURKISH}, ()), ("poor", POOR, lacking)):
        words = ("src.train", *TINY, *more, f"data.root={photos}", f"hydra.run.dir='{folder}/{name}'")
        found[name] = folder / name, command(environment, *words)
        assert found[name][1].returncode == 0, found[name][1].stderr.decode("latin-1")[-3000:]
    return found


def test_a_poor_machine_has_the_same_results(trained):
    (rich, _), (poor, _) = trained["turkish"], trained["poor"]
    for file in ("predictions.jsonl", "tokenizer/tokenizer.json", "samples.png"):
        assert (rich / file).read_bytes() == (poor / file).read_bytes(), file
    scores, same = (json.loads((run / "metrics.json").read_text("utf-8"))["scores"] for run in (rich, poor))
    assert {**scores, "METEOR": None} == same
    rows = [json.loads(line) for line in (poor / "predictions.jsonl").read_text("utf-8").splitlines()]
    assert {row["id"]: row["references"] for row in rows}["İğne7.png"] == [CAPTIONS[1]]


def test_a_poor_machine_says_what_it_does_without(trained):
    poor, answer = trained["poor"]
    said = answer.stdout.decode("utf-8")
    assert "note: CUDA_VISIBLE_DEVICES=7 names no GPU that torch can use; training on the CPU." in said
    assert "METEOR needs Java, and there is no command java" in said and "İğne7.png: " in said
    assert f"W&B: upload with: wandb sync {poor}/wandb/offline-run-" in said
    assert "Traceback" not in answer.stderr.decode() and "note: Wandb has not" not in said


def test_letters_that_a_terminal_lacks_are_escaped(trained):
    said = trained["turkish"][1].stdout.decode("iso8859-9")
    assert "İğne7.png: " in said and "\\u65e5\\u672c3.png: " in said and "note: " not in said


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("compare runs={run} output='{folder}/ığ'", "written: {folder}/ığ/comparison.json"),
        ("score predictions='{folder}/ığ.json' references=x", "error: "),
    ],
)
def test_other_commands_on_a_poor_machine(words, expected, trained, tmp_path):
    """They end as elsewhere: with what was asked for, or one sentence."""
    places = {"run": trained["poor"][0], "folder": tmp_path}
    answer = command(POOR, *(f"src.{words}".format(**places).split()))
    said = answer.stdout.decode("utf-8") + answer.stderr.decode("utf-8")
    assert answer.returncode in (0, 2) and "Traceback" not in said
    assert expected.format(**places) in said and "ığ" in said


def test_a_gpu_that_is_not_there(tmp_path):
    words = ("src.train", "trainer.accelerator=gpu", f"hydra.run.dir='{tmp_path}'")
    answer = command({**os.environ, "CUDA_VISIBLE_DEVICES": "99"}, *words)
    assert answer.returncode == 2 and answer.stderr.decode().startswith("error: trainer.accelerator=gpu needs a GPU")
    assert len(answer.stderr.splitlines()) == 1 and not (tmp_path / "checkpoints").exists()


@pytest.fixture
def silent():
    """The address of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        kept = []

        def take():
            while True:
                try:
                    kept.append(server.accept())
                except OSError:
                    return

        threading.Thread(target=take, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        for connection, _ in kept:
            connection.close()


def test_a_hub_that_does_not_answer_is_one_sentence_without_a_minute_of_retries(silent, tmp_path, monkeypatch):
    """In this process, since importing transformers takes longer than the answer."""
    from huggingface_hub import constants

    from src.errors import UserError
    from src.language.load import pretrained
    from src.text.tokenizers import HubTokenizer

    monkeypatch.setattr(constants, "ENDPOINT", silent)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", silent + "/{repo_id}/resolve/{revision}/{filename}")
    for ask in (lambda: HubTokenizer("someone/model"), lambda: pretrained(None, "someone/model")):
        began = time.monotonic()
        with pytest.raises(
            UserError, match="'someone/model' is neither a folder here nor in the local cache"
        ) as caught:
            ask()
        assert time.monotonic() - began < 30 and "\n" not in str(caught.value)


def test_files_are_read_and_written_in_utf8_whatever_the_locale():
    """Ruff's rule, so that a new open() without an encoding is found where nobody has such a locale."""
    words = ["ruff", "check", "--preview", "--select", "PLW1514", "--no-cache", "src"]
    answer = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert answer.returncode == 0, answer.stdout


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [("src.train", "--help"), ("src.train", "--cfg", "job"), ("src.doctor",)])
def test_a_reader_who_leaves_ends_a_command_quietly(words, unbuffered):
    """As head does, or a pager: what our commands print, and what Hydra prints for them."""
    end, mine = os.pipe()
    os.close(end)
    own = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered}
    answer = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, env=own, stdout=mine, stderr=subprocess.PIPE)
    os.close(mine)
    assert answer.stderr == b"" and answer.returncode in (0, 1)  # 0: all of it fitted into the buffer
    assert answer.returncode == 1 or not unbuffered


def test_the_broken_pipe_of_something_else_is_no_quiet_end():
    program = """
import os, sys
from src.config.streams import prepare_streams
prepare_streams()
print("so far")
end, mine = os.pipe()
os.close(end)
os.write(mine, b"to nobody")
"""
    answer = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 1 and answer.stdout == "so far\n" and "BrokenPipeError" in answer.stderr
