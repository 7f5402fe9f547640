"""Sources: Karpathy's lists, folders of one's own, and captions without pictures."""

from __future__ import annotations

import gzip
import inspect
import json
import os
import re
import unicodedata
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from hydra import compose, initialize_config_dir
from hydra.utils import get_class, instantiate
from PIL import Image

from src.config.added_keys import ABSENT
from src.contracts import Source
from src.data.base import split_by_name
from src.data.captions_text import CaptionsText
from src.data.coco import CocoCaptions
from src.data.documents_file import Documents
from src.data.folder import Folder
from src.data.karpathy import Karpathy
from src.data.package_prose import PackageProse
from src.errors import UserError

DATA = sorted(path.stem for path in (ROOT / "conf" / "data").glob("[!_]*.yaml"))
REAL = os.environ.get("FLICKR8K_TINY")
needs_photographs = pytest.mark.skipif(
    not REAL, reason="set FLICKR8K_TINY to a folder with dataset.json and images/ of Flickr8k (96/16/16 pictures)"
)


def draw(path: Path, shade: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (24, 16), (shade, 50, 200)).save(path)


def entry(file: str, split: str, *captions: str, **more) -> dict:
    return {"filename": file, "split": split, "sentences": [{"raw": c} for c in captions or ("A dog .",)], **more}


@pytest.fixture
def flickr(tmp_path):
    """Writes a Karpathy folder of the given entries, with their pictures; returns its path."""

    def make(*entries: dict, draws: bool = True) -> str:
        (tmp_path / "dataset.json").write_text(json.dumps({"images": entries}))
        (tmp_path / "images").mkdir()
        for item in entries if draws else ():
            draw(tmp_path / "images" / item["filename"])
        return str(tmp_path)

    return make


# ------------------------------------------------------------------------------------------------------------ Karpathy
@needs_photographs
def test_real_photographs():
    source: Source = Karpathy("flickr8k", REAL)
    assert {split: len(source.examples(split)) for split in source.splits()} == {"train": 96, "val": 16, "test": 16}
    for example in source.examples("val"):
        assert len(example.captions) == 5 and example.id == Path(example.image).stem
        pixels_3hw = source.pixels(example, 64)
        assert pixels_3hw.shape == (3, 64, 64) and pixels_3hw.float().std() > 10


def test_coco_layout(tmp_path):
    """Pictures in two folders, ids from the picture numbers, restval counted as training."""
    entries = [
        entry("COCO_train2014_01.jpg", "train", filepath="train2014", cocoid=1),
        entry("COCO_val2014_02.jpg", "restval", filepath="val2014", cocoid=2),
        entry("COCO_val2014_03.jpg", "test", filepath="val2014", cocoid=3),
        entry("left_out.jpg", "none", filepath="val2014", cocoid=4),
    ]
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": entries}))
    for item in entries[:3]:
        draw(tmp_path / item["filepath"] / item["filename"])
    source = Karpathy("coco", str(tmp_path), images=".")
    assert source.splits() == ("train", "test")
    assert [example.id for example in source.examples("train")] == ["1", "2"]
    assert source.pixels(source.examples("test")[0], 32).shape == (3, 32, 32)


def test_karpathy_list_over_the_folders_of_2017(tmp_path):
    """The pictures of 2014 have other names there, and are in other folders than their splits of 2014."""
    entries = [
        entry("COCO_train2014_000000000009.jpg", "train", filepath="train2014", cocoid=9),
        entry("COCO_val2014_000000000042.jpg", "test", filepath="val2014", cocoid=42),
        entry("000000000073.jpg", "restval", cocoid="000000000073"),
        entry("000000000074.jpg", "val", filepath="val2017", cocoid=74),
    ]
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": entries}))
    files = [f"train2017/{9:012}.jpg", f"train2017/{42:012}.jpg", f"train2017/{73:012}.jpg", f"val2017/{74:012}.jpg"]
    for file in files:
        draw(tmp_path / file)
    source = Karpathy("coco", str(tmp_path), images=".")
    found = [example for split in ("train", "test", "val") for example in source.examples(split)]
    assert [example.id for example in found] == ["9", "000000000073", "42", "74"]
    assert {example.image for example in found} == {str(tmp_path / file) for file in files}


