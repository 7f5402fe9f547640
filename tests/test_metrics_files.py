"""Readers of predictions and references: the formats people have, and one sentence for what is wrong with a file."""

from __future__ import annotations

import json

import pytest

from src.errors import UserError
from src.metrics.files import read_predictions, read_references
from src.metrics.ids import match, tidy

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


def said(path):
    return read_predictions(path).captions


def known(path, ids, split=None, kind=None, own=False):
    """The references that predictions with these ids would meet."""
    pictures = read_references(path, split)
    return match(dict.fromkeys(ids, "a"), pictures, path, kind, own).references


def test_predictions_as_json_and_as_lines(tmp_path):
    rows = [{"image_id": 17, "caption": "a dog"}, {"image_id": "42", "caption": "caf\u00e9\u2028cat"}]
    expected = {"17": "a dog", "42": "caf\u00e9\u2028cat"}
    assert said(write(tmp_path, rows)) == expected
    assert said(write(tmp_path, "\ufeff" + json.dumps(rows))) == expected
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n"
    assert said(write(tmp_path, lines, "p.jsonl")) == expected
    own = '{"id": "17", "caption": "a dog", "references": ["A dog."]}\n'  # a run's predictions.jsonl
    assert said(write(tmp_path, own, "p.jsonl")) == {"17": "a dog"}


def test_the_same_caption_twice_is_one_prediction(tmp_path):
    rows = [{"image_id": 1, "caption": "a"}, {"image_id": "1", "caption": "a"}]
    assert said(write(tmp_path, rows)) == {"1": "a"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{]", "is not JSON"),
        ("[]", "an empty list"),
        ({"image_id": 1}, 'Entry 1 .* has no "caption"'),
        ({"images": [{"id": 1}]}, "it holds an object"),
        ({"1": ["a", "b"]}, "Entry 1 .* has 2 captions; one caption of each picture is scored"),
        ({"1": []}, 'Entry 1 .* has no "caption"'),
        (
            [{"image_id": 1, "caption": "a"}, {"image_id": "001", "caption": "b"}],
            "two different captions for image_id 1",
        ),
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
        read_references(tmp_path)
    (tmp_path / "latin.json").write_bytes(b'["caf\xe9"]')
    with pytest.raises(UserError, match="not UTF-8"):
        read_predictions(tmp_path / "latin.json")
    with pytest.raises(UserError, match=r"Line 2 of .*p\.jsonl is not JSON"):
        read_predictions(write(tmp_path, '{"image_id": 1, "caption": "a"}\n{"image', "p.jsonl"))


@pytest.mark.parametrize("content", [KARPATHY, COCO], ids=["karpathy", "coco"])
@pytest.mark.parametrize("ids", [("17", "42"), ("b_17.jpg", "b_42.jpg"), ("b_17", "b_42")])
def test_references_take_the_names_that_predictions_use(tmp_path, content, ids):
    expected = dict(zip(ids, (["A dog.", "One dog"], ["A cat."]), strict=True))
    assert known(write(tmp_path, content), ids) == expected


def test_karpathy_numbers_and_splits(tmp_path):
    path = write(tmp_path, KARPATHY)
    assert list(known(path, ["0", "1"])) == ["0", "1"]
    assert known(path, ["17"], split="test") == {"17": ["A dog.", "One dog"]}
    with pytest.raises(UserError, match=r"has no split val; it has test \(1\), train \(1\)"):
        read_references(path, split="val")
    with pytest.raises(UserError, match="does not say which split a picture is in; leave split=test out"):
        read_references(write(tmp_path, COCO), split="test")


def picture(**changes):
    return {"images": [{**KARPATHY["images"][0], **changes}]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], 'Entry 1 .* has no "image_id"'),
        ([], "it holds an empty list"),
        ({"info": 1}, """should hold COCO's "annotations", Karpathy's "images", or .*; it holds an object"""),
        ([{"image": "a.jpg"}], 'Entry 1 .* has no "caption"'),
        ([{"image": "a.jpg", "caption": "a", "split": x} for x in ("val", "test")], "Entry 2 .* in another split"),
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
        known(write(tmp_path, content), ["17"])
    assert "file.json" in str(error.value) and "\n" not in str(error.value)


# --------------------------------------------------------------------------------------------------------------------
# which picture an id means
# --------------------------------------------------------------------------------------------------------------------
def numbered(count=6):
    """A list of pictures 1.jpg, 2.jpg ... whose imgid is another number, also one of 1, 2 ..."""
    return {
        "images": [
            {"filename": f"{n}.jpg", "imgid": n % count + 1, "split": "test", "sentences": [{"raw": f"picture {n}"}]}
            for n in range(1, count + 1)
        ]
    }


