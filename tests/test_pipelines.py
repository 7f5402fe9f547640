"""Systems that train nothing: what they say is what a slow, plain computation says, and they stand among runs."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from commands import run
from PIL import Image
from test_verbs import SMOKE
from torch import nn

from src.build import build_pictures
from src.comparison.arms import compare
from src.comparison.runs import find_runs, group
from src.config.command_line import compose
from src.config.make import make
from src.contracts import Batch, Example, VisionSpec, Visual
from src.data.scenes import Scenes
from src.loading.module import CaptionData
from src.metrics.captions import CaptionScorer
from src.metrics.cider import CiderD
from src.metrics.ngrams import ReferenceNgrams
from src.pipelines.human import Human
from src.pipelines.nearest import Nearest, agreed
from src.tasks.captioning import Captioning, mean_over


# --------------------------------------------------------------------------------------------------------------------
# which of a picture's captions
# --------------------------------------------------------------------------------------------------------------------
def grams(words: list[str], n: int) -> Counter:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def plain_cider(one: list[str], other: list[str], pictures: list[list[list[str]]]) -> float:
    """CIDEr-D of ``one`` to the reference ``other``, as the paper has it, one dictionary at a time."""
    total = 0.0
    for n in (1, 2, 3, 4):
        idf = {}
        for gram in grams(one, n) | grams(other, n):
            seen = sum(any(gram in grams(text, n) for text in picture) for picture in pictures)
            idf[gram] = math.log(len(pictures)) - math.log(max(1, seen))
        ours, theirs = ({g: k * idf[g] for g, k in grams(text, n).items()} for text in (one, other))
        norm = math.prod(math.sqrt(sum(w * w for w in v.values())) for v in (ours, theirs))
        dot = sum(min(w, theirs[g]) * theirs[g] for g, w in ours.items() if g in theirs)
        bigrams = (max(0, len(one) - 1) - max(0, len(other) - 1)) ** 2
        total += dot / norm * math.exp(-bigrams / (2 * 6.0**2)) if norm else 0.0
    return 10 * total / 4


PICTURES = [
    ("a dog runs over the green grass", "a brown dog runs on grass", "dog", "an animal outside in the sun"),
    ("two boys play football on a beach", "boys playing with a ball", "two boys play football near the sea"),
    ("a woman rides a red bicycle", "a woman rides her bicycle in the street"),
    ("a man",),
]


def test_the_mean_to_the_others_is_the_plain_one():
    words = [[caption.split() for caption in own] for own in PICTURES]
    ngrams = ReferenceNgrams(PICTURES)
    found = CiderD(ngrams).to_others(ngrams.look_up([own[0] for own in PICTURES]))
    for own, score in zip(words, found, strict=True):
        each = [plain_cider(own[0], other, words) for other in own[1:]]
        assert score == pytest.approx(sum(each) / len(each) if each else 0, abs=1e-9)
    assert found[0] > 0 and found[3] == 0


def test_the_caption_that_agrees_with_the_others_is_taken():
    pictures = [*PICTURES, *(example.captions for example in Scenes(train=12).examples("train"))]
    words = [[caption.replace(".", "").lower().split() for caption in own] for own in pictures]
    for own, texts, chosen in zip(pictures, words, agreed(pictures), strict=True):
        means = [sum(plain_cider(t, o, words) for o in texts if o is not t) / max(1, len(own) - 1) for t in texts]
        assert means[own.index(chosen)] == pytest.approx(max(means), abs=1e-9)
    assert agreed(PICTURES)[0] != PICTURES[0][-1] and agreed(PICTURES)[3] == "a man"
    assert agreed([("b c", "b c"), ("x", "y z")]) == ["b c", "x"]  # the first of equal ones


# --------------------------------------------------------------------------------------------------------------------
# which picture
# --------------------------------------------------------------------------------------------------------------------
class Encoder(nn.Module):
    """Pooled: the mean colour of each quarter of the picture."""

    spec = VisionSpec(width=12, tokens=4, pooled_width=12, image_size=64)

    def forward(self, pixels_IM3hw, levels=0):
        tokens_IMNC = (
            nn.functional.adaptive_avg_pool2d(pixels_IM3hw[:, 0].float(), 2).flatten(2).transpose(1, 2)[:, None]
        )
        return Visual(tokens_IMNC, tokens_IMNC.flatten(2))


def features(vision, source, split) -> SimpleNamespace:
    pixels = torch.stack([source.pixels(example, 64) for example in source.examples(split)])[:, None]
    whole = vision(pixels)
    return SimpleNamespace(visual=lambda rows: Visual(whole.tokens_IMNC[rows], whole.pooled_IMC[rows]))


def test_the_nearest_picture_is_that_of_a_plain_search():
    source, vision = Scenes(train=40, val=1, test=25, compositional=1), Encoder()
    data = CaptionData(source, None, 64, batch_size=7, captions_per_image=1)
    said = Nearest(vision, data).caption(data.pictures("test"))
    train = list(source.examples("train"))
    known = dict(zip([e.id for e in train], agreed([e.captions for e in train]), strict=True))
    vector = {}
    for split in ("train", "test"):
        for example in source.examples(split):
            vector[example.id] = vision(source.pixels(example, 64)[None, None]).pooled_IMC[0, 0].double()
    for example in source.examples("test"):
        cosine = {
            id: float(vector[id] @ vector[example.id] / vector[id].norm() / vector[example.id].norm()) for id in known
        }
        assert said[example.id] == known[max(cosine, key=cosine.get)]
    assert len(said) == 25 and len(set(said.values())) > 5
    data.features = {split: features(vision, source, split) for split in ("train", "test")}
    assert Nearest(vision, data).caption(data.pictures("test")) == said  # of features, as of pictures


def test_of_equally_near_pictures_the_first_id_is_taken():
    """Also where rounding tells them apart: features of the same picture, a billionth longer."""
    examples = [Example(id, (f"this is {id}", f"this is {id}")) for id in ("d", "b", "c", "a")]
    vectors = torch.tensor([[1.0, 2.0], [1.0 + 1e-7, 2.0], [1.0, 2.0], [2.0, -1.0]])
    source = SimpleNamespace(name="few", has_images=True, interleaved=False, splits=lambda: ("train",))
    source.examples = lambda split: examples
    data = CaptionData(source, None, 64, batch_size=3, captions_per_image=1)
    data.features = {
        "train": SimpleNamespace(visual=lambda rows: Visual(vectors[rows][:, None, None], vectors[rows][:, None]))
    }
    asked = torch.tensor([[3.0, 6.0], [4.0, -2.0]])
    batch = Batch(["x", "y"], visual=Visual(asked[:, None, None], asked[:, None]))
    assert Nearest(Encoder(), data).caption([batch]) == {"x": "this is b", "y": "this is a"}


# --------------------------------------------------------------------------------------------------------------------
# people
# --------------------------------------------------------------------------------------------------------------------
def told(pictures) -> CaptionData:
    examples = [Example(f"p{i}", captions) for i, captions in enumerate(pictures)]
    source = SimpleNamespace(name="told", has_images=True, interleaved=False, splits=lambda: ("test",))
    source.examples = lambda split: examples
    return CaptionData(source, None, None, batch_size=2, captions_per_image=1)


def test_each_caption_is_held_against_the_others_in_turn():
    pictures = [own for own in PICTURES if len(own) > 1]
    data = told(pictures)
    task, rounds = Captioning(), list(Human(None, data, wrong=False).rounds("test"))
    assert len(rounds) == 2  # the third picture has no more
    results = [task.answered(speaker, own, "test") for speaker, own in rounds]
    for k, (result, (_, own)) in enumerate(zip(results, rounds, strict=True)):
        left = {f"p{i}": [*captions[:k], *captions[k + 1 :]] for i, captions in enumerate(pictures)}
        said = {f"p{i}": captions[k] for i, captions in enumerate(pictures)}
        assert {row["id"]: row["caption"] for row in result.rows} == said
        assert {row["id"]: row["references"] for row in result.rows} == left == own.references("test")
        assert result.scores["CIDEr-D"] == CaptionScorer(left).score(said).corpus["CIDEr-D"]
        assert own.fingerprint("test") != data.fingerprint("test")
    mean = mean_over(results)
    for name in ("CIDEr-D", "BLEU-4", "gap/CIDEr-D"):
        assert mean.scores[name] == pytest.approx(sum(one.scores[name] for one in results) / 2)
    for rows in zip(mean.rows, *(one.rows for one in results), strict=True):
        assert rows[0]["CIDEr-D"] == pytest.approx((rows[1]["CIDEr-D"] + rows[2]["CIDEr-D"]) / 2)
        assert rows[0].keys() == {"id", "caption", "references", "CIDEr-D", "ROUGE-L"}  # no BLEU: it is no mean
        assert rows[0]["caption"] == rows[1]["caption"]
    assert sum(row["CIDEr-D"] for row in mean.rows) / 3 == pytest.approx(mean.scores["CIDEr-D"])
    assert "means over 2 captions" in mean.remarks["notes"]["scores"]
    assert mean_over(results[:1]) is results[0]


def test_a_wrong_picture_gives_what_is_reached_without_looking():
    data = told([example.captions for example in Scenes(train=30).examples("train")])
    both = [Human(None, data, wrong).rounds("test") for wrong in (False, True)]
    right, wrong = (mean_over([Captioning().answered(*one, "test") for one in rounds]) for rounds in both)
    assert wrong.scores["CIDEr-D"] == pytest.approx(right.scores["CIDEr-D"] - right.scores["gap/CIDEr-D"])
    assert wrong.scores["CIDEr-D"] < 0.5 * right.scores["CIDEr-D"]


FLICKR8K = Path(os.environ.get("FLICKR8K", "nowhere"), "dataset_flickr8k.json")


@pytest.mark.skipif(not FLICKR8K.is_file(), reason="set FLICKR8K to a folder with dataset_flickr8k.json")
def test_people_on_flickr8k():
    """What Karpathy's test split gives: a caption against the other four, and one of another picture."""
    images = json.loads(FLICKR8K.read_text())["images"]
    data = told([tuple(s["raw"] for s in one["sentences"]) for one in images if one["split"] == "test"])
    result = mean_over([Captioning().answered(*one, "test") for one in Human(None, data, wrong=False).rounds("test")])
    scores = {name: round(result.scores[name], 3) for name in ("CIDEr-D", "gap/CIDEr-D", "BLEU-4")}
    assert scores == {"CIDEr-D": 0.820, "gap/CIDEr-D": 0.787, "BLEU-4": 0.214}


