"""Pictures, lists and captions of every bad kind: the right data, or one sentence that names the file and the entry.

Everything is made here. Properties with generated cases: see test_properties.
"""

from __future__ import annotations

import gzip
import inspect
import io
import json
import os
import re
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, Characters
from hydra import compose, initialize_config_dir
from hydra.utils import get_class
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import Image, ImageFile
from test_data_sources import DATA
from test_properties import cases

from src.contracts import Document, Example
from src.data import base, faults, images
from src.data.captions_text import CaptionsText
from src.data.documents_file import Documents
from src.data.folder import Folder
from src.data.images import SUFFIXES, find_pictures, load_picture, read_picture
from src.data.karpathy import Karpathy
from src.data.scenes import Scenes
from src.errors import UserError
from src.loading.features import FeatureCache
from src.loading.module import CaptionData, DocumentData
from src.text.normalise import normalise_caption
from src.vision.vit import ViT

HOW = {"size": 32, "resize": "crop", "interpolation": "bicubic"}
COLOUR = (200, 100, 50)


@pytest.fixture(autouse=True)
def own_working_folder(tmp_path_factory, monkeypatch):
    """Sources that skip keep their records below the working folder."""
    monkeypatch.chdir(tmp_path_factory.mktemp("here"))


def one_sentence(error: UserError, *named: str) -> str:
    """The message, after seeing that it is one line of bearable length that names what it should."""
    text = str(error)
    assert text.isprintable() and len(text) < 1500, text
    assert all(name in text for name in named), text
    return text


# ------------------------------------------------------------------------------------------------- a corpus of pictures
def encoded(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def plain(width: int = 40, height: int = 30) -> Image.Image:
    return Image.new("RGB", (width, height), COLOUR)


def noise(width: int = 60, height: int = 50) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def deep_png(width: int = 8, height: int = 8) -> bytes:
    """16 bits per colour, which Pillow reads and does not write: COLOUR in the upper bytes."""
    row = b"\0" + b"".join(bytes([value, 0x7F]) for value in COLOUR) * width
    return png(width, height, depth=16, kind=2, pixels=zlib.compress(row * height))


def png(width: int, height: int, depth: int = 8, kind: int = 2, pixels: bytes = b"") -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def bmp(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IHHI IiiHHIIiiII", 54, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


def frames(format: str) -> bytes:
    others = [Image.new("RGB", (40, 30), colour) for colour in ("blue", "green")]
    return encoded(
        plain(), format, save_all=True, append_images=others, **({"lossless": True} if format == "WEBP" else {})
    )


def see_through_palette() -> bytes:
    image = Image.new("P", (40, 30), 0)
    image.putpalette([0, 0, 0, *COLOUR])
    image.paste(1, (10, 0, 30, 30))
    return encoded(image, "PNG", transparency=0)


GOOD = {
    "plain.jpg": lambda: encoded(plain(), "JPEG", quality=95),
    "CAPITALS.JPG": lambda: encoded(plain(), "JPEG", quality=95),
    "cmyk.jpg": lambda: encoded(plain().convert("CMYK"), "JPEG", quality=95),
    "progressive.jpg": lambda: encoded(plain(), "JPEG", quality=95, progressive=True),
    "deep.png": deep_png,
    "palette.png": see_through_palette,
    "animated.gif": lambda: frames("GIF"),
    "animated.webp": lambda: frames("WEBP"),
    "animated.png": lambda: frames("PNG"),
    "pages.tif": lambda: frames("TIFF"),
    "two-in-one.jpg": lambda: frames("MPO"),
    "really-a.png.jpg": lambda: encoded(plain(), "PNG"),
    "really-an-avif.jpg": lambda: encoded(plain(), "AVIF", quality=95),
    "a.AVIF": lambda: encoded(plain(), "AVIF", quality=95),
    "a.jfif": lambda: encoded(plain(), "JPEG", quality=95),
    "a.jpe": lambda: encoded(plain(), "JPEG", quality=95),
    "really-a-webp.png": lambda: encoded(plain(), "WEBP", lossless=True),
    "dot.png": lambda: encoded(plain(1, 1), "PNG"),
    "stripe.jpg": lambda: encoded(plain(20_000, 10), "JPEG", quality=95),
    "pole.png": lambda: encoded(plain(10, 20_000), "PNG"),
    "new\nline.png": lambda: encoded(plain(), "PNG"),
    "\U0001f436.png": lambda: encoded(plain(), "PNG"),
    "\u202e\u05ea\u05de.png": lambda: encoded(plain(), "PNG"),
    "x" * 200 + ".png": lambda: encoded(plain(), "PNG"),
    "-rf *.png": lambda: encoded(plain(), "PNG"),
}
BAD = {
    "nothing.jpg": (b"", "damaged"),
    "cut.jpg": (encoded(noise(), "JPEG")[:900], "damaged"),
    "cut.png": (encoded(noise(), "PNG")[:900], "damaged"),
    "cut.gif": (encoded(noise(), "GIF")[:900], "damaged"),
    "cut.webp": (encoded(noise(), "WEBP")[:900], "damaged"),
    "cut.tif": (encoded(noise(), "TIFF")[:900], "damaged"),
    "cut.avif": (encoded(noise(), "AVIF")[:900], "damaged"),
    "phone.jpg": (b"\0\0\0\x24ftypheic" + bytes(99), "is HEIC, which is not read"),
    "page.jpg": (b"<!DOCTYPE html><title>404</title>", "damaged"),
    "drawing.svg.png": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "damaged"),
    "postscript.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n", "damaged"),
    "bomb.png": (png(100_000, 100_000), "far more pixels"),
    "bomb.bmp": (bmp(100_000, 100_000), "far more pixels"),
    "bomb.gif": (b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + encoded(plain(), "GIF")[10:], "far more pixels"),
    "small-bomb.png": (png(10_001, 10_000), "10001 x 10000 pixels"),
    "no-size.png": (png(0, 0), "damaged"),
    "bad\nname.jpg": (b"", "damaged"),
    "\u202egpj.jpg": (b"", "damaged"),
    "y" * 240 + ".jpg": (b"", "damaged"),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD, ids=ascii)
