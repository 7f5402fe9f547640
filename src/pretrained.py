"""Captioners for other people's code: of a run folder or an exported one, in one call.

captioner = load("exported/srau")
caption_pictures(captioner, ["a.jpg", "b.jpg"])  # {"a.jpg": "a dog runs over the grass", ...}
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from src.build import restore_captioner
from src.captioner import Captioner
from src.contracts import Batch
from src.data.images import load_picture
from src.errors import UserError


def load(folder: str | Path) -> Captioner:
    """The captioner in a folder of src.train or src.export, ready to caption; nothing in it is executed.

    Raises UserError when a file differs from the manifest, a frozen part cannot be had, or ``folder`` is neither.
    """
    return restore_captioner(Path(folder)).eval()


def caption_pictures(captioner: Captioner, files: Sequence[str | Path], batch_size: int = 32) -> dict[str, str]:
    """Captions by path. Raises UserError naming the first picture that can't be read."""
    return captioner.caption(picture_batches(captioner, files, batch_size))


def picture_batches(
    captioner: Captioner,
    files: Sequence[str | Path],
    batch_size: int,
    unreadable: Callable[[UserError], None] | None = None,
) -> Iterator[Batch]:
    """Batches of one picture per context, named by path. ``unreadable`` is told of skipped files; None: they raise."""
    if captioner.vision is None:
        raise UserError("This captioner was trained without pictures (fusion=blind); it cannot caption any.")
    for first in range(0, len(files), batch_size):
        pixels = {}
        for file in files[first : first + batch_size]:
            try:
                pixels[str(file)] = load_picture(file, captioner.vision.preprocessing)
            except UserError as error:
                if unreadable is None:
                    raise
                unreadable(error)
        if pixels:
            yield Batch(list(pixels), captioner.start(len(pixels), "cpu"), torch.stack(list(pixels.values()))[:, None])
