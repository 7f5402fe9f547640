"""The drawn world: what is drawn, what is said of it, and whether the checker can be fooled."""

import hashlib
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.contracts import UserError
from src.data.scenes import COUNT_SHARES, GAP, HELD_OUT, RADII, RGB, Scenes, draw, sample_scene
from src.metrics.truth import truth_scores
from src.scenes.captions import describe
from src.scenes.check import check
from src.scenes.reader import WORD, parse
from src.scenes.words import GLUE, NUMBERS, PLURALS, SIZE_WORDS
from src.scenes.world import ACCEPTED, BACKGROUNDS, COLOURS, OPPOSITE, SHAPES, STATED, Scene, Thing, relation_holds

ROOT = Path(__file__).parent.parent
SCENES = [sample_scene(Random(i)) for i in range(2000)]
CAPTIONED = [(scene, describe(scene, Random(-i))) for i, scene in enumerate(SCENES)]
WORDS = sorted({word for _, captions in CAPTIONED for caption in captions for word in re.findall(r"\w+", caption)})

RED = Thing("circle", "red", "small", 0.2, 0.5, 0.1)
BLUE = Thing("square", "blue", "large", 0.7, 0.55, 0.2)
GREEN = Thing("circle", "green", "small", 0.65, 0.15, 0.1)
PAIR = Scene((RED, BLUE), "dark")
TRIO = Scene((RED, BLUE, GREEN), "light")


# --------------------------------------------------------------------------------------------------------------------
# the source
# --------------------------------------------------------------------------------------------------------------------
def digest_of_everything() -> str:
    """A hash of captions, scenes and pixels of every split."""
    source, digest = Scenes(), hashlib.sha256()
    for split in source.splits():
        for example in source.examples(split)[:20]:
            digest.update(repr(example).encode())
            digest.update(source.pixels(example, 64).numpy().tobytes())
    return digest.hexdigest()


def test_every_process_makes_the_same_world():
    program = "from tests.test_scenes import digest_of_everything; print(digest_of_everything())"
    other = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "12345"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert other.stdout.strip() == digest_of_everything()


def test_examples_are_a_sequence():
    examples = Scenes(train=7).examples("train")
    assert len(examples) == 7 and [e.id for e in examples] == [f"train-{i:06d}" for i in range(7)]
    assert examples[-1] == examples[6] and examples[2:4] == [examples[2], examples[3]]
    with pytest.raises(IndexError):
        examples[7]
    assert Scenes(train=70).examples("train")[:7] == list(examples)
    assert Scenes(seed=1, train=7).examples("train")[0] != examples[0]


def test_splits_do_not_share_scenes():
    source = Scenes()
    seen = [json.dumps(e.extra["scene"]) for split in source.splits() for e in source.examples(split)[:400]]
    assert len(set(seen)) == len(seen) == 1600


def test_held_out_pairs_occur_in_the_compositional_split_only():
    source = Scenes()
    assert {colour for colour, _ in HELD_OUT} == set(COLOURS) and {shape for _, shape in HELD_OUT} == set(SHAPES)
    for split in source.splits():
        scenes = [Scene.from_dict(e.extra["scene"]) for e in source.examples(split)[:500]]
        held_out = [(thing.colour, thing.shape) in HELD_OUT for scene in scenes for thing in scene.things]
        assert all(held_out) if split == "compositional" else not any(held_out)


def test_pixels_are_a_picture_of_the_size_asked_for():
    source = Scenes()
    example = source.examples("val")[0]
    for size in (64, 87, 112):
        pixels = source.pixels(example, size)
        assert pixels.shape == (3, size, size) and pixels.dtype == torch.uint8


def test_user_errors():
    with pytest.raises(UserError, match="no split 'dev'"):
        Scenes().examples("dev")
    with pytest.raises(UserError, match="pixels wide"):
        Scenes().pixels(Scenes().examples("val")[0], 16)
    with pytest.raises(UserError, match="test must be a whole number of at least 0; got -1"):
        Scenes(test=-1)


# --------------------------------------------------------------------------------------------------------------------
# scenes and drawing
# --------------------------------------------------------------------------------------------------------------------
def test_things_keep_apart_and_inside():
    for scene in SCENES:
        for i, thing in enumerate(scene.things):
            low, high = RADII[thing.size]
            assert low <= thing.radius <= high
            assert all(thing.radius + GAP <= at <= 1 - thing.radius - GAP for at in (thing.x, thing.y))
            for other in scene.things[:i]:
                apart = math.hypot(thing.x - other.x, thing.y - other.y)
                assert apart >= thing.radius + other.radius + GAP - 1e-9
                assert (thing.shape, thing.colour, thing.size) != (other.shape, other.colour, other.size)


