"""Which picture an id means: the names that pictures go by, and the kind of name that the ids of a file are.

A picture has several names: COCO's number (``image_id``, Karpathy's ``cocoid``), its place in Karpathy's list
(``imgid``), its file's name, that name without suffix, and the number in COCO's file names. Numbers are also files'
names (22.jpg), so that ids may fit as two kinds and mean other pictures in each: that is refused, never guessed.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from src.errors import UserError

# Where several fit and agree, the first is named.
KINDS = ("cocoid", "image_id", "id", "file_stem", "file_name", "file_number", "imgid")
RIVAL = 0.5  # of what the best kind finds; a list counted from 0 and one counted from 1 share all ids but one


@dataclass(frozen=True)
class Picture:
    """A picture of a references file. ``names``: by kind, the first of them the one that a run's predictions use."""

    names: dict[str, str]
    captions: list[str]
    split: str | None = None


@dataclass(frozen=True)
class Matched:
    """Predictions and references by the same ids, which are the pictures' names of one ``kind``; None: as they came.

    A prediction without a picture keeps its own id; a picture without a prediction has none.
    """

    kind: str | None
    predictions: dict[str, str]
    references: dict[str, list[str]]


def tidy(id: int | float | str) -> str:
    """An id as text: 42 of 42, 42.0, "42" and "000000000042", so that it is the same picture in every file."""
    text = str(int(id)) if isinstance(id, float) and id.is_integer() else str(id)
    number = re.fullmatch(r"0*(\d+)(?:\.0+)?", text, re.ASCII)
    return number[1] if number else text


def file_names(path: str) -> dict[str, str]:
    """The names that a picture has from its file: "val/COCO_val2014_000000000042.jpg" also has the number 42."""
    path = posixpath.normpath(path)
    stem = posixpath.splitext(path)[0]
    number = re.fullmatch(r"COCO_\w+_0*(\d+)", PurePosixPath(stem).name, re.ASCII)
    return {"file_name": tidy(path), "file_stem": tidy(stem), **({"file_number": number[1]} if number else {})}


def match(
    predictions: Mapping[str, str], pictures: Sequence[Picture], path: Path, kind: str | None = None, own: bool = False
) -> Matched:
    """Find each prediction's picture among those of the references file ``path``.

    ``kind``: what the ids are, of ``KINDS``; None: what most of them fit. ``own``: they are a run's predictions, whose
    ids are the first name of a picture. Only kinds of name that every picture has count. Raises UserError where no kind
    fits, where two fit and mean different pictures, and where two predictions or two pictures are the same one.
    """
    kinds = [one for one in KINDS if all(one in picture.names for picture in pictures)]
    if kind is not None and kind not in kinds:
        raise UserError(f"ids={kind} is no name that all pictures of {path} have; they have {', '.join(kinds)}.")
    found = {one: _found(predictions, pictures, one) for one in ([kind] if kind else kinds)}
    first = next((one for one in pictures[0].names if one in kinds), None)
    if own and found.get(first):
        found = {first: found[first]}
    best = max(found, key=lambda one: len(found[one]), default=None)
    if best is None or not found[best]:
        ours = next(iter(predictions), "none")
        theirs = ", ".join(f"{one} {pictures[0].names[one]}" for one in kinds) or "no name that all pictures have"
        raise UserError(f"No prediction is for a picture of {path}: ids are like {ours}, its pictures like {theirs}.")
    _refuse_rivals(found, best, pictures, path)
    return _matched(predictions, pictures, best, found[best], path)


def _found(predictions: Collection[str], pictures: Sequence[Picture], kind: str) -> dict[str, int]:
    """Id of a prediction -> number of its picture. Of two paths one may have more folders in front than the other."""
    whole = {picture.names[kind]: number for number, picture in enumerate(pictures)}
    ends: dict[str, set[int]] = {}
    for name, number in whole.items():
        for end in _ends(name):
            ends.setdefault(end, set()).add(number)
    found = {}
    for id in predictions:
        place = next((whole[end] for end in (id, *_ends(id)) if end in whole), None)
        if place is None and len(ends.get(id, ())) == 1:
            (place,) = ends[id]
        if place is not None:
            found[id] = place
    return found


def _ends(path: str) -> Iterator[str]:
    """ "b/c" and "c" of "a/b/c"."""
    while "/" in path:
        path = path.partition("/")[2]
        yield path


def _refuse_rivals(found: Mapping[str, dict[str, int]], best: str, pictures: Sequence[Picture], path: Path) -> None:
    for rival, places in found.items():
        if len(places) < RIVAL * len(found[best]):
            continue
        odd = next((id for id, place in found[best].items() if places.get(id, place) != place), None)
        if odd is not None:
            one, other = (_shown(pictures[found[kind][odd]]) for kind in (best, rival))
            raise UserError(
                f"The ids fit {path} as {best} and as {rival}, which mean different pictures ({odd} is {one} or "
                f"{other}); ids={best} or ids={rival} says which is right."
            )


def _shown(picture: Picture) -> str:
    return picture.names.get("file_name") or " ".join(next(iter(picture.names.items())))


def _matched(
    predictions: Mapping[str, str], pictures: Sequence[Picture], kind: str, found: Mapping[str, int], path: Path
) -> Matched:
    references: dict[str, list[str]] = {}
    for picture in pictures:
        if picture.names[kind] in references:
            raise UserError(f"{path} has two pictures with the {kind} {picture.names[kind]}.")
        references[picture.names[kind]] = picture.captions
    captions: dict[str, str] = {}
    for id, caption in predictions.items():
        name = pictures[found[id]].names[kind] if id in found else id
        if captions.setdefault(name, caption) != caption:
            raise UserError(f"There are two different captions for the picture {name} of {path}, the second as {id}.")
    return Matched(kind, captions, references)
