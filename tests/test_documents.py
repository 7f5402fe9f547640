"""Documents of several pictures: phi, cutting, prompts, stories; and several data sets in one training."""

from __future__ import annotations

import json
import re
from collections import Counter
from random import Random

import pytest
import torch
from conftest import Characters
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from src.contracts import Chunk, Document, Example, UserError
from src.data.documents_file import Documents
from src.data.pairs_as_documents import PairsAsDocuments, most_named
from src.data.scenes import Scenes
from src.data.stories import ScenesInterleaved, tell
from src.loading.documents import collate, document_row, few_shot, looking_ahead, prompts
from src.loading.mixture import Mixture
from src.loading.module import CaptionData, DocumentData
from src.metrics.answers import Asked, answer_scores, shares
from src.scenes.world import COLOURS, SHAPES, Scene

TAG, BOS, EOS, PAD = Characters.image_tag[0], Characters.bos, Characters.eos, Characters.pad
PICTURES = [Example(f"p{i}", ()) for i in range(4)]


def letters(text: str) -> list[int]:
    return Characters().encode([text])[0]


def document(*texts: str, leading: str = "") -> Document:
    chunks = [Chunk(leading)] if leading else []
    chunks += [Chunk(text, PICTURES[i]) for i, text in enumerate(texts)]
    return Document("d", tuple(chunks))


def row(doc: Document, max_tokens: int = 99, max_images: int = 9, **how):
    return document_row(doc, Characters(), max_tokens, max_images, **how)


# -------------------------------------------------------------------------------------------------- pairs as documents
def as_documents(form: str, items: int = 3, related: bool = True) -> list[Document]:
    pairs = Scenes(train=40, val=2, test=2)
    return list(PairsAsDocuments(pairs, seed=1, items=items, form=form, related=related).examples("train"))


def told(documents: list[Document]) -> Counter:
    """(picture, text) of all, texts in the order of the pictures where they stand behind them."""
    pairs = Counter()
    for one in documents:
        texts = [chunk.text for chunk in one.chunks if chunk.text]
        pairs.update(zip([picture.id for picture in one.pictures], texts, strict=True))
    return pairs


def test_all_forms_have_the_same_pictures_and_texts():
    whole, broken, reordered = (as_documents(form) for form in ("interleaved", "broken", "reordered"))
    assert told(whole) == told(broken) == told(reordered) and len(told(whole)) == 40
    assert [len(one.pictures) for one in broken] == [1] * 40
    assert max(len(one.pictures) for one in whole) == 3 and len(whole) == len(reordered) == 14
    first = reordered[0]
    assert [bool(c.picture) for c in first.chunks] == [True] * 3 + [False] * 3
    found = row(first, max_tokens=400)
    assert [phi for id, phi in zip(found.ids, found.phi, strict=True) if id == EOS] == [3, 3, 3]
    any_of_them = as_documents("interleaved", related=False)
    assert as_documents("interleaved") == whole != any_of_them and told(any_of_them) == told(whole)


def test_pictures_of_a_document_share_what_their_captions_name(caplog):
    caplog.set_level("INFO")
    documents = as_documents("interleaved", items=2)
    words = [{most_named(picture.captions) for picture in one.pictures} for one in documents]
    alone = sum(len(one) > 1 for one in words)
    left = int(re.search(r"(\d+) of 40 pictures share their word with too few", caplog.text)[1])
    assert 0 < left < 20 and alone <= left // 2 + 1
    assert most_named(("a dog runs", "the brown dog", "two dogs")) == "dog" and most_named(("a on the",)) == ""


def test_documents_are_not_made_of_documents():
    stories = ScenesInterleaved(seed=0, pictures=2, train=1, val=1, test=1)
    with pytest.raises(UserError, match=r"data.source.pairs=scenes_interleaved are no pictures with captions"):
        PairsAsDocuments(stories, seed=0, items=2, form="broken", related=True)


# ---------------------------------------------------------------------------------------------------------------- phi
def test_phi_is_the_papers_figure():
    """BOS and leading text look at no picture; a tag and what follows, its end token included, at that picture."""
    found = row(document("pup", "cat", leading="pics"))
    assert found.ids == [BOS, *letters("pics"), EOS, TAG, *letters("pup"), EOS, TAG, *letters("cat"), EOS]
    assert found.phi == [0] * 6 + [1] * 5 + [2] * 5
    assert looking_ahead(found).phi == [1] * 6 + [2] * 5 + [0] * 5
    assert [t for t, target in zip(found.ids, found.target, strict=True) if not target] == [BOS, TAG, TAG]


