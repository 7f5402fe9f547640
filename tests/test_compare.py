"""``python -m src.compare`` over small run folders: numbers, tables, and every refusal."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
import yaml
from conftest import ROOT
from PIL import Image
from scipy import stats

from src.comparison import figure, measures
from src.comparison.arms import compare
from src.comparison.runs import find_runs, group
from src.comparison.tables import csv_text, escaped, latex, markdown, plain, text
from src.decoding.beam import BeamSearch
from src.errors import UserError
from src.metrics.captions import CaptionScorer
from src.metrics.meteor import Unavailable, meteor
from src.metrics.truth import truth_scores
from src.records.files import write_json, write_jsonl
from src.scenes.world import Scene, Thing

IMAGES = 80
SUBJECTS, VERBS, PLACES = ("dog", "cat", "man", "girl"), ("sits", "runs", "sleeps"), ("grass", "sand", "a bench")
STANDARD = ["BLEU-4", "ROUGE-L", "CIDEr-D"]
BEAM = {"method": "BeamSearch", "beams": 5}


def _sentence(chance: Random) -> str:
    return f"a {chance.choice(SUBJECTS)} {chance.choice(VERBS)} on {chance.choice(PLACES)}"


REFERENCES = {f"{i}.jpg": [_sentence(Random(f"{i} {j}")) for j in range(3)] for i in range(IMAGES)}
SCORER = CaptionScorer(REFERENCES)


def write_run(folder: Path, fusion: str, seed: int = 0, right: float = 0.5, references=REFERENCES, **changed) -> Path:
    """A run folder whose captions repeat a reference with probability ``right``.

    ``changed``: entries of metrics.json, and with ``config=`` of config.yaml.
    """
    chance = Random(f"{fusion} {seed}")
    captions = {id: own[0] if chance.random() < right else _sentence(chance) for id, own in references.items()}
    scores = (SCORER if references is REFERENCES else CaptionScorer(references)).score(captions)
    config = {"seed": seed, "fusion": {"_target_": f"src.fusion.{fusion}.Mechanism"}, **changed.pop("config", {})}
    metrics = {
        "split": "test",
        "pictures": len(captions),
        "references_sha256": "r" * 64,
        "decoding": BEAM,
        "scores": scores.corpus,
        "cost": {"batches_sha256": f"seed {seed}"},
    }
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    write_json(folder / "metrics.json", {**metrics, **changed})
    write_json(folder / "environment.json", {})
    rows = [
        {"id": id, "caption": said, "references": references[id], **scores.per_image[id]}
        for id, said in captions.items()
    ]
    write_jsonl(folder / "predictions.jsonl", rows)
    return folder


@pytest.fixture
def runs(tmp_path) -> Path:
    """blind with one seed, srau and clipcap with two each."""
    write_run(tmp_path / "runs" / "blind", "blind", 0, right=0.0)
    for seed in (0, 1):
        write_run(tmp_path / "runs" / f"clipcap{seed}", "clipcap", seed, right=0.4)
        write_run(tmp_path / "runs" / f"srau{seed}", "srau", seed, right=0.8)
    return tmp_path / "runs"


def compared(folder: Path, **options):
    return compare(group(find_runs(str(folder))), **{"resamples": 500, **options})


def edit(path: Path, change) -> None:
    """Apply ``change`` to the content of a JSON file, or to the rows of a .jsonl file."""
    if path.suffix == ".json":
        content = json.loads(path.read_text())
        change(content)
        write_json(path, content)
    else:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        change(rows)
        write_jsonl(path, rows)


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    call = [sys.executable, "-m", "src.compare", *arguments]
    return subprocess.run(call, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


# --------------------------------------------------------------------------------------------------------------------
# numbers
# --------------------------------------------------------------------------------------------------------------------
def test_cells_are_the_scores_of_metrics_json(runs):
    comparison = compared(runs, scores=["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr-D"])
    assert [arm.label for arm in comparison.arms] == ["blind", "clipcap", "srau"]
    assert (comparison.images, comparison.split, comparison.baseline) == (IMAGES, "test", "blind")
    for arm in comparison.arms:
        for score in comparison.scores:
            cell, own = comparison.cells[arm.label, score], [run.scores[score] for run in arm.runs]
            assert cell.per_seed == pytest.approx(own, abs=1e-12) and cell.mean == pytest.approx(np.mean(own))
            assert cell.std == (pytest.approx(np.std(own, ddof=1)) if len(own) > 1 else None)
            assert cell.low < cell.mean < cell.high
    assert not any("by its predictions.jsonl" in note for note in comparison.notes)


def test_all_pairs_are_compared_and_the_baseline_is_what_others_are_held_against(runs):
    comparison = compared(runs, scores=STANDARD)
    assert list(comparison.scores) == STANDARD
    pairs = [("clipcap", "blind"), ("srau", "blind"), ("clipcap", "srau")]
    assert [(d.arm, d.other) for d in comparison.differences if d.score == "CIDEr-D"] == pairs
    for d in comparison.differences:
        a, b = comparison.cells[d.arm, d.score], comparison.cells[d.other, d.score]
        assert d.value == a.mean - b.mean and d.low < d.value < d.high and d.p <= d.p_holm <= 1
    best = comparison.against_baseline("srau", "CIDEr-D")
    assert best.value > 0.5 and best.low > 0 and best.p == 1 / 501 and best.p_holm == pytest.approx(3 / 501)
    assert (best.seeds.n, best.seeds.left_out, best.seeds.p, best.word) == (1, 1, None, "open")  # blind has one seed
    two = comparison.difference("srau", "clipcap", "CIDEr-D")
    own = [np.array(comparison.cells[label, "CIDEr-D"].per_seed) for label in ("srau", "clipcap")]
    assert two.seeds.n == 2 and two.seeds.p == pytest.approx(stats.ttest_rel(*own).pvalue)
    assert comparison.against_baseline("blind", "CIDEr-D") is None
    other = compared(runs, baseline="srau")
    assert other.against_baseline("blind", "CIDEr-D").value == -best.value
    alone = compared(runs, scores=["CIDEr-D"]).differences
    for one, among in zip(alone, (d for d in comparison.differences if d.score == "CIDEr-D"), strict=True):
        bounds = pytest.approx((among.low, among.high), rel=1e-12)  # products of other sizes round in another order
        assert (one.low, one.high) == bounds and replace(one, low=among.low, high=among.high) == among


def test_without_a_blind_arm_the_first_is_the_baseline(runs):
    arms = group(find_runs([str(runs / "srau*"), str(runs / "clipcap*")]))
    assert compare(arms, resamples=100).baseline == arms[0].label == "clipcap"


def test_the_order_of_rows_does_not_matter(runs):
    before = compared(runs)
    edit(runs / "srau1" / "predictions.jsonl", lambda rows: rows.reverse())
    after = compared(runs)
    assert after.differences == before.differences and after.cells == before.cells


def test_scores_missing_from_an_arm_leave_a_gap(runs):
    for folder in runs.iterdir():
        if folder.name != "blind":
            edit(
                folder / "predictions.jsonl",
                lambda rows: [row.update(SPICE=0.1 + 0.001 * i) for i, row in enumerate(rows)],
            )
            edit(folder / "metrics.json", lambda metrics: metrics["scores"].update(SPICE=0.3))
    comparison = compared(runs)
    assert comparison.scores == ("CIDEr-D", "SPICE")
    assert comparison.cells["blind", "SPICE"] is None and comparison.cells["srau", "SPICE"].mean > 0.1
    assert [(d.arm, d.other) for d in comparison.differences if d.score == "SPICE"] == [("clipcap", "srau")]
    assert comparison.differences[-1].p_holm == 1
    assert "Not defined for blind: SPICE." in comparison.notes
    (note,) = [note for note in comparison.notes if "by its predictions.jsonl" in note]
    assert note.startswith("SPICE of ") and "is 0.3000 in its metrics.json and 0.1395 by its" in note


def test_rows_of_four_decimals_are_no_other_scores(runs):
    """As a study keeps them."""
    for folder in runs.iterdir():
        score = np.mean([value["CIDEr-D"] for value in rows_of(folder)])
        edit(
            folder / "predictions.jsonl",
            lambda rows: [row.update({"CIDEr-D": round(row["CIDEr-D"], 4)}) for row in rows],
        )
        edit(folder / "metrics.json", lambda metrics, score=score: metrics["scores"].update({"CIDEr-D": score}))
    assert not [note for note in compared(runs).notes if "by its predictions.jsonl" in note]


def rows_of(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def meteor_counts(right: bool) -> list[int]:
    """Of a caption of eight words that says seven words of nine, or one of four, in two chunks."""
    length, other, hits = (8, 9, 7) if right else (8, 4, 1)
    return [length, other, 0, 0, hits, hits, *(0 for _ in range(14)), 2 if right else 1, hits, hits]


def odd(notes) -> list[str]:
    """What notes say about a score that is not that of metrics.json or not there."""
    return [note for note in notes if "metrics.json" in note or "counted again" in note or "Not defined" in note]


def with_meteor(folder: Path, counted: bool = True) -> None:
    """Give a run METEOR as src.evaluate writes it, or as it once was, without counts."""
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    counts = [meteor_counts(row["caption"] in row["references"]) for row in rows]
    for row, own in zip(rows, counts, strict=True):
        row |= {"METEOR": float(meteor(own)), **({"METEOR counts": own} if counted else {})}
    write_jsonl(folder / "predictions.jsonl", rows)
    corpus = float(meteor(np.sum(counts, axis=0)))
    assert abs(corpus - np.mean([row["METEOR"] for row in rows])) > 0.002  # the mean is another number
    edit(folder / "metrics.json", lambda metrics: metrics["scores"].update(METEOR=corpus))


def test_scores_by_characters_are_recomputed_by_characters_and_named(runs):
    scorer = CaptionScorer(REFERENCES, "characters")
    for folder in runs.iterdir():
        rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
        scores = scorer.score({row["id"]: row["caption"] for row in rows})
        write_jsonl(folder / "predictions.jsonl", [row | scores.per_image[row["id"]] for row in rows])
        edit(folder / "metrics.json", lambda m, s=scores: m.update(scores=s.corpus, tokens="characters"))
    comparison = compared(runs, scores=STANDARD)
    for arm in comparison.arms:
        own = [run.scores["BLEU-4"] for run in arm.runs]
        assert comparison.cells[arm.label, "BLEU-4"].per_seed == pytest.approx(own, abs=1e-12)
    assert (
        "BLEU, ROUGE-L and CIDEr-D count characters here, so they compare with no scores by words." in comparison.notes
    )
    assert not any("by its predictions.jsonl" in note for note in comparison.notes)


def test_meteor_is_the_score_of_the_corpus(runs):
    """In cells and differences, with intervals of resampled corpora."""
    for folder in runs.iterdir():
        with_meteor(folder)
    comparison = compared(runs)
    for arm in comparison.arms:
        cell = comparison.cells[arm.label, "METEOR"]
        assert cell.per_seed == pytest.approx([run.scores["METEOR"] for run in arm.runs], abs=1e-12)
        assert cell.low < cell.mean < cell.high
    assert comparison.against_baseline("srau", "METEOR").low > 0
    assert not odd(comparison.notes)
    rows = [json.loads(line) for line in (runs / "blind" / "predictions.jsonl").read_text().splitlines()]
    counts = np.array([row["METEOR counts"] for row in rows])
    chance = np.random.default_rng(1)
    drawn = [meteor(counts[chance.integers(len(counts), size=len(counts))].sum(0)) for _ in range(500)]
    cell = comparison.cells["blind", "METEOR"]
    assert (cell.low, cell.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), rel=0.05)


def test_meteor_without_counts_is_counted_again_or_left_out_and_never_the_mean(runs, monkeypatch):
    for folder in runs.iterdir():
        with_meteor(folder, counted=folder.name == "blind")

    def again(captions, references):
        return np.array([meteor_counts(said in own) for said, own in zip(captions, references, strict=True)])

    monkeypatch.setattr(measures, "meteor_statistics", again)
    comparison = compared(runs)
    for arm in comparison.arms:
        expected = [run.scores["METEOR"] for run in arm.runs]
        assert comparison.cells[arm.label, "METEOR"].per_seed == pytest.approx(expected, abs=1e-12)
    assert not odd(comparison.notes)

    def without(captions, references):
        raise Unavailable("METEOR needs Java.")

    monkeypatch.setattr(measures, "meteor_statistics", without)
    comparison = compared(runs)
    assert comparison.cells["srau", "METEOR"] is None and comparison.cells["clipcap", "METEOR"] is None
    assert comparison.cells["blind", "METEOR"].mean == pytest.approx(comparison.arms[0].runs[0].scores["METEOR"])
    (note,) = [note for note in comparison.notes if "counted again" in note]
    assert "METEOR needs Java." in note and "src.evaluate with metrics=[meteor]" in note
    assert "Not defined for clipcap, srau: METEOR." in comparison.notes
    assert "| METEOR |" in markdown(comparison) and "METEOR" in latex(comparison)
    called = compared(runs, scores=["CIDEr-D"])  # Java is not asked for what nobody wants
    assert not any("METEOR" in note for note in called.notes)


def test_truth_of_a_kind_is_true_statements_over_statements(tmp_path):
    """Captions with two mentions weigh twice, as in metrics.json, and captions without any not at all."""
    scene = Scene(
        (Thing("circle", "red", "large", 0.3, 0.5, 0.1), Thing("star", "blue", "large", 0.7, 0.5, 0.1)), "dark"
    )
    said = ["a large red circle and a large green star", "a large red circle", "a large blue circle", "", "two things"]
    for fusion, captions in {"blind": said, "srau": said[::-1]}.items():
        folder = write_run(tmp_path / fusion, fusion)
        by_id = {f"{i}.jpg": captions[i % len(captions)] for i in range(IMAGES)}
        scored = truth_scores(by_id, dict.fromkeys(by_id, scene))
        rows = [{"id": id, "caption": caption, **scored.per_image[id]} for id, caption in by_id.items()]
        write_jsonl(folder / "predictions.jsonl", rows)
        edit(folder / "metrics.json", lambda metrics, scored=scored: metrics.update(scores=scored.corpus))
    comparison = compared(tmp_path)
    corpus = json.loads((tmp_path / "srau" / "metrics.json").read_text())["scores"]
    assert corpus["truth/colour"] == pytest.approx(0.5)  # the mean over captions with a colour would be .5 / 3 + 1 / 3
    for name in ("truth", "truth/object", "truth/colour", "coverage"):
        assert comparison.cells["srau", name].mean == pytest.approx(corpus[name])
    assert comparison.cells["srau", "truth/relation"] is None
    assert "Not defined for blind, srau: truth/count, truth/relation, truth/background." in comparison.notes
    assert any(
        note.startswith("Resting on fewer than 50 images") and "truth/colour" in note for note in comparison.notes
    )
    assert not any("by its predictions.jsonl" in note for note in comparison.notes)


# --------------------------------------------------------------------------------------------------------------------
# notes
# --------------------------------------------------------------------------------------------------------------------
def test_notes_say_what_the_numbers_are_about(runs):
    notes = compared(runs, scores=STANDARD).notes
    assert notes[0].startswith("Tests over seeds are about other trainings, and the word follows from them alone;")
    assert notes[0].endswith("for the models as they were trained (seeds: blind 1, clipcap 2, srau 2).")
    assert notes[1].startswith("No contrast was planned") and notes[1].endswith("is a hint at most.")
    assert notes[2].startswith("An arm with one seed has no standard deviation")
    assert notes[3] == (
        "Only seeds that both arms of a pair have are compared, but over images all of them; left out are of "
        "clipcap and blind 1, srau and blind 1."
    )
    assert notes[4].startswith("No test over seeds") and notes[4].endswith(
        "clipcap and blind (n = 1), srau and blind (n = 1)."
    )
    assert notes[-1].startswith("Resting on fewer than 50 images") and notes[-1].endswith("BLEU-4 of blind, clipcap.")


def test_settings_beside_the_fusion_are_noted(runs):
    write_run(
        runs / "coca", "coca", config={"data": {"batch_size": 32}, "optim": {"warmup": 1}, "decode": {"beams": 5}}
    )
    (note,) = (note for note in compared(runs).notes if note.startswith("The arms differ in more than the fusion: "))
    assert {"data.batch_size", "optim.warmup"} <= set(note.rstrip(".").partition(": ")[2].split(", "))


def test_losses_by_other_vocabularies_are_noted(runs):
    """And equal ones are not."""
    said = "The arms' vocabularies differ"
    assert not any(note.startswith(said) for note in compared(runs).notes)
    write_run(runs / "coca", "coca", config={"language": {"tokenizer": {"vocabulary": 63}}})
    assert sum(note.startswith(said) for note in compared(runs).notes) == 1


def test_bleu_without_four_words_right_is_noted(runs):
    """Few of its 4-grams are in few images, which its fourth root hides; none is an interval of no width."""
    few = {id: "a zebra" if int(id.removesuffix(".jpg")) > 5 else own[0] for id, own in REFERENCES.items()}
    for name, captions in {"blind": dict.fromkeys(REFERENCES, "the zebra a walks"), "srau0": few}.items():
        scores = SCORER.score(captions)
        rows = [
            {"id": id, "caption": said, "references": REFERENCES[id], **scores.per_image[id]}
            for id, said in captions.items()
        ]
        write_jsonl(runs / name / "predictions.jsonl", rows)
        edit(runs / name / "metrics.json", lambda metrics, own=scores.corpus: metrics.update(scores=own))
    comparison = compared(runs, scores=["BLEU-4", "BLEU-1"])
    cell = comparison.cells["blind", "BLEU-4"]
    assert cell.flat and 0 < cell.high < 1e-4 and not comparison.cells["srau", "BLEU-4"].flat
    assert any(note.startswith("An interval of no width") for note in comparison.notes)
    (note,) = [note for note in comparison.notes if note.startswith("Resting on fewer than 50 images")]
    assert "BLEU-4 of blind, clipcap, srau" in note and "BLEU-1" not in note


def test_too_few_resamples_for_the_pairs_are_noted(runs):
    assert not any("Holm" in note for note in compared(runs, resamples=100).notes)
    for number in range(3):
        write_run(runs / f"more{number}", f"more{number}")
    notes = compared(runs, resamples=100).notes
    assert "With 15 pairs no p-value can pass Holm's correction at resamples=100; take more." in notes


def test_what_images_show_and_seeds_do_not_is_noted_and_open(tmp_path):
    for fusion, shares in {"blind": (0.0, 0.9), "srau": (0.3, 1.0)}.items():
        for seed, right in enumerate(shares):
            write_run(tmp_path / f"{fusion}{seed}", fusion, seed, right=right)
    comparison = compared(tmp_path, scores=["CIDEr-D"])
    (difference,) = comparison.differences
    assert difference.p_holm < 0.05 < difference.seeds.p and difference.word == "open"
    note = "Significant over images, but within what seeds do by Student's t: CIDEr-D of srau and blind (n = 2)."
    assert note in comparison.notes


# --------------------------------------------------------------------------------------------------------------------
# refusals
# --------------------------------------------------------------------------------------------------------------------
def other_split(runs):
    edit(runs / "srau1" / "metrics.json", lambda metrics: metrics.update(split="val"))


def other_references(runs):
    edit(runs / "srau1" / "metrics.json", lambda metrics: metrics.update(references_sha256="q" * 64))


def other_decoding(runs):
    edit(runs / "srau1" / "metrics.json", lambda metrics: metrics["decoding"].update(beams=1))


def earlier_search(runs):
    """srau1 was scored before beams went by transformers' rules, the others since then."""
    for run in runs.iterdir():
        edit(run / "metrics.json", lambda metrics: metrics["decoding"].update(vars(BeamSearch(40, 5, 0.0))))
    edit(runs / "srau1" / "metrics.json", lambda metrics: metrics["decoding"].pop("rules"))


