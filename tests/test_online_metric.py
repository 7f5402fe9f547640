"""Captions scored while training: the same numbers in one process and in several."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from src.errors import UserError
from src.metrics.captions import CaptionScorer
from src.metrics.online import SCORES, OnlineCaptionScores

GOLDEN = json.loads((ROOT / "tests" / "golden" / "captions.json").read_text(encoding="utf-8"))
REFERENCES, PREDICTIONS = GOLDEN["references"], GOLDEN["predictions"]
IDS = list(REFERENCES)

# One process of a group: for each case its share of the ids ("id!": with a wrong caption). Prints scores or errors.
PROCESS = """
import json, sys
from torch import distributed
from src.errors import UserError
from src.metrics.online import OnlineCaptionScores

rank, meeting, golden, shares = int(sys.argv[1]), *sys.argv[2:]
distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
golden = json.load(open(golden, encoding="utf-8"))
metric = OnlineCaptionScores(golden["references"])
if rank:
    metric.scorer.score = None  # only the first process scores
answers = []
for share in json.loads(shares):
    for id in share:
        metric.update([id.split("!")[0]], ["something else" if "!" in id else golden["predictions"][id]])
    try:
        answers.append({name: score.item() for name, score in metric.compute().items()})
    except UserError as error:
        answers.append(str(error))
    metric.reset()
print(json.dumps(answers))
distributed.destroy_process_group()
"""


def two_processes(folder: Path, *cases: tuple[list[str], list[str]]) -> list[list]:
    """What each of two gloo processes computes from its share, for every case."""
    golden = ROOT / "tests" / "golden" / "captions.json"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(rank), str(folder / "meet"), golden, json.dumps(shares)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, shares in enumerate(zip(*cases, strict=True))
    ]
    try:
        answers = [process.communicate(timeout=200) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert not any(process.returncode for process in processes), answers
    return [json.loads(said) for said, _ in answers]


def test_one_process_gives_the_scores_of_the_whole_split():
    metric = OnlineCaptionScores(REFERENCES)
    for first in range(0, len(IDS), 3):
        ids = IDS[first : first + 3]
        metric.update(ids, [PREDICTIONS[id] for id in ids])
    expected = CaptionScorer(REFERENCES).score(PREDICTIONS).corpus
    scores = metric.compute()
    assert {name: score.item() for name, score in scores.items()} == pytest.approx(
        {name: expected[name] for name in SCORES}, abs=1e-6
    )


def test_computed_once_and_empty_after_reset():
    metric = OnlineCaptionScores(REFERENCES)
    metric.update(IDS, ["a dog"] * len(IDS))
    before = metric.compute()
    metric.scorer.score = None
    assert metric.compute() is before
    metric = OnlineCaptionScores(REFERENCES)
    metric.update(IDS, ["a dog"] * len(IDS))
    metric.reset()
    metric.update(IDS, [PREDICTIONS[id] for id in IDS])
    assert metric.compute()["CIDEr-D"].item() == pytest.approx(GOLDEN["corpus"]["CIDEr-D"], abs=1e-6)


@pytest.mark.slow
def test_two_processes_give_the_same_as_one(tmp_path):
    padded = (IDS[0::2], [*IDS[1::2], IDS[0]])  # a sampler filled the second share up with a picture of the first
    uneven = (IDS, [f"{IDS[2]}!"])  # the two disagree about a picture: the first process counts
    empty = (IDS, [])
    missing = (IDS[:2], IDS[3:])
    first, second = two_processes(tmp_path, padded, uneven, empty, missing)
    assert first == second
    expected = {name: pytest.approx(GOLDEN["corpus"][name], abs=1e-6) for name in SCORES}
    assert first[:3] == [expected] * 3
    assert first[3].startswith("1 of 8 pictures have no prediction")


def test_a_missing_picture_is_an_error():
    metric = OnlineCaptionScores(REFERENCES)
    metric.update(IDS[:2], ["a", "b"])
    with pytest.raises(UserError, match="6 of 8 pictures have no prediction"):
        metric.compute()
