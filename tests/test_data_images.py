"""Picture files of every awkward kind -> square RGB pixels."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from test_bad_inputs import png
from torchvision.transforms import v2

from src.data.images import load_picture, read_picture
from src.errors import UserError


def how(size: int, resize: str = "squash", interpolation: str = "bicubic") -> dict:
    return {"size": size, "resize": resize, "interpolation": interpolation, "mean": [0.5] * 3}


def photograph(width: int, height: int) -> Image.Image:
    """Smooth colours with some detail: what JPEG is made for."""
    y, x = np.mgrid[0:height, 0:width] / np.array([height, width])[:, None, None]
    noise = np.random.default_rng(0).normal(0, 6, (height, width, 3))
    return Image.fromarray(
        (np.stack([255 * x, 255 * y, 128 + 100 * np.sin(9 * x * y)], -1) + noise).clip(0, 255).astype("u1")
    )


def difference(a_3hw: torch.Tensor, b_3hw: torch.Tensor) -> int:
    assert a_3hw.shape == b_3hw.shape and a_3hw.dtype == b_3hw.dtype == torch.uint8
    return int((a_3hw.int() - b_3hw.int()).abs().max())


def as_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


# -------------------------------------------------------------------------------------------------------------- resize
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(100, 75), (75, 100), (60, 60), (33, 200)])
def test_resizing_equals_torchvision(tmp_path, shape, interpolation):
    """Against torchvision's transforms on Pillow images; they round differently by at most one grey level."""
    image = photograph(*shape)
    image.save(tmp_path / "a.png")
    mode = v2.InterpolationMode(interpolation)
    squash = v2.Resize((48, 48), mode)(image)
    assert difference(load_picture(tmp_path / "a.png", how(48, "squash", interpolation)), as_tensor(squash)) <= 1
    if max(shape) <= 4 * min(shape):
        crop = v2.CenterCrop(48)(v2.Resize(48, mode)(image))
        assert difference(load_picture(tmp_path / "a.png", how(48, "crop", interpolation)), as_tensor(crop)) <= 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 2)])
@pytest.mark.parametrize("resize", ["squash", "crop"])
def test_extreme_shapes(tmp_path, shape, resize):
    Image.new("RGB", shape, (10, 200, 30)).save(tmp_path / "a.png")
    pixels_3hw = load_picture(tmp_path / "a.png", how(32, resize))
    assert pixels_3hw.shape == (3, 32, 32) and pixels_3hw.is_contiguous()
    assert pixels_3hw[:, 7, 9].tolist() == [10, 200, 30]


def test_a_picture_of_the_right_size_is_not_touched(tmp_path):
    image = photograph(32, 32)
    image.save(tmp_path / "a.png")
    assert difference(load_picture(tmp_path / "a.png", how(32)), as_tensor(image)) == 0


