"""One picture file -> square RGB pixels."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from src.errors import UserError

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
MAX_PIXELS = 100_000_000  # larger pictures are taken for decompression bombs; a 100-megapixel camera still passes
# What decoders raise for files that are empty, cut off, or not pictures.
BROKEN = (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError)


def load_picture(path: str | Path, preprocessing: Mapping) -> Tensor:
    """uint8 RGB tensor (3, size, size) of the picture at ``path``, upright as its EXIF tag says.

    ``preprocessing`` names the side length "size" in pixels, "resize" and "interpolation" ("bilinear" or "bicubic",
    both antialiased). "squash" scales to the square without keeping the aspect ratio; "crop" scales the shorter side
    and takes the middle, as torchvision's Resize and CenterCrop do. Transparent parts show white; 16-bit grey values
    keep their upper 8 bits. Raises UserError naming the file when it cannot be decoded.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"The picture {path} cannot be opened ({error.strerror}).") from error
    try:
        pixels_3hw = _decode(content, preprocessing["size"])
    except UserError as error:
        raise UserError(f"The picture {path} {error}") from error
    except BROKEN as error:
        raise UserError(f"The picture {path} is damaged, or no picture at all.") from error
    return _fit(pixels_3hw, **{name: preprocessing[name] for name in ("size", "resize", "interpolation")})


def _decode(content: bytes, size: int) -> Tensor:
    """uint8 RGB (3, h, w); a JPEG much larger than ``size`` is decoded at a half, quarter or eighth of its size."""
    with Image.open(io.BytesIO(content)) as image:
        if image.width * image.height > MAX_PIXELS:
            raise UserError(f"has {image.width} x {image.height} pixels; at most {MAX_PIXELS:,} are read.")
        # The JPEG decoder scales for free; twice the wanted size is left to the antialiasing resize.
        image.draft(image.mode, (2 * size, 2 * size))
        ImageOps.exif_transpose(image, in_place=True)
        return torch.from_numpy(np.array(_to_rgb(image))).permute(2, 0, 1)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise UserError("holds floating-point values, whose range is unknown; save it as an 8-bit picture.")
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion clips at 255 instead of scaling
        return Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


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


def find_pictures(images: str | Sequence[str]) -> list[Path]:
    """Files named by a file, a folder, a pattern, or a list of these, sorted. Raises UserError when there are none."""
    found: list[Path] = []
    for entry in [images] if isinstance(images, str) else images:
        path = Path(entry)
        if path.is_dir():
            found += sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
        elif path.is_file():
            found.append(path)
        else:
            found += sorted(p for p in path.parent.glob(path.name) if p.is_file())
    if not found:
        raise UserError(
            f"images={images} names no picture; give a file, a folder, or a pattern such as 'photos/*.jpg'."
        )
    return found
