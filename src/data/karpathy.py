"""Flickr8k, Flickr30k and COCO in the splits of Karpathy & Fei-Fei 2015 (arXiv 1412.2306)."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Literal
from unicodedata import normalize

from src.contracts import Example
from src.data.base import ListedPictures, captions_of, picture_path, read_json
from src.data.faults import Faults, identity, items, text
from src.data.images import shown
from src.errors import UserError
from src.kinds import Share

SPLITS_FILE = "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip"
PICTURES = {
    "flickr8k": "the pictures (images/) from the University of Illinois, https://forms.illinois.edu/sec/1713398",
    "flickr30k": "the pictures (images/) from the University of Illinois, https://shannon.cs.illinois.edu/DenotationGraph",
    "coco": "train2014/ and val2014/, or train2017/ and val2017/, from https://cocodataset.org/#download",
}
# COCO's restval: pictures of its 2014 validation set that the split's authors left to training.
SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}
LAYOUT = '{"filename": ..., "split": ..., "sentences": [{"raw": ...}, ...]}'


class Karpathy(ListedPictures):
    """Pictures and captions listed in one of Karpathy's split files.

    ``root``: the folder with the list and the pictures. ``annotations``: the list, by default dataset_<name>.json or
    dataset.json. ``images``: the folder of the pictures inside root. The id of an example is COCO's picture number.
    Elsewhere it is the file name without suffix; where pictures of the list share that, all have their paths inside
    ``images`` instead, without suffix if that tells them apart. COCO's folders of 2014 may be those of 2017. Raises
    UserError when something is missing, listed twice, or leads outside. ``on_error``, ``max_skipped``: see
    ``data.faults``.
    """

    def __init__(
        self,
        name: str,
        root: str,
        annotations: str | None = None,
        images: str = "images",
        on_error: Literal["raise", "skip"] = "raise",
        max_skipped: Share = 0.01,
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
        other = " (data=coco2017 reads COCO's own lists)" if self.name == "coco" else ""
        return (
            f"{problem}{other}; download {pictures} and the list dataset_{self.name}.json in {SPLITS_FILE}, put them "
            f"into data/{self.name}, or say where they are with data.root=<folder>."
        )

    def _read(self) -> list[tuple[str, Example]]:
        listed, others, seen = [], 0, set()
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
                keys = {("file", normalize("NFC", example.image)), *([("cocoid", example.id)] if example.id else [])}
                # The second listing could be in another split: a test picture in training.
                if not keys.isdisjoint(seen):
                    name = example.id or os.path.splitext(os.path.relpath(example.image, self.pictures))[0]
                    raise UserError(f"The list has the picture {shown(name)} twice.")
                seen |= keys
                listed.append((split, example))
        if others:
            logging.getLogger(__name__).info("%s: %d pictures in no split are left out.", self.name, others)
        names = self._names([example for _, example in listed])
        return [(split, replace(example, id=names.get(example.image, example.id))) for split, example in listed]

    def _names(self, listed: Sequence[Example]) -> dict[str, str]:
        """Ids by path of the pictures without a number: the shortest kind of name that is each one's own."""
        numbers = {example.id for example in listed if example.id}
        files = [Path(example.image).relative_to(self.pictures) for example in listed if not example.id]
        for kind in (lambda file: file.stem, lambda file: file.with_suffix("").as_posix(), Path.as_posix):
            names = [kind(file) for file in files]
            if len(numbers.union(names)) == len(numbers) + len(names):
                break
        return {str(self.pictures / file): name for file, name in zip(files, names, strict=True)}

    def _example(self, entry: dict) -> Example:
        name = os.path.join(text(entry, "filepath", default=""), text(entry, "filename"))
        path = picture_path(self.pictures, name)
        captions = captions_of(items(entry, "sentences"), "raw")
        if "cocoid" not in entry:
            return Example("", captions, path)  # see _names
        number = identity(entry, "cocoid")
        if self._of_2017 and not os.path.isfile(path):
            path = self._of_2017.get(f"{number.zfill(12)}.jpg", path)
        return Example(number, captions, path)

    @cached_property
    def _of_2017(self) -> dict[str, str]:
        """COCO's release of 2017 has the pictures of 2014 under other names in other folders: paths by name."""
        folders = [folder for folder in (self.pictures / "train2017", self.pictures / "val2017") if folder.is_dir()]
        return {name: str(folder / name) for folder in folders for name in os.listdir(folder)}