# ---------------------------------------------------------------------------------------------------------------- JPEG
@pytest.mark.parametrize(("shape", "size"), [((1600, 1200), 64), ((600, 600), 128)])
def test_large_jpegs_are_decoded_small(tmp_path, shape, size):
    """Decoding at an eighth is close to decoding all of it: a few grey levels at most, under half on average."""
    photograph(*shape).save(tmp_path / "a.jpg", quality=95)
    full = Image.open(tmp_path / "a.jpg").convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    pixels_3hw = load_picture(tmp_path / "a.jpg", how(size))
    assert difference(pixels_3hw, as_tensor(full)) <= 6
    assert (pixels_3hw.float() - as_tensor(full)).abs().mean() < 0.5


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_pictures_stand_upright(tmp_path, orientation, suffix):
    """A picture stored turned with the EXIF tag that says so looks as it did before it was turned."""
    upright = Image.new("RGB", (64, 64), "black")
    upright.paste((255, 0, 0), (0, 0, 32, 32))  # red at the top left,
    upright.paste((0, 0, 255), (32, 0, 64, 32))  # blue at the top right
    turn = Image.Transpose
    stored = {
        2: turn.FLIP_LEFT_RIGHT,
        3: turn.ROTATE_180,
        4: turn.FLIP_TOP_BOTTOM,
        5: turn.TRANSPOSE,
        6: turn.ROTATE_90,
        7: turn.TRANSVERSE,
        8: turn.ROTATE_270,
    }.get(orientation)
    exif = Image.Exif()
    exif[0x0112] = orientation
    (upright.transpose(stored) if stored is not None else upright).save(tmp_path / f"a.{suffix}", exif=exif, quality=95)
    pixels_3hw = load_picture(tmp_path / f"a.{suffix}", how(64)).int()
    for channel, y, x in ((0, 15, 15), (2, 15, 48)):
        assert pixels_3hw[channel, y, x] > 230 and pixels_3hw[:, y, x].sum() < 320
    assert pixels_3hw[:, 48:].max() < 30


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_harmless_odd_tags_do_not_damage_a_turned_picture(tmp_path, suffix):
    """A rational below zero, where unsigned ones belong, is what Pillow can read and cannot write."""
    tags = (0x0112, 3, 1, 6), (0x011A, 10, 1, 38)  # the orientation: 6; XResolution, signed and at byte 38
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    exif = b"Exif\0\0II*\0\x08\0\0\0\x02\0" + entries + bytes(4) + struct.pack("<ii", -72, 1)
    image = Image.new("RGB", (40, 20), "black")
    image.paste("red", (0, 0, 20, 20))
    image.save(tmp_path / f"a.{suffix}", exif=exif, quality=95)
    with Image.open(tmp_path / f"a.{suffix}") as saved:
        with pytest.raises(Exception, match=r"."):
            ImageOps.exif_transpose(saved)
    pixels_3hw = read_picture(tmp_path / f"a.{suffix}", 64)
    assert pixels_3hw.shape == (3, 40, 20) and pixels_3hw[0, 5, 10] > 200 > 50 > pixels_3hw[0, 35, 10]


# -------------------------------------------------------------------------------------------------------------- colours
@pytest.mark.parametrize("high", [1, 255, 1023, 4095, 16_383])
def test_few_bits_in_many_are_refused(tmp_path, high):
    """Taken for 16 bits they would be black squares, or dim."""
    values = np.linspace(0, high, 1600).round().reshape(40, 40)
    Image.fromarray(values.astype(np.uint16)).save(tmp_path / "grey.png")
    Image.fromarray(values.astype(np.uint16)).save(tmp_path / "grey.tif")
    Image.fromarray(values.astype(np.int32)).save(tmp_path / "wide.tif")
    colours = np.stack([values] * 3 + [np.full((40, 40), 65_535)], -1).astype(">u2")
    for kind, content in ((2, colours[..., :3]), (6, colours), (4, colours[..., 2:])):
        rows = b"".join(b"\0" + row.tobytes() for row in content)
        (tmp_path / f"colour{kind}.png").write_bytes(png(40, 40, 16, kind, zlib.compress(rows)))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 6
    for name in names:
        with pytest.raises(UserError, match=rf"{name} has 16-bit values of which none is above"):
            load_picture(tmp_path / name, how(32))


def test_dark_pictures_of_eight_bits_are_read(tmp_path):
    """Among them a BMP with 5, 6 and 5 bits in 16, whose layout Pillow calls ";16" too."""
    header = struct.pack(
        "<HIHHIIiiHHIIiiIIIII", 0x4D42, 98, 0, 0, 66, 40, 4, 4, 1, 16, 3, 32, 0, 0, 0, 0, 0xF800, 0x7E0, 31
    )
    (tmp_path / "a.bmp").write_bytes(header + struct.pack("<16H", *[0x0841] * 16))
    Image.new("L", (4, 4), 9).save(tmp_path / "b.png")
    assert load_picture(tmp_path / "a.bmp", how(4))[:, 0, 0].tolist() == [8, 8, 8]
    assert load_picture(tmp_path / "b.png", how(4))[:, 0, 0].tolist() == [9, 9, 9]


def test_grey_values_of_an_unknown_range_are_refused(tmp_path):
    for name, values in {"low.tif": [-9, 60_000], "high.tif": [0, 70_000]}.items():
        Image.fromarray(np.array([values] * 2, np.int32)).save(tmp_path / name)
        with pytest.raises(UserError, match=rf"{name} holds values from .* whose range is unknown"):
            load_picture(tmp_path / name, how(32))