def test_counts_follow_their_shares():
    counts = [len(scene.things) for scene in SCENES]
    for count, share in enumerate(COUNT_SHARES, start=1):
        assert counts.count(count) / len(counts) == pytest.approx(share, abs=0.04)


def test_scenes_survive_json():
    for scene in SCENES[:50]:
        assert Scene.from_dict(json.loads(json.dumps(scene.to_dict()))) == scene


def coverage(thing: Thing, size: int, look: int) -> np.ndarray:
    """How much of each pixel the thing covers, (size, size), from the picture with it and the one without."""
    scene = Scene((thing,), "dark" if thing.colour != "purple" else "light", look)
    bare = draw(Scene((), scene.background, look), size).astype(float)
    full = draw(scene, size).astype(float)
    channel = int(np.abs(np.array(RGB[thing.colour]) * 255 - bare.mean((1, 2))).argmax())
    colour = full[channel][np.abs(full - bare).sum(0) > 0.8 * np.abs(full - bare).sum(0).max()]
    return (full[channel] - bare[channel]) / (np.median(colour) - bare[channel])


def test_edges_are_antialiased_and_areas_exact():
    circle = Thing("circle", "yellow", "large", 0.5, 0.52, 0.19)
    covered = coverage(circle, 64, look=3)
    assert len(np.unique(covered[(covered > 0.05) & (covered < 0.95)].round(2))) > 12
    assert covered.sum() == pytest.approx(math.pi * (0.92 * 0.19 * 64) ** 2, rel=0.02)


@pytest.mark.parametrize("shape", SHAPES)
def test_large_is_clearly_larger_than_small(shape):
    areas = {size: [] for size in RADII}
    for size, radii in RADII.items():
        for look, radius in enumerate(radii):
            areas[size].append(coverage(Thing(shape, "red", size, 0.5, 0.5, radius), 64, look).sum())
    assert min(areas["large"]) > 1.9 * max(areas["small"])


def test_things_have_their_colour_and_stand_out():
    for scene in SCENES[:300]:
        picture = draw(scene, 64).astype(float) / 255
        bare = draw(Scene((), scene.background, scene.look), 64).astype(float) / 255
        for thing in scene.things:
            x = thing.x + (0.74 * thing.radius if thing.shape == "ring" else 0)
            row, column = int(thing.y * 64), int(x * 64)
            colour = picture[:, row, column]
            nearest = min(COLOURS, key=lambda name: math.dist(RGB[name], colour))
            assert nearest == thing.colour
            assert np.abs(colour - bare[:, row, column]).max() > 0.15


def test_backgrounds_are_dark_or_light():
    means = {tone: [draw(Scene((), tone, look), 64).mean() / 255 for look in range(100)] for tone in BACKGROUNDS}
    assert max(means["dark"]) < 0.32 and min(means["light"]) > 0.66
    patterns = [draw(Scene((), "dark", look), 64).astype(float).std((1, 2)).max() > 2 for look in range(100)]
    assert 30 < sum(patterns) < 90  # some are plain, most are not


# --------------------------------------------------------------------------------------------------------------------
# captions
# --------------------------------------------------------------------------------------------------------------------
def test_captions_are_true_short_and_differently_worded():
    for scene, captions in CAPTIONED:
        assert len(set(captions)) == 5
        for caption in captions:
            verdict = check(caption, scene)
            assert verdict.entirely_true and verdict.mentioned > 0, (caption, scene)
            assert len(verdict.reading.statements) >= 4
            assert 6 <= len(caption.split()) <= 20


def test_a_small_vocabulary():
    assert len(WORDS) <= 80


def test_every_kind_is_stated_often_enough():
    kinds = [s.kind for _, captions in CAPTIONED for caption in captions for s in parse(caption).statements]
    for kind in ("object", "colour", "size", "count", "relation", "background"):
        assert kinds.count(kind) > len(CAPTIONED) / 2


def test_no_constant_caption_is_often_true():
    """What a model could score without looking: the best of many captions, each said of every picture."""
    scenes = SCENES[:300]
    shares = [
        sum(check(caption, scene).entirely_true for scene in scenes) / len(scenes)
        for _, captions in CAPTIONED[-50:]
        for caption in captions
    ]
    assert max(shares) <= 0.05


