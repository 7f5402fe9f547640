"""Readers of predictions and references: the formats people have, and one sentence for what is wrong with a file."""

from __future__ import annotations

import json

import pytest

from src.errors import UserError
from src.metrics.files import read_predictions, read_references

KARPATHY = {
    "images": [
        {
            "filename": "b_17.jpg",
            "imgid": 0,
            "cocoid": 17,
            "split": "test",
            "sentences": [{"raw": "A dog.", "tokens": ["a", "dog"]}, {"raw": "One dog", "tokens": ["one", "dog"]}],
        },
        {"filename": "b_42.jpg", "imgid": 1, "cocoid": 42, "split": "train", "sentences": [{"raw": "A cat."}]},
    ]
}
COCO = {
    "images": [{"id": 17, "file_name": "b_17.jpg"}, {"id": 42, "file_name": "b_42.jpg"}],
    "annotations": [
        {"id": 1, "image_id": 17, "caption": "A dog."},
        {"id": 2, "image_id": 42, "caption": "A cat."},
        {"id": 3, "image_id": 17, "caption": "One dog"},
    ],
}


def write(folder, content, name="file.json"):
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_predictions_as_json_and_as_lines(tmp_path):
    rows = [{"image_id": 17, "caption": "a dog"}, {"image_id": "42", "caption": "caf\u00e9\u2028cat"}]
    expected = {"17": "a dog", "42": "caf\u00e9\u2028cat"}
    assert read_predictions(write(tmp_path, rows)) == expected
    assert read_predictions(write(tmp_path, "\ufeff" + json.dumps(rows))) == expected
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n"
    assert read_predictions(write(tmp_path, lines, "p.jsonl")) == expected
    own = '{"id": "17", "caption": "a dog", "references": ["A dog."]}\n'  # a run's predictions.jsonl
    assert read_predictions(write(tmp_path, own, "p.jsonl")) == {"17": "a dog"}


def test_the_same_caption_twice_is_one_prediction(tmp_path):
    rows = [{"image_id": 1, "caption": "a"}, {"image_id": "1", "caption": "a"}]
    assert read_predictions(write(tmp_path, rows)) == {"1": "a"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{]", "is not JSON"),
        ("[]", "an empty list"),
        ({"image_id": 1}, "it holds an object"),
        ("null", "it holds null"),
        ([3], 'Entry 1 .* has no "image_id"'),
        ([{"image_id": 1, "caption": "a"}, {"caption": "b"}], 'Entry 2 .* has no "image_id"'),
        ([{"image_id": True, "caption": "a"}], 'Entry 1 .* has no "image_id"'),
        ([{"image_id": 1, "caption": None}], 'Entry 1 .* has no "caption"'),
        ([{"image_id": 1, "caption": "a"}, {"image_id": 1, "caption": "b"}], "two different captions for image_id 1"),
    ],
)
def test_predictions_that_are_wrong(tmp_path, content, message):
    with pytest.raises(UserError, match=message) as error:
        read_predictions(write(tmp_path, content))
    assert "file.json" in str(error.value) and "\n" not in str(error.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.json can't be read: No such file"):
        read_predictions(tmp_path / "nowhere.json")
    with pytest.raises(UserError, match="can't be read: Is a directory"):
        read_references(tmp_path, ["1"])
    (tmp_path / "latin.json").write_bytes(b'["caf\xe9"]')
    with pytest.raises(UserError, match="not UTF-8"):
        read_predictions(tmp_path / "latin.json")
    with pytest.raises(UserError, match=r"Line 2 of .*p\.jsonl is not JSON"):
        read_predictions(write(tmp_path, '{"image_id": 1, "caption": "a"}\n{"image', "p.jsonl"))


@pytest.mark.parametrize("content", [KARPATHY, COCO], ids=["karpathy", "coco"])
@pytest.mark.parametrize("ids", [("17", "42"), ("b_17.jpg", "b_42.jpg"), ("b_17", "b_42")])
def test_references_take_the_names_that_predictions_use(tmp_path, content, ids):
    expected = dict(zip(ids, (["A dog.", "One dog"], ["A cat."]), strict=True))
    assert read_references(write(tmp_path, content), ids) == expected


def test_karpathy_numbers_and_splits(tmp_path):
    path = write(tmp_path, KARPATHY)
    assert list(read_references(path, ["0", "1"])) == ["0", "1"]
    assert read_references(path, ["17"], split="test") == {"17": ["A dog.", "One dog"]}
    with pytest.raises(UserError, match=r"has no split val; it has test \(1\), train \(1\)"):
        read_references(path, ["17"], split="val")
    with pytest.raises(UserError, match="does not say which split a picture is in; leave split=test out"):
        read_references(write(tmp_path, COCO), ["17"], split="test")


def picture(**changes):
    return {"images": [{**KARPATHY["images"][0], **changes}]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "it holds a list"),
        ({"info": 1}, 'neither "annotations" .* nor "images"'),
        ({"annotations": {}}, '"annotations" in .* should be a list; it is an object'),
        ({"annotations": []}, "has no pictures with captions"),
        ({"annotations": [{"image_id": 17}]}, 'Annotation 1 .* has no "caption"'),
        ({"images": [{"filename": "a"}]}, 'Picture 1 .* has no "sentences"'),
        (picture(sentences={}), '"sentences" in .* should be a list'),
        (picture(sentences=["a"]), 'Picture 1 .* has no "raw"'),
        (picture(split=[1]), 'Picture 1 .* has no "split"'),
        (picture(cocoid=None), 'Picture 1 .* has no "cocoid"'),
        ({"images": [KARPATHY["images"][0]] * 2}, "two pictures with the cocoid 17"),
        (picture(cocoid=5, imgid=6, filename="x.jpg"), "No prediction is for a picture .* like 17, .* cocoid 5"),
    ],
)
def test_references_that_are_wrong(tmp_path, content, message):
    with pytest.raises(UserError, match=message) as error:
        read_references(write(tmp_path, content), ["17"])
    assert "file.json" in str(error.value) and "\n" not in str(error.value)