def test_a_tag_of_several_tokens_looks_at_its_own_picture_from_the_start():
    class Spelled(Characters):
        image_tag = tuple(letters("<i>"))

    found = document_row(document("a", "b"), Spelled(), 99, 9)
    assert found.phi == [0] + [1] * 5 + [2] * 5
    assert found.target == [False] + ([False] * 3 + [True] * 2) * 2


@given(
    texts=st.lists(st.text("ab", max_size=6), min_size=1, max_size=4),
    leading=st.text("ab", max_size=4),
    max_tokens=st.integers(3, 40),
    max_images=st.integers(1, 4),
)
@settings(max_examples=300, deadline=None)
def test_phi_counts_tags_and_never_points_beyond_the_pictures(texts, leading, max_tokens, max_images):
    found = row(document(*texts, leading=leading), max_tokens, max_images)
    assert len(found.ids) == len(found.phi) == len(found.target) <= max_tokens
    tags = 0
    for token, phi in zip(found.ids, found.phi, strict=True):
        tags += token == TAG
        assert phi == tags
    assert tags == len(found.pictures) <= max_images
    assert max(looking_ahead(found).phi) <= len(found.pictures)


def test_text_and_pictures_are_cut_together():
    found = row(document("long text here", "never seen"), max_tokens=10)
    assert len(found.ids) == 10 and found.pictures == PICTURES[:1] and max(found.phi) == 1
    assert EOS not in found.ids  # what was cut did not end
    assert row(document("a", "b", "c"), max_images=2).pictures == PICTURES[:2]


def test_pictures_side_by_side_have_no_end_between_them():
    found = row(document("", "two"))
    assert found.ids == [BOS, TAG, TAG, *letters("two"), EOS] and found.phi == [0, 1, 2, 2, 2, 2, 2]


# ------------------------------------------------------------------------------------------------------------- collate
def test_rows_are_padded_where_they_are_asked_to_be():
    rows = [row(document("a")), row(document("a", "bcd"))]
    right, left = collate(rows, PAD), collate(rows, PAD, left=True)
    assert right.ids_BT[0].tolist() == [BOS, TAG, *letters("a"), EOS] + [PAD] * 5 and not right.ragged
    assert left.ids_BT[0].tolist() == [PAD] * 5 + [BOS, TAG, *letters("a"), EOS] and left.ragged
    for text in (right, left):
        assert (text.ids_BT[~text.valid_BT] == PAD).all() and (text.phi_BT[~text.valid_BT] == 0).all()
        assert not text.target_BT[~text.valid_BT].any()


def test_few_shot_prompts_end_at_the_query_and_too_long_ones_are_refused():
    shown, query = [Example("s", ("dog",)), Example("t", ("cat",))], Example("q", ("bird",))
    source = _Blank()
    batch = prompts([few_shot(query, shown), few_shot(query, [])], source, Characters(), 8, max_tokens=40)
    assert batch.ids == ["q", "q"] and batch.pixels_IM3hw.shape == (2, 3, 3, 8, 8)
    want = [BOS, TAG, *letters("dog"), EOS, TAG, *letters("cat"), EOS, TAG]
    assert batch.text.ids_BT[0].tolist() == want and batch.text.phi_BT[0].tolist() == [0] + [1] * 5 + [2] * 5 + [3]
    assert batch.text.ids_BT[1].tolist()[-2:] == [BOS, TAG] and batch.text.phi_BT[1, -1] == 1
    assert batch.image_valid_IM.tolist() == [[True] * 3, [True, False, False]]
    with pytest.raises(UserError, match="more than 5 tokens"):
        prompts([few_shot(query, shown)], source, Characters(), 8, max_tokens=5)


class _Blank:
    name, has_images, interleaved = "blank", True, False

    def pixels(self, example, size):
        return torch.full((3, size, size), 7, dtype=torch.uint8)