def test_describe_refuses_what_it_has_no_words_for():
    with pytest.raises(ValueError, match="one to 4 things"):
        describe(Scene((), "dark"), Random(0))
    with pytest.raises(ValueError, match="nothing to be said"):
        check("a red circle", Scene((), "dark"))


# --------------------------------------------------------------------------------------------------------------------
# lies
# --------------------------------------------------------------------------------------------------------------------
def lies_about(caption: str, scene: Scene) -> dict[str, str]:
    """For each kind of statement that the caption makes, the caption with one such statement made false."""
    things, lies = scene.things, {}

    def replaced(old: str, new: str) -> str:
        return re.sub(rf"\b{old}\b", new, caption, count=1)

    size, colour, shape = re.search(r"\b(big|large|small|little) (\w+) (\w+)", caption).groups()
    other_colour = next(c for c in COLOURS if all(c != thing.colour for thing in things))
    other_shape = next(s for s in SHAPES if all(s != thing.shape for thing in things))
    lies["colour"] = replaced(f"{colour} {shape}", f"{other_colour} {shape}")
    lies["object"] = replaced(f"{colour} {shape}", f"{colour} {other_shape}")
    if sum((thing.colour, thing.shape) == (colour, shape) for thing in things) == 1:
        lies["size"] = replaced(size, "small" if size in SIZE_WORDS["large"] else "big")
    for i, number in enumerate(NUMBERS):
        if re.search(rf"\b{number}\b", caption):
            lies["count"] = replaced(number, NUMBERS[i - 1])
    for relation in ("left", "right", "above", "below"):
        if re.search(rf"\b{relation}\b", caption):
            lies["relation"] = replaced(relation, OPPOSITE[relation])
    for tone in BACKGROUNDS:
        if tone in caption:
            lies["background"] = replaced(tone, "dark" if tone == "light" else "light")
    return lies


def test_planted_lies_are_caught_and_named():
    caught = dict.fromkeys(("object", "colour", "size", "count", "relation", "background"), 0)
    for scene, captions in CAPTIONED[:600]:
        for caption in captions:
            for kind, lie in lies_about(caption, scene).items():
                verdict = check(lie, scene)
                assert not verdict.entirely_true, (kind, lie, scene)
                false = {s.kind for s, true in zip(verdict.reading.statements, verdict.truths, strict=True) if not true}
                # A thing of two false traits may be taken for another thing that has them and lacks the third.
                traits = {"object", "colour", "size"}
                assert false & traits if kind in traits else kind in false, (kind, lie, scene)
                caught[kind] += 1
    assert min(caught.values()) > 100


@pytest.mark.parametrize(
    ("caption", "truths"),
    [
        ("a small red circle", {"object": [1], "colour": [1], "size": [1]}),
        ("a small red square", {"object": [0], "colour": [1], "size": [1]}),  # taken for the red circle
        ("the little red circle is left of the big blue square", {"relation": [1]}),
        ("the little red circle is right of the big blue square", {"relation": [0]}),
        ("a big blue square with a small red circle to its left", {"relation": [1]}),
        ("a big blue square with a small red circle to its right", {"relation": [0]}),
        ("a small red circle above a big blue square", {"relation": [0]}),
        ("a small red circle and a small red circle", {"object": [1, 0], "colour": [1, 0], "size": [1, 0]}),
        ("a small red circle and the red circle", {"object": [1], "colour": [1], "size": [1]}),
        ("a circle and a square and the circle is small", {"object": [1, 1]}),
        ("a red circle and the small circle is left of a big blue square", {"size": [1, 1], "relation": [1]}),
        ("two shapes with a small red circle on a dark background", {"count": [1], "background": [1]}),
        ("three shapes with a small red circle on a light background", {"count": [0], "background": [0]}),
        ("one small red circle", {"count": [1], "object": [1]}),
        ("a small red circle alone", {"count": [0]}),
        ("left of a big blue square", {"relation": [0]}),
        ("a small red circle is left of", {"relation": [0]}),
        ("a big blue square and a small red circle are left of a small red circle", {"relation": [0]}),
        ("two shapes left of a big blue square", {"count": [1], "relation": [0]}),
        ("the small red circle is left of the small red circle", {"relation": [0]}),
    ],
)
def test_statements_of_a_pair(caption, truths):
    verdict = check(caption, PAIR)
    said = list(zip(verdict.reading.statements, verdict.truths, strict=True))
    for kind, expected in truths.items():
        assert [true for statement, true in said if statement.kind == kind] == [bool(e) for e in expected], kind