# --------------------------------------------------------------------------------------------------------------------
# the command
# --------------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A tiny run, and the nearest captions by the encoder that it trained."""
    folder = tmp_path_factory.mktemp("runs")
    run("src.train", *SMOKE, f"hydra.run.dir='{folder}/srau'")
    run("src.pipeline", *nearest(folder), f"hydra.run.dir='{folder}/nearest'")
    return folder


def nearest(folder: Path) -> tuple[str, ...]:
    small = ("data=scenes", "data.source.train=64", "data.source.val=16", "data.source.test=16", "samples=4")
    encoder = ("vision=vit", "vision.width=32", "vision.layers=3", f"vision.weights='{folder}/srau'")
    return (*small, *encoder, f"data.cache_dir='{folder}/features'")


def test_the_share_of_the_test_pictures_is_that_of_trainings():
    words = ["pipeline=human", "data=scenes", "data.source.test=16", "data.test_fraction=0.25"]
    cfg = compose("pipeline", words, [])
    assert len(build_pictures(cfg.data, 0, make(cfg.data.source), None).examples("test")) == 4


def test_a_pipeline_leaves_a_run_folder(runs):
    folder = runs / "nearest"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["split"] == "test" and metrics["pictures"] == 16 and metrics["decoding"] is None
    assert {"CIDEr-D", "truth", "gap/truth"} <= metrics["scores"].keys() and "loss" not in metrics["scores"]
    assert metrics["cost"]["parameters"]["trainable"] == 0 < metrics["cost"]["parameters"]["total"]
    known = {caption for example in Scenes(train=64).examples("train") for caption in example.captions}
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 16 and {row["caption"] for row in rows} <= known
    assert (folder / "samples.png").is_file()
    assert json.loads((folder / "result.json").read_text())["score"] == "CIDEr-D"
    assert json.loads((folder / "environment.json").read_text())["choices"]["pipeline"] == "nearest"


