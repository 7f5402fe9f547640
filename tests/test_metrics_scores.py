"""BLEU, ROUGE-L, CIDEr-D and diversity: equal to pycocoevalcap on equal tokens, and to scores written down here."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from src.errors import UserError
from src.metrics import bleu, captions, cider, ngrams, rouge
from src.metrics.captions import CaptionScorer, Scores
from src.metrics.diversity import diversity
from src.metrics.ptb import tokenize

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = json.loads((ROOT / "tests" / "golden" / "captions.json").read_text(encoding="utf-8"))
FIXTURE = os.environ.get("CAPTION_METRIC_FIXTURE")
needs_fixture = pytest.mark.skipif(not FIXTURE, reason="CAPTION_METRIC_FIXTURE names no folder with the metric fixture")


def pycocoevalcap_scores(references: dict[str, list[str]], predictions: dict[str, str]) -> tuple[dict, dict]:
    """Corpus scores and per-image scores of tokenised texts by the original code."""
    results = {id: [text] for id, text in predictions.items()}
    bleus, each_bleu = Bleu(4).compute_score(references, results, verbose=0)
    rouge_l, each_rouge = Rouge().compute_score(references, results)
    cider_d, each_cider = Cider().compute_score(references, results)
    corpus = {f"BLEU-{n}": value for n, value in enumerate(bleus, 1)} | {"ROUGE-L": rouge_l, "CIDEr-D": cider_d}
    rows = zip(references, each_bleu[3], each_rouge, each_cider, strict=True)
    return corpus, {id: {"BLEU-4": b, "ROUGE-L": r, "CIDEr-D": c} for id, b, r, c in rows}


def assert_equal(scores: Scores, corpus: dict, per_image: dict, tolerance: float) -> None:
    assert {name: scores.corpus[name] for name in corpus} == pytest.approx(corpus, rel=0, abs=tolerance)
    assert scores.per_image.keys() == per_image.keys()
    for id, own in per_image.items():
        assert scores.per_image[id] == pytest.approx(own, rel=0, abs=tolerance), id


def test_golden_scores():
    """Scores of sentences written for this test, by pycocoevalcap with its Java tokenizer."""
    scores = CaptionScorer(GOLDEN["references"]).score(GOLDEN["predictions"])
    assert_equal(scores, GOLDEN["corpus"], GOLDEN["per_image"], 1e-6)


@pytest.mark.parametrize(
    ("module", "name", "value"),
    [
        (rouge, "BETA", 1.25),
        (cider, "SIGMA", 5.9),
        (cider, "SCALE", 1.0),
        (bleu, "SMALL", 1e-4),
        (bleu, "TINY", 1e-9),
        (ngrams, "_number", lambda keys, known: np.zeros_like(keys)),
        (bleu, "_closest_length", lambda references, words: references.words[references.first]),
    ],
)
def test_golden_scores_notice_a_changed_definition(monkeypatch, module, name, value):
    monkeypatch.setattr(module, name, value)
    with pytest.raises(AssertionError):
        test_golden_scores()


def test_golden_scores_notice_other_tokens(monkeypatch):
    monkeypatch.setitem(captions.TOKENS, "words", str.lower)
    with pytest.raises(AssertionError):
        test_golden_scores()


def random_captions(seed: int) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Few words, so that n-grams repeat; also empty texts, unknown words, and references without any pair of words."""
    generator = random.Random(seed)
    words = ["a", "b", "c", "dog", "cat", "1\u00a01/2"]

    def text(vocabulary: list[str]) -> str:
        return " ".join(generator.choices(vocabulary, k=generator.randrange(generator.choice([2, 4, 9]))))

    ids = [str(number) for number in range(generator.randrange(1, 7))]
    references = {id: [text(words) for _ in range(generator.randrange(1, 5))] for id in ids}
    references[ids[0]].append("a")  # pycocoevalcap's CIDEr fails where no reference has any word
    return references, {id: text([*words, "new", "other"]) for id in ids}


@pytest.mark.parametrize("seed", range(60))
def test_equal_to_pycocoevalcap_on_random_tokens(monkeypatch, seed):
    monkeypatch.setitem(captions.TOKENS, "words", lambda text: text)
    references, predictions = random_captions(seed)
    assert_equal(
        CaptionScorer(references).score(predictions), *pycocoevalcap_scores(references, predictions), tolerance=1e-9
    )


