"""Questions about photographs: their files, their scores, and how they are asked and answered."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from conftest import FUSIONS, Characters
from PIL import Image
from test_captioner import make_captioner

from src.build import Parts
from src.contracts import Example, Line, Target, View
from src.data.answers import commonest_answers
from src.data.entailment import FILES, LABELS, Entailment
from src.data.questions import Questions
from src.decoding.greedy import Greedy
from src.errors import UserError
from src.loading.batches import prompt_rows, text_rows
from src.loading.features import of_pictures
from src.loading.module import CaptionData
from src.loading.rows import Rows
from src.metrics.vqa import accuracy, normalise_answer
from src.tasks.questions import Answering, ranked


# --------------------------------------------------------------------------------------------------------------------
# accuracy
# --------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("m", range(11))
def test_accuracy_of_ten_annotators_is_that_of_the_formula(m):
    answers = ["dog"] * m + [f"other {i}" for i in range(10 - m)]
    assert accuracy("dog", answers) == pytest.approx(min(1.0, 0.3 * m))


def test_accuracy_is_the_mean_over_annotators_left_out():
    draw = np.random.default_rng(0)
    for _ in range(200):
        answers = draw.choice(["cat", "dog", "cow"], size=draw.integers(2, 12)).tolist()
        left_out = [answers[:i] + answers[i + 1 :] for i in range(len(answers))]
        expected = np.mean([min(1, others.count("cat") / 3) for others in left_out])
        assert accuracy("cat", answers) == pytest.approx(expected)


def test_one_annotator_is_right_or_wrong():
    assert accuracy(" Red ", ["red"]) == 1 and accuracy("blue", ["red"]) == 0
    with pytest.raises(ValueError, match="no answer"):
        accuracy("red", [])


@pytest.mark.parametrize(
    ("answer", "form"),
    [
        ("The Dog", "dog"),
        ("two", "2"),
        ("none", "0"),
        ("ten cats", "10 cats"),
        ("dont know", "don't know"),
        ("couldntve", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("yes, it is", "yes it is"),
        ("black/white", "black white"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("st. john", "st john"),
        ("a\nb", "b"),
        ("red?", "red"),
        ("t-shirt", "t shirt"),
        ("its", "its"),
    ],
)
def test_answers_are_compared_in_the_form_of_the_official_evaluation(answer, form):
    assert normalise_answer(answer) == form
    assert normalise_answer(form) == form


# --------------------------------------------------------------------------------------------------------------------
# files
# --------------------------------------------------------------------------------------------------------------------
def vqa_folder(root, change=lambda part, questions, annotations: None, version="v2_"):
    """Three pictures of train and of val, two questions about each."""
    for part, first in (("train", 1), ("val", 11)):
        (root / f"{part}2014").mkdir(parents=True)
        questions, annotations = [], []
        for image in range(first, first + 3):
            colour = np.full((20, 20, 3), 10 * image, dtype=np.uint8)
            Image.fromarray(colour).save(root / f"{part}2014" / f"COCO_{part}2014_{image:012}.jpg")
            for k in range(2):
                id = image * 1000 + k
                questions.append({"image_id": image, "question_id": id, "question": f"What is number {k}?"})
                said = [{"answer": "yes", "answer_id": i} for i in range(9)] + [{"answer": "maybe", "answer_id": 10}]
                row = {"question_id": id, "image_id": image, "answer_type": "yes/no", "answers": said}
                annotations.append(row)
        change(part, questions, annotations)
        names = (f"{version}OpenEnded_mscoco_{part}2014_questions.json", f"{version}mscoco_{part}2014_annotations.json")
        (root / names[0]).write_text(json.dumps({"questions": questions}))
        (root / names[1]).write_text(json.dumps({"annotations": annotations}))
    return root


@pytest.mark.parametrize("version", ["v2_", ""])
def test_files_of_vqa_and_ok_vqa_are_read(tmp_path, version):
    source = Questions("vqa", str(vqa_folder(tmp_path, version=version)))
    train = source.examples("train")
    assert len(train) == 6 and sum(len(source.examples(s)) for s in source.splits()) == 12
    assert train[0].question == "What is number 0?" and train[0].captions == ("yes",) * 9 + ("maybe",)
    assert train[0].extra == {"picture": "1", "kind": "yes_no"} and train[0].id == "1000"
    assert source.pixels(train[0], 8).shape == (3, 8, 8)
    held_out = [source.examples(split) for split in source.splits() if split != "train"]
    for examples in held_out:  # questions about one picture stay together
        assert all(count == 2 for count in np.unique([e.extra["picture"] for e in examples], return_counts=True)[1])


def test_files_of_gqa_are_read(tmp_path):
    (tmp_path / "images").mkdir()
    for part in ("train", "val"):
        Image.new("RGB", (16, 16)).save(tmp_path / "images" / f"{part}7.jpg")
        question = {"imageId": f"{part}7", "question": "Is it red?", "answer": "no", "types": {"structural": "verify"}}
        (tmp_path / f"{part}_balanced_questions.json").write_text(json.dumps({f"{part}1": question}))
    (example,) = Questions("gqa", str(tmp_path)).examples("train")
    assert (example.question, example.captions, example.extra["kind"]) == ("Is it red?", ("no",), "verify")


def _no_answers(part, questions, annotations):
    annotations[0]["answers"] = []


def _empty_question(part, questions, annotations):
    questions[0]["question"] = "  "


def _question_alone(part, questions, annotations):
    annotations.pop(0)


def _annotation_alone(part, questions, annotations):
    questions.pop(0)


def _missing_picture(part, questions, annotations):
    questions[0]["image_id"] = annotations[0]["image_id"] = 99


def _twice(part, questions, annotations):
    questions.append(questions[-1])
    annotations.append(annotations[-1])


FAULTS = {
    "there is no answer": _no_answers,
    "the question is empty": _empty_question,
    "There is no annotation of the question 1000": _question_alone,
    "There is no question of this number": _annotation_alone,
    "pictures that .* names are missing": _missing_picture,
}


@pytest.mark.parametrize("said", FAULTS)
def test_what_is_faulty_is_told_or_left_out_and_counted(tmp_path, said):
    root = vqa_folder(tmp_path, FAULTS[said])
    with pytest.raises(UserError, match=said):
        Questions("vqa", str(root))
    source = Questions("vqa", str(root), on_error="skip", max_skipped=0.5)
    assert sum(len(source.examples(split)) for split in source.splits()) == 10
    assert len(source.faults.skipped) == 2
    with pytest.raises(UserError, match="max_skipped"):
        Questions("vqa", str(root), on_error="skip", max_skipped=0.01)


def test_a_question_that_is_listed_twice_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no annotation of the question|lists the question .* twice"):
        Questions("vqa", str(vqa_folder(tmp_path, _twice)))


def test_a_missing_root_says_what_to_download_and_half_a_set_what_lacks(tmp_path):
    with pytest.raises(UserError, match=r"download questions.*visualqa.org"):
        Questions("vqa", str(tmp_path))
    root = vqa_folder(tmp_path)
    (root / "v2_mscoco_val2014_annotations.json").unlink()
    with pytest.raises(UserError, match=r"no v2_mscoco_val2014_annotations\.json"):
        Questions("vqa", str(root))


def snli_ve_folder(root, **changed):
    """Two pictures, two pairs about each in every list; ``changed``: of the first pair of train."""
    (root / "flickr30k-images").mkdir(parents=True)
    for name in "12":
        Image.new("RGB", (16, 16)).save(root / "flickr30k-images" / f"{name}.jpg")
    for split, file in FILES.items():
        pairs = [
            {
                "pairID": f"{split}{k}",
                "Flickr30K_ID": "12"[k // 2],
                "sentence2": f"Number {k}.",
                "gold_label": LABELS[k % 3],
            }
            for k in range(4)
        ]
        pairs[0] |= changed if split == "train" else {}
        (root / file).write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs))
    return str(root)


def test_pairs_of_entailment_are_questions_with_one_answer(tmp_path):
    source = Entailment("snli_ve", snli_ve_folder(tmp_path), "flickr30k-images")
    assert source.splits() == ("train", "val", "test") and source.task == "vqa"
    example = source.examples("test")[1]
    assert (example.id, example.question, example.captions) == ("test1", "Number 1.", ("neutral",))
    assert example.extra == {"picture": "1", "kind": "neutral"} and source.pixels(example, 8).shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"sentence2": " "}, "snli_ve_train.jsonl, line 1: .*sentence2 is empty"),
        ({"gold_label": "-"}, "gold_label is none of entailment, neutral, contradiction"),
        ({"pairID": None}, "pairID is missing"),
        ({"pairID": "train1"}, "The pair train1 is listed twice"),
        ({"Flickr30K_ID": "9"}, "pictures that .* names are missing"),
    ],
)
def test_faulty_pairs_are_told_or_left_out_and_counted(tmp_path, changed, said):
    root = snli_ve_folder(tmp_path, **changed)
    with pytest.raises(UserError, match=said):
        Entailment("snli_ve", root, "flickr30k-images")
    source = Entailment("snli_ve", root, "flickr30k-images", on_error="skip", max_skipped=0.5)
    assert len(source.examples("train")) == 3 and len(source.faults.skipped) == 1
    with pytest.raises(UserError, match="max_skipped"):
        Entailment("snli_ve", root, "flickr30k-images", on_error="skip", max_skipped=0.01)


def test_missing_lists_of_pairs_say_what_to_download(tmp_path):
    with pytest.raises(UserError, match=r"no snli_ve_train.jsonl; download .*github.com/necla-ml/SNLI-VE"):
        Entailment("snli_ve", str(tmp_path), "images")


# --------------------------------------------------------------------------------------------------------------------
# rows and prompts
# --------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("tag", [False, True])
def test_only_the_answer_is_learnt_and_a_prompt_is_the_beginning_of_its_row(tag):
    tokenizer, lines = Characters(), [Line("yes", "Is it?"), Line("no", "Why not, then?"), Line("a dog")]
    text = text_rows(lines, tokenizer, 40, 1, tag)
    for line, ids_T, target_T in zip(lines, text.ids_BT, text.targets(), strict=True):
        said = f" {line.said}" if line.given else line.said
        assert (tokenizer.decode(ids_T[target_T]) == said and ids_T[target_T][-1] == tokenizer.eos) or not line.given
    prompt = prompt_rows([line.given for line in lines], tokenizer, 1, tag)
    for row, ids_T, phi_T in zip(range(3), text.ids_BT, text.phi_BT, strict=True):
        here_T = prompt.valid_BT[row]
        n = int(here_T.sum())
        assert prompt.ids_BT[row][here_T].tolist() == ids_T[:n].tolist()
        assert prompt.phi_BT[row][here_T].tolist() == phi_T[:n].tolist()
        assert here_T[-n:].all() and prompt.ragged  # padding on the left
        assert n == 1 + tag + len(lines[row].given)


def test_a_question_that_leaves_no_room_for_an_answer_is_refused(tmp_path):
    source = Questions("vqa", str(vqa_folder(tmp_path)))
    data = CaptionData(source, Characters(), 8, 2, 1, max_tokens=19)
    with pytest.raises(UserError, match=r"6 of the 6 questions .* longest needs 20"):
        data.examples("train")
    assert len(CaptionData(source, Characters(), 8, 2, 1, max_tokens=20).examples("train")) == 6


def test_pictures_of_several_questions_are_kept_once(tmp_path):
    examples = Questions("vqa", str(vqa_folder(tmp_path))).examples("train")

    class Cache:
        def __init__(self, pictures):
            self.pictures = pictures

        def visual(self, rows):
            return [self.pictures[row].image for row in rows]

    shared = of_pictures(examples, Cache)
    assert len(shared) == 6 and len(shared.cache.pictures) == 3
    assert shared.visual([5, 0, 1]) == [examples[i].image for i in (5, 0, 1)]
    one_each = examples[::2]
    assert isinstance(of_pictures(one_each, Cache), Cache)


# --------------------------------------------------------------------------------------------------------------------
# the task
# --------------------------------------------------------------------------------------------------------------------
class Few:
    """Pictures of noise with a question each."""

    name, has_images, interleaved, task = "few", True, False, "vqa"

    def __init__(self, n=7):
        answers = itertools.cycle(("ab", "b", "abc"))
        self._examples = [
            Example(f"q{i}", (next(answers),), extra={"kind": "odd" if i % 2 else "even"}, question="x" * (1 + i % 3))
            for i in range(n)
        ]

    def splits(self):
        return ("train", "test")

    def examples(self, split):
        return self._examples

    def pixels(self, example, size):
        own = torch.Generator().manual_seed(int(example.id[1:]))
        return torch.randint(0, 256, (3, size, size), dtype=torch.uint8, generator=own)


def parts_of(captioner, tag=False) -> Parts:
    source = Few()
    data = CaptionData(source, captioner.tokenizer, 12, 3, 1, max_tokens=12, image_tag=tag, rows=Rows(True, ends=False))
    return Parts(captioner, data)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_likeliest_answer_is_that_of_reading_every_one_of_them(fusion):
    captioner = make_captioner(fusion).eval()
    parts, answers = parts_of(captioner), ["ab", "b", "abc"]
    found = ranked(captioner, parts.data.questions("test"), answers)
    for place, example in enumerate(parts.data.examples("test")):
        sums = []
        for answer in answers:
            line = Line(answer, example.question)
            data = parts.data.with_examples("test", [Example(example.id, (answer,), question=example.question)])
            batch = next(iter(data.pictures("test")))
            text = data.texts([line])
            view = Rows(False, ends=captioner.fusion.reads_ends).lay(View(text, Target.next(text)), 1)
            sums.append(float(captioner.nats(captioner.memory(batch), view).sum()))
        assert found[example.id] == answers[int(np.argmin(sums))], (place, sums)


def test_scores_by_kind_with_the_gap_to_other_pictures(monkeypatch):
    captioner = make_captioner("cross_attention").eval()
    parts = parts_of(captioner)
    truth = {e.id: e.captions[0] for e in parts.data.examples("test")}
    wrong = iter([False, True])  # asked beside other pictures, nothing is right

    def caption(batches, decoder=None, prompted=False):
        assert prompted and isinstance(decoder, Greedy)
        amiss = next(wrong)
        return {id: "no" if amiss else f" {truth[id]}" for batch in batches for id in batch.ids}

    monkeypatch.setattr(captioner, "caption", caption)
    result = Answering().evaluate(parts, "test")
    assert result.scores["accuracy"] == 1 and result.scores["gap/accuracy"] == 1
    assert result.scores["accuracy/odd"] == result.scores["accuracy/even"] == 1
    assert result.headline == ("accuracy", 1.0)
    assert {"loss", "gap/loss", "ranked/accuracy"} <= result.scores.keys()
    assert result.rows[0]["caption"] == "x ab" and result.rows[0]["references"] == ["ab"]
    assert result.rows[1]["accuracy/even"] is None


def test_other_pictures_are_those_of_the_circle_and_questions_stay():
    parts = parts_of(make_captioner("cross_attention"))
    shown = [3, 0, 1, 2, 6, 4, 5]
    own = list(parts.data.questions("test"))
    other = list(parts.data.questions("test", shown))
    pixels = torch.cat([batch.pixels_IM3hw for batch in own])
    assert torch.equal(torch.cat([batch.pixels_IM3hw for batch in other]), pixels[shown])
    assert all(torch.equal(a.text.ids_BT, b.text.ids_BT) and a.ids == b.ids for a, b in zip(own, other, strict=True))


def test_the_commonest_answers_are_counted_once_a_question():
    assert commonest_answers(Few(), 2) == ["ab", "abc"]
    assert commonest_answers(Few(), 9) == ["ab", "abc", "b"]


def test_captions_are_no_questions():
    parts = parts_of(make_captioner("cross_attention"))
    parts.data.source.task = "caption"
    with pytest.raises(UserError, match="task=vqa needs questions"):
        Answering().check(parts, "test")