@pytest.mark.parametrize(
    ("pictures", "ids"),
    [
        ([("", "a.jpg", None), ("", "b/c.d.jpg", None), ("e", "f.png", None)], ["a", "c.d", "f"]),
        ([("", "CASE0/0.jpg", None), ("", "CASE1/0.jpg", None), ("", "1.jpg", None)], ["CASE0/0", "CASE1/0", "1"]),
        ([("one", "0.jpg", None), ("two", "0.jpg", None)], ["one/0", "two/0"]),
        ([("", "a.jpg", None), ("", "a.png", None), ("x", "a.jpg", None)], ["a.jpg", "a.png", "x/a.jpg"]),
        ([("x", "7.jpg", None), ("y", "z.jpg", 7), ("", "8.jpg", 8)], ["x/7", "7", "8"]),
    ],
)
def test_ids_are_the_shortest_names_that_tell_pictures_apart(tmp_path, pictures, ids):
    entries = []
    for folder, file, number in pictures:
        draw(tmp_path / "images" / folder / file)
        more = {} if number is None else {"cocoid": number}
        entries.append(entry(file, "train", **({"filepath": folder} if folder else {}), **more))
    (tmp_path / "dataset.json").write_text(json.dumps({"images": entries}))
    for how in ({}, {"on_error": "skip", "max_skipped": 0.0}):
        assert [example.id for example in Karpathy("own", str(tmp_path), **how).examples("train")] == ids


@pytest.mark.parametrize("name", ["flickr8k", "flickr30k", "coco"])
def test_missing_data_says_what_to_get_from_where(tmp_path, name):
    with pytest.raises(UserError, match=rf"dataset_{name}\.json.*https://.*data/{name}.*data\.root=") as raised:
        Karpathy(name, str(tmp_path / "nowhere"))
    assert "\n" not in str(raised.value)
    (tmp_path / "dataset.json").write_text('{"images": []}')
    with pytest.raises(UserError, match=r"images does not exist.*https://"):
        Karpathy(name, str(tmp_path))


def test_missing_pictures_are_counted_at_the_start(flickr):
    root = flickr(entry("a.jpg", "train"), entry("b.jpg", "val"), entry("c.jpg", "test"), draws=False)
    draw(Path(root) / "images" / "a.jpg")
    with pytest.raises(UserError, match=r"2 of the 3 pictures.*missing, e\.g\. .*b\.jpg"):
        Karpathy("flickr8k", root)


@pytest.mark.parametrize("name", ["../secret.jpg", "a/../../secret.jpg", "/etc/passwd", "..", ""])
def test_names_that_lead_out_are_refused(flickr, name):
    root = flickr(entry(name, "train"), draws=False)
    with pytest.raises(UserError, match="leads out of"):
        Karpathy("flickr8k", root)


def test_pictures_listed_twice_are_refused(flickr):
    """The second listing could be in another split: a test picture in training."""
    root = flickr(entry("a.jpg", "train"), entry("a.jpg", "test"))
    with pytest.raises(UserError, match="picture a twice"):
        Karpathy("flickr8k", root)


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"images": [{"split": "train"}]}', '{"images": []}', '{"pictures": 1}']
)
def test_other_json_is_refused(flickr, content):
    root = flickr()
    (Path(root) / "dataset.json").write_text(content)
    with pytest.raises(UserError, match=r"dataset\.json"):
        Karpathy("flickr8k", root)


def test_damaged_picture_is_named(flickr):
    root = flickr(entry("a.jpg", "train"), entry("b.jpg", "train"))
    (Path(root) / "images" / "b.jpg").write_bytes(b"")
    source = Karpathy("flickr8k", root)
    with pytest.raises(UserError, match=r"b\.jpg"):
        source.pixels(source.examples("train")[1], 32)


