"""Scores of a captioner on a split: does it look at the picture?"""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from src.contracts import Example
from src.data.scenes import Scenes
from src.tasks.evaluation import exchange, score_captions


def parts(pictures: int = 40):
    source = Scenes(seed=0, train=4, val=2, test=pictures, compositional=2)
    data = SimpleNamespace(
        seed=0,
        examples=source.examples,
        references=lambda split: {e.id: list(e.captions) for e in source.examples(split)},
    )
    return SimpleNamespace(data=data)


def test_every_picture_gets_the_caption_of_another():
    captions = {f"p{i}": f"caption {i}" for i in range(50)}
    for seed in range(5):
        exchanged = exchange(captions, seed)
        assert exchanged.keys() == captions.keys() and sorted(exchanged.values()) == sorted(captions.values())
        assert all(exchanged[id] != captions[id] for id in captions)
    assert exchange(captions, 0) == exchange(captions, 0) != exchange(captions, 1)


def test_the_gap_is_large_for_one_that_looks_and_zero_for_one_that_does_not():
    own = parts()
    looking = {e.id: e.captions[0] for e in own.data.examples("test")}
    blind = {e.id: "a large green triangle" for e in own.data.examples("test")}
    scores = score_captions(own, "test", looking, None).scores
    assert scores["truth"] == 1.0 and scores["gap/truth"] > 0.8
    assert scores["gap/CIDEr-D"] == pytest.approx(scores["CIDEr-D"], rel=0.5) and scores["gap/CIDEr-D"] > 1
    scores = score_captions(own, "test", blind, None).scores
    assert scores["gap/truth"] == 0 and scores["gap/CIDEr-D"] == 0


def test_captions_without_spaces_are_told_and_counted_by_characters():
    said = {"a": "一条狗在草地上奔跑", "b": "两名男孩在海边踢足球", "c": "一名女人骑着红色自行车"}
    known = {"a": ("一只狗在草地上奔跑",), "b": ("两个男孩在海边踢足球",), "c": ("一个女人骑着红色的自行车",)}
    examples = [Example(id, texts, None) for id, texts in known.items()]
    data = SimpleNamespace(seed=0, examples=lambda split: examples, references=lambda split: known)
    words = score_captions(SimpleNamespace(data=data), "test", said, None)
    assert words.scores["CIDEr-D"] == 0 and words.tokens == "words"
    assert "no spaces between words" in words.remarks["notes"]["tokens"]
    characters = score_captions(SimpleNamespace(data=data), "test", said, None, tokens="characters")
    assert characters.scores["CIDEr-D"] > 1 and characters.tokens == "characters" and not characters.remarks["notes"]
    assert (
        score_captions(parts(), "test", {e.id: "a" for e in parts().data.examples("test")}, None).remarks["notes"] == {}
    )
