"""Your own pictures: a folder with a table of captions."""

from __future__ import annotations

import csv
import json
import posixpath
from collections.abc import Iterator, Sequence
from pathlib import Path

from src.contracts import Example
from src.data.base import PictureFiles, group_by_split, picture_path, require_pictures, stable_share
from src.errors import UserError

SPLITS = ("train", "val", "test")


class Folder(PictureFiles):
    """Pictures in ``root``, captions in ``captions`` (by default captions.csv or captions.jsonl in root).

    A table (.csv, .txt) has a header with the columns image and caption, and a row per caption; a .jsonl file has lines
    {"image": ..., "caption": "..."} or {"image": ..., "captions": [...]}. Names of pictures are
    relative to root and are the ids. An optional "split" (train, val, test) puts pictures into splits; without it a
    hash of the name does, 80 : 10 : 10, so that adding pictures moves none of the others. Raises UserError with the
    line when a table is malformed, and when pictures are missing or lead outside root.
    """

    name = "folder"

    def __init__(self, root: str, captions: str | None = None):
        self.root = Path(root)
        self.table = self._find_table(captions)
        self._groups = group_by_split(self._read())
        if not self._groups:
            raise UserError(f"{self.table} holds no captions.")
        require_pictures((e.image for group in self._groups.values() for e in group), str(self.table))

    def splits(self) -> tuple[str, ...]:
        return tuple(self._groups)

    def examples(self, split: str) -> Sequence[Example]:
        return self._groups[split]

    def _find_table(self, captions: str | None) -> Path:
        names = [captions] if captions else ["captions.csv", "captions.jsonl"]
        found = [self.root / name for name in names if (self.root / name).is_file()]
        if not found:
            raise UserError(
                f"{self.root} holds no {' or '.join(names)}; put a table with the columns image,caption beside the "
                "pictures, or say where the folder is with data.root=<folder>."
            )
        return found[0]

    def _read(self) -> list[tuple[str, Example]]:
        """One example per picture, in the order of first mention."""
        captions: dict[str, list[str]] = {}
        splits: dict[str, str] = {}
        rows = _json_rows(self.table) if self.table.suffix == ".jsonl" else _table_rows(self.table)
        for where, image, texts, split in rows:
            image = posixpath.normpath(image)  # "./a.jpg" and "a.jpg" are one picture, in one split
            if split is None:
                split = _split_of(image)
            elif split not in SPLITS:
                raise UserError(f"{where}: the split {split!r} is none of {', '.join(SPLITS)}.")
            if splits.setdefault(image, split) != split:
                raise UserError(f"{where}: {image} is in two splits, {splits[image]} and {split}.")
            captions.setdefault(image, []).extend(texts)
        return [
            (splits[image], Example(image, tuple(texts), picture_path(self.root, image)))
            for image, texts in captions.items()
        ]


def _split_of(image: str) -> str:
    share = stable_share("split", image)
    return "train" if share < 0.8 else "val" if share < 0.9 else "test"


Row = tuple[str, str, list[str], str | None]  # where it stands, image, captions, split


def _table_rows(path: Path) -> Iterator[Row]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True, skipinitialspace=True)
            header = reader.fieldnames or []
            if not {"image", "caption"} <= set(header):
                first = ",".join(header)
                raise UserError(f"{path} needs a header with the columns image and caption; it begins with {first!r}.")
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                if None in row or None in row.values():
                    raise UserError(f"{where}: {len(header)} columns are expected; put captions with commas in quotes.")
                yield where, row["image"], [row["caption"]], row.get("split")
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a UTF-8 table ({error}).") from error


def _json_rows(path: Path) -> Iterator[Row]:
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
            texts = row["captions"] if "captions" in row else [row["caption"]]
            image, split = row["image"], row.get("split")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f'{where}: {{"image": ..., "caption": ...}} is expected ({error}).') from error
        if not isinstance(image, str) or not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
            raise UserError(f"{where}: image and captions must be strings.")
        yield where, image, texts, split
