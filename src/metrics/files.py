"""Predictions and references from files: COCO's results and captions formats, and Karpathy's splits.

Ids are strings inside the program, so that 42 in one file and "42" in another are the same picture.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from src.errors import UserError


def read_predictions(path: Path | str) -> dict[str, str]:
    """Captions by picture id from ``[{"image_id", "caption"}]`` in JSON, or such objects line by line in .jsonl.

    ``id`` serves for ``image_id``, as in a run's predictions.jsonl. Raises UserError for a missing or malformed file,
    and for an id that stands there with two captions.
    """
    path = Path(path)
    entries = list(_json_lines(path)) if path.suffix == ".jsonl" else _json(path)
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path} should hold a list of {{image_id, caption}}; it holds {_kind(entries)}.")
    predictions: dict[str, str] = {}
    for number, entry in enumerate(entries, 1):
        where = f"Entry {number} of {path}"
        if isinstance(entry, dict) and "image_id" not in entry and "id" in entry:
            entry = {**entry, "image_id": entry["id"]}
        id, caption = _id(entry, "image_id", where), _text(entry, "caption", where)
        if predictions.setdefault(id, caption) != caption:
            raise UserError(f"{path} has two different captions for image_id {id}.")
    return predictions


def read_references(path: Path | str, predicted: Collection[str], split: str | None = None) -> dict[str, list[str]]:
    """Reference captions by picture id from COCO's captions format or Karpathy's, of ``split`` only where given.

    A picture has several names: COCO's number, Karpathy's ``cocoid`` and ``imgid``, the file's name with and without
    its suffix. The kind of name that most of the ``predicted`` ids are is used. Raises UserError for a missing or
    malformed file, for a split that is not there, and where no kind of name fits.
    """
    path = Path(path)
    content = _json(path)
    if not isinstance(content, dict):
        raise UserError(f'{path} should hold an object with "images" or "annotations"; it holds {_kind(content)}.')
    pictures = list(_coco(content, path) if "annotations" in content else _karpathy(content, path))
    if split is not None:
        pictures = _of_split(pictures, split, path)
    if not pictures:
        raise UserError(f"{path} has no pictures with captions.")
    kind = _best_kind([names for names, _, _ in pictures], predicted, path)
    references: dict[str, list[str]] = {}
    for names, _, captions in pictures:
        if names[kind] in references:
            raise UserError(f"{path} has two pictures with the {kind} {names[kind]}.")
        references[names[kind]] = captions
    return references


# A picture of a references file: its names by kind, its split where the format has splits, its captions.
Picture = tuple[dict[str, str], str | None, list[str]]


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
        yield {"image_id": id, **_file_names(files.get(id))}, None, texts


def _karpathy(content: dict, path: Path) -> Iterator[Picture]:
    if "images" not in content:
        raise UserError(f'{path} has neither "annotations" (COCO) nor "images" (Karpathy).')
    for number, image in enumerate(_list(content["images"], "images", path), 1):
        where = f"Picture {number} of {path}"
        if not isinstance(image, dict) or "sentences" not in image:
            raise UserError(f'{where} has no "sentences".')
        names = {kind: _id(image, kind, where) for kind in ("cocoid", "imgid") if kind in image}
        names |= _file_names(_text(image, "filename", where) if "filename" in image else None)
        captions = [_text(sentence, "raw", where) for sentence in _list(image["sentences"], "sentences", path)]
        yield names, _text(image, "split", where) if "split" in image else None, captions


def _of_split(pictures: list[Picture], split: str, path: Path) -> list[Picture]:
    splits = Counter(own for _, own, _ in pictures if own is not None)
    if not splits:
        raise UserError(f"{path} does not say which split a picture is in; leave split={split} out.")
    if split not in splits:
        there = ", ".join(f"{name} ({count})" for name, count in splits.items())
        raise UserError(f"{path} has no split {split}; it has {there}.")
    return [picture for picture in pictures if picture[1] == split]


def _best_kind(names: list[dict[str, str]], predicted: Collection[str], path: Path) -> str:
    """The kind of name under which most predicted ids are found; only kinds that every picture has count."""
    kinds = [kind for kind in names[0] if all(kind in own for own in names)]
    predicted = set(predicted)
    found = {kind: len(predicted.intersection(own[kind] for own in names)) for kind in kinds}
    best = max(kinds, key=found.__getitem__, default=None)
    if best is None or not found[best]:
        ours = next(iter(predicted), "none")
        theirs = ", ".join(f"{kind} {names[0][kind]}" for kind in kinds) or "no name that all pictures have"
        raise UserError(f"No prediction is for a picture of {path}: ids are like {ours}, its pictures like {theirs}.")
    return best


def _file_names(name: str | None) -> dict[str, str]:
    return {} if name is None else {"file name": name, "file name without suffix": Path(name).stem}


# ------------------------------------------------------------------------------------------- JSON and its shapes
def _json(path: Path) -> Any:
    try:
        return json.loads(_read(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON: {error}.") from None


def _json_lines(path: Path) -> Iterator[Any]:
    for number, line in enumerate(_read(path).split("\n"), 1):
        if line.strip():
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"Line {number} of {path} is not JSON: {error.msg}.") from None


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
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise UserError(f'{where} has no "{key}" that is a number or a text.')
    return str(value)


def _text(entry: Any, key: str, where: str) -> str:
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, str):
        raise UserError(f'{where} has no "{key}" that is a text.')
    return value


def _kind(value: Any) -> str:
    if value == []:
        return "an empty list"
    names = {dict: "an object", list: "a list", str: "a text", type(None): "null", bool: "true or false"}
    return names.get(type(value), "a number")