def other_tokens(runs):
    edit(runs / "srau1" / "metrics.json", lambda metrics: metrics.update(tokens="characters"))


def no_decoding(runs):
    edit(runs / "srau1" / "metrics.json", lambda metrics: metrics.pop("decoding"))


def other_data(runs):
    edit(runs / "srau1" / "metrics.json", lambda metrics: metrics["cost"].update(batches_sha256="other"))


@pytest.mark.parametrize(
    ("change", "aspect", "first", "how"),
    [
        (other_split, "split", "blind", "test against val"),
        (other_references, "references", "blind", "sha256 rrrrrrrrrrrr against qqqqqqqqqqqq"),
        (other_tokens, "tokens", "blind", "words against characters"),
        (other_decoding, "decoding", "blind", "beams 5 against 1"),
        (earlier_search, "decoding", "blind", "rules transformers against None"),
        (no_decoding, "decoding", "blind", "{runs}/srau1 does not name its own"),
        (other_data, "data", "clipcap1", "other training batches with seed 1"),
    ],
)
def test_runs_that_differ_are_refused_unless_allowed(runs, change, aspect, first, how):
    change(runs)
    how = how.format(runs=runs)
    with pytest.raises(UserError) as caught:
        compared(runs)
    assert str(caught.value) == (
        f"{runs}/{first} and {runs}/srau1 differ in their {aspect} ({how}), so their scores cannot be compared; "
        f"allow=[{aspect}] compares them all the same."
    )
    with pytest.raises(UserError):
        compared(runs, allow=[one for one in ("split", "references", "tokens", "decoding", "data") if one != aspect])
    assert f"Allowed, but not like with like: {aspect} ({how})." in compared(runs, allow=[aspect]).notes