def test_preparing_changes_the_resize(flickr):
    root = flickr(entry("a.png", "train"))
    half = Image.new("RGB", (40, 20))
    half.paste("red", (0, 0, 10, 20))
    half.save(Path(root) / "images" / "a.png")
    source = Karpathy("flickr8k", root)
    example = source.examples("train")[0]
    assert source.pixels(example, 20)[0, 10, 2] == 255
    source.prepare({"size": 20, "resize": "crop", "interpolation": "bilinear", "mean": [0], "std": [1]})
    assert source.pixels(example, 20)[0, 10, 2] == 0


# -------------------------------------------------------------------------------------------------------------- folder
def own(root: Path, table: str, name: str = "captions.csv", pictures: tuple[str, ...] = ("a.jpg", "b.png")) -> str:
    (root / name).write_text(table, encoding="utf-8")
    for picture in pictures:
        draw(root / picture)
    return str(root)


def test_folder_with_a_table(tmp_path):
    table = 'image,caption,split\na.jpg,A dog.,train\nsub/b.png,"One cat, two cats",test\na.jpg,Another dog,train\n'
    source: Source = Folder(own(tmp_path, "\ufeff" + table, pictures=("a.jpg", "sub/b.png")))  # with a byte order mark
    assert source.splits() == ("train", "test")
    assert [(e.id, e.captions) for e in source.examples("train")] == [("a.jpg", ("A dog.", "Another dog"))]
    assert [(e.id, e.captions) for e in source.examples("test")] == [("sub/b.png", ("One cat, two cats",))]
    assert source.pixels(source.examples("test")[0], 32).shape == (3, 32, 32)


def test_folder_with_json_lines(tmp_path):
    dog = '{"image": "a.jpg", "captions": ["A dog.", "Dog"], "split": "val"}'
    cat = '{"image": "b.png", "caption": "Ä cat", "split": "train"}'
    source = Folder(own(tmp_path, f"{dog}\n\n{cat}", "captions.jsonl"))
    assert source.examples("val")[0].captions == ("A dog.", "Dog")
    assert source.examples("train")[0].captions == ("Ä cat",)


def test_folder_without_splits_is_split_for_good(tmp_path):
    """About 80 : 10 : 10 by name; more pictures and another order of rows move none."""

    def splits(rows: list[str]) -> dict[str, str]:
        own(tmp_path, "image,caption\n" + "".join(f"{row},a dog\n" for row in rows), pictures=())
        source = Folder(str(tmp_path))
        return {example.id: split for split in source.splits() for example in source.examples(split)}

    names = [f"{i}.jpg" for i in range(400)]
    for name in names:
        (tmp_path / name).touch()
    before, after = splits(names[:300]), splits(names[::-1])
    assert all(after[name] == split for name, split in before.items())
    counts = Counter(after.values())
    assert abs(counts["train"] - 320) < 30 and abs(counts["val"] - 40) < 20 and abs(counts["test"] - 40) < 20


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("captions.csv", "a.jpg,A dog\nb.png,A cat\n", "header"),
        ("captions.csv", "", "header"),
        ("captions.csv", "image,caption\na.jpg,one, two\n", "line 2.*quotes"),
        ("captions.csv", "image,caption\na.jpg\n", "line 2"),
        ("captions.csv", 'image,caption\na.jpg,"never closed\n', "UTF-8 table"),
        ("captions.csv", "image,caption\n", "no captions"),
        ("captions.csv", "image,caption\nc.jpg,A dog\n", r"1 of the 1 pictures.*c\.jpg"),
        ("captions.csv", "image,caption\n../a.jpg,A dog\n", "leads out"),
        ("captions.csv", "image,caption,split\na.jpg,A dog,dev\n", "line 2.*'dev'"),
        ("captions.csv", "image,caption,split\na.jpg,A dog,train\n./a.jpg,A dog,test\n", "two splits"),
        ("captions.jsonl", '{"image": "a.jpg"}\n', "line 1.*expected"),
        ("captions.jsonl", '\n{"image": "a.jpg", "caption": 3}\n', "line 2.*strings"),
        ("captions.jsonl", "[1]\n", "line 1.*expected"),
        ("captions.jsonl", "image,caption\n", "line 1.*expected"),
        ("other.csv", "image,caption\n", r"captions\.csv or captions\.jsonl"),
    ],
)
def test_malformed_tables_are_explained(tmp_path, name, content, message):
    with pytest.raises(UserError, match=message):
        Folder(own(tmp_path, content, name))