def test_the_subject_is_carried_on_after_and():
    carried = "a small red circle is left of a big blue square and below a small green circle"
    values = [(s.value, s.subject, s.object) for s in parse(carried).statements if s.kind == "relation"]
    assert values == [("left", 0, 1), ("below", 0, 2)]


@pytest.mark.parametrize(
    ("caption", "told"),
    [
        ("a small red circle", {"object": ["circle"], "colour": ["red"], "size": ["small"]}),
        ("a red circle and the circle", {"object": ["circle circle"], "colour": ["red"]}),
        ("a shape and the big red, red star", {"object": ["shape star"], "size": ["big"], "colour": ["red red"]}),
        ("one red star", {"count": ["one"], "object": ["star"], "colour": ["red"]}),
        ("the two red stars", {"count": ["two red stars"]}),
        ("one shape, alone", {"count": ["one shape", "alone"]}),
        ("there is a star on a dark background", {"object": ["star"], "background": ["on a dark background"]}),
        ("a star is to the left of a ring", {"object": ["star", "ring"], "relation": ["is to the left of"]}),
        ("a star with a ring under it", {"object": ["star", "ring"], "relation": ["under it"]}),
        ("a star above a ring and below", {"object": ["star", "ring"], "relation": ["above", "and below"]}),
        ("cats, a star and İ rings", {"object": ["star"], "leftover": ["cats", "i", "rings"]}),
    ],
)
def test_statements_know_their_words(caption, told):
    reading, words = parse(caption), WORD.findall(caption.lower())
    found: dict[str, list[str]] = {}
    for statement, numbers in zip(reading.statements, reading.told_at, strict=True):
        found.setdefault(statement.kind, []).append(" ".join(words[number] for number in numbers))
    if reading.leftovers:
        found["leftover"] = [words[number] for number in reading.leftovers_at]
        assert found["leftover"] == list(reading.leftovers)
    assert found == told


def test_readings_are_equal_wherever_they_were_told():
    one, other = parse("a red circle, left of a star"), parse("there is a red circle to the left of the star")
    assert one == other and hash(one) == hash(other) and one.told_at != other.told_at


def test_counts_are_exact_and_counted_things_are_covered():
    assert check("two circles and a big blue square", TRIO).entirely_true
    assert check("two circles and a big blue square", TRIO).mentioned == 1
    assert not check("one circle and a big blue square", TRIO).entirely_true
    assert check("two small shapes and a big blue square", TRIO).mentioned == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "  ,.!",
        "two shapes",  # true, but says next to nothing
        "there is a circle",
        "a big object",
        "a small red circle and a big blue",
        "a small red circle and a big blue banana",
        "no small red circle",
        "a small red circle without a big blue square",
        "a circle red small",
        "a small red circle and squares",
        "a small red blue circle",
        "a small big red circle",
        "cercle rouge \u00e9",
    ],
)
def test_empty_vague_or_broken_captions_are_not_true(caption):
    assert not check(caption, PAIR).entirely_true


def test_punctuation_and_case_say_nothing():
    assert check("Two shapes: a SMALL, red circle -- and a big blue square!", PAIR).entirely_true


vocabulary = st.sampled_from([*WORDS, *PLURALS.values(), "it", "its", "not", "banana"])


@settings(max_examples=300, deadline=None)
@given(st.lists(vocabulary, max_size=30), st.sampled_from(SCENES[:50]))
def test_any_words_can_be_checked(words, scene):
    verdict = check(" ".join(words), scene)
    assert 0 <= verdict.mentioned <= 1
    assert len(verdict.truths) == len(verdict.reading.statements)
    if verdict.entirely_true:
        assert {word for word in words if word in COLOURS} <= {thing.colour for thing in scene.things}
        assert {word for word in words if word in SHAPES} <= {thing.shape for thing in scene.things}
    assert set(verdict.reading.leftovers) <= set(words) - GLUE
    told = {number for numbers in verdict.reading.told_at for number in numbers} | set(verdict.reading.leftovers_at)
    untold = {word for number, word in enumerate(words) if number not in told}
    assert untold <= GLUE | {*COLOURS, *SIZE_WORDS["small"], *SIZE_WORDS["large"]}  # adjectives of an unread plural


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=80))
def test_any_text_can_be_checked(text):
    assert not check(text, PAIR).entirely_true


