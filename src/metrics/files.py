"""Predictions and references from files: what COCO, Karpathy, other systems and this project write.

A file is JSON, JSON line by line, or a table with a header, whatever its suffix says of the first two. An entry names
its picture by ``PICTURE``; ids are strings inside the program (``ids.tidy``), so that 42 in one file and "42" in
another are the same picture.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.errors import UserError
from src.metrics.ids import Picture, file_names, tidy

PICTURE = ("image_id", "id", "image", "image_name", "file_name")  # keys of an entry; the first that is there counts
FILES = PICTURE[2:]  # those that are names of files
SAID = ("caption", "prediction")  # what a system said
KNOWN = ("references", "captions", "caption")  # what people said, one text or a list
TABLES = (".csv", ".txt")
SAME = {"restval": "train"}  # pictures that Karpathy's COCO leaves to training


@dataclass(frozen=True)
class Predictions:
    """``captions``: by id; ``references``: by id, where every entry brings its own, else None.

    ``of_run``: whether src.train or src.evaluate wrote them, so that ids are those of its data.
    """

    captions: dict[str, str]
    references: dict[str, list[str]] | None
    of_run: bool


def read_predictions(path: Path | str) -> Predictions:
    """Captions by picture from entries {image_id, caption}, or from an object {id: caption} or {id: [caption]}.

    Raises UserError for a missing or malformed file, and for an id that stands there with two captions.
    """
    path = Path(path)
    entries = _entries(path)
    captions: dict[str, str] = {}
    references: dict[str, list[str]] = {}
    for number, entry in enumerate(entries, 1):
        where = f"Entry {number} of {path}"
        id, caption = _picture(entry, where)[1], _said(entry, where)
        if captions.setdefault(id, caption) != caption:
            raise UserError(f"{path} has two different captions for {_picture(entry, where)[0]} {id}.")
        inside = entry.get("references", entry.get("captions"))
        if isinstance(inside, list) and inside:
            references[id] = [_is_text(text, "captions", where) for text in inside]
    of_run = all("id" in entry and "references" in entry and "image_id" not in entry for entry in entries)
    return Predictions(captions, references if len(references) == len(captions) else None, of_run)


def read_references(
    path: Path | str, split: str | None = None, unnamed: Callable[[str], str] | None = None
) -> list[Picture]:
    """Pictures with their captions, of ``split`` only where given; restval is train, as in training.

    From COCO's captions format or Karpathy's, or from entries of a picture and one or more captions: a table of
    data=folder, BLIP's lists, {id: [captions]}. ``unnamed``: name of a picture -> the split that data=folder puts it
    into where its table does not say. Raises UserError for a missing or malformed file, and for a split that is not
    there.
    """
    path = Path(path)
    content = None if path.suffix.lower() in TABLES else _json(path)
    if isinstance(content, dict) and "annotations" in content:
        pictures = list(_coco(content, path))
    elif isinstance(content, dict) and isinstance(content.get("images"), list):
        pictures = list(_karpathy(content, path))
    else:
        wanted = 'COCO\'s "annotations", Karpathy\'s "images", or a list of {image, captions}'
        pictures = _listed(_entries(path, content, wanted), path)
    if split is not None:
        pictures = _of_split(pictures, SAME.get(split, split), path, unnamed)
    if not pictures:
        raise UserError(f"{path} has no pictures with captions.")
    return pictures


def _coco(content: dict, path: Path) -> Iterator[Picture]:
    files = {}
    for number, image in enumerate(_list(content.get("images", []), "images", path), 1):
        where = f"Picture {number} of {path}"
        if isinstance(image, dict) and "file_name" in image:
            files[_id(image, "id", where)] = _text(image, "file_name", where)
    captions: dict[str, list[str]] = {}
    for number, annotation in enumerate(_list(content["annotations"], "annotations", path), 1):
        where = f"Annotation {number} of {path}"
        captions.setdefault(_id(annotation, "image_id", where), []).append(_text(annotation, "caption", where))
    for id, texts in captions.items():
        yield Picture({"image_id": id, **(file_names(files[id]) if id in files else {})}, texts)


def _karpathy(content: dict, path: Path) -> Iterator[Picture]:
    for number, image in enumerate(content["images"], 1):
        where = f"Picture {number} of {path}"
        if not isinstance(image, dict) or "sentences" not in image:
            raise UserError(f'{where} has no "sentences".')
        files = file_names(_text(image, "filename", where)) if "filename" in image else {}
        # data.karpathy takes COCO's number, and elsewhere the file's name without suffix
        kinds = [key for key in ("cocoid", "imgid") if key in image]
        first = "cocoid" if "cocoid" in image else "file_stem"
        names = {key: _id(image, key, where) for key in kinds} | files
        names = {kind: names[kind] for kind in sorted(names, key=lambda kind: kind != first)}
        captions = [_text(sentence, "raw", where) for sentence in _list(image["sentences"], "sentences", path)]
        split = _text(image, "split", where) if "split" in image else None
        yield Picture(names, captions, SAME.get(split, split))


def _listed(entries: list[dict], path: Path) -> list[Picture]:
    """Pictures of entries, in the order of their first one; an entry has one caption or several."""
    pictures: dict[str, Picture] = {}
    for number, entry in enumerate(entries, 1):
        where = f"Entry {number} of {path}"
        key, name = _picture(entry, where)
        names = file_names(name) if key in FILES else {key: name, **({} if name.isdecimal() else file_names(name))}
        split = _text(entry, "split", where) if entry.get("split") is not None else None
        picture = pictures.setdefault(next(iter(names.values())), Picture(names, [], SAME.get(split, split)))
        if picture.split != SAME.get(split, split):
            raise UserError(f"{where} has {name} in another split than an entry before it.")
        said = next((entry[known] for known in KNOWN if known in entry), None)
        for text in said if isinstance(said, list) else [said]:
            picture.captions.append(_is_text(text, "caption", where))
    return list(pictures.values())


def _of_split(pictures: list[Picture], split: str, path: Path, unnamed: Callable[[str], str] | None) -> list[Picture]:
    if unnamed and path.suffix.lower() in (*TABLES, ".jsonl") and all("file_name" in one.names for one in pictures):
        pictures = [Picture(one.names, one.captions, one.split or unnamed(one.names["file_name"])) for one in pictures]
    splits = Counter(one.split for one in pictures if one.split is not None)
    if not splits:
        raise UserError(f"{path} does not say which split a picture is in; leave split={split} out.")
    if split not in splits:
        there = ", ".join(f"{name} ({count})" for name, count in splits.items())
        raise UserError(f"{path} has no split {split}; it has {there}.")
    return [picture for picture in pictures if picture.split == split]


# --------------------------------------------------------------------------------------------------------------------
# entries
# --------------------------------------------------------------------------------------------------------------------
def _entries(path: Path, content: Any = None, wanted: str = "a list of {image_id, caption}, or {id: caption}") -> list:
    """The entries of a file, or of its ``content`` where that was read already. Raises UserError where it has none."""
    if content is None:
        content = _table(path) if path.suffix.lower() in TABLES else _json(path)
    if isinstance(content, dict) and any(key in content for key in PICTURE):
        content = [content]  # a file of one line
    elif isinstance(content, dict) and all(_are_texts(value) for value in content.values()):
        content = [{"id": id, "caption": texts} for id, texts in content.items()]
    if not isinstance(content, list) or not content:
        raise UserError(f"{path} should hold {wanted}; it holds {_kind(content)}.")
    return content


def _are_texts(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(one, str) for one in value))


def _picture(entry: Any, where: str) -> tuple[str, str]:
    """How an entry names its picture, and the name."""
    key = next((key for key in PICTURE if isinstance(entry, dict) and key in entry), PICTURE[0])
    return key, _id(entry, key, where)


def _said(entry: dict, where: str) -> str:
    """The caption; a list of one is one."""
    key = next((key for key in reversed(SAID) if key in entry), SAID[0])
    value = entry.get(key)
    if isinstance(value, list) and len(value) > 1:
        raise UserError(f"{where} has {len(value)} captions; one caption of each picture is scored.")
    return _is_text(value[0] if isinstance(value, list) and value else value, key, where)


# --------------------------------------------------------------------------------------------------------------------
# JSON and its shapes
# --------------------------------------------------------------------------------------------------------------------
def _json(path: Path) -> Any:
    """The content of a file of JSON, or a list of that of its lines."""
    text = _read(path)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        lines = error.msg == "Extra data" or path.suffix.lower() == ".jsonl"
        if not lines:
            raise UserError(f"{path} is not JSON: {error}.") from None
    return list(_json_lines(text, path))


def _json_lines(text: str, path: Path) -> Iterator[Any]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"Line {number} of {path} is not JSON: {error.msg}.") from None


def _table(path: Path) -> list[dict]:
    """The rows of a table with the columns image and caption, as data=folder reads them."""
    reader = csv.DictReader(io.StringIO(_read(path), newline=""), strict=True, skipinitialspace=True)
    try:
        if not {"image", "caption"} <= set(reader.fieldnames or []):
            raise UserError(f"{path} needs a header with the columns image and caption.")
        rows = list(reader)
    except csv.Error as error:
        raise UserError(f"{path}, below line {reader.line_num}: this is no row of a table ({error}).") from None
    return [{key: value for key, value in row.items() if key is not None and value is not None} for row in rows]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text.") from None


def _list(value: Any, name: str, path: Path) -> list:
    if not isinstance(value, list):
        raise UserError(f'"{name}" in {path} should be a list; it is {_kind(value)}.')
    return value


def _id(entry: Any, key: str, where: str) -> str:
    value = entry.get(key) if isinstance(entry, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise UserError(f'{where} has no "{key}" that is a number or a text.')
    return tidy(value)


def _text(entry: Any, key: str, where: str) -> str:
    return _is_text(entry.get(key) if isinstance(entry, dict) else None, key, where)


def _is_text(value: Any, key: str, where: str) -> str:
    if not isinstance(value, str):
        raise UserError(f'{where} has no "{key}" that is a text.')
    return value


def _kind(value: Any) -> str:
    if value == []:
        return "an empty list"
    names = {dict: "an object", list: "a list", str: "a text", type(None): "null", bool: "true or false"}
    return names.get(type(value), "a number")
