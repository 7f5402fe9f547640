"""One picture file -> square RGB pixels."""

from __future__ import annotations

import glob
import io
import logging
import os
import re
import stat
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor
from torch.nn import functional as F

from src.errors import UserError

SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff"}
# What is behind SUFFIXES, whatever a file is called. Pillow knows more, and starts Ghostscript for some of it (EPS).
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "GIF", "TIFF")
MAX_PIXELS = 100_000_000  # larger pictures are taken for decompression bombs; a 100-megapixel camera still passes
MAX_BYTES = 8 * MAX_PIXELS  # as many as that, of four colours of 16 bits, uncompressed
LONGEST_NAME = 200  # characters of a file name in a message
# Values of 16 bits that stay below this are of 8, 10, 12 or 14 bits, as cameras and scanners have them, or of a picture
# that is almost black: which of these, no file says.
LEAST_DEEP = 2**14
DEEP = re.compile(r";16[BLN]")  # in Pillow's name of how a file stores colours of 16 bits; it keeps the upper 8 of each
WHITE_IS_ZERO = 262, 0  # the tag of a TIFF, and its value
# How a stored picture is turned upright, by its EXIF orientation (EXIF 2.3, section 4.6.4).
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def load_picture(path: str | Path, preprocessing: Mapping, content: bytes | None = None) -> Tensor:
    """uint8 RGB tensor (3, size, size) of the picture at ``path``, upright as its EXIF tag says.

    ``content``: of the file, where it has been read already; ``path`` is then only what messages call it.

    ``preprocessing`` names the side length "size" in pixels, "resize" and "interpolation" ("bilinear" or "bicubic",
    both antialiased). "squash" scales to the square without keeping the aspect ratio; "crop" scales the shorter side
    and takes the middle, as torchvision's Resize and CenterCrop do. Transparent parts show white; 16-bit values keep
    their upper 8 bits; of several frames the first counts. Raises UserError naming the file when it cannot be decoded,
    or holds values whose range is not known.
    """
    pixels_3hw = read_picture(path, preprocessing["size"], content)
    return _fit(pixels_3hw, **{name: preprocessing[name] for name in ("size", "resize", "interpolation")})


def read_picture(path: str | Path, size: int, content: bytes | None = None) -> Tensor:
    """uint8 RGB (3, h, w), upright; a JPEG much larger than ``size`` at a half, quarter or eighth of its own size.

    ``content``: see ``load_picture``. Raises UserError naming the file when it cannot be decoded.
    """
    try:
        content = _content(path) if content is None else content
    except (OSError, ValueError) as error:  # ValueError: names that no file can have
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"The picture {shown(path)} cannot be opened ({reason}).") from error
    try:
        return _decode(content, size)
    except UserError as error:
        raise UserError(f"The picture {shown(path)} {error}") from error
    except MemoryError as error:
        raise UserError(f"The picture {shown(path)} does not fit into memory.") from error
    except Exception as error:  # decoders raise anything for files that are empty, cut off or no pictures
        if content[4:11] in (b"ftyphei", b"ftyphev"):
            raise UserError(f"The picture {shown(path)} is HEIC, which is not read; save it as JPEG or PNG.") from None
        raise UserError(f"The picture {shown(path)} is damaged, or no picture at all.") from error


def shown(name: str | Path) -> str:
    """A file name on one line and not too long, whatever a list or a disk holds: control characters are spelled out."""
    text = str(name)
    if len(text) > LONGEST_NAME:
        text = f"{text[: LONGEST_NAME // 2]}...{text[-LONGEST_NAME // 2 :]}"
    return text if text.isprintable() else repr(text)


def _content(path: str | Path) -> bytes:
    with open(path, "rb", opener=_without_waiting) as file:
        state = os.fstat(file.fileno())
        if not stat.S_ISREG(state.st_mode):
            raise OSError(0, "it is no regular file")
        if state.st_size > MAX_BYTES:
            raise OSError(0, f"it has {state.st_size:,} bytes; at most {MAX_BYTES:,} are read")
        return file.read()


def _without_waiting(path: str, flags: int) -> int:
    """Opening a pipe would wait for somebody to write into it."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _decode(content: bytes, size: int) -> Tensor:
    """``read_picture`` of a file's content."""
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    except Image.DecompressionBombError:
        raise UserError(f"claims far more pixels than the {MAX_PIXELS:,} that are read.") from None
    with image:
        if image.width * image.height > MAX_PIXELS:
            raise UserError(f"has {image.width} x {image.height} pixels; at most {MAX_PIXELS:,} are read.")
        # The JPEG decoder scales for free; twice the wanted size is left to the antialiasing resize.
        image.draft(image.mode, (2 * size, 2 * size))
        deep = any(DEEP.search(str(tile.args)) for tile in image.tile)
        image.load()  # which turns TIFFs by itself
        # Not ImageOps.exif_transpose, which writes the other tags anew, and fails where one has an odd value.
        turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
        rgb = _to_rgb(image, deep)
        return torch.from_numpy(np.array(rgb if turn is None else rgb.transpose(turn))).permute(2, 0, 1)