def test_tables_in_other_encodings_are_refused(tmp_path):
    own(tmp_path, "")
    (tmp_path / "captions.csv").write_bytes("image,caption\na.jpg,ein schöner Hund\n".encode("latin-1"))
    with pytest.raises(UserError, match="UTF-8"):
        Folder(str(tmp_path))


CAPTIONS = {"a.jpg": ("A dog, running .", "Dog"), "b.jpg": ('A "big" cat',)}
KAGGLE = 'image,caption\na.jpg,"A dog, running ."\na.jpg,Dog\nb.jpg,"A ""big"" cat"\n'
FLICKR30K = """image_name| comment_number| comment
a.jpg| 0| A dog, running .
a.jpg| 1   Dog
b.jpg| 0| A "big" cat
"""
METADATA = "\n".join(
    json.dumps({"file_name": name, "text": one}) for name, captions in CAPTIONS.items() for one in captions
)


@pytest.mark.parametrize(
    ("table", "content", "pictures", "options"),
    [
        ("captions.txt", KAGGLE, "Images", {}),
        ("captions.txt", KAGGLE, "images", {}),
        ("results.csv", FLICKR30K, "flickr30k_images", {}),
        ("results.csv", FLICKR30K.replace("| ", "|"), ".", {}),
        ("metadata.jsonl", METADATA, ".", {}),
        ("metadata.csv", KAGGLE.replace("image,caption", "file_name,text"), ".", {}),
        ("captions.csv", KAGGLE.replace("image,caption", "filepath,title"), ".", {}),
        ("captions.csv", "filepath\ttitle\na.jpg\tA dog, running .\na.jpg\tDog\nb.jpg\tA \"big\" cat\n", ".", {}),
        ("captions.csv", 'image;caption\na.jpg;A dog, running .\na.jpg;Dog\nb.jpg;"A ""big"" cat"\n', ".", {}),
        (
            "t/my.tsv", "n\tpath\tsaid\n1\ta.jpg\tA dog, running .\n2\ta.jpg\tDog\n3\tb.jpg\tA \"big\" cat\n", "p/q",
            {"captions": "t/my.tsv", "images": "p/q", "image_column": "path", "caption_column": "said"},
        ),
        (
            "my.txt", 'image,caption,said\na.jpg,-,"A dog, running ."\na.jpg,-,Dog\nb.jpg,-,"A ""big"" cat"\n', ".",
            {"captions": "my.txt", "caption_column": "said"},
        ),
        (
            "my.txt", "image~caption\na.jpg~A dog, running .\na.jpg~Dog\nb.jpg~A \"big\" cat\n", ".",
            {"captions": "my.txt", "separator": "~"},
        ),
        (
            "my.jsonl", METADATA.replace("file_name", "path").replace("text", "said"), "p",
            {"captions": "my.jsonl", "images": "p", "image_column": "path", "caption_column": "said"},
        ),
    ],
)  # fmt: skip
def test_tables_as_people_have_them(tmp_path, table, content, pictures, options):
    (tmp_path / table).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / table).write_text(content, encoding="utf-8")
    for name in CAPTIONS:
        draw(tmp_path / pictures / name)
    source = Folder(str(tmp_path), **options)
    found = {e.id: e for split in source.splits() for e in source.examples(split)}
    assert {id: e.captions for id, e in found.items()} == CAPTIONS
    assert {id: e.image for id, e in found.items()} == {id: str(tmp_path / pictures / id) for id in CAPTIONS}
    assert all(split_by_name(e.id) == split for split in source.splits() for e in source.examples(split))


