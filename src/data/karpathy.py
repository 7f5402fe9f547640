"""Flickr8k, Flickr30k and COCO in the splits of Karpathy & Fei-Fei 2015 (arXiv 1412.2306)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from src.contracts import Example
from src.data.base import PictureFiles, group_by_split, picture_path, read_json, require_pictures
from src.errors import UserError

SPLITS_FILE = "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip"
PICTURES = {
    "flickr8k": "the pictures (images/) from the University of Illinois, https://forms.illinois.edu/sec/1713398",
    "flickr30k": "the pictures (images/) from the University of Illinois, https://shannon.cs.illinois.edu/DenotationGraph",
    "coco": "train2014/ and val2014/ from https://cocodataset.org/#download",
}
# COCO's restval: pictures of its 2014 validation set that the split's authors left to training.
SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}


class Karpathy(PictureFiles):
    """Pictures and captions listed in one of Karpathy's split files.

    ``root``: the folder with the list and the pictures. ``annotations``: the list, by default dataset_<name>.json or
    dataset.json. ``images``: the folder of the pictures inside root. The id of an example is COCO's picture number, and
    the file name without suffix elsewhere. Raises UserError when something is missing, listed twice, or leads outside.
    """

    def __init__(self, name: str, root: str, annotations: str | None = None, images: str = "images"):
        self.name = name
        self.root = Path(root)
        self.pictures = self.root / images
        self.list = self._find_list(annotations)
        self._groups = group_by_split(self._read())
        if not self._groups:
            raise UserError(f"{self.list} lists no picture of a train, val or test split.")
        require_pictures((e.image for group in self._groups.values() for e in group), str(self.list))

    def splits(self) -> tuple[str, ...]:
        return tuple(self._groups)

    def examples(self, split: str) -> Sequence[Example]:
        return self._groups[split]

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
        listed, others, ids = [], 0, set()
        content = read_json(self.list)
        try:
            for entry in content["images"]:
                split = SPLITS.get(entry["split"])
                if split is None:
                    others += 1
                    continue
                example = self._example(entry)
                if example.id in ids:
                    raise UserError(f"{self.list} lists the picture {example.id} twice.")
                ids.add(example.id)
                listed.append((split, example))
        except (KeyError, TypeError) as error:
            raise UserError(f"{self.list} is not in Karpathy's layout: {error} is missing or misplaced.") from error
        if others:
            logging.getLogger(__name__).info("%s: %d pictures in no split are left out.", self.name, others)
        return listed

    def _example(self, entry: dict) -> Example:
        file = Path(entry.get("filepath", "")) / entry["filename"]
        id = str(entry["cocoid"]) if "cocoid" in entry else Path(entry["filename"]).stem
        captions = tuple(sentence["raw"] for sentence in entry["sentences"])
        return Example(id, captions, picture_path(self.pictures, str(file)))
