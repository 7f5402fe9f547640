"""A sheet of pictures with captions underneath, as one PNG."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from src.records.files import write_bytes

SIDE, MARGIN, LINE, CHARACTERS = 224, 12, 17, 34  # pixels, pixels, pixels per text line, characters per line


def write_sheet(path: Path | str, pictures: Sequence[Image.Image], captions: Sequence[str], columns: int = 4) -> None:
    """Draw ``pictures`` in rows of ``columns``, each above its caption."""
    wrapped = [textwrap.wrap(caption, CHARACTERS) or ["(empty)"] for caption in captions]
    cell_w = SIDE + 2 * MARGIN
    cell_h = SIDE + 2 * MARGIN + LINE * max(map(len, wrapped))
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * cell_w, rows * cell_h), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for i, (picture, lines) in enumerate(zip(pictures, wrapped, strict=True)):
        x, y = i % columns * cell_w + MARGIN, i // columns * cell_h + MARGIN
        sheet.paste(_fit(picture), (x, y))
        for j, line in enumerate(lines):
            draw.text((x, y + SIDE + 4 + j * LINE), line, fill="black", font=font)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    write_bytes(path, buffer.getvalue())


def _fit(picture: Image.Image) -> Image.Image:
    """The picture inside a SIDE x SIDE white square, aspect ratio kept."""
    square = Image.new("RGB", (SIDE, SIDE), "white")
    scale = SIDE / max(picture.size)
    size = tuple(max(1, round(x * scale)) for x in picture.size)
    picture = picture.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    square.paste(picture, ((SIDE - size[0]) // 2, (SIDE - size[1]) // 2))
    return square