def test_unrecorded_batches_are_no_difference(runs):
    edit(runs / "clipcap1" / "metrics.json", lambda metrics: metrics.pop("cost"))
    compared(runs)
    other_data(runs)  # nobody is left to differ from
    compared(runs)


def test_what_trained_nothing_has_met_no_batches(runs):
    """A blind captioner with a frozen language model."""
    edit(runs / "clipcap1" / "metrics.json", lambda metrics: metrics["cost"].update(batches_sha256=""))
    compared(runs)


def test_allowed_references_pair_shared_images_only(runs):
    fewer = {id: own for number, (id, own) in enumerate(REFERENCES.items()) if number >= 20}
    write_run(runs / "coca", "coca", references=fewer | {"new.jpg": ["a dog"]}, references_sha256="q" * 64)
    comparison = compared(runs, allow=["references"])
    assert comparison.images == IMAGES - 20
    assert any(note.startswith(f"Only the {IMAGES - 20} images that all runs share") for note in comparison.notes)
    values = [json.loads(line)["CIDEr-D"] for line in (runs / "srau0" / "predictions.jsonl").read_text().splitlines()]
    assert comparison.cells["srau", "CIDEr-D"].per_seed[0] == pytest.approx(np.mean(values[20:]))
    write_run(runs / "vcgpt", "vcgpt", references={"new.jpg": ["a dog"]}, references_sha256="q" * 64)
    with pytest.raises(UserError, match="have no picture in common"):
        compared(runs, allow=["references"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"baseline": "nobody"}, "baseline=nobody is none of the arms; they are: blind; clipcap; srau."),
        ({"scores": ["SPICE"]}, "scores=SPICE has no value per image in these runs; there are CIDEr-D, BLEU-4,"),
        ({"allow": ["seed"]}, "allow=seed is unknown; choose from split, references, tokens, decoding, data."),
        ({"resamples": 99}, "resamples=99 are too few for a 95 % interval; 100 is the least, 10000 is good."),
    ],
)
def test_options_that_mean_nothing_are_refused(runs, options, message):
    with pytest.raises(UserError) as caught:
        compared(runs, **options)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.pop(), "has 79 of the 80 pictures that were scored"),
        (lambda rows: rows.clear(), "has no predictions.jsonl, or an empty one"),
        (lambda rows: rows[3].pop("caption"), "Line 4 of predictions.jsonl of .* has no id and caption"),
        (lambda rows: rows.__setitem__(0, []), "Line 1 of predictions.jsonl of .* has no id and caption"),
        (lambda rows: rows[3].update(id="0.jpg"), "has 0.jpg twice"),
        (lambda rows: rows[3].update(references=[]), "Line 4 of predictions.jsonl of .* has no references"),
        (lambda rows: rows[3].update({"truth/colour": 1.0}), "truth/colour of 3.jpg does not fit its caption"),
        (lambda rows: rows[3].update(id="new.jpg"), "describe different pictures"),
        (lambda rows: rows[3].update({"CIDEr-D": "?"}), "CIDEr-D of 3.jpg is not a number"),
        (
            lambda rows: rows[3].update({"METEOR": 0.1, "METEOR counts": [1]}),
            "METEOR counts of 0.jpg are not 23 numbers",
        ),
    ],
)
def test_damaged_rows_are_named(runs, change, message):
    edit(runs / "blind" / "predictions.jsonl", change)
    with pytest.raises(UserError, match=message) as caught:
        compared(runs)
    assert "\n" not in str(caught.value)


