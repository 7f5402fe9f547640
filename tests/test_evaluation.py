"""Scores of a captioner on a split: does it look at the picture?"""

from __future__ import annotations

from types import SimpleNamespace
from typing import get_args

import pytest

from src.config import table
from src.config.added_keys import ABSENT
from src.contracts import Example
from src.data.scenes import Scenes
from src.data.scenes_questions import ScenesQuestions
from src.data.stories import ScenesInterleaved
from src.errors import UserError
from src.fusion.base import Fusion, Reader, Retriever, Writer
from src.loading.module import CaptionData
from src.tasks.captioning import Captioning, exchange
from src.tasks.choose import TASKS, choose, tasks_of
from src.tasks.matching import Matching
from src.tasks.questions import Answering
from src.tasks.retrieval import Retrieval
from src.tasks.stories import Stories


def scenes(pictures: int = 40):
    source = Scenes(seed=0, train=4, val=2, test=pictures, compositional=2)
    return SimpleNamespace(
        seed=0,
        examples=source.examples,
        references=lambda split: {e.id: list(e.captions) for e in source.examples(split)},
    )


def test_every_picture_gets_the_caption_of_another():
    captions = {f"p{i}": f"caption {i}" for i in range(50)}
    for seed in range(5):
        exchanged = exchange(captions, seed)
        assert exchanged.keys() == captions.keys() and sorted(exchanged.values()) == sorted(captions.values())
        assert all(exchanged[id] != captions[id] for id in captions)
    assert exchange(captions, 0) == exchange(captions, 0) != exchange(captions, 1)


def test_the_gap_is_large_for_one_that_looks_and_zero_for_one_that_does_not():
    own = scenes()
    looking = {e.id: e.captions[0] for e in own.examples("test")}
    blind = {e.id: "a large green triangle" for e in own.examples("test")}
    scores = Captioning().score(own, "test", looking).scores
    assert scores["truth"] == 1.0 and scores["gap/truth"] > 0.8
    assert scores["gap/CIDEr-D"] == pytest.approx(scores["CIDEr-D"], rel=0.5) and scores["gap/CIDEr-D"] > 1
    scores = Captioning().score(own, "test", blind).scores
    assert scores["gap/truth"] == 0 and scores["gap/CIDEr-D"] == 0


def test_captions_without_spaces_are_told_and_counted_by_characters():
    said = {"a": "一条狗在草地上奔跑", "b": "两名男孩在海边踢足球", "c": "一名女人骑着红色自行车"}
    known = {"a": ("一只狗在草地上奔跑",), "b": ("两个男孩在海边踢足球",), "c": ("一个女人骑着红色的自行车",)}
    examples = [Example(id, texts, None) for id, texts in known.items()]
    data = SimpleNamespace(seed=0, examples=lambda split: examples, references=lambda split: known)
    words = Captioning().score(data, "test", said)
    assert words.scores["CIDEr-D"] == 0 and words.tokens == "words"
    assert "no spaces between words" in words.remarks["notes"]["tokens"]
    characters = Captioning(tokens="characters").score(data, "test", said)
    assert characters.scores["CIDEr-D"] > 1 and characters.tokens == "characters" and not characters.remarks["notes"]
    plain = {e.id: "a" for e in scenes().examples("test")}
    assert Captioning().score(scenes(), "test", plain).remarks["notes"] == {}


# --------------------------------------------------------------------------------------------------------------------
# which task
# --------------------------------------------------------------------------------------------------------------------
def captioner(fusion: type[Fusion], **about):
    can = {name: None for name in fusion.__abstractmethods__}
    able = type("Able", (fusion,), {**can, "__init__": lambda self: None, **about})()
    return SimpleNamespace(fusion=able, speaks=issubclass(fusion, Writer), heads={})


def parts(fusion: type[Fusion] = Writer, source=None, **about):
    source = source or Scenes(seed=0, train=4, val=2, test=4, compositional=2)
    return SimpleNamespace(captioner=captioner(fusion, **about), source=source, data=None)