# ------------------------------------------------------------------------------------------------------------- stories
@pytest.mark.parametrize("seed", range(30))
def test_only_the_right_picture_answers(seed):
    story = tell("s", 4, Random(seed))
    answers = [question["answer"] for question in story.extra["questions"]]
    assert len(set(answers)) == 4
    for chunk, question in zip(story.chunks, story.extra["questions"], strict=True):
        assert chunk.text == f"{question['lead']} {question['answer']}"
        told, asked_of = ("colour", "shape") if question["kind"] == "colour" else ("shape", "colour")
        things = Scene.from_dict(chunk.picture.extra["scene"]).things
        asked = [thing for thing in things if getattr(thing, asked_of) in question["lead"].split()]
        assert [getattr(thing, told) for thing in asked] == [question["answer"]]


def test_stories_are_the_same_in_every_process_and_differ_between_splits():
    one, two = (ScenesInterleaved(seed=3, pictures=3, train=5, val=5, test=5) for _ in "12")
    assert one.examples("train")[2] == two.examples("train")[2] != one.examples("test")[2]
    assert {len(d.chunks) for d in ScenesInterleaved(0, 4, 60, 1, 1).examples("train")[:]} == {2, 3, 4}
    most = min(len(COLOURS), len(SHAPES)) - 1  # each needs a trait of its own, and one is left for what is beside it
    ScenesInterleaved(0, most, 1, 1, 1)
    with pytest.raises(UserError, match=r"pictures must be a whole number from 2 to 5; got 6"):
        ScenesInterleaved(0, most + 1, 1, 1, 1)


def test_answers_are_right_of_another_picture_or_neither():
    asked = {str(i): Asked("colour" if i < 2 else "shape", "red", frozenset({"blue"})) for i in range(4)}
    said = {"0": "red", "1": "blue and more", "2": "green", "3": ""}
    want = {"right": 0.25, "other_picture": 0.25, "neither": 0.5, "colour": 0.5, "shape": 0.0}
    rows = answer_scores(said, asked)
    assert shares(rows) == {f"answers/{name}": share for name, share in want.items()}
    assert [row["answers/right"] for row in rows] == [1, 0, 0, 0]
    assert [row["answers/colour"] for row in rows] == [1, 0, None, None]


# ---------------------------------------------------------------------------------------------------------------- files
def write_documents(folder, *records):
    (folder / "images").mkdir(exist_ok=True)
    Image.new("RGB", (20, 30), "red").save(folder / "images" / "a.jpg")
    (folder / "documents.jsonl").write_text("\n".join(json.dumps(r) if isinstance(r, dict) else r for r in records))
    return Documents(str(folder))


def segments(*values):
    return [{"type": "image", "image": v} if v.endswith(".jpg") else {"type": "text", "text": v} for v in values]


def test_a_page_becomes_chunks(tmp_path):
    page = {"id": "soup", "split": "train", "segments": segments("# Soup", "hot\n\nand  red", "a.jpg", "a.jpg", "eat")}
    (found,) = write_documents(tmp_path, page).examples("train")
    assert [(c.text, c.picture and c.picture.id) for c in found.chunks] == [
        ("# Soup hot and red", None),
        ("", "soup/0"),
        ("eat", "soup/1"),
    ]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("{", r"line 1: .* is expected"),
        ({"id": "a", "segments": [{"type": "video", "video": "x"}]}, "a segment of type 'video'"),
        ({"id": "a", "segments": [{"type": "text", "text": 3}]}, "text is no string"),
        ({"id": "a", "segments": segments("missing.jpg")}, "pictures that .* names are missing"),
        ({"id": "a", "segments": segments("../../a.jpg")}, "leads out of the folder"),
        ({"id": "a", "split": "dev", "segments": segments("hi")}, "split 'dev' is none of"),
    ],
)
def test_malformed_documents_are_named(tmp_path, record, message):
    with pytest.raises(UserError, match=message):
        write_documents(tmp_path, record)


def test_missing_and_repeated_documents_are_named(tmp_path):
    with pytest.raises(UserError, match=r"documents\.jsonl does not exist; put your documents there"):
        Documents(str(tmp_path / "nowhere"))
    twice = {"id": "a", "segments": segments("hi")}
    with pytest.raises(UserError, match="line 2: the id a has been used"):
        write_documents(tmp_path, twice, twice)