def test_white_is_zero(tmp_path):
    """A TIFF may store the negative, and says so; Pillow turns it back for 8 bits."""
    image = Image.fromarray(np.full((40, 40), 0xC000, np.uint16))
    image.save(tmp_path / "a.tif", tiffinfo={262: 0})
    assert load_picture(tmp_path / "a.tif", how(32))[:, 3, 3].tolist() == [0x3F] * 3


def test_colour_modes(tmp_path):
    """Grey, palette, black-and-white, CMYK and 16-bit pictures keep their colours."""
    colour = Image.new("RGB", (40, 40), (200, 100, 50))
    colour.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    colour.convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "palette.gif")
    Image.new("L", (40, 40), 77).save(tmp_path / "grey.jpg", quality=95)
    Image.new("1", (40, 40), 1).save(tmp_path / "bits.png")
    Image.fromarray(np.full((40, 40), 0x9A12, dtype=np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(np.full((40, 40), 0x9A12, dtype=np.int32)).save(tmp_path / "deep.tif")
    expected = {
        "cmyk.jpg": (200, 100, 50), "palette.gif": (200, 100, 50), "grey.jpg": (77,) * 3, "bits.png": (255,) * 3,
        "deep.png": (0x9A,) * 3, "deep.tif": (0x9A,) * 3,
    }  # fmt: skip
    for name, value in expected.items():
        pixel = load_picture(tmp_path / name, how(32))[:, 16, 16].int()
        assert (pixel - torch.tensor(value)).abs().max() <= 3, (name, pixel)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_are_white(tmp_path, mode):
    image = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    image.paste((60, 60, 60, 255), (0, 0, 20, 40))
    image.convert(mode).save(tmp_path / "a.png", **({"transparency": 0} if mode == "P" else {}))
    if mode == "P":
        image = Image.new("P", (40, 40), 0)
        image.putpalette([0, 0, 0, 60, 60, 60])
        image.paste(1, (0, 0, 20, 40))
        image.save(tmp_path / "a.png", transparency=0)
    pixels_3hw = load_picture(tmp_path / "a.png", how(40))
    assert pixels_3hw[:, 20, 5].tolist() == [60] * 3 and pixels_3hw[:, 20, 35].tolist() == [255] * 3


# ------------------------------------------------------------------------------------------------------------- refusals
def encoded(format: str) -> bytes:
    buffer = io.BytesIO()
    photograph(60, 50).save(buffer, format)
    return buffer.getvalue()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP"])
@pytest.mark.parametrize("damage", ["empty", "cut", "text"])
def test_damaged_files_are_named(tmp_path, format, damage):
    content = encoded(format)
    path = tmp_path / f"broken.{format.lower()}"
    path.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "text": b"<html>404</html>"}[damage])
    with pytest.raises(UserError, match="broken"):
        load_picture(path, how(32))


def test_missing_files_and_folders_are_named(tmp_path):
    for path in (tmp_path / "none.jpg", tmp_path):
        with pytest.raises(UserError, match="cannot be opened"):
            load_picture(path, how(32))


def test_decompression_bombs_are_refused(tmp_path):
    """A header that promises 10^8 pixels is refused before anything is decoded."""
    Image.new("1", (12_000, 10_000)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 100_000
    with pytest.warns(Image.DecompressionBombWarning), pytest.raises(UserError, match="12000 x 10000"):
        load_picture(tmp_path / "bomb.png", how(32))


def test_floating_point_pictures_are_refused(tmp_path):
    Image.fromarray(np.ones((9, 9), dtype=np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match="floating-point"):
        load_picture(tmp_path / "a.tif", how(32))


@pytest.mark.parametrize("wrong", [{"resize": "stretch"}, {"interpolation": "nearest"}])
def test_unknown_preprocessing_is_refused(tmp_path, wrong):
    photograph(20, 20).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=next(iter(wrong.values()))):
        load_picture(tmp_path / "a.png", {**how(32), **wrong})
