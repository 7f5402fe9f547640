"""Scores of sums: nats with and without the right picture, gains on blind runs, truth_f1, and answers by story."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import numpy as np
import pytest
from test_compare import REFERENCES, compared, edit, write_run

from src.comparison.gains import blind_runs
from src.comparison.notes import notes_on_stories
from src.comparison.runs import find_runs, group
from src.comparison.scores import direction
from src.comparison.tables import latex, text
from src.errors import UserError
from src.records.files import write_jsonl

FROZEN = {"regime": {"train_language": False, "train_vision": "auto"}}
TUNED = {"regime": {"train_language": True, "train_vision": "auto"}}


def with_nats(folder: Path, worth: float, chance: Random) -> Path:
    """Give each row nats: about 3 a token, less ``worth`` a token with the right picture; a blind arm sees none."""

    def change(rows):
        for row in rows:
            row["tokens_read"] = Random(row["id"]).randrange(20, 40)
            row["nats_shuffled"] = 3.0 * row["tokens_read"] + chance.gauss(0, 0.5)
            row["nats"] = row["nats_shuffled"] - (worth and worth * row["tokens_read"] + chance.gauss(0, 0.5))

    edit(folder / "predictions.jsonl", change)
    return folder


def trained(root: Path, fusion: str, seed: int, worth: float, config: dict | None = None, name: str = "") -> Path:
    """A run with nats."""
    folder = root / f"{fusion}{name}{seed}"
    write_run(folder, fusion, seed, config=config or TUNED)
    return with_nats(folder, worth, Random(f"{fusion} {seed} {name}"))


def sums(folder: Path) -> tuple[float, float, int]:
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    return tuple(sum(row[key] for row in rows) for key in ("nats", "nats_shuffled", "tokens_read"))


@pytest.fixture
def runs(tmp_path) -> Path:
    """blind and two that see, three seeds each."""
    for seed in range(3):
        for fusion, worth in {"blind": 0.0, "clipcap": 0.1, "srau": 0.3}.items():
            trained(tmp_path / "runs", fusion, seed, worth)
    return tmp_path / "runs"


# --------------------------------------------------------------------------------------------------------------------
# nats
# --------------------------------------------------------------------------------------------------------------------
def test_loss_gap_and_gain_are_of_sums(runs):
    comparison = compared(runs)
    assert comparison.scores == ("gain/loss", "gap/loss", "loss", "CIDEr-D")
    assert comparison.plan.primary == "gain/loss"
    for arm in comparison.arms:
        for place, run in enumerate(arm.runs):
            nats, shuffled, tokens = sums(run.folder)
            blind = sums(runs / f"blind{run.seed}")[0]
            found = {name: comparison.cells[arm.label, name].per_seed[place] for name in comparison.scores[:3]}
            wanted = {"gain/loss": (blind - nats) / tokens, "gap/loss": (shuffled - nats) / tokens}
            assert found == pytest.approx({**wanted, "loss": nats / tokens})
    assert set(comparison.cells["blind", "gain/loss"].per_seed) == {0.0}
    assert not any("no width" in note for note in comparison.notes)


def test_less_loss_is_better_and_is_said_to_be(runs):
    comparison = compared(runs)
    assert direction("loss") == -1 and direction("gain/loss") == direction("gap/loss") == 1
    shown = compared(runs, scores=["gain/loss", "gap/loss", "loss"])
    bold = [line for line in latex(shown).split("\n") if r"\mathbf" in line]
    assert len(bold) == 1 and bold[0].strip().startswith("srau") and bold[0].count(r"\mathbf") == 3
    assert "loss (less is better)\n" in text(comparison)


def test_the_loss_comes_along_and_bleu_and_rouge_must_be_asked_for(runs):
    assert compared(runs, scores=["BLEU-4", "ROUGE-L"]).scores == ("BLEU-4", "ROUGE-L", "loss")
    assert "nats" not in text(compared(runs)).split("\n\n- ")[0]
    with pytest.raises(UserError, match="scores=nats has no value per image in these runs"):
        compared(runs, scores=["nats"])


def test_the_loss_of_first_references_in_metrics_json_is_another(runs):
    for folder in runs.iterdir():
        edit(folder / "metrics.json", lambda metrics: metrics["scores"].update({"loss": 9.9, "gap/loss": 9.9}))
    notes = compared(runs).notes
    assert not any(note.startswith("loss of") for note in notes)
    assert any(note.startswith("gap/loss of") and "9.9000 in its metrics.json" in note for note in notes)


@pytest.mark.parametrize("field", ["nats", "tokens_read"])
def test_damaged_nats_are_named(runs, field):
    edit(runs / "srau1" / "predictions.jsonl", lambda rows: rows[3].update({field: None}))
    with pytest.raises(UserError, match=f"{field} of 3.jpg is not a number; run src.evaluate"):
        compared(runs)


def test_earlier_runs_without_nats_compare_as_they_did(runs):
    for seed in range(3):
        write_run(runs / f"old{seed}", "vcgpt", seed, config=TUNED)
    comparison = compared(runs)
    assert comparison.cells["vcgpt", "loss"] is None and comparison.cells["vcgpt", "CIDEr-D"] is not None
    assert any("Not defined for vcgpt: gain/loss, gap/loss, loss." in note for note in comparison.notes)
    assert compared(runs / "old0").scores == ("CIDEr-D",)


def test_a_planned_contrast_without_the_primary_is_named_and_counted(runs):
    write_run(runs / "old", "vcgpt", 0, config=TUNED)
    comparison = compared(runs, contrasts=[["srau", "clipcap"], ["vcgpt", "srau"]])
    (planned,) = comparison.planned
    assert planned.verdict.p_holm == pytest.approx(2 * planned.seeds.p) and planned.word == "hint"  # three seeds
    note = "Planned, but without gain/loss, and counted by Holm all the same: vcgpt minus srau."
    assert note in comparison.notes


# --------------------------------------------------------------------------------------------------------------------
# which blind run
# --------------------------------------------------------------------------------------------------------------------
def partners(folder: Path) -> dict[str, str]:
    arms = group(find_runs(str(folder)))
    found = blind_runs(arms)
    return {run.folder.name: found[id(run)].folder.name for arm in arms for run in arm.runs if id(run) in found}


def test_seeds_without_a_blind_run_have_no_gain_and_are_named(runs):
    trained(runs, "srau", 3, 0.3)
    comparison = compared(runs)
    assert len(comparison.cells["srau", "gain/loss"].per_seed) == 3
    assert len(comparison.cells["srau", "loss"].per_seed) == 4
    (note,) = [note for note in comparison.notes if note.startswith("Without gain/loss")]
    assert note.endswith("srau (seed 3).")


def test_another_regime_needs_its_own_blind_run(tmp_path):
    for seed in range(2):
        trained(tmp_path, "blind", seed, 0.0)
        trained(tmp_path, "srau", seed, 0.3, FROZEN)
        trained(tmp_path, "clipcap", seed, 0.3)
    assert partners(tmp_path) == {"blind0": "blind0", "blind1": "blind1", "clipcap0": "blind0", "clipcap1": "blind1"}
    comparison = compared(tmp_path)
    assert comparison.cells["srau", "gain/loss"] is None
    assert any(note.endswith("rows of both: srau (seed 0, 1).") for note in comparison.notes)
    trained(tmp_path, "blind", 1, 0.0, FROZEN, "frozen")  # the start serves every seed
    assert partners(tmp_path)["srau0"] == partners(tmp_path)["srau1"] == "blindfrozen1"
    assert len(compared(tmp_path).cells["srau", "gain/loss"].per_seed) == 2


def test_one_frozen_blind_run_stands_beside_every_seed_in_tests_too(tmp_path):
    trained(tmp_path, "blind", 0, 0.0, FROZEN)
    for seed in range(5):
        trained(tmp_path, "srau", seed, 0.3 + 0.01 * seed, FROZEN)
    comparison = compared(tmp_path, contrasts=[["srau", "blind"]])
    (planned,) = comparison.planned
    assert (planned.score, planned.seeds.n, planned.seeds.left_out, planned.word) == ("gain/loss", 5, 0, "shown")
    assert "Nothing in blind trains: one run stands beside every seed of the others." in comparison.notes


def test_a_frozen_model_drawn_at_random_differs_from_seed_to_seed(tmp_path):
    random = {**FROZEN, "language": {"init": "random"}}
    trained(tmp_path, "blind", 0, 0.0, random)
    for seed in range(2):
        trained(tmp_path, "srau", seed, 0.3, random)
    assert partners(tmp_path) == {"blind0": "blind0", "srau0": "blind0"}


def test_among_blind_runs_the_most_alike_and_never_one_of_other_data(tmp_path):
    def config(steps: int, share: float) -> dict:
        return {**TUNED, "trainer": {"max_steps": steps}, "data": {"train_fraction": share}}

    for number, settings in enumerate([(100, 1.0), (200, 1.0), (200, 0.1)]):
        trained(tmp_path, "blind", 0, 0.0, config(*settings), f"-{number}-")
    for number, settings in enumerate([(200, 1.0), (100, 1.0), (100, 0.1), (100, 0.5)]):
        trained(tmp_path, "srau", 0, 0.3, config(*settings), f"-{number}-")
    found = partners(tmp_path)
    assert (found["srau-0-0"], found["srau-1-0"], found["srau-2-0"]) == ("blind-1-0", "blind-0-0", "blind-2-0")
    assert "srau-3-0" not in found


def test_a_blind_run_without_nats_is_none(runs):
    for seed in range(3):
        edit(runs / f"blind{seed}" / "predictions.jsonl", lambda rows: [row.pop("nats") for row in rows])
    comparison = compared(runs)
    assert comparison.scores == ("gap/loss", "loss", "CIDEr-D") and comparison.plan.primary == "CIDEr-D"


# --------------------------------------------------------------------------------------------------------------------
# truth_f1
# --------------------------------------------------------------------------------------------------------------------
def test_truth_f1_is_of_sums_and_saying_less_lowers_it(tmp_path):
    counts = {"srau": (3, 4, 2, 8), "clipcap": (1, 1, 1, 8), "vcgpt": (0, 2, 0, 8)}  # clipcap says little, all true
    for fusion, (true, said, found, facts) in counts.items():
        folder = write_run(tmp_path / fusion, fusion)
        fields = {"true_statements": true, "statements": said, "facts_found": found, "facts": facts}
        edit(folder / "predictions.jsonl", lambda rows, own=fields: [row.update(own, truth=0.5) for row in rows])
    comparison = compared(tmp_path)
    assert comparison.scores == ("CIDEr-D", "truth", "truth_f1")
    values = {arm.label: comparison.cells[arm.label, "truth_f1"].mean for arm in comparison.arms}
    assert values == pytest.approx({"srau": 2 * 0.75 * 0.25 / 1, "clipcap": 2 * 1 * 0.125 / 1.125, "vcgpt": 0.0})


def test_truth_f1_weighs_statements_and_not_captions(tmp_path):
    folder = write_run(tmp_path / "srau", "srau")

    def change(rows):
        for place, row in enumerate(rows):
            first = place == 0
            row.update(true_statements=9 if first else 0, statements=9 if first else 1, facts_found=1, facts=2)

    edit(folder / "predictions.jsonl", change)
    precision = 9 / (9 + 79)
    f1 = 2 * precision * 0.5 / (precision + 0.5)
    assert compared(tmp_path).cells["srau", "truth_f1"].mean == pytest.approx(f1)


# --------------------------------------------------------------------------------------------------------------------
# stories
# --------------------------------------------------------------------------------------------------------------------
def with_answers(folder: Path, story: bool) -> None:
    """Answers of eight pictures a story, all right or all wrong together."""
    chance = Random(folder.name)
    rows = []
    for place, id in enumerate(REFERENCES):
        if place % 8 == 0:
            right = float(chance.random() < 0.5)
        own = {"story": f"story {place // 8}"} if story else {}
        rows.append({"id": id, **own, "caption": "it is red", "answer": "red", "answers/right": right})
    write_jsonl(folder / "predictions.jsonl", rows)
    edit(folder / "metrics.json", lambda metrics: metrics.update(scores={}))


def widths(folder: Path) -> tuple[float, float]:
    comparison = compared(folder)
    (difference,) = comparison.differences
    return comparison.cells["srau", "answers/right"].high - comparison.cells["srau", "answers/right"].low, difference.p


def test_answers_of_one_story_are_drawn_together(tmp_path):
    """Eight answers that are one: the interval is that of ten stories, sqrt(8) times wider than that of 80 answers."""
    for story in (False, True):
        for fusion in ("blind", "srau"):
            with_answers(write_run(tmp_path / str(story) / fusion, fusion), story)
    (alone, _), (together, p) = widths(tmp_path / "False"), widths(tmp_path / "True")
    assert together / alone == pytest.approx(8**0.5, rel=0.15)
    rows = [json.loads(line) for line in (tmp_path / "True" / "srau" / "predictions.jsonl").read_text().splitlines()]
    by_story = np.array([row["answers/right"] for row in rows]).reshape(10, 8).mean(1)
    comparison = compared(tmp_path / "True", resamples=4000)
    cell = comparison.cells["srau", "answers/right"]
    assert cell.mean == pytest.approx(by_story.mean())
    assert (cell.high - cell.low) / (2 * 1.96 * by_story.std() / 10**0.5) == pytest.approx(1, abs=0.15)
    assert (comparison.images, comparison.stories) == (80, 10) and p > 0.05
    assert "80 answers in 10 stories" in text(comparison)
    assert any("the 10 stories are drawn" in note for note in comparison.notes)
    old = compared(tmp_path / "False")
    assert old.stories is None and any("drawn one by one as if they were independent" in note for note in old.notes)
    assert any("fewer than 50 images" in note and "answers/right" in note for note in comparison.notes)


def test_a_run_that_tells_stories_tells_them_for_those_that_do_not(tmp_path):
    for fusion in ("blind", "srau"):
        with_answers(write_run(tmp_path / fusion, fusion), story=fusion == "srau")
    assert compared(tmp_path).stories == 10


def test_captions_have_no_note_on_stories():
    assert notes_on_stories([{"a": {"id": "a", "caption": "x"}}], None) == []