def test_odd_pictures_are_read(tmp_path, name):
    (tmp_path / name).write_bytes(GOOD[name]())
    for resize in ("crop", "squash"):
        pixels_3hw = load_picture(tmp_path / name, {**HOW, "resize": resize})
        assert pixels_3hw.shape == (3, 32, 32) and pixels_3hw.dtype == torch.uint8
        assert (pixels_3hw[:, 16, 16].int() - torch.tensor(COLOUR)).abs().max() <= 4
    if name == "palette.png":
        assert pixels_3hw[:, 16, 1].tolist() == [255] * 3  # see-through is white
    assert find_pictures(str(tmp_path)) == [tmp_path / name]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_every_orientation_in_every_format(tmp_path, orientation, format):
    """A picture of 40 x 20 whose EXIF tag turns it is 20 x 40, and its marked corner is where the tag says."""
    image = Image.new("RGB", (40, 20), "black")
    image.paste("red", (0, 0, 20, 10))  # at the stored top left
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "a.jpg").write_bytes(encoded(image, format, exif=exif, **({"quality": 95} if format == "JPEG" else {})))
    pixels_3hw = read_picture(tmp_path / "a.jpg", 64).int()
    height, width = pixels_3hw.shape[1:]
    assert (width, height) == ((40, 20) if orientation <= 4 else (20, 40))
    # EXIF 2.3, section 4.6.4: where the stored top left belongs.
    corner = {1: "tl", 2: "tr", 3: "br", 4: "bl", 5: "tl", 6: "tr", 7: "br", 8: "bl"}[orientation]
    y, x = (height // 4 if corner[0] == "t" else -height // 4), (width // 4 if corner[1] == "l" else -width // 4)
    assert pixels_3hw[0, y, x] > 200 and (pixels_3hw[0] > 128).float().mean() == pytest.approx(0.25, abs=0.08)


@pytest.mark.parametrize("name", BAD, ids=ascii)
def test_bad_pictures_are_refused_in_one_sentence(tmp_path, name):
    content, reason = BAD[name]
    (tmp_path / name).write_bytes(content)
    started = time.perf_counter()
    with pytest.raises(UserError, match=reason) as raised:
        load_picture(tmp_path / name, HOW)
    one_sentence(raised.value, *([name] if name.isprintable() and len(name) < 100 else ["The picture"]))
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize("name", [name for name, (_, reason) in BAD.items() if "pixels" in reason])
def test_no_bomb_is_decoded(tmp_path, monkeypatch, name):
    """Not one byte of pixels is asked for."""
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("decoded"))
    (tmp_path / name).write_bytes(BAD[name][0])
    with pytest.raises(UserError, match="pixels"):
        load_picture(tmp_path / name, HOW)


def test_no_other_program_is_started_for_a_picture(tmp_path, monkeypatch):
    """Pillow hands PostScript to Ghostscript, whatever the file is called."""
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a program was started"))
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("a program was started"))
    (tmp_path / "a.jpg").write_bytes(BAD["postscript.jpg"][0])
    with pytest.raises(UserError, match="no picture"):
        load_picture(tmp_path / "a.jpg", HOW)


def test_what_is_no_file_is_refused_at_once(tmp_path):
    """A folder, a pipe nobody writes into, an endless device, links in a circle, and names that no file can have."""
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zeros.jpg").symlink_to("/dev/zero")
    (tmp_path / "circle.jpg").symlink_to("circle.jpg")
    (tmp_path / "nowhere.jpg").symlink_to("gone.jpg")
    names = ["folder.jpg", "pipe.jpg", "zeros.jpg", "circle.jpg", "nowhere.jpg", "z" * 5000, "a\0b.jpg", "\ud800.jpg"]
    for name in names:
        with pytest.raises(UserError, match="cannot be opened") as raised:
            load_picture(tmp_path / name, HOW)
        one_sentence(raised.value, *([name] if len(name) < 20 and name.isprintable() else []))


def test_unreadable_pictures_are_named(tmp_path):
    path = tmp_path / "secret.jpg"
    path.write_bytes(GOOD["plain.jpg"]())
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(UserError, match=r"secret\.jpg cannot be opened \(Permission denied\)"):
        load_picture(path, HOW)


def test_enormous_files_are_not_read(tmp_path):
    with open(tmp_path / "a.jpg", "wb") as file:
        file.truncate(images.MAX_BYTES + 1)  # a hole, which takes no space
    with pytest.raises(UserError, match=r"has 800,000,001 bytes; at most 800,000,000 are read"):
        load_picture(tmp_path / "a.jpg", HOW)