def test_it_is_an_arm_among_runs(runs, tmp_path):
    """Not refused for decoding: it decodes nothing. Other runs are still held against one another."""
    (one,) = (arm for arm in group(find_runs(str(runs))) if arm.label == "nearest")
    assert (
        one.runs[0].scores["CIDEr-D"]
        == json.loads((runs / "nearest" / "metrics.json").read_text())["scores"]["CIDEr-D"]
    )
    for order in (("nearest", "srau"), ("srau", "nearest")):
        arms = group(find_runs([str(runs / name) for name in order]))
        assert compare(arms, baseline="srau", resamples=100).images == 16
    answer = run("src.compare", f"runs={runs}", f"output={tmp_path}", "resamples=100")
    assert "nearest" in answer.stdout and "srau" in answer.stdout
    run("src.report", f"runs={runs}", f"output={tmp_path}/page", "resamples=100")
    (page,) = [path.read_text() for path in (tmp_path / "page").glob("*.html")]
    assert "nearest" in page and "none (nearest)" in page


def test_people_stand_among_runs_without_any_encoder(runs, tmp_path):
    """Not without being told that their references are fewer."""
    data = [word for word in nearest(runs) if word.startswith(("data", "samples"))]
    for word, folder in (("false", "human"), ("true", "wrong")):
        options = ("pipeline=human", f"pipeline.wrong={word}", f"hydra.run.dir='{tmp_path}/{folder}'")
        answer = run("src.pipeline", *data, *options)
        assert "allow=[references]" in answer.stdout and "means over 5 captions" in answer.stdout
    metrics = json.loads((tmp_path / "human" / "metrics.json").read_text())
    assert metrics["cost"]["parameters"] == {"trainable": 0, "total": 0, "vision": 0}
    assert metrics["scores"]["truth"] == 1 and metrics["scores"]["CIDEr-D"] > metrics["scores"]["gap/CIDEr-D"] > 0
    assert json.loads((tmp_path / "human" / "environment.json").read_text())["choices"]["vision"] is None
    rows = [json.loads(line) for line in (tmp_path / "human" / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 16 and all(len(row["references"]) == 4 for row in rows)
    folders = f"runs=[{tmp_path},{runs}/nearest]"
    answer = run("src.compare", folders, f"output={tmp_path}/compared", "resamples=100", ok=False)
    assert "differ in their references" in answer.stderr and "allow=[references]" in answer.stderr
    for verb in ("compare", "report"):
        run(f"src.{verb}", folders, "allow=[references]", f"output={tmp_path}/{verb}", "resamples=100")
    arms = group(find_runs([str(tmp_path / "human"), str(tmp_path / "wrong"), str(runs / "nearest")]))
    labels = {arm.label for arm in arms}
    assert labels == {"human pipeline.wrong=False", "human pipeline.wrong=True", "nearest"}
    found = compare(arms, baseline="nearest", resamples=100, allow=["references"])
    assert found.cells["human pipeline.wrong=False", "CIDEr-D"].mean == pytest.approx(metrics["scores"]["CIDEr-D"])


def test_people_are_several(tmp_path):
    said = [f"{i}.png,{text}\n" for i in range(30) for text in ("a dog", "dogs")[: 1 if i == 7 else 2]]
    (tmp_path / "captions.csv").write_text("image,caption\n" + "".join(said))
    for i in range(30):
        Image.new("RGB", (40, 40), (8 * i, 0, 0)).save(tmp_path / f"{i}.png")
    split = "split=train"  # allowed: nothing is remembered
    words = ("data=folder", f"data.root='{tmp_path}'", split, "pipeline=human", f"hydra.run.dir='{tmp_path}/run'")
    answer = run("src.pipeline", *words, "data.train_fraction=1", ok=False)
    assert "7 has only one; choose data with several captions" in answer.stderr.replace(".png", "")
    assert len(answer.stderr.splitlines()) == 1 and not (tmp_path / "run" / "metrics.json").exists()


REFUSED = {
    "what is remembered": (("split=train",), "split=train is what is remembered"),
    "another split": (("split=exam",), "split=exam does not exist; this data has train, val, test, compositional"),
    "several data sets": (("data=mixture",), "A pipeline reads one data set"),
    "documents": (("data=scenes_interleaved",), "needs captioned pictures"),
    "random weights": (("vision.weights=null",), "random weights"),
    "another word": (("pipeline=nearst",), "did you mean pipeline=nearest?"),
    "an option of training": (("trainer.max_steps=4",), "no option of src.pipeline"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_gives_one_sentence(case, runs, tmp_path):
    words, sentence = REFUSED[case]
    kept = [one for one in nearest(runs) if one.partition("=")[0] not in {w.partition("=")[0] for w in words}]
    if words[0].startswith("data="):
        kept = [one for one in kept if not one.startswith("data.")]
    answer = run("src.pipeline", *kept, *words, f"hydra.run.dir='{tmp_path}/run'", ok=False)
    assert sentence in answer.stderr and "Traceback" not in answer.stderr and len(answer.stderr.splitlines()) == 1
    assert not (tmp_path / "run" / "metrics.json").exists()