# --------------------------------------------------------------------------------------------------------------------
# margins
# --------------------------------------------------------------------------------------------------------------------
def at(x: float, y: float) -> Thing:
    return Thing("circle", "red", "small", x, y, 0.1)


@pytest.mark.parametrize(
    ("x", "y", "stated", "accepted"),
    [
        (0.8, 0.5, {"left"}, {"left"}),
        (0.5, 0.8, {"above"}, {"above"}),
        (0.2, 0.55, {"right"}, {"right"}),
        (0.75, 0.25, set(), {"left", "below"}),  # on the diagonal both may be said, but neither is
        (0.6, 0.5, set(), set()),  # too near
        (0.62, 0.8, {"above"}, {"above"}),  # a little to the left, but no one would say so
    ],
)
def test_relations_have_a_margin(x, y, stated, accepted):
    for margin, expected in ((STATED, stated), (ACCEPTED, accepted)):
        assert {r for r in OPPOSITE if relation_holds(r, at(0.5, 0.5), at(x, y), margin)} == expected


@given(st.tuples(*[st.floats(0, 1)] * 4))
def test_a_relation_excludes_its_opposite_and_stating_is_stricter(places):
    one, other = at(*places[:2]), at(*places[2:])
    for relation, opposite in OPPOSITE.items():
        assert relation_holds(relation, one, other) == relation_holds(opposite, other, one)
        assert not (relation_holds(relation, one, other) and relation_holds(opposite, one, other))
        assert relation_holds(relation, one, other) or not relation_holds(relation, one, other, STATED)


# --------------------------------------------------------------------------------------------------------------------
# scores
# --------------------------------------------------------------------------------------------------------------------
def test_truth_scores():
    scenes = {"a": PAIR, "b": TRIO, "c": PAIR}
    predictions = {
        "a": "a small red circle left of a big blue square",
        "b": "two circles and a big red square",
        "c": "banana",
    }
    truth = truth_scores(predictions, scenes)
    assert truth.corpus == {
        "truth": pytest.approx(1 / 3),
        "truth/object": 1.0,
        "truth/colour": pytest.approx(2 / 3),
        "truth/size": 1.0,
        "truth/count": 1.0,
        "truth/relation": 1.0,
        "truth/background": None,
        "coverage": pytest.approx((1 + 2 / 3 + 0) / 3),
        "truth_f1": pytest.approx(2 * (10 / 11) * (4 / 7) / (10 / 11 + 4 / 7)),
    }
    names = ("true_statements", "statements", "facts_found", "facts")
    counts = {id: tuple(own[name] for name in names) for id, own in truth.per_image.items()}
    assert counts == {"a": (7, 7, 2, 2), "b": (3, 4, 2, 3), "c": (0, 0, 0, 2)}
    assert [truth.per_image[name]["truth"] for name in "abc"] == [1, 0, 0]
    assert truth.per_image["b"]["truth/relation"] is None
    with pytest.raises(UserError, match="'d'"):
        truth_scores({"d": "a red circle"}, scenes)


def test_the_f_score_falls_with_what_is_left_out_and_with_what_is_wrong():
    """``truth`` alone sees only the second: what says less is truer."""

    def f1(*captions: str) -> float | None:
        named = {str(i): caption for i, caption in enumerate(captions)}
        return truth_scores(named, dict.fromkeys(named, PAIR)).corpus["truth_f1"]

    whole = "a small red circle and a big blue square"
    assert f1(whole) == 1 and f1() is None
    assert f1("a small red circle") == pytest.approx(2 * 1 * (1 / 2) / (1 + 1 / 2))
    assert f1("a small red circle and a big green square") == pytest.approx(2 * (5 / 6) * (1 / 2) / (5 / 6 + 1 / 2))
    assert f1("") == f1("banana") == f1("a big green triangle") == 0  # nothing found
    assert f1(whole, "") == f1(whole, "banana") == pytest.approx(2 * 1 * (1 / 2) / (1 + 1 / 2))  # precision stays 1


def test_references_are_perfect_predictions():
    examples = Scenes().examples("compositional")[:100]
    scenes = {e.id: Scene.from_dict(e.extra["scene"]) for e in examples}
    corpus = truth_scores({e.id: e.captions[0] for e in examples}, scenes).corpus
    assert all(score == 1 for name, score in corpus.items() if name not in ("coverage", "truth_f1"))
    assert 0.5 < corpus["coverage"] < corpus["truth_f1"] < 1