@pytest.mark.parametrize("entry", ["", "a\0", "q" * 5000, "\ud800", "**", "[", "none/*.jpg", ["", "a\0b"]], ids=ascii)
def test_pictures_asked_for_by_odd_names(tmp_path, monkeypatch, entry):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.jpg").mkdir()  # a folder of that name is no picture
    with pytest.raises(UserError, match="images=") as raised:
        find_pictures(entry)
    one_sentence(raised.value)


def test_what_is_passed_over_is_told(tmp_path, monkeypatch, caplog):
    """A folder's files that are no pictures to us, by ending, and its folders, whose pictures a pattern names."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "more" / "deep").mkdir(parents=True)
    for name in ("a.jpg", "b.HEIC", "c.heic", "d.txt", "Makefile", ".DS_Store", "more/x.jpg", "more/deep/y.jpg"):
        (tmp_path / "photos" / name).touch()
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "z.heic").touch()
    assert [path.name for path in find_pictures("photos")] == ["a.jpg"]
    assert "2 with .heic, 1 with no ending, 1 with .txt" in caplog.text
    assert "photos: folders passed over: 1; 'photos/**/*.jpg' names theirs" in caplog.text
    assert [path.name for path in find_pictures("photos/**/*.jpg")] == ["a.jpg", "y.jpg", "x.jpg"]
    assert [path.name for path in find_pictures("photos/m*/*.jpg")] == ["x.jpg"]
    with pytest.raises(UserError, match=r"images=none names no picture; none: files passed over, .*: 1 with \.heic"):
        find_pictures("none")


SEEDS = [
    *(encoded(noise(), format) for format in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")),
    encoded(noise(), "JPEG", progressive=True),
    encoded(noise(), "TIFF", compression="tiff_lzw"),
    *(frames(format) for format in ("GIF", "WEBP", "MPO")),
    see_through_palette(),
]


@cases(60)
@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(0, 4000), st.binary(max_size=4)), min_size=1, max_size=8))
def test_changed_bytes_give_pixels_or_a_sentence(tmp_path_factory, content, changes):
    """Reading for the check and for training agree on whether a file is a picture."""
    for place, new in changes:
        place %= len(content)
        content = content[:place] + new + content[place + max(1, len(new)) :]
    path = tmp_path_factory.getbasetemp() / "changed.jpg"
    path.write_bytes(content)
    outcomes = []
    for read in (lambda: load_picture(path, HOW), lambda: read_picture(path, faults.CHECK_SIZE)):
        try:
            pixels_3hw = read()
            assert pixels_3hw.dtype == torch.uint8 and len(pixels_3hw) == 3
            outcomes.append(None)
        except UserError as error:
            outcomes.append(one_sentence(error, "changed.jpg"))
    assert outcomes[0] == outcomes[1]


@cases(30)
@given(st.sampled_from(SEEDS), st.floats(0, 1))
def test_cut_files_are_the_same_for_the_check_and_for_every_size(tmp_path_factory, content, share):
    """A large JPEG is decoded at a fraction of its size, which must not hide that its end is missing."""
    path = tmp_path_factory.getbasetemp() / "cut.jpg"
    path.write_bytes(content[: int(share * len(content))])
    found = set()
    for size in (4, 16, faults.CHECK_SIZE, 300):
        try:
            read_picture(path, size)
            found.add(None)
        except UserError as error:
            found.add(str(error))
    assert len(found) == 1


# ------------------------------------------------------------------------------------------------------------- captions
def picture(path: Path, content: bytes | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(GOOD["plain.jpg"]() if content is None else content)


def entry(file: str, split: str = "train", *captions, **more) -> dict:
    return {"filename": file, "split": split, "sentences": [{"raw": c} for c in captions or ("A dog .",)], **more}


def karpathy(root: Path, *entries, **how) -> Karpathy:
    """A source of these entries; every picture that is named as it should be exists."""
    (root / "dataset.json").write_text(json.dumps({"images": entries}))
    (root / "images").mkdir(exist_ok=True)
    return Karpathy("flickr8k", str(root), **how)


def table(root: Path, content: str | bytes, name: str = "captions.csv", **how) -> Folder:
    (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return Folder(str(root), name, **how)


def documents(root: Path, *lines, **how) -> Documents:
    (root / "images").mkdir(exist_ok=True)
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (root / "documents.jsonl").write_text(text)
    return Documents(str(root), **how)


def texts(root: Path, content, name: str = "captions.json", **how) -> CaptionsText:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    (root / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return CaptionsText([str(root / name)], 0.5, **how)


HALF = "\ud800"  # half of a UTF-16 pair: JSON can spell it, no UTF-8 file can hold it
LONG = "a dog " * 170_000  # 1 MB


@pytest.mark.parametrize(
    ("captions", "reason"),
    [
        ((f"a {HALF} dog",), "raw is no UTF-8 text"),
        ((LONG,), r"raw has 1,020,000 characters; at most 10,000 are read"),
        ((7,), "raw is no string"),
        ((None,), "raw is missing"),
        (([],), "raw is no string"),
        ((" ", "\t", "."), "no caption, or only empty ones"),
    ],
)
def test_bad_captions_are_named_with_their_picture(tmp_path, captions, reason):
    picture(tmp_path / "images" / "a.jpg")
    with pytest.raises(UserError, match=reason) as raised:
        karpathy(tmp_path, entry("a.jpg"), entry("b.jpg", "train", *captions))
    one_sentence(raised.value, "dataset.json, picture 2")
    lines = "\n".join(json.dumps({"image": "a.jpg", "caption": c}) for c in ("fine", *captions))
    with pytest.raises(UserError, match=reason.replace("raw", "caption")) as raised:
        table(tmp_path, lines.replace("fine", "." if captions[0] == " " else "fine"), "captions.jsonl")
    one_sentence(raised.value, "captions.jsonl, ")


@pytest.mark.parametrize(
    "caption", ["nul\0nul", "new\nline\r\n", "emoji \U0001f436", "\u202e\u05ea\u05de", "x" * 10_000], ids=ascii
)
def test_odd_captions_are_data(tmp_path, caption):
    """They become tokens of the usual length."""
    picture(tmp_path / "images" / "a.jpg")
    source = karpathy(tmp_path, entry("a.jpg", "train", caption))
    assert source.examples("train")[0].captions == (caption,)
    batch = next(iter(CaptionData(source, Characters(), 16, 1, 1, max_tokens=12).train_dataloader()))
    said = Characters().encode([normalise_caption(caption)])[0]
    assert batch.text.ids_BT[0, 1:].tolist() == [*said, Characters.eos][:11]


def test_a_table_in_another_encoding_names_the_line(tmp_path):
    picture(tmp_path / "a.jpg")
    rows = ["image,caption", "a.jpg,a dog", "a.jpg,ein schöner Hund"]
    with pytest.raises(UserError, match=r"captions\.csv, line 3: .*caption is no UTF-8 text"):
        table(tmp_path, "\n".join(rows).encode("latin-1"))
    with pytest.raises(UserError, match=r"captions\.csv.*header"):
        table(tmp_path, "\n".join(rows).encode("utf-16"))
    with pytest.raises(UserError, match=r"captions\.csv, below line 1: .*field larger"):
        table(tmp_path, f"image,caption\na.jpg,{LONG}\n")


def test_lists_that_are_no_lists(tmp_path):
    """Too deep for the parser, cut off, damaged or enormous when unpacked, folders; all in one sentence."""
    deep = "[" * 100_000
    packed = gzip.compress(json.dumps(["a dog"] * 99).encode())
    contents = {
        "deep.json": deep.encode(), "cut.json.gz": packed[:40], "bits.json.gz": packed[:20] + b"\xff" * 9 + packed[29:],
        "cut.txt.gz": packed[:40], "bits.txt.gz": packed[:20] + b"\xff" * 9 + packed[29:], "no.json.gz": b"no gzip",
        "number.json": b"3", "null.json": b"null", "word.json": b'"annotations"', "digits.json": b"9" * 9999,
        "bytes.txt": b"a dog\n\xff\xfe\n", "object.json": b'{"images": {"a": 1}}', "empty.json": b"",
    }  # fmt: skip
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError) as raised:
            CaptionsText([str(tmp_path / name)], 0.5)
        one_sentence(raised.value, name)
    for name in ("folder.json", "folder.txt"):
        (tmp_path / name).mkdir()
        with pytest.raises(UserError) as raised:
            CaptionsText([str(tmp_path / name)], 0.5)
        one_sentence(raised.value, name)
    with pytest.raises(UserError, match=r"captions\.jsonl, line 1: .*nested too deeply"):
        table(tmp_path, deep, "captions.jsonl")
    with pytest.raises(UserError, match=r"documents\.jsonl, line 1: .*nested too deeply"):
        documents(tmp_path, deep)


def test_a_list_that_unpacks_to_more_than_memory_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "MAX_LIST", 1_000_000)
    bomb = b'["' + b" " * 2_000_000 + b'"]'
    with pytest.raises(UserError, match=r"bomb\.json\.gz has more than 1,000,000 bytes"):
        texts(tmp_path, bomb, "bomb.json.gz")


NAMES_OUTSIDE = ["../../etc/passwd", "/etc/passwd", "a/../../b.jpg", "..", ".", "", "a\0b.jpg", HALF + ".jpg"]


@pytest.mark.parametrize("name", NAMES_OUTSIDE, ids=ascii)
def test_names_that_lead_out_name_the_entry(tmp_path, name):
    page = {"id": "p", "segments": [{"type": "image", "image": name}]}
    reads = {
        "dataset.json, picture 1": lambda: karpathy(tmp_path, entry(name)),
        "captions.jsonl, line 1": lambda: table(
            tmp_path, json.dumps({"image": name, "caption": "a"}), "captions.jsonl"
        ),
        "documents.jsonl, line 1": lambda: documents(tmp_path, page),
    }
    for where, read in reads.items():
        with pytest.raises(UserError, match=r"leads out of|no UTF-8 text") as raised:
            read()
        one_sentence(raised.value, where)


def test_a_filepath_cannot_lead_out_either(tmp_path):
    for folder in ("..", "/etc", "a/../.."):
        with pytest.raises(UserError, match=r"picture 1: .*leads out of"):
            karpathy(tmp_path, entry("passwd", filepath=folder))


def test_links_are_followed_and_circles_are_missing_pictures(tmp_path):
    """Data sets are often linked from another disk; a circle is found at the start, as is a folder called x.jpg."""
    picture(tmp_path / "elsewhere" / "a.jpg")
    root = tmp_path / "root"
    (root / "images").mkdir(parents=True)
    (root / "images" / "link.jpg").symlink_to(tmp_path / "elsewhere" / "a.jpg")
    source = karpathy(root, entry("link.jpg"))
    assert source.pixels(source.examples("train")[0], 8)[:, 4, 4].tolist() == pytest.approx(COLOUR, abs=4)
    (root / "images" / "folder.jpg").mkdir()
    (root / "images" / "one.jpg").symlink_to("two.jpg")
    (root / "images" / "two.jpg").symlink_to("one.jpg")
    for name in ("folder.jpg", "one.jpg"):
        with pytest.raises(UserError, match=rf"1 of the 2 pictures .* missing, e\.g\. .*{name}"):
            karpathy(root, entry("link.jpg"), entry(name))
    (root / "images" / "deep").symlink_to(root / "images")  # a folder inside itself
    assert karpathy(root, entry("deep/deep/link.jpg")).examples("train")[0].id == "link"


def test_one_picture_under_two_names_is_refused(tmp_path):
    """It could be in training and in the test split."""
    picture(tmp_path / "images" / "a.jpg")
    for twin in (entry("a.jpg", "test", cocoid=2), entry("./a.jpg", "test", cocoid=2)):
        with pytest.raises(UserError, match=r"dataset\.json, picture 2: .*twice"):
            karpathy(tmp_path, entry("a.jpg", cocoid=1), twin)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (3, "int, no object"), (None, "NoneType, no object"), ([], "list, no object"), ({}, "split is missing"),
        (entry("b.jpg", cocoid={}), "cocoid is no string"), (entry("b.jpg", cocoid=True), "cocoid is no string"),
        ({**entry("b.jpg"), "sentences": {}}, "sentences is no list"), (entry("b.jpg", split=[]), "split is no string"),
        ({**entry("b.jpg"), "sentences": ["a"]}, "str, no object"), ({**entry("b.jpg"), "sentences": []}, "no caption"),
        (entry(5), "filename is no string"), (entry("b.jpg", filepath=[]), "filepath is no string"),
    ],
)  # fmt: skip
def test_entries_of_other_shapes_are_named(tmp_path, wrong, reason):
    if isinstance(wrong, dict) and isinstance(wrong.get("split"), list):
        wrong = {**wrong, "split": []}
    with pytest.raises(UserError, match=reason) as raised:
        karpathy(tmp_path, entry("a.jpg"), wrong)
    one_sentence(raised.value, "dataset.json, picture 2: {")


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"id": None, "segments": []}, "id is missing"),
        ({"id": {}, "segments": []}, "id is no string"),
        ({"id": "b", "segments": {}}, "segments is no list"),
        ({"id": "b", "segments": []}, "neither text nor a picture"),
        ({"id": "b", "segments": [{"type": "text", "text": " \n"}]}, "neither text nor a picture"),
        ({"id": "b", "segments": [["text"]]}, "list, no object"),
        ({"id": "b", "segments": [{"type": []}]}, "type is no string"),
        ({"id": "b", "split": "", "segments": [{"type": "text", "text": "a"}]}, "split '' is none of"),
        ({"id": "b", "split": ["x" * 9999], "segments": [{"type": "text", "text": "a"}]}, "is none of"),
        ({"id": "b", "segments": [{"type": "text", "text": HALF}]}, "text is no UTF-8 text"),
    ],
)
def test_documents_of_other_shapes_are_named(tmp_path, wrong, reason):
    good = {"id": "a", "segments": [{"type": "text", "text": "hi"}]}
    with pytest.raises(UserError, match=reason) as raised:
        documents(tmp_path, good, wrong)
    one_sentence(raised.value, "documents.jsonl, line 2")


# ----------------------------------------------------------------------------------------------------- generated shapes
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=6)
KEYS = st.sampled_from(
    ["images", "split", "filename", "filepath", "cocoid", "sentences", "raw", "annotations", "image_id", "caption",
     "captions", "image", "id", "segments", "type", "text"]
)  # fmt: skip
JSON = st.recursive(
    SCALARS | st.sampled_from(["train", "test", "a.jpg", "../a.jpg", "text", "image", HALF, "\0"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=8,
)


def places(value, path: tuple = ()) -> list[tuple]:
    """The paths of all values inside of a value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, one in inside for place in places(one, (*path, key)))]