def test_folders_that_are_splits(tmp_path):
    """Hugging Face's imagefolder: those of the three that are not there come out of train, by name."""
    for folder, count in {"train": 200, "validation": 5}.items():
        (tmp_path / folder).mkdir()
        lines = [json.dumps({"file_name": f"{i}.jpg", "text": "a dog"}) for i in range(count)]
        (tmp_path / folder / "metadata.jsonl").write_text("\n".join(lines))
        for i in range(count):
            (tmp_path / folder / f"{i}.jpg").touch()
    source = Folder(str(tmp_path))
    assert [e.id for e in source.examples("val")] == [f"validation/{i}.jpg" for i in range(5)]
    held = {e.id for e in source.examples("test")}
    assert held == {f"train/{i}.jpg" for i in range(200) if split_by_name(f"train/{i}.jpg") == "test"}
    assert 10 < len(held) < 35 and len(source.examples("train")) == 200 - len(held)
    with open(tmp_path / "train" / "metadata.jsonl", "a") as file:
        file.write('\n{"file_name": "../validation/0.jpg", "text": "a dog"}')
    with pytest.raises(UserError, match=r"validation/0\.jpg is in two splits, (train|test) and val"):
        Folder(str(tmp_path))


@pytest.mark.parametrize(
    ("broken", "kept"),
    [
        ('b.jpg,"never closed', ["a", "c", "d"]),
        ('b.jpg,"closed" too early', ["a", "c", "d"]),
        ('b.jpg,"a quote', ["a", "c", "d"]),
        ('b.jpg,"two\nlines"', ["a", "two\nlines", "c", "d"]),
    ],
)
def test_a_broken_quote_costs_its_own_row_only(tmp_path, broken, kept):
    own(tmp_path, f'image,caption,split\na.jpg,a,train\n{broken},train\nb.jpg,"c",train\na.jpg,d,train\n')
    draw(tmp_path / "b.jpg")
    source = Folder(str(tmp_path), on_error="skip", max_skipped=0.5)
    assert sorted(c for e in source.examples("train") for c in e.captions) == sorted(kept)
    assert [row["where"] for row in source.faults.skipped] == [f"{tmp_path}/captions.csv, below line 2"] * (
        4 - len(kept)
    )
    if source.faults.skipped:
        with pytest.raises(UserError, match=r"captions\.csv, below line 2: this is no row of a UTF-8 table"):
            Folder(str(tmp_path))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_is_named(tmp_path, encoding):
    for name, content in {
        "captions.csv": "image,caption\na.jpg,dog\n",
        "captions.jsonl": '{"image": "a.jpg"}\n',
    }.items():
        (tmp_path / name).write_bytes(content.encode(encoding))
        with pytest.raises(UserError, match=rf"{name} is UTF-16 text; save it as UTF-8"):
            Folder(str(tmp_path), name)
    (tmp_path / "captions.txt").write_bytes("a dog runs\n".encode(encoding))
    with pytest.raises(UserError, match=r"captions\.txt is UTF-16 text"):
        CaptionsText([str(tmp_path / "captions.txt")])


def test_separators_are_one_character(tmp_path):
    for separator in ("", ", ", '"', "\n"):
        with pytest.raises(UserError, match="separator must be one character"):
            Folder(own(tmp_path, KAGGLE), separator=separator)


