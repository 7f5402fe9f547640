"""COCO's own caption files over its own folders of pictures (Chen et al. 2015, arXiv 1504.00325)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from src.contracts import Example
from src.data.base import ListedPictures, captions_of, picture_path, read_json, stable_share
from src.data.faults import LONGEST_CAPTION, Faults, identity, items, text
from src.data.images import shown
from src.errors import UserError
from src.kinds import Share

ANNOTATION = '{"image_id": ..., "caption": ...}'
PICTURE = '{"id": ..., "file_name": ...} with captions'


class CocoCaptions(ListedPictures):
    """captions_train<year>.json and captions_val<year>.json in ``root``, or in annotations/ there.

    ``images``: the folder inside root that holds train<year>/ and val<year>/. The ids are COCO's picture numbers, as in
    Karpathy's list. COCO keeps the captions of its test pictures to itself, so a hash of the number shares its
    validation pictures out, half to val and half to test. Raises UserError when something is missing, listed twice, or
    leads outside. ``on_error``, ``max_skipped``: see ``data.faults``.
    """

    def __init__(
        self,
        name: str,
        root: str,
        year: int = 2017,
        images: str = ".",
        on_error: Literal["raise", "skip"] = "raise",
        max_skipped: Share = 0.01,
    ):
        self.name, self.faults = name, Faults(name, on_error, max_skipped)
        self.root, self.year = Path(root), year
        self.pictures = self.root / images
        lists = {part: self._find_list(part) for part in ("train", "val")}
        listed: dict[str, tuple[str, Example]] = {}
        for part, path in lists.items():
            self._read(part, path, listed)
        self._take(list(listed.values()), lists["train"])
        if not self._groups:
            raise UserError(f"{lists['train']} lists no picture.")

    def _find_list(self, part: str) -> Path:
        name = f"captions_{part}{self.year}.json"
        found = next((path for path in (self.root / "annotations" / name, self.root / name) if path.is_file()), None)
        if found is None or not (self.pictures / f"{part}{self.year}").is_dir():
            lacking = f"{self.root} holds no {name}" if found is None else f"{self.pictures} holds no {part}{self.year}"
            raise UserError(
                f"{lacking}; download the annotations and train{self.year}/ and val{self.year}/ from "
                "https://cocodataset.org/#download, or say where they are with data.root=<folder>."
            )
        return found

    def _read(self, part: str, path: Path, listed: dict[str, tuple[str, Example]]) -> None:
        """Put split and example of the pictures of one file into ``listed``, by id."""
        content = read_json(path)
        try:
            pictures, annotations = items(content, "images"), items(content, "annotations")
        except ValueError as error:
            raise UserError(f"{path} is not in COCO's layout of captions: {error}.") from error
        captions: dict[str, list[dict]] = {}
        for number, annotation in enumerate(annotations, 1):
            with self.faults.entry(f"{path}, annotation {number}", ANNOTATION):
                caption = text(annotation, "caption", longest=LONGEST_CAPTION)
                captions.setdefault(identity(annotation, "image_id"), []).append({"caption": caption})
        for number, picture in enumerate(pictures, 1):
            with self.faults.entry(f"{path}, picture {number}", PICTURE):
                id, file = identity(picture, "id"), text(picture, "file_name")
                place, own = picture_path(self.pictures / f"{part}{self.year}", file), captions.pop(id, [])
                if id in listed:
                    raise UserError(f"The list has the picture {shown(id)} twice.")
                listed[id] = self._split(part, id), Example(id, captions_of(own, "caption"), place)
        for id in captions:
            self.faults.add(f"{path}, captions of {shown(id)}", "There is no picture of this number.")

    def _split(self, part: str, id: str) -> str:
        return "train" if part == "train" else "val" if stable_share("coco", id) < 0.5 else "test"