def test_the_data_decide_where_no_task_is_named():
    stories = ScenesInterleaved(seed=0, pictures=2, train=2, val=2, test=2)
    pairs = Scenes(seed=0, train=4, val=2, test=4, compositional=2)
    questions = ScenesQuestions(seed=0, train=4, val=2, test=4, compositional=2)
    writer, reader = captioner(Writer).fusion, captioner(Reader).fusion
    assert type(choose(None, pairs, writer)) is Captioning and type(choose(None, stories, writer)) is Stories
    assert type(choose("retrieval", pairs, writer)) is Retrieval
    assert type(choose(None, pairs, reader)) is Matching and type(choose("caption", pairs, reader)) is Captioning
    assert type(choose(None, questions, writer)) is type(choose(None, questions, reader)) is Answering
    members = {"pairs": SimpleNamespace(source=pairs), "stories": SimpleNamespace(source=stories)}
    asked = tasks_of(SimpleNamespace(data_sets=lambda: members, captioner=captioner(Writer)), "retrieval")
    assert {name: type(task) for name, task in asked.items()} == {"pairs": Retrieval, "stories": Stories}


def test_a_task_refuses_data_and_mechanisms_before_any_work():
    stories = ScenesInterleaved(seed=0, pictures=2, train=2, val=2, test=2)
    with pytest.raises(UserError, match="task=stories needs documents with several pictures"):
        Stories().check(parts(), "test")
    with pytest.raises(UserError, match="task=caption needs captioned pictures"):
        Captioning().check(parts(source=stories), "test")
    with pytest.raises(UserError, match="task=retrieval needs a mechanism that compares or has learnt to match"):
        Retrieval().check(parts(), "test")
    with pytest.raises(UserError, match="contrastive_weight is 0"):
        Retrieval().check(parts(Retriever, compares=False), "test")
    with pytest.raises(UserError, match="fusion=flamingo"):
        Captioning(shots=2).check(parts(multi_image=False), "test")
    with pytest.raises(UserError, match="needs a mechanism that writes or learns hidden words"):
        Captioning().check(parts(Reader), "test")
    with pytest.raises(UserError, match=r"task=match asks .* needs objective=match"):
        Matching().check(parts(Reader), "test")
    with pytest.raises(UserError, match="shots=2 needs captioned pictures"):
        choose(None, stories, captioner(Writer).fusion, shots=2)
    Captioning(shots=2).check(parts(multi_image=True), "test")
    Retrieval().check(parts(Retriever), "test")


def test_every_answer_says_which_story_it_is_from():
    """Answers of one story are drawn together where runs are compared."""
    told = ScenesInterleaved(seed=0, pictures=3, train=1, val=1, test=4)
    documents = told.examples("test")
    said = {picture.id: "red" for document in documents for picture in document.pictures}
    rows = Stories().score(SimpleNamespace(examples=told.examples), "test", said).rows
    assert len(rows) == len(said) > 4 and len({row["story"] for row in rows}) == 4
    of_picture = {picture.id: document.id for document in documents for picture in document.pictures}
    assert {row["id"]: row["story"] for row in rows} == of_picture


def test_the_words_of_the_option_are_the_tasks():
    assert set(get_args(table.Task)) == set(TASKS)
    assert ABSENT["task"] is None


class Parrot:
    """Says the same of every picture."""

    def caption(self, batches, decoder=None, prompted=False):
        return {id: "a large red circle" for batch in batches for id in batch.ids}


def test_documents_and_pictures_name_their_pictures_alike():
    stories = ScenesInterleaved(seed=0, pictures=3, train=2, val=2, test=2)
    for example in Scenes(train=2).examples("train"):
        assert example.pictures == (example,)
    for document in stories.examples("test"):
        assert document.pictures == tuple(c.picture for c in document.chunks if c.picture) and document.pictures


def test_whoever_speaks_can_be_asked(tokenizer):
    """Not a captioner, and nothing that is asked of it beside ``caption``."""
    source = Scenes(seed=0, train=4, val=2, test=20, compositional=2)
    data = CaptionData(source, tokenizer, 64, batch_size=8, captions_per_image=1)
    result = Captioning().answered(Parrot(), data, "test")
    assert len(result.rows) == 20 and result.scores["gap/CIDEr-D"] == 0 and result.decoding is None
    assert result.headline == ("CIDEr-D", result.scores["CIDEr-D"]) and result.captions_per_second > 0
