"""Captions that make other evaluations shift, stop or hang: every picture keeps its own score, every process ends."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time

import pytest
from conftest import ROOT

from src.metrics.captions import CaptionScorer
from src.metrics.meteor import meteor, meteor_statistics

GOLDEN = json.loads((ROOT / "tests" / "golden" / "captions.json").read_text(encoding="utf-8"))
REFERENCES, PREDICTIONS = GOLDEN["references"], GOLDEN["predictions"]
IDS = list(REFERENCES)
SPACES = ["\r", "\r\n", "\n", "\u2028", "\u2029", "\x0b", "\x0c", "\x85"]  # a line's end to some program or other
HARD = {
    "carriage return": "a dog\rruns",
    "line separator": "a dog\u2028runs",
    "form feed": "a dog\x0cruns",
    "vertical tab": "a dog\x0bruns",
    "emoji": "\U0001f642\U0001f469\u200d\U0001f680 \U0001f1e9\U0001f1ea",
    "10,000 characters": "a dog runs " * 909 + "x",
    "10,000 characters, one word": "x" * 10_000,
    "empty": "",
    "punctuation": "?!... -- ''",
    "separator": "a dog ||| runs",
    "nothing but the separator": "|||",
    "null": "a\x00dog",
    "half a character": "a dog \ud800 at https://a.b\ud800c runs",
}
java = pytest.mark.skipif(shutil.which("java") is None, reason="no Java here")


@pytest.mark.parametrize("hard", HARD.values(), ids=HARD)
def test_the_other_pictures_keep_their_scores(hard):
    """Bit by bit: nothing of a caption may reach another picture's score."""
    scorer = CaptionScorer(REFERENCES)
    before = scorer.score(PREDICTIONS).per_image
    for place in (0, 3, len(IDS) - 1):
        after = scorer.score({**PREDICTIONS, IDS[place]: hard})
        assert {id: own for id, own in after.per_image.items() if id != IDS[place]} == {
            id: own for id, own in before.items() if id != IDS[place]
        }
        assert all(0 <= score <= 10 for score in after.per_image[IDS[place]].values())


@pytest.mark.parametrize("space", SPACES)
def test_a_line_break_is_a_space_in_references_and_predictions(space):
    def broken(text: str) -> str:
        return text.replace(" ", space, 1)

    references = {id: [broken(text) for text in own] for id, own in REFERENCES.items()}
    scores = CaptionScorer(references).score({id: broken(text) for id, text in PREDICTIONS.items()})
    assert {id: own for id, own in scores.per_image.items()} == CaptionScorer(REFERENCES).score(PREDICTIONS).per_image


def test_hard_captions_through_the_files(tmp_path):
    """From result files of both kinds to scores, where ids and captions must still belong together."""
    hard = dict(zip(IDS, HARD.values(), strict=False)) | {IDS[-1]: PREDICTIONS[IDS[-1]]}
    rows = [{"image_id": id, "caption": hard[id]} for id in IDS]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    annotations = [{"image_id": id, "caption": text} for id, own in REFERENCES.items() for text in own]
    (tmp_path / "p.json").write_text(json.dumps(rows))
    (tmp_path / "p.jsonl").write_text(lines, encoding="utf-8", newline="\n")
    (tmp_path / "r.json").write_text(json.dumps({"annotations": annotations}))
    expected = CaptionScorer(REFERENCES).score(hard).corpus
    for name in ("p.json", "p.jsonl"):
        command = [sys.executable, "-m", "src.score", f"predictions={name}", "references=r.json", "output=out.json"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, timeout=120)
        assert json.loads((tmp_path / "out.json").read_text())["scores"] == pytest.approx(expected, abs=1e-12)


@java
@pytest.mark.slow
def test_meteor_of_the_other_pictures_is_untouched():
    """Every kind of caption between two ordinary ones, as prediction and as reference."""
    said, known = ["a dog runs through the grass"], [["a dog is running through grass", "the dog runs"]]
    predictions, references = list(said), list(known)
    for hard in HARD.values():
        predictions += [hard, *said, "a cat", *said]
        references += [*known, *known, [hard, "a cat"], *known]
    scores = meteor(meteor_statistics(predictions, references)).tolist()
    ordinary = [score for n, score in enumerate(scores) if n % 2 == 0]
    assert len(scores) == 1 + 4 * len(HARD) and set(ordinary) == {ordinary[0]} and ordinary[0] > 0.3
    assert all(score > 0.4 for score in scores[3::4])  # "a cat" equals its second reference whatever the first one is


GERMAN = "-Duser.language=de -Duser.country=DE"


@java
@pytest.mark.slow
def test_meteor_is_right_where_numbers_have_commas():
    code = (
        "import json, sys; from src.metrics.extra import extra_scores\n"
        "given = json.load(open(sys.argv[1], encoding='utf-8'))\n"
        "scores = extra_scores(['meteor'], given['predictions'], given['references'])\n"
        "print(json.dumps([scores.corpus, scores.per_image, scores.reasons]))"
    )
    command = [sys.executable, "-c", code, str(ROOT / "tests" / "golden" / "captions.json")]
    german = {"JAVA_TOOL_OPTIONS": GERMAN, "_JAVA_OPTIONS": GERMAN, "LC_ALL": "de_DE.UTF-8", "LANG": "de_DE.UTF-8"}
    answers = [
        subprocess.run(command, cwd=ROOT, env={**os.environ, **more}, capture_output=True, text=True, timeout=120)
        for more in ({}, german, {**german, "LC_ALL": "de_DE"})
    ]
    assert [answer.returncode for answer in answers] == [0, 0, 0], answers
    corpus, per_image, reasons = json.loads(answers[0].stdout)
    assert 0.1 < corpus["METEOR"] < 0.9 and len(per_image) == len(IDS) and reasons == {}
    assert answers[1].stdout == answers[0].stdout == answers[2].stdout


@pytest.mark.parametrize("script", ["sleep 300", "kill -9 $$", "exit 1", "read line; sleep 300", "echo 0.5; cat"])
def test_the_process_ends_whatever_java_does(tmp_path, script):
    """Also at its exit, where pycocoevalcap's own wrapper waits for ever once an error has been caught."""
    fake = tmp_path / "java"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    code = (
        "from src.metrics import extra, meteor\n"
        "extra.meteor_statistics = lambda said, known: meteor.meteor_statistics(said, known, timeout=2)\n"
        "scores = extra.extra_scores(['meteor'], {'1': 'a dog', '2': 'x'}, {'1': ['a dog'], '2': ['y']})\n"
        "assert scores.corpus == {'METEOR': None} and scores.per_image == {'1': {}, '2': {}}, scores\n"
        "print(scores.reasons['METEOR'])"
    )
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    started = time.monotonic()
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert answer.returncode == 0 and time.monotonic() - started < 40, answer.stderr
    assert answer.stdout.startswith("METEOR's Java program ") and answer.stdout.count("\n") == 1