def test_runs_without_scores_per_image_are_refused(runs):
    """Stories have verdicts, which are words."""
    for file in runs.glob("*/predictions.jsonl"):
        write_jsonl(file, [{"id": id, "caption": "it is red", "verdict": "right"} for id in REFERENCES])
    with pytest.raises(UserError, match="None of these runs has a score per image"):
        compared(runs)


# --------------------------------------------------------------------------------------------------------------------
# tables
# --------------------------------------------------------------------------------------------------------------------
def test_text_is_aligned_and_complete(runs):
    comparison = compared(runs, scores=STANDARD)
    shown = text(comparison)
    block = shown.split("\n\n")[3].split("\n")
    assert block[0] == "CIDEr-D" and len(block) == 5
    head = ("minus blind", "n", "95 % over seeds", "p", "word", "95 % over images", "p over images")
    assert block[1].split("  ")[1].strip() == "arm" and list(head) == re.split(r" {2,}", block[1].strip())[4:]
    cell, difference = comparison.cells["srau", "CIDEr-D"], comparison.against_baseline("srau", "CIDEr-D")
    assert f"{cell.mean:.4f} ± {cell.std:.4f}" in block[4] and f"[{cell.low:.4f}, {cell.high:.4f}]" in block[4]
    cells = [f"{difference.mean:+.4f}", "1", "-", "-", "open"]
    cells += [f"[{difference.low:+.4f}, {difference.high:+.4f}]", "0.0060"]
    assert re.split(r" {2,}", block[4].strip())[-7:] == cells and "*" not in shown
    assert len({line.index("]") for line in block[2:]}) == 1
    assert all(f"- {note}" in shown for note in comparison.notes)