def test_ids_that_mean_two_pictures_are_refused_unless_one_says_which(tmp_path):
    path = write(tmp_path, numbered())
    ids = [str(n) for n in range(1, 7)]
    with pytest.raises(UserError, match="as file_stem and as imgid, which mean different pictures") as error:
        known(path, ids)
    assert "(1 is 1.jpg or 6.jpg); ids=file_stem or ids=imgid says which" in str(error.value)
    assert known(path, ids, kind="file_stem")["2"] == ["picture 2"]
    assert known(path, ids, kind="imgid")["2"] == ["picture 1"]
    assert known(path, [f"{id}.jpg" for id in ids])["2.jpg"] == ["picture 2"]
    with pytest.raises(UserError, match=r"ids=cocoid is no name that all pictures .* have file_stem, file_name, imgid"):
        known(path, ids, kind="cocoid")
    with pytest.raises(UserError, match="as file_stem and as imgid"):
        known(path, [*ids[1:], "7"])  # one more than there is: as many are found as imgid as by name


def test_ids_off_by_one_are_refused_too(tmp_path):
    content = numbered()
    for number, image in enumerate(content["images"]):
        image["imgid"] = number
    with pytest.raises(UserError, match="as imgid and as file_stem"):
        known(write(tmp_path, content), [str(n) for n in range(6)])


def test_a_runs_ids_are_its_datas(tmp_path):
    """data.karpathy: COCO's number, and elsewhere the file's name without suffix; data.folder: the file's name."""
    ids = [str(n) for n in range(1, 7)]
    content = numbered()
    assert known(write(tmp_path, content), ids, own=True)["2"] == ["picture 2"]
    for number, image in enumerate(content["images"], 1):
        image["cocoid"] = 7 - number
    assert known(write(tmp_path, content), ids, own=True)["2"] == ["picture 5"]
    table = write(tmp_path, "image,caption\na.jpg,A dog.\nb/a.jpg,A cat.\n", "captions.csv")
    assert known(table, ["a.jpg", "b/a.jpg"], own=True) == {"a.jpg": ["A dog."], "b/a.jpg": ["A cat."]}
    row = {"id": "1", "caption": "a", "references": ["a"]}
    assert read_predictions(write(tmp_path, [row], "p.jsonl")).of_run
    assert not read_predictions(write(tmp_path, [{**row, "image_id": "1"}], "p.jsonl")).of_run


@pytest.mark.parametrize(
    ("id", "name"),
    [(42, "42"), (42.0, "42"), ("000000000042", "42"), ("42.0", "42"), ("0", "0"), (0.5, "0.5"), ("0x42", "0x42")],
)
def test_numbers_are_one_id_however_they_are_written(id, name):
    assert tidy(id) == name


@pytest.mark.parametrize(
    ("listed", "predicted", "found"),
    [
        (["a/0.jpg", "a/1.jpg", "b/0.jpg"], ["a/0.jpg", "photos/b/0.jpg", "a/1.jpg"], [0, 2, 1]),
        (["a/0.jpg", "a/1.jpg", "b/0.jpg"], ["a/0", "a/1", "b/0"], [0, 1, 2]),
        (["v/x.jpg", "v/y.jpg"], ["y.jpg", "x.jpg"], [1, 0]),
        (["COCO_val2014_000000000042.jpg", "COCO_val2014_000000000007.jpg"], [7, 42], [1, 0]),
        (["COCO_val2014_000000000042.jpg"], ["/data/val2014/COCO_val2014_000000000042.jpg"], [0]),
    ],
)
def test_files_are_found_with_fewer_and_with_more_folders(tmp_path, listed, predicted, found):
    entries = [{"image": name, "caption": [f"caption {n}", "another"]} for n, name in enumerate(listed)]
    pictures = read_references(write(tmp_path, entries))
    rows = [{"image_id": id, "caption": str(id)} for id in predicted]
    predictions = said(write(tmp_path, rows, "p.json"))
    matched = match(predictions, pictures, tmp_path)
    by_caption = {caption: matched.references[id][0] for id, caption in matched.predictions.items()}
    assert by_caption == {str(id): f"caption {n}" for id, n in zip(predicted, found, strict=True)}