# -------------------------------------------------------------------------------------------------------------- batches
def stories(**options):
    source = ScenesInterleaved(seed=0, pictures=4, train=12, val=4, test=4)
    how = {"max_images": 3, "p_next": 0.0, "image_size": 32, "batch_size": 4, "max_tokens": 120, "seed": 0}
    return DocumentData(source, Characters(), **{**how, **options})


def pairs(**options):
    how = {"image_size": 32, "batch_size": 4, "captions_per_image": 1, "max_tokens": 60, "seed": 0}
    return CaptionData(Scenes(train=8, val=4, test=4), Characters(), **{**how, **options})


def test_a_batch_of_stories_carries_its_pictures():
    batch = next(iter(stories().train_dataloader()))
    assert batch.pixels_IM3hw.shape[1] == batch.text.phi_BT.max() <= 3
    for i in range(4):
        assert batch.image_valid_IM[i].sum() == batch.text.phi_BT[i].max()
        assert (batch.pixels_IM3hw[i].flatten(1).float().std(1) > 0).tolist() == batch.image_valid_IM[i].tolist()


def test_some_training_documents_look_ahead_and_no_others():
    behind, ahead = (next(iter(stories(p_next=p).train_dataloader())).text.phi_BT for p in (0.0, 1.0))
    assert (behind[:, 0] == 0).all() and (ahead[:, 0] == 1).all()
    halves = torch.cat([b.text.phi_BT[:, 0] for b in stories(p_next=0.5).train_dataloader()])
    assert 0 < halves.sum() < 12
    assert (next(iter(stories(p_next=1.0).val_dataloader())).text.phi_BT[:, 0] == 0).all()


def test_tagged_captions_have_the_form_of_documents_with_one_picture():
    plain, tagged = (next(iter(pairs(image_tag=tag).train_dataloader())).text for tag in (False, True))
    assert (tagged.ids_BT[:, 1] == TAG).all() and torch.equal(tagged.ids_BT[:, 2:], plain.ids_BT[:, 1:])
    assert (tagged.phi_BT[:, 0] == 0).all() and torch.equal(tagged.phi_BT[:, 1:], plain.phi_BT)
    assert not tagged.target_BT[:, :2].any() and torch.equal(tagged.target_BT[:, 2:], plain.valid_BT[:, 1:])


# -------------------------------------------------------------------------------------------------------------- mixture
def mixture(schedule="accumulate", **weights):
    return Mixture({"pairs": pairs(), "stories": stories()}, weights or {"pairs": 2.0, "stories": 0.5}, schedule)


def test_data_sets_take_turns_until_the_longest_is_through():
    batches = list(mixture().train_dataloader())
    assert [b.dataset for b in batches] == ["pairs", "stories"] * 3
    assert {b.dataset: b.weight for b in batches} == {"pairs": 4.0, "stories": 1.0}  # the trainer divides by two
    assert {b.dataset: b.weight for b in mixture("round_robin").train_dataloader()} == {"pairs": 2.0, "stories": 0.5}
    assert mixture().batches_per_update == 2 and mixture("round_robin").batches_per_update == 1
    seen = [id for b in batches if b.dataset == "stories" for id in b.ids]
    assert len(set(seen)) == 12


def test_weight_zero_leaves_a_data_set_out():
    loader = mixture(pairs=1.0, stories=0.0).train_dataloader()
    assert {b.dataset for b in loader} == {"pairs"}


def test_a_mixture_goes_on_where_it_stopped():
    whole = [b.ids for b in mixture().train_dataloader()]
    loader = mixture().train_dataloader()
    batches = iter(loader)
    first = [next(batches).ids for _ in range(3)]
    state = loader.state_dict()
    again = mixture().train_dataloader()
    again.load_state_dict(state)
    assert first + [b.ids for b in again] == whole


@pytest.mark.parametrize(
    ("weights", "schedule", "message"),
    [
        ({"pairs": 1.0}, "accumulate", "must name the data sets of data.members, pairs, stories"),
        ({"pairs": -1.0, "stories": 1.0}, "accumulate", "0 or more and not all 0"),
        ({"pairs": 0.0, "stories": 0.0}, "accumulate", "0 or more and not all 0"),
        ({"pairs": 1.0, "stories": 1.0}, "both", "accumulate or round_robin; got 'both'"),
    ],
)
def test_wrong_mixtures_are_refused(weights, schedule, message):
    with pytest.raises(UserError, match=message):
        mixture(schedule, **weights)