def test_markdown_shows_every_cell_and_pair(runs):
    shown = markdown(compared(runs, scores=STANDARD))
    tables = [part.split("\n") for part in shown.split("\n\n") if part.startswith("|")]
    assert [len(table) for table in tables] == [2 + 3, 2 + 9]
    assert len({line.count("|") for line in tables[0]}) == len({line.count("|") for line in tables[1]}) == 1
    assert tables[0][4].startswith("| srau | 2 | ") and "*" not in shown
    assert all(re.split(r" \| ", line)[3] in "12" for line in tables[1][2:])  # n of every comparison
    assert all(re.split(r" \| ", line)[6] in ("open", "hint") for line in tables[1][2:])


def test_latex_escapes_and_balances(runs):
    write_run(runs / "odd", "cross_attention", config={"language": {"name": "a&b_50%#"}})
    write_run(runs / "odd2", "cross_attention", config={"language": {"name": "c"}})
    shown = latex(compared(runs, scores=["CIDEr-D", "ROUGE-L"]))
    assert r"cross\_attention language.name=a\&b\_50\%\#" in shown
    arms, pairs = ([line for line in part.split("\n") if line.endswith(r"\\")] for part in shown.split(r"\bigskip"))
    assert len(arms) == 1 + 2 * 5 and {line.replace(r"\&", "").count("&") for line in arms} == {3}
    assert len(pairs) == 1 + 2 * 4 and {line.replace(r"\&", "").count("&") for line in pairs} == {8}
    assert shown.count("{") == shown.count("}") and shown.count("$") % 2 == 0 and shown.count(r"\mathbf") == 2
    assert escaped("~^\\<") == r"\textasciitilde{}\textasciicircum{}\textbackslash{}$<$"