@pytest.mark.parametrize(("listed", "stored"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_both_spellings_of_accents_are_one_name(tmp_path, listed, stored):
    """Lists from one system, pictures from another; ids are as listed, and one picture is not two."""
    name, other = (unicodedata.normalize(form, "Café/é.jpg") for form in (listed, stored))
    assert name != other
    for place in ("", "images"):
        draw(tmp_path / place / other)
    source = Folder(own(tmp_path, f"image,caption,split\n{name},one,train\n{other},two,train\n", pictures=()))
    assert [(e.id, e.captions) for e in source.examples("train")] == [(name, ("one", "two"))]
    assert source.pixels(source.examples("train")[0], 16).shape == (3, 16, 16)
    (tmp_path / "dataset.json").write_text(json.dumps({"images": [entry(name, "train")]}))
    assert Path(Karpathy("own", str(tmp_path)).examples("train")[0].image) == tmp_path / "images" / other
    (tmp_path / "dataset.json").write_text(json.dumps({"images": [entry(name, "train"), entry(other, "test")]}))
    with pytest.raises(UserError, match="twice"):
        Karpathy("own", str(tmp_path))
    page = {"id": "p", "split": "train", "segments": [{"type": "image", "image": name}, {"type": "text", "text": "é"}]}
    (tmp_path / "documents.jsonl").write_text(json.dumps(page))
    document = Documents(str(tmp_path)).examples("train")[0]
    assert Path(document.chunks[0].picture.image) == tmp_path / "images" / other


def test_new_options_change_nothing_where_they_are_absent():
    """Saved runs without them are made as they were."""
    added = [key.rpartition(".")[::2] for key in ABSENT if key.startswith("src.data.")]
    assert added
    for target, name in added:
        assert inspect.signature(get_class(target)).parameters[name].default == ABSENT[f"{target}.{name}"]


# --------------------------------------------------------------------------------------------------------------- COCO
def coco(root: Path, parts: dict[str, dict], year: int = 2017, folder: str = "annotations") -> str:
    """COCO's files; ``parts``: picture number -> captions, of train and val."""
    for part, captions in parts.items():
        pictures = [{"id": number, "file_name": f"{number:012}.jpg"} for number in captions]
        annotations = [{"image_id": n, "caption": one} for n, several in captions.items() for one in several]
        (root / folder).mkdir(parents=True, exist_ok=True)
        content = json.dumps({"images": pictures, "annotations": annotations[::-1]})
        (root / folder / f"captions_{part}{year}.json").write_text(content)
        for picture in pictures:
            draw(root / f"{part}{year}" / picture["file_name"])
    return str(root)


@pytest.mark.parametrize(("year", "folder"), [(2017, "annotations"), (2014, ".")])
def test_coco_as_it_is_downloaded(tmp_path, year, folder):
    """val and test share COCO's validation pictures, by number."""
    numbers = range(100, 160)
    root = coco(tmp_path, {"train": {9: ("a", "b")}, "val": {n: ("c",) for n in numbers}}, year, folder)
    source = CocoCaptions("coco", root, year)
    assert [(e.id, sorted(e.captions)) for e in source.examples("train")] == [("9", ["a", "b"])]
    assert source.pixels(source.examples("val")[0], 16).shape == (3, 16, 16)
    val, test = ([e.id for e in source.examples(split)] for split in ("val", "test"))
    assert sorted(val + test) == [str(n) for n in numbers] and abs(len(val) - 30) < 12
    fewer = CocoCaptions(
        "coco", coco(tmp_path / "fewer", {"train": {9: ("a",)}, "val": {n: "c" for n in range(100, 130)}})
    )
    assert [e.id for e in fewer.examples("val")] == [id for id in val if int(id) < 130]


def test_malformed_coco_is_explained(tmp_path):
    with pytest.raises(UserError, match=r"holds no captions_train2017\.json; download .*https://.*data\.root="):
        CocoCaptions("coco2017", str(tmp_path))
    root = coco(tmp_path, {"train": {9: ("a",), 8: ()}, "val": {7: ("c",), 9: ("d",)}})
    with pytest.raises(UserError, match=r"captions_train2017\.json, picture 2: .*no caption"):
        CocoCaptions("coco2017", root)
    source = CocoCaptions("coco2017", root, on_error="skip", max_skipped=0.5)
    assert [row["where"].rpartition(", ")[2] for row in source.faults.skipped] == ["picture 2"] * 2
    annotations = [{"image_id": 5, "caption": "of none"}, {"image_id": 9, "caption": 3}]
    for part, content in {"train": {"images": [], "annotations": annotations}, "val": {"images": []}}.items():
        (tmp_path / "annotations" / f"captions_{part}2017.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"captions_train2017\.json, annotation 2: .*caption is no string"):
        CocoCaptions("coco2017", root)
    with pytest.raises(UserError, match=r"captions_val2017\.json is not in COCO's layout"):
        CocoCaptions("coco2017", root, on_error="skip")
    del annotations[1]
    content = {"images": [], "annotations": annotations}
    (tmp_path / "annotations" / "captions_train2017.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"captions_train2017\.json, captions of 5: There is no picture of this number"):
        CocoCaptions("coco2017", root)


# ------------------------------------------------------------------------------------------------------------ text only
def texts(source: CaptionsText) -> list[str]:
    return sorted(c for split in source.splits() for example in source.examples(split) for c in example.captions)


def write(path: Path, content) -> str:
    data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


LINES = [f"a dog number {i}" for i in range(200)]


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "list.json", "list.json.gz", "coco.json", "karpathy.json.gz"])
def test_every_kind_of_text_file(tmp_path, name):
    content = {
        "a": "\n".join([*LINES, "", " . "]),
        "list": [*LINES, " "],
        "coco": {"annotations": [{"image_id": i // 5, "caption": line} for i, line in enumerate(LINES)]},
        "karpathy": {"images": [
            *(entry(f"{i}.jpg", "train", *LINES[5 * i : 5 * i + 5]) for i in range(39)),
            entry("39.jpg", "restval", *LINES[195:]), entry("40.jpg", "val", "v"), entry("41.jpg", "test", "t"),
        ]},
    }[name.split(".")[0]]  # fmt: skip
    source: Source = CaptionsText([write(tmp_path / name, content)], validation=0.1)
    assert texts(source) == sorted(LINES)
    assert source.splits() == ("train", "val") and not source.has_images
    ids = [example.id for split in source.splits() for example in source.examples(split)]
    assert len(set(ids)) == len(ids)
    with pytest.raises(UserError, match="no pictures"):
        source.pixels(source.examples("val")[0], 32)


def test_captions_of_one_picture_stay_together(tmp_path):
    annotations = [{"image_id": i % 40, "caption": f"picture {i % 40}, caption {i}"} for i in range(200)]
    source = CaptionsText([write(tmp_path / "coco.json", {"annotations": annotations})], validation=0.3)
    pictures = [{c.split(",")[0] for e in source.examples(split) for c in e.captions} for split in source.splits()]
    assert all(pictures) and not pictures[0] & pictures[1]


def test_held_out_captions_do_not_leak(tmp_path):
    """Test captions are kept out whatever their punctuation; training captions of the same list stay."""
    listed = [
        entry("a.jpg", "train", "A dog runs ."),
        entry("b.jpg", "test", "A dog , wet , number 7 ."),
        entry("c.jpg", "val", "Dog!"),
    ]
    exclude = write(tmp_path / "dataset.json", {"images": listed})
    text = write(tmp_path / "a.txt", "\n".join([*LINES, "a dog, wet, number 7", "dog", "a dog runs"]))
    kept = texts(CaptionsText([text], 0.1, exclude_from=[exclude]))
    assert kept == sorted([*LINES, "a dog runs"])


def test_files_of_the_same_name_keep_their_captions_apart(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    files = [write(tmp_path / folder / "a.txt", "\n".join(LINES)) for folder in ("one", "two")]
    source = CaptionsText(files, 0.1)
    assert len({example.id for split in source.splits() for example in source.examples(split)}) == 2 * len(LINES)
    for split in source.splits():  # and equal captions stay in one split
        assert all(count == 2 for count in Counter(e.captions for e in source.examples(split)).values())


@pytest.mark.parametrize(
    ("files", "validation", "message"),
    [
        (["none.txt"], 0.1, "none.txt"),
        (["none.json"], 0.1, "does not exist"),
        ([], 0.1, "too few"),
        (["none.txt"], 0.0, "a number above 0 and below 1"),
    ],
)
def test_impossible_text_sources_are_refused(files, validation, message):
    with pytest.raises(UserError, match=message):
        CaptionsText(files, validation)


def test_unknown_json_is_refused(tmp_path):
    for content in ({"a": 1}, {"annotations": [{"text": "a dog"}]}, {"images": [{"file": 1}]}, [1, 2]):
        with pytest.raises(UserError, match=r"a\.json"):
            CaptionsText([write(tmp_path / "a.json", content)])


@pytest.mark.skipif(find_spec("pycocoevalcap") is None, reason="pycocoevalcap is not installed")
def test_coco_captions_inside_the_spice_program():
    """All captions of train2014 and only those; val2014 of the same archive holds Karpathy's test pictures."""
    source = CaptionsText(["spice_jar"])
    train, val = len(source.examples("train")), len(source.examples("val"))
    assert train + val == 414_113  # Chen et al. 2015, arXiv 1504.00325, table 1
    assert abs(val / (train + val) - 0.02) < 0.002
    assert "A very clean and well decorated empty bathroom" in source.examples("train")[0].captions


# ------------------------------------------------------------------------------------------------------- configuration
@pytest.mark.parametrize("name", DATA)
def test_configurations_have_what_build_reads(name):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose(overrides=[f"+data={name}"]).data
    members = cfg.members.values() if "members" in cfg else [cfg]  # a mixture has data sets in place of a source
    assert members
    for member in members:
        assert {"source", "batch_size", "train_fraction", "max_tokens", "workers"} <= set(member)
        assert ("captions_per_image" in member) != ("p_next" in member)  # captions of a picture, or documents


def test_root_is_given_once(flickr):
    root = flickr(entry("a.jpg", "train"))
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        source = instantiate(compose(overrides=["+data=flickr8k", f"data.root={root}"]).data.source)
    assert len(source.examples("train")) == 1


@pytest.mark.parametrize("name", DATA)
def test_every_line_of_a_configuration_is_explained(name):
    names_others = re.compile(r"- |defaults:|_target_|\w+:$")  # explained elsewhere
    for line in (ROOT / "conf" / "data" / f"{name}.yaml").read_text().splitlines():
        explained = "#" in line or names_others.match(line.strip())
        assert explained or line.strip() in ("", f"name: {name}"), line


def test_prose_of_packages_is_plain_and_not_what_is_asked_about():
    source = PackageProse(["torchmetrics", "fsspec"], validation=0.2)
    train, val = source.examples("train"), source.examples("val")
    texts = [example.captions[0] for example in (*train, *val)]
    assert len(texts) == len(set(texts)) > 50 and 0.05 < len(val) / len(texts) < 0.4
    assert all(text[0].isupper() and text.endswith(".") and len(text.split()) >= 25 for text in texts)
    again = PackageProse(["torchmetrics", "fsspec"], validation=0.2)
    assert again.examples("val") == val
    with pytest.raises(UserError, match=r"has sympy, which src\.preserve asks about"):
        PackageProse(["fsspec", "sympy"])
    with pytest.raises(UserError, match="nosuchpackage is not installed"):
        PackageProse(["nosuchpackage"])
    with pytest.raises(UserError, match="hold too little prose"):
        PackageProse(["hydra-core"], validation=0.0)


def test_pixels_depend_on_the_file_alone(flickr):
    """No augmentation hides in loading: every arm and every epoch sees the same picture."""
    root = flickr(entry("a.png", "train"))
    source = Karpathy("flickr8k", root)
    first, second = (source.pixels(source.examples("train")[0], 32) for _ in range(2))
    assert np.array_equal(first, second)