@needs_fixture
@pytest.mark.parametrize("name", ["mscoco_baselines_mscoco_in_domain_clipretrieval", "flickr30k_magic_result"])
def test_real_predictions(name):
    """Real systems: to the known corpus scores, and to pycocoevalcap for each of the first 300 pictures."""
    entries = json.loads((Path(FIXTURE) / f"{name}.json").read_text())
    known = json.loads((Path(FIXTURE) / "expected_scores.json").read_text())[name]["recomputed_pycocoevalcap_1.2"]
    references = {str(i): entry["captions"] for i, entry in enumerate(entries)}
    predictions = {str(i): entry["prediction"] for i, entry in enumerate(entries)}
    scores = CaptionScorer(references).score(predictions).corpus
    names = {**{f"BLEU-{n}": f"Bleu_{n}" for n in range(1, 5)}, "ROUGE-L": "ROUGE_L", "CIDEr-D": "CIDEr"}
    assert {ours: scores[ours] for ours in names} == pytest.approx({k: known[v] for k, v in names.items()}, abs=1e-9)
    some = list(references)[:300]
    tokens = {id: [tokenize(c) for c in references[id]] for id in some}, {id: tokenize(predictions[id]) for id in some}
    part = CaptionScorer({id: references[id] for id in some}).score({id: predictions[id] for id in some})
    assert_equal(part, *pycocoevalcap_scores(*tokens), tolerance=1e-9)


def test_scorer_is_reusable_and_order_does_not_matter():
    scorer = CaptionScorer(GOLDEN["references"])
    before = scorer.score(GOLDEN["predictions"])
    scorer.score({id: "completely unknown wording here" for id in GOLDEN["references"]})
    after = scorer.score(dict(reversed(GOLDEN["predictions"].items())))
    assert after.corpus == before.corpus and after.per_image == before.per_image


def test_bleu_of_any_sample_follows_from_the_statistics():
    """What a bootstrap needs: sums of rows, with pictures drawn twice, are that sample's BLEU."""
    scores = CaptionScorer(GOLDEN["references"]).score(GOLDEN["predictions"])
    sample = ["tram", "cat", "cat", "dogs"]
    twice = {f"{i}": id for i, id in enumerate(sample)}
    references = {i: GOLDEN["references"][id] for i, id in twice.items()}
    direct = CaptionScorer(references).score({i: GOLDEN["predictions"][id] for i, id in twice.items()}).corpus
    resummed = bleu.bleu(sum(scores.bleu_statistics[id] for id in sample))
    assert resummed.tolist() == pytest.approx([direct[f"BLEU-{n}"] for n in range(1, 5)], abs=1e-12)


def test_cider_of_one_picture_is_zero_and_of_a_part_another_number():
    one = {"cat": GOLDEN["references"]["cat"]}
    assert CaptionScorer(one).score({"cat": one["cat"][0]}).corpus["CIDEr-D"] == 0
    ids = list(GOLDEN["references"])[:4]
    part = CaptionScorer({id: GOLDEN["references"][id] for id in ids}).score(
        {id: GOLDEN["predictions"][id] for id in ids}
    )
    whole = CaptionScorer(GOLDEN["references"]).score(GOLDEN["predictions"])
    assert part.per_image["cat"]["CIDEr-D"] != pytest.approx(whole.per_image["cat"]["CIDEr-D"], rel=1e-3)


def test_odd_captions_are_scored():
    references = {"a": ["A dog runs."], "b": ["...", ""], "c": ["Two cats sit."]}
    scores = CaptionScorer(references).score({"a": "\U0001f600" * 3000, "b": "", "c": "two cats " * 3000})
    assert scores.per_image["a"]["CIDEr-D"] == 0 and scores.per_image["a"]["ROUGE-L"] == 0
    assert all(np.isfinite(list(own.values())).all() for own in scores.per_image.values())
    assert 0 < scores.per_image["c"]["ROUGE-L"] < 0.9


def test_diversity():
    assert diversity(["a dog runs", "a dog runs", "a dog sits", "a"]) == {
        "distinct-1": 4 / 10,  # a, dog, runs, sits
        "distinct-2": 3 / 6,  # a dog, dog runs, dog sits
        "unique": 3 / 4,
        "vocabulary": 4,
        "length": 10 / 4,
    }
    assert set(diversity(["", ""]).values()) == {0.0, 0.5}  # nothing but one caption said twice


@pytest.mark.parametrize(
    ("references", "predictions", "message"),
    [
        ({}, {}, "no references"),
        ({"1": ["a"], "2": []}, {"1": "a", "2": "a"}, "1 pictures have no reference caption, for example 2"),
        ({"1": ["a"], "2": ["b"]}, {"1": "a"}, "1 of 2 pictures have no prediction, for example 2"),
        ({"1": ["a"]}, {"1": "a", "7": "b"}, "1 predictions are for pictures without references, such as 7"),
        ({"1": ["a"]}, {"x": "a"}, "references have ids like 1, predictions like x"),
        ({"1": ["a"]}, {}, "predictions none"),
    ],
)
def test_sets_that_do_not_fit_are_refused(references, predictions, message):
    with pytest.raises(UserError, match=message):
        CaptionScorer(references).score(predictions)


def test_long_tokenising_shows_progress():
    """After two seconds, on stderr."""
    code = (
        "import time, src.metrics.captions as c; real = c.TOKENS['words']\n"
        "c.TOKENS['words'] = lambda text: (time.sleep(0.3), real(text))[1]\n"
        "c.CaptionScorer({str(i): ['a'] for i in range(10)})"
    )
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert answer.returncode == 0 and "reading references" in answer.stderr and not answer.stdout
