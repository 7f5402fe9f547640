"""Questions about drawn scenes: true answers, that the words do not tell."""

from __future__ import annotations

from collections import Counter, defaultdict
from math import comb

import pytest

from src.data.scenes import HELD_OUT
from src.data.scenes_questions import ANSWERS, COUNTS, KINDS, ScenesQuestions
from src.errors import UserError
from src.scenes.world import COLOURS, SHAPES, Scene

MANY = 6_000
SINGULAR = {**{f"{shape}s": shape for shape in SHAPES}, "crosses": "cross", "boxes": "box"}


@pytest.fixture(scope="module")
def asked():
    return ScenesQuestions().examples("train")[:MANY]


def answer(question: str, scene: Scene) -> str:
    """By reading the words, without what the generator knows: an independent eye."""
    words = question.rstrip("?").split()
    things = scene.things

    def named(at: int):
        (found,) = [thing for thing in things if (thing.colour, thing.shape) == tuple(words[at : at + 2])]
        return found

    def yes(right: bool) -> str:
        return "yes" if right else "no"

    match words[:3]:
        case ["is", "there", "a"]:
            return yes(any((t.colour, t.shape) == (words[3], words[4]) for t in things))
        case ["how", "many", noun]:
            fits = (lambda t: t.colour == noun) if noun in COLOURS else (lambda t: t.shape == SINGULAR[noun])
            return ("zero", "one", "two", "three", "four")[sum(map(fits, things))]
        case ["what", "colour", "is"]:
            (thing,) = [t for t in things if t.shape == words[4]]
            return thing.colour
        case ["what", "shape", "is"]:
            (thing,) = [t for t in things if t.colour == words[4]]
            return thing.shape
        case ["are", "the", one]:
            (a,), (b,) = ([t for t in things if t.shape == shape] for shape in (one, words[5]))
            return yes(a.colour == b.colour)
        case ["are", "there", "more"]:
            a, b = (sum(t.shape == SINGULAR[noun] for t in things) for noun in (words[3], words[5]))
            return yes(a > b)
        case ["is", "the", _]:
            a, b, how = named(2), named(len(words) - 2), words[4:-3]
            if how[0] in ("larger", "smaller"):
                return yes((a.radius > b.radius) == (how[0] == "larger"))
            right, down = a.x - b.x, a.y - b.y
            steps = {"left": -right, "right": right, "above": -down, "below": down, "under": down}
            return yes(next(step for word, step in steps.items() if word in how) > 0)
    raise AssertionError(question)


def test_every_answer_is_true_of_its_scene(asked):
    for example in asked:
        assert example.captions == (answer(example.question, Scene.from_dict(example.extra["scene"])),)


def test_every_kind_comes_as_often_and_has_each_of_its_answers_as_often(asked):
    found = defaultdict(Counter)
    for example in asked:
        found[example.extra["kind"]][example.captions[0]] += 1
    assert found.keys() == KINDS.keys()
    answers = {"count": COUNTS, "colour": COLOURS, "shape": SHAPES}
    for kind, counts in found.items():
        total, wanted = sum(counts.values()), answers.get(kind, ANSWERS)
        assert counts.keys() == set(wanted)
        assert total == pytest.approx(MANY / len(KINDS), rel=0.12)
        assert all(count == pytest.approx(total / len(wanted), rel=0.25) for count in counts.values()), counts


def test_the_words_do_not_tell_the_answer(asked):
    """The best guess by the words alone, learnt from half of the questions, is at chance in the other half."""
    guess = defaultdict(Counter)
    for example in asked[: MANY // 2]:
        for word in {*example.question.split(), example.extra["kind"]}:
            guess[example.extra["kind"], word][example.captions[0]] += 1
    for kind in ("exists", "size", "relation", "same", "more"):
        rows = [example for example in asked[MANY // 2 :] if example.extra["kind"] == kind]
        right = 0
        for example in rows:
            votes = Counter()
            for word in example.question.split():
                votes.update(guess[kind, word])
            right += votes.most_common(1)[0][0] == example.captions[0]
        n = len(rows)
        chance = sum(comb(n, k) for k in range(right, n + 1)) / 2**n  # of as many or more by luck
        assert chance > 1e-3, (kind, right, n)


def test_a_no_about_a_pair_often_shows_both_halves_apart(asked):
    """Otherwise seeing either the colour or the shape would do."""
    rows = [e for e in asked if e.extra["kind"] == "exists" and e.captions == ("no",)]
    apart = 0
    for example in rows:
        _, _, _, colour, shape = example.question.rstrip("?").split()
        things = Scene.from_dict(example.extra["scene"]).things
        apart += any(t.colour == colour for t in things) and any(t.shape == shape for t in things)
    assert apart / len(rows) == pytest.approx(0.5, abs=0.08)


def test_unseen_pairs_are_in_compositional_alone(asked):
    def pairs(examples):
        return {(t["colour"], t["shape"]) for e in examples for t in e.extra["scene"]["things"]}

    assert not pairs(asked) & HELD_OUT
    unseen = ScenesQuestions().examples("compositional")[:500]
    assert pairs(unseen) == HELD_OUT
    assert {e.extra["kind"] for e in unseen} == KINDS.keys() - {"same"}  # no two of these shapes share a colour
    for example in unseen:
        assert example.captions == (answer(example.question, Scene.from_dict(example.extra["scene"])),)


def test_a_question_follows_from_seed_split_and_number_alone():
    some, more = ScenesQuestions(train=10), ScenesQuestions(train=99)
    assert some.examples("train")[3] == more.examples("train")[3]
    assert some.examples("train")[3] != ScenesQuestions(seed=1).examples("train")[3]
    assert len({e.id for e in more.examples("train")}) == 99
    with pytest.raises(UserError, match="no split"):
        some.examples("other")
