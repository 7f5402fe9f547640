"""Your own pictures: a folder with a table of captions."""

from __future__ import annotations

import csv
import posixpath
from collections.abc import Iterator
from pathlib import Path

from src.contracts import Example
from src.data.base import ListedPictures, captions_of, lines_of, picture_path, split_of
from src.data.faults import LONGEST_CAPTION, Faults, items, parsed, text
from src.data.images import shown
from src.errors import UserError

LAYOUTS = {
    ".jsonl": '{"image": ..., "caption": ...} of strings, or "captions": [...],',
    "table": "a row of UTF-8 text with image and caption",
}


class Folder(ListedPictures):
    """Pictures in ``root``, captions in ``captions`` (by default captions.csv or captions.jsonl in root).

    A table (.csv, .txt) has a header with the columns image and caption, and a row per caption; a .jsonl file has lines
    {"image": ..., "caption": "..."} or {"image": ..., "captions": [...]}. Names of pictures are
    relative to root and are the ids. An optional "split" (train, val, test) puts pictures into splits; without it a
    hash of the name does, 80 : 10 : 10, so that adding pictures moves none of the others. Raises UserError with the
    line when a table is malformed, and when pictures are missing or lead outside root. ``on_error``, ``max_skipped``:
    see ``data.faults``.
    """

    name = "folder"

    def __init__(self, root: str, captions: str | None = None, on_error: str = "raise", max_skipped: float = 0.01):
        self.root, self.faults = Path(root), Faults(self.name, on_error, max_skipped)
        self.table = self._find_table(captions)
        self._take(self._read(), self.table)
        if not self._groups:
            raise UserError(f"{self.table} holds no captions.")

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
        rows, read, layout = _table_rows, _table_row, LAYOUTS["table"]
        if self.table.suffix == ".jsonl":
            rows, read, layout = lines_of, _json_row, LAYOUTS[".jsonl"]
        for where, row in rows(self.table):
            with self.faults.entry(where, layout):
                record, texts = read(row)
                image = posixpath.normpath(text(record, "image"))  # "./a.jpg" and "a.jpg" are one picture, in one split
                picture_path(self.root, image)
                split = split_of(record, image)
                if splits.setdefault(image, split) != split:
                    raise UserError(f"{shown(image)} is in two splits, {splits[image]} and {split}.")
                captions.setdefault(image, []).extend(texts)
        examples = []
        for image, texts in captions.items():
            with self.faults.entry(f"{self.table}, picture {shown(image)}", "a caption"):
                own = captions_of([{"caption": one} for one in texts], "caption")
                examples.append((splits[image], Example(image, own, picture_path(self.root, image))))
        return examples


def _table_rows(path: Path) -> Iterator[tuple[str, dict]]:
    """Where it stands, and the cells by column. Bytes that are no UTF-8 become surrogates, which ``text`` refuses."""
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.DictReader(file, strict=True, skipinitialspace=True)
            header = reader.fieldnames or []
            if not {"image", "caption"} <= set(header):
                first = shown(",".join(header))
                raise UserError(f"{path} needs a header with the columns image and caption; it begins with '{first}'.")
            for row in reader:
                yield f"{path}, line {reader.line_num}", row
    except csv.Error as error:
        raise UserError(f"{path}, below line {reader.line_num}: this is no row of a UTF-8 table ({error}).") from error
    except OSError as error:
        raise UserError(f"The file {path} cannot be read ({error.strerror}).") from error


def _table_row(row: dict) -> tuple[dict, list[str]]:
    if None in row or None in row.values():
        raise ValueError("other columns than the header has; put captions with commas in quotes")
    return row, [text(row, "caption", longest=LONGEST_CAPTION)]


def _json_row(line: bytes) -> tuple[dict, list[str]]:
    record = parsed(line)
    if isinstance(record, dict) and "captions" in record:
        texts = [{"caption": value} for value in items(record, "captions")]
        return record, list(captions_of(texts, "caption"))
    return record, [text(record, "caption", longest=LONGEST_CAPTION)]