def test_csv_and_json_hold_the_numbers_in_full(runs):
    comparison = compared(runs, scores=STANDARD, contrasts=[["srau", "clipcap"]], margin=0.1)
    rows = list(csv.DictReader(io.StringIO(csv_text(comparison))))
    assert len(rows) == 9 + 1 and {row["baseline"] for row in rows[:9]} == {"blind"}
    last = next(row for row in rows if (row["arm"], row["score"]) == ("srau", "CIDEr-D"))
    cell, against = comparison.cells["srau", "CIDEr-D"], comparison.against_baseline("srau", "CIDEr-D")
    assert (last["seeds"], last["n"], last["word"], last["seeds_p"]) == ("2", "1", "open", "")
    assert float(last["mean"]) == cell.mean and float(last["std"]) == cell.std and rows[0]["std"] == ""
    assert float(last["p_holm"]) == against.p_holm and rows[0]["p"] == ""
    (planned,) = comparison.planned
    line = rows[9]
    assert (line["arm"], line["baseline"], line["score"], line["n"]) == ("srau", "clipcap", "CIDEr-D", "2")
    assert float(line["seeds_low"]) == planned.seeds.low and float(line["seeds_p_holm"]) == planned.verdict.p_holm
    assert float(line["seeds_p_level"]) == planned.verdict.p_level and line["word"] == planned.word
    content = json.loads(json.dumps(plain(comparison), allow_nan=False))
    assert content["arms"][2]["scores"]["CIDEr-D"]["per_seed"] == list(cell.per_seed)
    assert len(content["differences"]) == 9 and content["arms"][2]["runs"][1]["seed"] == 1
    assert content["plan"] == {"contrasts": [["srau", "clipcap"]], "primary": "CIDEr-D", "margin": 0.1}
    found = next(d for d in content["differences"] if d["verdict"]["planned"])
    assert (found["arm"], found["other"], found["word"]) == ("srau", "clipcap", planned.word)
    assert found["seeds"]["detectable"] == planned.seeds.detectable and found["seeds"]["n"] == 2


