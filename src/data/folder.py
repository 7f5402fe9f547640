"""Your own pictures: a folder with a table of captions."""

from __future__ import annotations

import posixpath
from pathlib import Path
from typing import Literal
from unicodedata import normalize

from src.contracts import Example
from src.data.base import SPLITS, ListedPictures, captions_of, picture_path, split_by_name, split_of
from src.data.faults import Faults
from src.data.images import shown
from src.data.names import looked_up
from src.data.tables import Columns, JsonLines, Table
from src.errors import UserError
from src.kinds import Share

TABLES = ("captions.csv", "captions.jsonl", "captions.txt", "results.csv", "metadata.jsonl", "metadata.csv")
PICTURES = ("", "Images", "images", "flickr30k_images")  # where they are beside such tables
FOLDERS = {"train": "train", "val": "val", "validation": "val", "valid": "val", "dev": "val", "test": "test"}
SAMPLE = 100  # pictures that are looked for to find their folder


class Folder(ListedPictures):
    """Pictures in ``root``, captions in ``captions`` (by default the first of ``TABLES`` that is in root).

    A table (.csv, .txt) has a header and a row per caption; a .jsonl file has lines {"image": ..., "caption": "..."} or
    {"image": ..., "captions": [...]}. ``image_column``, ``caption_column``, ``separator``: where they are others than
    ``data.tables`` knows. ``images``: the folder of the pictures, by default root or one in it (``PICTURES``). Names of
    pictures are relative to it and are the ids.

    An optional "split" (train, val, test) puts pictures into splits; without it a hash of the name does, 80 : 10 : 10,
    so that adding pictures moves none of the others. Where root has no table and its folders train, validation and
    test do (Hugging Face's imagefolder), these are the splits, and that hash takes those that are not there out of
    train. Raises UserError with the line when a table is malformed, and when pictures are missing or lead outside.
    ``on_error``, ``max_skipped``: see ``data.faults``.
    """

    name = "folder"

    def __init__(
        self,
        root: str,
        captions: str | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        max_skipped: Share = 0.01,
        images: str | None = None,
        image_column: str | None = None,
        caption_column: str | None = None,
        separator: str | None = None,
    ):
        self.root, self.faults = Path(root), Faults(self.name, on_error, max_skipped)
        self.columns = Columns(image_column, caption_column, separator)
        self.tables = self._find_tables(captions)
        self.table = next(iter(self.tables.values()))
        self._captions: dict[str, list[str]] = {}
        self._splits: dict[str, str] = {}
        for folder in self.tables:
            self._read(folder)
        self.pictures = self._find_pictures(images)
        self._take(self._examples(), self.table)
        if not self._groups:
            raise UserError(f"{self.table} holds no captions.")

    def _find_tables(self, captions: str | None) -> dict[str, Path]:
        """The table by the folder in root that its names are relative to: "" for root itself."""
        names = [captions] if captions else TABLES
        for folders in ("",), FOLDERS:
            inside = {folder: [self.root / folder / name for name in names] for folder in folders}
            found = {folder: next(filter(Path.is_file, paths), None) for folder, paths in inside.items()}
            if any(found.values()):
                return {folder: table for folder, table in found.items() if table}
        raise UserError(
            f"{self.root} holds no {' or '.join(names[:2])}; put a table with the columns image,caption beside the "
            "pictures, or say where the folder is with data.root=<folder>, or the table with data.source.captions."
        )

    def _read(self, folder: str) -> None:
        """Note captions and split of each picture, in the order of first mention."""
        path = self.tables[folder]
        table = (JsonLines if path.suffix == ".jsonl" else Table)(path, self.columns)
        spelt = {normalize("NFC", name): name for name in self._captions}
        for where, row in table:
            with self.faults.entry(where, table.layout):
                record, name, texts = table.read(row)
                name = posixpath.normpath(posixpath.join(folder, name))  # "./a.jpg" is a.jpg, and in the same split
                name = spelt.setdefault(normalize("NFC", name), name)
                picture_path(self.root, name)
                split = self._split_by_folder(folder, name) if folder else split_of(record, name)
                if self._splits.setdefault(name, split) != split:
                    raise UserError(f"{shown(name)} is in two splits, {self._splits[name]} and {split}.")
                self._captions.setdefault(name, []).extend(texts)

    def _split_by_folder(self, folder: str, name: str) -> str:
        split, by_name = FOLDERS[folder], split_by_name(name)
        lacking = set(SPLITS) - {FOLDERS[there] for there in self.tables}
        return by_name if split == "train" and by_name in lacking else split

    def _find_pictures(self, images: str | None) -> Path:
        """Where most of the first pictures are."""
        if images is not None:
            return self.root / images
        names = list(self._captions)[:SAMPLE]
        places = [self.root / folder for folder in PICTURES]
        return min(places, key=lambda place: len(looked_up(picture_path(place, name) for name in names)[0]))

    def _examples(self) -> list[tuple[str, Example]]:
        """Split and example of each picture."""
        examples = []
        for name, texts in self._captions.items():
            with self.faults.entry(f"{self.table}, picture {shown(name)}", "a caption"):
                own = captions_of([{"caption": one} for one in texts], "caption")
                examples.append((self._splits[name], Example(name, own, picture_path(self.pictures, name))))
        return examples