def test_a_picture_of_another_folder_is_another_picture(tmp_path):
    path = write(tmp_path, [{"image": "a/0.jpg", "caption": "a"}, {"image": "a/1.jpg", "caption": "b"}])
    matched = match({"b/0.jpg": "x", "a/1.jpg": "y"}, read_references(path), path)
    assert matched.predictions == {"b/0.jpg": "x", "a/1.jpg": "y"} and list(matched.references) == [
        "a/0.jpg",
        "a/1.jpg",
    ]
    with pytest.raises(UserError, match=r"two different captions for the picture a/1.jpg .*, the second as 1.jpg"):
        match({"a/1.jpg": "x", "1.jpg": "y"}, read_references(path), path)


# --------------------------------------------------------------------------------------------------------------------
# files as they are
# --------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("content", "name"),
    [
        ({"17": "a dog", "42": "a cat"}, "p.json"),
        ({"17": ["a dog"], "42": ["a cat"]}, "p.json"),
        ([{"image_id": 17.0, "caption": "a dog"}, {"image_id": "000000000042", "caption": ["a cat"]}], "p.json"),
        ([{"image_id": 17, "caption": "a dog"}, {"image_id": 42, "caption": "a cat"}], "p.jsonl"),
        ('{"image_id": 17, "caption": "a dog"}\n{"id": 42, "caption": "a cat"}\n', "p.json"),
        (
            '{"image": "photos/b_17.jpg", "caption": "a dog"}\n{"image": "photos/b_42.jpg", "caption": "a cat"}',
            "c.jsonl",
        ),
        ([{"image_name": "b_17.jpg", "prediction": "a dog"}, {"file_name": "b_42.jpg", "caption": "a cat"}], "p.json"),
        ("image,caption\nb_17.jpg,a dog\nb_42.jpg,a cat\n", "p.csv"),
    ],
)
@pytest.mark.parametrize("references", [KARPATHY, COCO], ids=["karpathy", "coco"])
def test_result_files_of_many_systems(tmp_path, content, name, references):
    predictions = said(write(tmp_path, content, name))
    path = write(tmp_path, references)
    matched = match(predictions, read_references(path), path)
    assert list(matched.predictions.values()) == ["a dog", "a cat"]
    assert [matched.references[id][0] for id in matched.predictions] == ["A dog.", "A cat."]


AB = (["A dog, running.", "One dog"], ["A cat."])


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ('image,caption\nx/a.jpg,"A dog, running."\nb.jpg,A cat.\nx/a.jpg,One dog\n', "captions.csv"),
        (
            f'{{"image": "x/a.jpg", "captions": {json.dumps(AB[0])}}}\n{{"image": "b.jpg", "caption": "A cat."}}',
            "c.jsonl",
        ),
        ([{"image": "x/a.jpg", "caption": AB[0]}, {"image": "b.jpg", "caption": AB[1]}], "r.json"),
        ({"x/a.jpg": AB[0], "b.jpg": "A cat."}, "r.json"),
    ],
)
def test_references_of_a_folder_and_of_lists(tmp_path, content, name):
    expected = {"x/a": ["A dog, running.", "One dog"], "b": ["A cat."]}
    assert known(write(tmp_path, content, name), ["x/a", "b"]) == expected


def test_predictions_that_bring_their_references(tmp_path):
    magic = [{"split": "test", "image_name": "a.jpg", "captions": ["A dog.", "One dog"], "prediction": "a dog"}]
    found = read_predictions(write(tmp_path, magic))
    assert found.captions == {"a.jpg": "a dog"} and found.references == {"a.jpg": ["A dog.", "One dog"]}
    assert read_predictions(write(tmp_path, [*magic, {"image_id": 1, "caption": "a"}])).references is None
    assert read_references(write(tmp_path, magic), "test")[0].captions == ["A dog.", "One dog"]


def test_restval_is_train(tmp_path):
    images = [
        {**KARPATHY["images"][0], "cocoid": n, "split": split} for n, split in enumerate(("train", "restval", "val"))
    ]
    path = write(tmp_path, {"images": images})
    assert [picture.names["cocoid"] for picture in read_references(path, "train")] == ["0", "1"]
    assert read_references(path, "restval") == read_references(path, "train")


def test_a_table_without_splits_has_those_of_data_folder(tmp_path):
    path = write(tmp_path, "image,caption\na.jpg,A dog.\nb.jpg,A cat.\n", "captions.csv")
    split = {"a.jpg": "test", "b.jpg": "train"}.__getitem__
    assert [picture.names["file_name"] for picture in read_references(path, "test", split)] == ["a.jpg"]
    with pytest.raises(UserError, match="does not say which split"):  # a list of one split, as BLIP's
        read_references(write(tmp_path, [{"image": "a.jpg", "caption": "A dog."}]), "test", split)
    with pytest.raises(UserError, match="needs a header with the columns image and caption"):
        read_references(write(tmp_path, "a.jpg,A dog.\n", "captions.csv"))