def test_every_table_shows_n_interval_test_and_word_of_a_planned_contrast(tmp_path):
    """Five seeds, an effect far beyond their scatter, and its opposite direction asked for."""
    for seed in range(5):
        for fusion, right in {"blind": 0.0, "clipcap": 0.3, "srau": 0.9}.items():
            write_run(tmp_path / f"{fusion}{seed}", fusion, seed, right=right)
    comparison = compared(tmp_path, scores=["ROUGE-L"], contrasts=[["clipcap", "srau"], ["srau", "blind"]])
    assert comparison.scores == ("CIDEr-D", "ROUGE-L")  # the primary comes along
    first, second = comparison.planned
    assert (first.arm, first.other, first.word, second.word) == ("clipcap", "srau", "shown", "shown")
    assert first.mean < first.seeds.high < 0 < second.seeds.low
    interval = f"[{first.seeds.low:+.4f}, {first.seeds.high:+.4f}]"
    half, detected = f"{first.seeds.half_width:.4f}", f"{first.seeds.detectable:.4f}"
    p, holm = (f"{p:.4f}" if p >= 0.0001 else "< .0001" for p in (first.seeds.p, first.verdict.p_holm))
    cells = [f"{first.mean:+.4f}", "5", interval, half, p, holm, "-", "shown", detected]
    row = next(line for line in text(comparison).split("\n") if line.startswith("  clipcap  srau"))
    assert re.split(r" {2,}", row.strip())[2:-1] == cells
    row = next(line for line in markdown(comparison).split("\n") if line.startswith("| clipcap minus srau"))
    assert row.replace("\\", "").split(" | ")[1:-1] == cells
    row = next(line for line in latex(comparison).split("\n") if "clipcap minus srau" in line)
    assert row.replace("$", "").split(" & ")[2:-1] == cells
    others = [d for d in comparison.differences if d not in comparison.planned]
    assert others and {d.word for d in others} <= {"hint", "open"}


# --------------------------------------------------------------------------------------------------------------------
# the figure
# --------------------------------------------------------------------------------------------------------------------
def axes_of(monkeypatch, comparison, along=None):
    """The figure's axes, as they were when it was saved."""
    kept = []
    monkeypatch.setattr(figure, "_png", lambda drawn: kept.append(drawn) or b"")
    figure.draw(comparison, along)
    return kept[0].axes


def test_the_figure_shows_mean_interval_and_seeds_of_every_arm(runs, monkeypatch):
    comparison = compared(runs, scores=["CIDEr-D", "BLEU-4"])
    first, second = axes_of(monkeypatch, comparison)
    assert (first.get_title(), second.get_title()) == ("CIDEr-D", "BLEU-4")
    drawn = {(tuple(line.get_xdata()), tuple(line.get_ydata())) for line in first.lines}
    for row, arm in enumerate(comparison.arms):
        cell = comparison.cells[arm.label, "CIDEr-D"]
        assert ((cell.low, cell.high), (row, row)) in drawn and ((cell.mean,), (row,)) in drawn
        assert (cell.per_seed, (row,) * len(cell.per_seed)) in drawn


