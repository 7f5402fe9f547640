"""Flickr8k, Flickr30k and COCO in the splits of Karpathy & Fei-Fei 2015 (arXiv 1412.2306)."""

from __future__ import annotations

import logging
from pathlib import Path

from src.contracts import Example
from src.data.base import ListedPictures, captions_of, picture_path, read_json
from src.data.faults import Faults, identity, items, text
from src.data.images import shown
from src.errors import UserError

SPLITS_FILE = "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip"
PICTURES = {
    "flickr8k": "the pictures (images/) from the University of Illinois, https://forms.illinois.edu/sec/1713398",
    "flickr30k": "the pictures (images/) from the University of Illinois, https://shannon.cs.illinois.edu/DenotationGraph",
    "coco": "train2014/ and val2014/ from https://cocodataset.org/#download",
}
# COCO's restval: pictures of its 2014 validation set that the split's authors left to training.
SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}
LAYOUT = '{"filename": ..., "split": ..., "sentences": [{"raw": ...}, ...]}'


class Karpathy(ListedPictures):
    """Pictures and captions listed in one of Karpathy's split files.

    ``root``: the folder with the list and the pictures. ``annotations``: the list, by default dataset_<name>.json or
    dataset.json. ``images``: the folder of the pictures inside root. The id of an example is COCO's picture number, and
    the file name without suffix elsewhere. Raises UserError when something is missing, listed twice, or leads outside.
    ``on_error``, ``max_skipped``: see ``data.faults``.
    """

    def __init__(
        self,
        name: str,
        root: str,
        annotations: str | None = None,
        images: str = "images",
        on_error: str = "raise",
        max_skipped: float = 0.01,
    ):
        self.name, self.faults = name, Faults(name, on_error, max_skipped)
        self.root = Path(root)
        self.pictures = self.root / images
        self.list = self._find_list(annotations)
        self._take(self._read(), self.list)
        if not self._groups:
            raise UserError(f"{self.list} lists no picture of a train, val or test split.")

    def _find_list(self, annotations: str | None) -> Path:
        names = [annotations] if annotations else [f"dataset_{self.name}.json", "dataset.json"]
        found = [self.root / name for name in names if (self.root / name).is_file()]
        if not found:
            raise UserError(self._how_to_get(f"{self.root} holds no {' or '.join(names)}"))
        if not self.pictures.is_dir():
            raise UserError(self._how_to_get(f"The folder of pictures {self.pictures} does not exist"))
        return found[0]

    def _how_to_get(self, problem: str) -> str:
        pictures = PICTURES.get(self.name, "the pictures")
        return (
            f"{problem}; download {pictures} and the list dataset_{self.name}.json in {SPLITS_FILE}, put them into "
            f"data/{self.name}, or say where they are with data.root=<folder>."
        )

    def _read(self) -> list[tuple[str, Example]]:
        listed, others, ids, files = [], 0, set(), set()
        try:
            entries = items(read_json(self.list), "images")
        except ValueError as error:
            raise UserError(f'{self.list} is not in Karpathy\'s layout, {{"images": [...]}}: {error}.') from error
        for number, entry in enumerate(entries, 1):
            with self.faults.entry(f"{self.list}, picture {number}", LAYOUT):
                split = SPLITS.get(text(entry, "split"))
                if split is None:
                    others += 1
                    continue
                example = self._example(entry)
                # The second listing could be in another split: a test picture in training.
                if example.id in ids or example.image in files:
                    raise UserError(f"The list has the picture {shown(example.id)} twice.")
                ids.add(example.id)
                files.add(example.image)
                listed.append((split, example))
        if others:
            logging.getLogger(__name__).info("%s: %d pictures in no split are left out.", self.name, others)
        return listed

    def _example(self, entry: dict) -> Example:
        file = Path(text(entry, "filepath", default="")) / text(entry, "filename")
        path = picture_path(self.pictures, str(file))
        id = identity(entry, "cocoid") if "cocoid" in entry else file.stem
        return Example(id, captions_of(items(entry, "sentences"), "raw"), path)
