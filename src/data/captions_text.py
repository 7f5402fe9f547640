"""Captions without pictures: what a small language model learns caption English from before it sees anything."""

from __future__ import annotations

import gzip
import itertools
import json
import logging
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

from torch import Tensor

from src.contracts import Example
from src.data.base import read_json, refuse_utf16, stable_share
from src.data.faults import LONGEST_CAPTION, Faults, identity, items, text
from src.errors import UserError
from src.kinds import Checked, Gt, Lt, Share
from src.text.normalise import normalise_caption

SPICE_JAR = "spice_jar"  # the name under which ``files`` asks for COCO's captions inside pycocoevalcap
JAR_ENTRY = "coco/annotations/captions_train2014.json"  # its neighbour val2014 holds Karpathy's val and test pictures
TRAINING = ("train", "restval")
MAX_LINE = 1_000_000  # characters of a line that are read at a time: far more than a caption may have

Caption = tuple[str | None, str]  # picture if known (its captions stay in one split), text


class CaptionsText(Checked, group="data.source"):
    """Each caption of ``files`` is one example without picture, in the splits train and val.

    ``files``: "spice_jar" (the 414,113 captions of COCO train2014 that the SPICE program in the package pycocoevalcap
    carries), or paths: text (.txt, a caption per line), COCO's captions JSON, a list of Karpathy's (its training
    captions only), or a JSON list of strings; any of them gzipped (.gz). ``validation``: share of the pictures (of the
    captions, where pictures are unknown) held out. ``exclude_from``: lists of Karpathy's whose val and test captions
    are kept out of the text, punctuation and case aside. Raises UserError when a file is missing or not understood.
    ``on_error``, ``max_skipped``: see ``data.faults``.
    """

    name = "captions_text"
    has_images = False
    interleaved = False
    task = "caption"

    def __init__(
        self,
        files: Sequence[str],
        validation: Annotated[float, Gt(0), Lt(1)] = 0.02,
        exclude_from: Sequence[str] = (),
        on_error: Literal["raise", "skip"] = "raise",
        max_skipped: Share = 0.01,
    ):
        self.faults, strict = Faults(self.name, on_error, max_skipped), Faults(self.name)  # a leak is never skipped
        kept_out = {_words(said) for path in exclude_from for _, said in _captions(_evaluation(path), strict)}
        self._groups: dict[str, list[Example]] = {"train": [], "val": []}
        left_out, numbers = 0, itertools.count()  # one count for all files, which may have the same name
        for file in files:
            stem = Path(file).name.split(".")[0]
            for picture, said in _captions(_read(file), self.faults):
                if not normalise_caption(said) or (kept_out and _words(said) in kept_out):
                    left_out += 1
                    continue
                split = "val" if stable_share("captions_text", picture or _words(said)) < validation else "train"
                self._groups[split].append(Example(f"{stem}-{next(numbers)}", (said,)))
        self.faults.refuse_many(len(self.faults.skipped), self.faults.entries, f"entries of {', '.join(files)}")
        if not all(self._groups.values()):
            raise UserError(f"The text files {', '.join(files)} hold too few captions for a train and a val split.")
        if left_out:
            logging.getLogger(__name__).info("captions_text: %d captions, empty or kept out, are left out.", left_out)
        self.faults.report(Path(files[0]))

    def splits(self) -> tuple[str, ...]:
        return tuple(self._groups)

    def examples(self, split: str) -> Sequence[Example]:
        return self._groups[split]

    def pixels(self, example: Example, size: int) -> Tensor:
        raise UserError("data=captions_text has no pictures.")


def _words(text: str) -> str:
    """Its words only: the same caption with other punctuation still gives a test caption away."""
    return " ".join(re.findall(r"\w+", normalise_caption(text)))


@dataclass(frozen=True)
class _Entries:
    """What a file holds, one by one, and how captions are read from each; ``layout`` says what is expected."""

    file: str
    what: str
    raw: Iterable
    read: Callable[..., list[Caption]]
    layout: str


def _captions(entries: _Entries, faults: Faults) -> Iterator[Caption]:
    for number, entry in enumerate(entries.raw, 1):
        found: list[Caption] = []
        with faults.entry(f"{entries.file}, {entries.what} {number}", entries.layout):
            found = entries.read(entry)
        yield from found


def _read(file: str) -> _Entries:
    if file == SPICE_JAR:
        return _coco(_from_jar(), file)
    path = Path(file)
    if path.name.endswith((".txt", ".txt.gz")):
        return _Entries(file, "line", _lines(path), _alone, "a caption")
    content = read_json(path)
    if isinstance(content, list):
        return _Entries(file, "caption", content, _alone, "a string")
    if isinstance(content, dict) and "annotations" in content:
        return _coco(content, file)
    if isinstance(content, dict) and "images" in content:
        return _karpathy(content, file, TRAINING)
    raise UserError(f"{file} holds neither COCO captions (annotations), nor Karpathy's list (images), nor a list.")


def _from_jar() -> dict:
    package = find_spec("pycocoevalcap")  # located, not imported
    if package is None:
        raise UserError(
            "COCO's training captions come inside the package pycocoevalcap, which is missing: pip install "
            "pycocoevalcap, or give text files of your own with data.source.files=[...]."
        )
    jar = Path(package.submodule_search_locations[0]) / "spice" / "spice-1.0.jar"
    try:
        with zipfile.ZipFile(jar) as archive:
            return json.loads(archive.read(JAR_ENTRY))
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{jar} does not hold {JAR_ENTRY} ({error}); install pycocoevalcap 1.2.") from error


def _said(record, key: str) -> str:
    return text(record, key, longest=LONGEST_CAPTION)


def _alone(caption) -> list[Caption]:
    return [(None, _said({"caption": caption}, "caption"))]


def _coco(content: dict, file: str) -> _Entries:
    def read(annotation) -> list[Caption]:
        return [(identity(annotation, "image_id"), _said(annotation, "caption"))]

    layout = '{"image_id": ..., "caption": ...}'
    return _Entries(file, "annotation", _list(content, "annotations", file), read, layout)


def _karpathy(content, file: str, splits: Sequence[str]) -> _Entries:
    def read(entry) -> list[Caption]:
        if text(entry, "split") not in splits:
            return []
        picture = text(entry, "filename")
        return [(picture, _said(sentence, "raw")) for sentence in items(entry, "sentences")]

    layout = '{"filename": ..., "split": ..., "sentences": [{"raw": ...}, ...]}'
    return _Entries(file, "picture", _list(content, "images", file), read, layout)


def _list(content, key: str, file: str) -> list:
    try:
        return items(content, key)
    except ValueError as error:
        raise UserError(f'{file} should be {{"{key}": [...]}}: {error}.') from error


def _lines(path: Path) -> Iterator[str]:
    """Lines of text. Bytes that are no UTF-8 become surrogates, which ``text`` refuses."""
    try:
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", encoding="utf-8-sig", errors="surrogateescape") as file:
            line = file.readline(MAX_LINE)
            refuse_utf16(path, line.encode(errors="surrogateescape"))
            while line:
                yield line.strip()
                line = file.readline(MAX_LINE)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read as UTF-8 text ({error}).") from error


def _evaluation(path: str) -> _Entries:
    return _karpathy(read_json(Path(path)), path, ("val", "test"))