def test_nine_curves_look_different(runs, monkeypatch):
    for number in range(9):
        for share in (0.1, 0.5):
            write_run(runs / f"m{number}{share}", f"m{number}", config={"data": {"train_fraction": share}})
    comparison = compare(group(find_runs(str(runs / "m*"))), scores=["CIDEr-D"], resamples=100)
    (axis,) = axes_of(monkeypatch, comparison, "data.train_fraction")
    handles, _ = axis.get_legend_handles_labels()
    assert len({(handle.get_color(), handle.get_marker()) for handle in handles}) == 9


def test_curves_join_arms_that_differ_in_one_number(runs, monkeypatch):
    for seed in (0, 1):
        for share in (0.1, 0.01):
            write_run(runs / f"part{share}{seed}", "srau", seed, config={"data": {"train_fraction": share}})
            write_run(runs / f"other{share}{seed}", "vcgpt", seed, config={"data": {"train_fraction": share}})
    comparison = compare(group(find_runs(str(runs / "[po]*"))), scores=["CIDEr-D"], resamples=100)
    (axis,) = axes_of(monkeypatch, comparison, "data.train_fraction")
    joined = {line.get_label(): line for line in axis.lines if not line.get_label().startswith("_")}
    assert sorted(joined) == ["srau", "vcgpt"] and axis.get_xscale() == "linear"
    label = "srau data.train_fraction="
    means = [comparison.cells[f"{label}{share}", "CIDEr-D"].mean for share in (0.01, 0.1)]
    assert list(joined["srau"].get_xdata()) == [0.01, 0.1] and list(joined["srau"].get_ydata()) == means


@pytest.mark.parametrize("along", ["data.train_fraction", "fusion._target_", "seed"])
def test_curves_over_what_is_no_number_or_always_the_same_are_refused(runs, along):
    with pytest.raises(UserError, match=f"along={along} needs a setting"):
        figure.draw(compared(runs), along)


# --------------------------------------------------------------------------------------------------------------------
# the command
# --------------------------------------------------------------------------------------------------------------------
def test_the_command_prints_and_writes(runs, tmp_path):
    answer = command(tmp_path, "runs=runs/*", "resamples=200", "output=out", "scores=[CIDEr-D,BLEU-1]")
    assert answer.returncode == 0 and not answer.stderr
    assert "minus blind" in answer.stdout and "BLEU-1" in answer.stdout
    assert answer.stdout.endswith("written: out/comparison.json, table.md, table.tex, table.csv, scores.png\n")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "comparison.json",
        "scores.png",
        "table.csv",
        "table.md",
        "table.tex",
    ]
    with Image.open(tmp_path / "out" / "scores.png") as picture:
        assert min(picture.size) > 200 and picture.convert("L").getextrema() == (0, 255)
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["resamples"] == 200


def test_by_default_every_comparison_gets_its_own_folder(runs, tmp_path):
    before = sorted(path for path in runs.rglob("*"))
    (tmp_path / "elsewhere").mkdir()
    list_of_runs = f"runs=[{runs}/blind,{runs}/srau0]"
    for _ in range(2):
        answer = command(tmp_path / "elsewhere", list_of_runs, "resamples=100", "scores=CIDEr-D", "baseline=srau")
        assert answer.returncode == 0, answer.stderr
    assert len(list((tmp_path / "elsewhere" / "runs" / "compare").glob("*/table.md"))) == 2
    assert sorted(path for path in runs.rglob("*")) == before


def test_evaluations_are_compared(runs, tmp_path):
    for name in ("blind", "srau0"):
        result = runs / name / "evaluate" / "val"
        write_run(result, name, split="val")
        (result / "config.yaml").unlink()
        edit(result / "metrics.json", lambda metrics: metrics.pop("cost"))
    answer = command(tmp_path, f"runs={runs}", "evaluation=val", "resamples=100", "output=out")
    assert answer.returncode == 0 and answer.stdout.startswith("val, 80 images"), answer.stderr
    other_data(runs)
    edit(runs / "srau0" / "metrics.json", lambda metrics: metrics["cost"].update(batches_sha256="other"))
    answer = command(tmp_path, f"runs={runs}", "evaluation=val", "resamples=100", "output=out")
    assert answer.returncode == 2 and "differ in their data" in answer.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "runs= is missing"),
        (["runs=nowhere"], "runs=nowhere names no folder of a finished run"),
        (["runs=runs", "baseline=x"], "baseline=x is none of the arms"),
        (["runs=runs", "allow=everything"], "allow=everything is unknown"),
    ],
)
def test_mistakes_are_one_sentence(runs, tmp_path, arguments, message):
    answer = command(tmp_path, *arguments)
    assert answer.returncode == 2 and answer.stdout == ""
    assert answer.stderr.startswith(f"error: {message}") and answer.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_starts_without_torch():
    code = "import sys, src.compare, src.comparison.tables; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0