def replaced(value, path: tuple, new):
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


@st.composite
def damaged(draw, right):
    """``right`` with up to three of its values, at any level, replaced by anything."""
    for _ in range(draw(st.integers(0, 3))):
        right = replaced(right, draw(st.sampled_from(places(right))), draw(JSON))
    return right


ENTRIES = [entry("a.jpg"), entry("b.jpg", "val", "one", "two", cocoid=7), entry("c.jpg", "test", imgid=1, filepath="")]
ROWS = [{"image": "a.jpg", "caption": "a", "split": "train"}, {"image": "b.jpg", "captions": ["b", "c"]}]
PAGES = [
    {"id": "p", "split": "train", "segments": [{"type": "text", "text": "t"}, {"type": "image", "image": "a.jpg"}]},
    {"id": 2, "segments": [{"type": "image", "image": "b.jpg"}]},
]
COCO = {"annotations": [{"image_id": i, "caption": f"dog {i}"} for i in range(12)]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        picture(root / "images" / name)
        picture(root / name)
    return root


def outcome(read: Callable, *named: str):
    """What was read, looked through; None where it was refused in one sentence that names the file."""
    try:
        source = read()
        examples = {split: list(source.examples(split)) for split in source.splits()}
    except UserError as error:
        one_sentence(error, *named)
        return None
    for group in examples.values():
        for example in group:
            assert isinstance(example.id, str) and (isinstance(example, Document) or example.captions)
            for caption in (example.id, *example.captions):
                caption.encode()
            for path in base._paths(example) if source.has_images else ():
                assert Path(path).is_file() and ".." not in Path(path).parts
    ids = [example.id for group in examples.values() for example in group]
    assert len(ids) == len(set(ids))
    return examples


def both(make: Callable, *named: str) -> None:
    """Raising and skipping: what is read without a fault is read the same by both, and skipping accounts for all."""
    strict = outcome(make, *named)
    lenient = outcome(lambda: make(on_error="skip", max_skipped=1.0), *named)
    assert strict is None or strict == lenient


@cases()
@given(damaged({"images": ENTRIES}))
def test_any_karpathy_list(folder, content):
    (folder / "dataset.json").write_text(json.dumps(content))
    both(lambda **how: Karpathy("flickr8k", str(folder), **how), "dataset.json")


@cases()
@given(st.lists(damaged(ENTRIES[1]), min_size=1, max_size=4))
def test_skipping_leaves_out_what_would_be_refused_alone(folder, entries):
    """Entry by entry: those that are read alone are read together, unless one is there already."""

    def read(*listed, **how):
        (folder / "dataset.json").write_text(json.dumps({"images": listed}))
        return Karpathy("flickr8k", str(folder), **how)

    alone = [outcome(lambda one=one: read(one), "dataset.json") for one in entries]
    want = [(split, example) for found in alone if found for split, group in found.items() for example in group]
    distinct, seen = [], set()
    for split, example in want:
        if not seen & {example.id, example.image}:
            distinct.append((split, example))
            seen |= {example.id, example.image}
    try:
        source = read(*entries, on_error="skip", max_skipped=1.0)
    except UserError as error:
        assert not distinct and "lists no picture" in one_sentence(error, "dataset.json")
    else:
        found = [(split, example) for split in source.splits() for example in source.examples(split)]
        assert sorted(found, key=str) == sorted(distinct, key=str)


@cases()
@given(damaged(COCO) | damaged({"images": ENTRIES}) | damaged([f"dog {i}" for i in range(9)]))
def test_any_file_of_captions(folder, content):
    (folder / "captions.json").write_text(json.dumps(content))
    both(lambda **how: CaptionsText([str(folder / "captions.json")], 0.5, **how), "captions.json")


@cases()
@given(st.lists(damaged(ROWS[0]) | damaged(ROWS[1]) | JSON, max_size=4), st.sampled_from(["\n", "\r\n", "\n\n"]))
def test_any_lines_of_captions(folder, rows, end):
    (folder / "captions.jsonl").write_text(end.join(map(json.dumps, rows)))
    both(lambda **how: Folder(str(folder), "captions.jsonl", **how), "captions.jsonl")


@cases()
@given(damaged(PAGES), st.binary(max_size=3))
def test_any_documents(folder, pages, more):
    lines = [json.dumps(page).encode() for page in (pages if isinstance(pages, list) else [pages])]
    (folder / "documents.jsonl").write_bytes(b"\n".join([*lines, more]))
    both(lambda **how: Documents(str(folder), **how), "documents.jsonl")


CELLS = st.sampled_from(
    ["a.jpg", "b.jpg", "./a.jpg", "none.jpg", "../a.jpg", "train", "a dog", "", " ", '"', "\0", "é"]
)
LINES = st.lists(st.lists(CELLS, max_size=4).map(",".join), max_size=4)


@cases(30)
@given(
    LINES, st.sampled_from(["image,caption", "image,caption,split", "caption,image", "image"]), st.binary(max_size=4)
)
def test_any_table(folder, lines, header, more):
    (folder / "captions.csv").write_bytes("\n".join([header, *lines]).encode() + more)
    both(lambda **how: Folder(str(folder), "captions.csv", **how), "captions.csv")


@cases()
@given(st.binary(max_size=60), st.sampled_from([".json", ".json.gz", ".txt", ".txt.gz"]), st.booleans())
def test_any_bytes_as_a_list(folder, content, suffix, packed):
    if packed:  # a gzip header before damaged content
        content = gzip.compress(b"a dog\n" * 40, mtime=0)[:30] + content
    (folder / f"bytes{suffix}").write_bytes(content)
    both(lambda **how: CaptionsText([str(folder / f"bytes{suffix}")], 0.5, **how), f"bytes{suffix}")


# -------------------------------------------------------------------------------------------------------- data.on_error
def photographs(root: Path, count: int = 40, broken: tuple[int, ...] = (3, 17)) -> list[dict]:
    """``count`` entries whose pictures differ, of which the ``broken`` ones are cut off."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    for i in range(count):
        content = encoded(noise().rotate(7 * i), "JPEG")
        (root / "images" / f"{i}.jpg").write_bytes(content[:400] if i in broken else content)
    return [entry(f"{i}.jpg", ("train", "train", "val", "test")[i % 4], f"a dog number {i}") for i in range(count)]


def skipping(root: Path, entries: list[dict], share: float = 0.1) -> Karpathy:
    return karpathy(root, *entries, on_error="skip", max_skipped=share)


def kept(source) -> list[str]:
    return [example.id for split in source.splits() for example in source.examples(split)]


def test_damaged_missing_and_malformed_are_left_out_counted_and_listed(tmp_path, caplog):
    entries = photographs(tmp_path, broken=(3,))
    (tmp_path / "images" / "8.jpg").unlink()
    entries[21]["sentences"] = [{"raw": 5}]
    source = skipping(tmp_path, entries)
    assert set(kept(source)) == {str(i) for i in range(40)} - {"3", "8", "21"}
    (listed,) = Path("data/checked").glob("flickr8k-*.skipped.jsonl")
    rows = [json.loads(line) for line in listed.read_text().splitlines()]
    assert rows == source.faults.skipped
    where = [row["where"].rpartition("/")[2] for row in rows]
    assert where == ["dataset.json, picture 22", "8.jpg", "3.jpg"]
    assert "no string" in rows[0]["reason"] and "missing" in rows[1]["reason"] and "damaged" in rows[2]["reason"]
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith("flickr8k: 3 entries or pictures are left out") and str(listed) in warning


def test_without_the_policy_the_first_fault_ends_the_run(tmp_path):
    entries = photographs(tmp_path)
    source = karpathy(tmp_path, *entries)
    assert len(kept(source)) == 40  # nothing is decoded before it is needed
    with pytest.raises(UserError, match=r"3\.jpg is damaged"):
        list(CaptionData(source, Characters(), 16, 4, 1).pictures("test"))
    entries[21]["sentences"] = []
    with pytest.raises(UserError, match="picture 22"):
        karpathy(tmp_path, *entries)


def test_too_many_are_refused_in_one_sentence(tmp_path):
    """Of the entries of the list, of missing pictures, and of those that cannot be decoded."""
    entries = photographs(tmp_path)  # 2 of 40 are damaged
    assert len(kept(skipping(tmp_path, entries, share=0.05))) == 38
    with pytest.raises(UserError, match=r"2 of the 40 examples of .*0\.049 allows; the last: .*/3\.jpg") as raised:
        kept(skipping(tmp_path, entries, share=0.049))
    one_sentence(raised.value, "dataset.json")
    (tmp_path / "images" / "8.jpg").unlink()
    with pytest.raises(UserError, match=r"3 of the 40 examples .*/3\.jpg is damaged"):  # all reasons together
        kept(skipping(tmp_path, entries, share=0.05))
    with pytest.raises(UserError, match=r"1 of the 40 examples .*8\.jpg: The picture is missing"):
        skipping(tmp_path, entries, share=0.01)
    with pytest.raises(UserError, match=r"1 of the 41 entries .*picture 41: .*int, no object"):
        skipping(tmp_path, [*entries, 7], share=0.01)


@pytest.mark.parametrize("how", [{"on_error": "ignore"}, {"max_skipped": 1.5}, {"max_skipped": -0.1}])
def test_senseless_policies_are_refused(tmp_path, how):
    with pytest.raises(UserError, match=rf"data\.source\.{next(iter(how))} must be"):
        karpathy(tmp_path, entry("a.jpg"), **how)


def test_all_arms_see_the_same_batches(tmp_path):
    """Whoever checks, with whatever has been noted before; and they are those of a data set without the bad ones."""

    def batches(source) -> list:
        loader = CaptionData(source, Characters(), 16, 4, 1, seed=3).train_dataloader()
        return [(batch.ids, batch.text.ids_BT.tolist(), batch.pixels_IM3hw.tolist()) for batch in loader]

    entries = photographs(tmp_path)
    first = batches(skipping(tmp_path, entries))
    assert Path("data/checked").is_dir() and batches(skipping(tmp_path, entries)) == first
    good = [one for i, one in enumerate(entries) if i not in (3, 17)]
    assert batches(karpathy(tmp_path, *good)) == first


def test_the_check_is_paid_once(tmp_path, monkeypatch):
    """Readable pictures are looked at again only when they have changed, the others always."""
    looked = []

    def watched(path, size):
        looked.append(Path(path).name)
        return read_picture(path, size)

    monkeypatch.setattr(faults, "read_picture", watched)
    entries = photographs(tmp_path)
    first = kept(skipping(tmp_path, entries))
    assert len(looked) == 40 and len(first) == 38
    looked.clear()
    assert kept(skipping(tmp_path, entries)) == first and sorted(looked) == ["17.jpg", "3.jpg"]
    looked.clear()
    (tmp_path / "images" / "5.jpg").write_bytes(b"")
    (tmp_path / "images" / "3.jpg").write_bytes(GOOD["plain.jpg"]())
    assert set(kept(skipping(tmp_path, entries))) == {str(i) for i in range(40)} - {"5", "17"}
    assert sorted(looked) == ["17.jpg", "3.jpg", "5.jpg"]
    (record,) = Path("data/checked").glob("*.json")
    for content in (b"", b"{", b"[]", b'{"reader": null}', b'{"reader": []}'):
        record.write_bytes(content)
        assert len(kept(skipping(tmp_path, entries))) == 38


def test_a_check_that_was_stopped_goes_on(tmp_path, monkeypatch):
    entries = photographs(tmp_path, broken=())

    def stops(path, size):
        if path.endswith("30.jpg"):
            raise KeyboardInterrupt
        return read_picture(path, size)

    monkeypatch.setattr(faults, "read_picture", stops)
    with pytest.raises(KeyboardInterrupt):
        kept(skipping(tmp_path, entries))
    (record,) = Path("data/checked").glob("*.json")
    done = len(json.loads(record.read_text())["readable"])
    looked = []
    monkeypatch.setattr(faults, "read_picture", lambda path, size: looked.append(path))
    assert len(kept(skipping(tmp_path, entries))) == 40 and 0 < done == 40 - len(looked)


def test_nothing_is_lost_where_records_cannot_be_kept(tmp_path, monkeypatch, caplog):
    """A full or read-only disk costs the record and the list, not the run."""

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(faults, "write_text", full)
    monkeypatch.setattr(faults, "write_jsonl", full)
    assert len(kept(skipping(tmp_path, photographs(tmp_path)))) == 38
    assert "No space left on device" in caplog.text and "2 entries or pictures" in caplog.text


def test_cached_features_and_live_pictures_agree_on_what_is_left_out(tmp_path):
    """Row by row: the features are those of the pictures that live loading gives."""
    torch.manual_seed(0)
    vision = ViT(image_size=16, patch=8, width=16, layers=1, heads=2).eval()
    source = skipping(tmp_path, photographs(tmp_path))
    live = CaptionData(source, Characters(), 16, 4, 1)
    cached = CaptionData(skipping(tmp_path, photographs(tmp_path)), Characters(), 16, 4, 1)
    for split in source.splits():
        table = FeatureCache.open_or_build(
            tmp_path / "features", vision, source, cached.examples(split), 0, workers=0, progress=False
        )
        cached.features = {split: table}
        pairs = zip(live.pictures(split), cached.pictures(split), strict=True)
        for pixels, features in pairs:
            assert pixels.ids == features.ids and not {"3", "17"} & set(pixels.ids)
            with torch.no_grad():
                want = vision(pixels.pixels_IM3hw)
            torch.testing.assert_close(features.visual.tokens_IMNC.float(), want.tokens_IMNC, atol=1e-2, rtol=1e-2)


def test_a_document_with_a_bad_picture_is_left_out_whole(tmp_path):
    photographs(tmp_path)
    pages = [
        {"id": str(i), "split": "train", "segments": [
            {"type": "image", "image": f"{i}.jpg"}, {"type": "text", "text": "a"},
            {"type": "image", "image": f"{i + 20}.jpg"},
        ]}
        for i in range(20)
    ]  # fmt: skip
    pages[5] = {"id": "5", "segments": 3}
    source = documents(tmp_path, *pages, on_error="skip", max_skipped=0.2)
    assert kept(source) == [str(i) for i in range(20) if i not in (3, 5, 17)]
    loader = DocumentData(source, Characters(), 2, 0.0, image_size=16, batch_size=5).train_dataloader()
    assert sum(len(batch.ids) for batch in loader) == 15


def test_rows_of_a_table_are_left_out_one_by_one(tmp_path):
    """A picture keeps its other captions."""
    picture(tmp_path / "a.jpg")
    rows = ["image,caption,split", "a.jpg,a dog,train", "a.jpg,ein schöner Hund,train", "a.jpg,too,many,cells",
            "../b.jpg,out,train", "a.jpg,other,test", "a.jpg,two dogs,train", "gone.jpg,none,train"]  # fmt: skip
    source = table(tmp_path, "\n".join(rows).encode("latin-1"), on_error="skip", max_skipped=0.7)
    assert source.examples("train") == [Example("a.jpg", ("a dog", "two dogs"), str(tmp_path / "a.jpg"))]
    found = [re.search(r"line \d|gone", row["where"])[0] for row in source.faults.skipped]
    assert found == ["line 3", "line 4", "line 5", "line 6", "gone"]


def test_captions_without_pictures_are_left_out_too(tmp_path):
    annotations = [{"image_id": i, "caption": f"dog {i}"} for i in range(40)]
    annotations[7] = {"image_id": 7, "caption": LONG}
    with pytest.raises(UserError, match=r"captions\.json, annotation 8: .*1,020,000 characters"):
        texts(tmp_path, {"annotations": annotations})
    source = texts(tmp_path, {"annotations": annotations}, on_error="skip", max_skipped=0.03)
    assert len(kept(source)) == 39 and len(source.faults.skipped) == 1


def test_a_policy_that_reaches_no_source_is_refused():
    """Nobody finds out after a week that data.on_error=skip was not heard."""
    from src.build import tell

    with pytest.raises(UserError, match="on_error=skip does not reach data=scenes"):
        tell(Scenes(train=1, val=1, test=1), OmegaConf.create({"on_error": "skip"}), None)


@pytest.mark.parametrize("name", DATA)
def test_the_policy_reaches_every_source_that_knows_it(name):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose(overrides=[f"+data={name}"]).data
    for member in cfg.members.values() if "members" in cfg else [cfg]:
        member.on_error, member.max_skipped = "skip", 0.25
        knows = "on_error" in inspect.signature(get_class(member.source._target_)).parameters
        got = (member.source.get("on_error"), member.source.get("max_skipped"))
        assert got == (("skip", 0.25) if knows else (None, None))


def test_every_suffix_has_a_format():
    """What find_pictures looks for, and nothing else, is what Pillow is allowed to decode."""
    Image.init()
    formats = {Image.EXTENSION[suffix] for suffix in SUFFIXES}
    assert formats == set(images.FORMATS)