def _to_rgb(image: Image.Image, deep: bool) -> Image.Image:
    """``deep``: the file has 16 bits per value. Raises UserError for values whose range is not known."""
    if image.mode == "F":
        raise UserError("holds floating-point values, whose range is unknown; save it as an 8-bit picture.")
    if image.mode.startswith("I"):  # Pillow's own conversion clips at 255 instead of scaling
        return Image.fromarray(_upper_bits(image)).convert("RGB")
    if deep:
        colours = [band for band in image.getbands() if band not in ("A", "X")]
        _refuse_dim(max(image.getchannel(colour).getextrema()[1] for colour in colours) << 8)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _upper_bits(image: Image.Image) -> np.ndarray:
    """uint8 (h, w) of grey values of 16 bits, also where they are stored in 32."""
    values_hw = np.asarray(image)
    low, high = int(values_hw.min()), int(values_hw.max())
    if low < 0 or high > 65_535:
        raise UserError(f"holds values from {low:,} to {high:,}, whose range is unknown; save it as an 8-bit picture.")
    _refuse_dim(high)
    tag, value = WHITE_IS_ZERO
    if getattr(image, "tag_v2", {}).get(tag) == value:  # which Pillow heeds for 8 bits only
        values_hw = 65_535 - values_hw
    return (values_hw >> 8).astype(np.uint8)


def _refuse_dim(high: int) -> None:
    """``high``: the largest of the picture's 16-bit values."""
    if high < LEAST_DEEP:
        raise UserError(
            f"has 16-bit values of which none is above {high:,}: they are of fewer bits, or it is almost black; save "
            "it as an 8-bit picture."
        )


def _fit(pixels_3hw: Tensor, size: int, resize: str, interpolation: str) -> Tensor:
    """Scale to a square of ``size``."""
    if interpolation not in ("bilinear", "bicubic"):
        raise UserError(f"interpolation is 'bilinear' or 'bicubic', not {interpolation!r}.")
    if resize == "squash":
        return _scale(pixels_3hw, size, size, interpolation)
    if resize != "crop":
        raise UserError(f"resize is 'squash' or 'crop', not {resize!r}.")
    height, width = pixels_3hw.shape[1:]
    short = min(height, width)
    # Very long pictures are cut first, or their scaled long side would not fit into memory; 4:1 keeps every photograph.
    height, width = min(height, 4 * short), min(width, 4 * short)
    pixels_3hw = _middle(pixels_3hw, height, width)
    pixels_3hw = _scale(pixels_3hw, size * height // short, size * width // short, interpolation)
    return _middle(pixels_3hw, size, size).contiguous()


def _scale(pixels_3hw: Tensor, height: int, width: int, interpolation: str) -> Tensor:
    if pixels_3hw.shape[1:] == (height, width):
        return pixels_3hw.contiguous()
    scaled_13hw = F.interpolate(pixels_3hw[None], (height, width), mode=interpolation, antialias=True)
    return scaled_13hw[0].contiguous()


def _middle(pixels_3hw: Tensor, height: int, width: int) -> Tensor:
    """The central window; rounding as in torchvision's CenterCrop."""
    top = round((pixels_3hw.shape[1] - height) / 2)
    left = round((pixels_3hw.shape[2] - width) / 2)
    return pixels_3hw[:, top : top + height, left : left + width]


def as_image(pixels_3hw: Tensor) -> Image.Image:
    """uint8 RGB (3, h, w) for Pillow."""
    return Image.fromarray(pixels_3hw.permute(1, 2, 0).numpy())


def find_pictures(images: str | Sequence[str]) -> list[Path]:
    """Files named by a file, a folder, a pattern, or a list of these, sorted; what a folder holds beside is told.

    Raises UserError when there are none.
    """
    found: list[Path] = []
    passed: list[str] = []
    try:
        for entry in [images] if isinstance(images, str) else images:
            named, beside = _named(Path(entry))
            found += named
            passed += beside
    except (OSError, ValueError) as error:  # ValueError: what is no name and no pattern
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"images={shown(str(images))} cannot be looked up ({reason}).") from error
    if not found:
        raise UserError(
            f"images={shown(str(images))} names no picture{''.join(f'; {one}' for one in passed)}; give a file, a "
            "folder, or a pattern such as 'photos/*.jpg'."
        )
    for one in passed:
        logging.getLogger(__name__).warning("note: %s.", one)
    return found


def _named(path: Path) -> tuple[list[Path], list[str]]:
    """Pictures, and sentences on what the folder ``path`` holds beside them; hidden files are no one's pictures."""
    if not path.is_dir():
        files = map(Path, glob.iglob(str(path), recursive=True, include_hidden=True))
        return [path] if path.is_file() else sorted(file for file in files if file.is_file()), []
    inside = sorted(path.iterdir())
    folders = {entry for entry in inside if entry.is_dir()}
    pictures = [entry for entry in inside if entry.suffix.lower() in SUFFIXES and entry not in folders]
    taken = set(pictures)
    others = [entry for entry in inside if not (entry in folders or entry in taken or entry.name.startswith("."))]
    passed = []
    if others:
        endings = Counter(shown(entry.suffix.lower()) or "no ending" for entry in others)
        counts = ", ".join(f"{count} with {ending}" for ending, count in endings.most_common(8))
        read = ", ".join(sorted(SUFFIXES))
        passed.append(f"{shown(path)}: files passed over, since only {read} are read: {counts}")
    if folders:
        passed.append(f"{shown(path)}: folders passed over: {len(folders)}; '{shown(path)}/**/*.jpg' names theirs")
    return pictures, passed
