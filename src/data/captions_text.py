"""Captions without pictures: what a small language model learns caption English from before it sees anything."""

from __future__ import annotations

import gzip
import itertools
import json
import logging
import re
import zipfile
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor

from src.contracts import Example
from src.data.base import read_json, stable_share
from src.errors import UserError
from src.text.normalise import normalise_caption

SPICE_JAR = "spice_jar"  # the name under which ``files`` asks for COCO's captions inside pycocoevalcap
JAR_ENTRY = "coco/annotations/captions_train2014.json"  # its neighbour val2014 holds Karpathy's val and test pictures
TRAINING = ("train", "restval")

Caption = tuple[str | None, str]  # picture if known (its captions stay in one split), text


class CaptionsText:
    """Each caption of ``files`` is one example without picture, in the splits train and val.

    ``files``: "spice_jar" (the 414,113 captions of COCO train2014 that the SPICE program in the package pycocoevalcap
    carries), or paths: text (.txt, a caption per line), COCO's captions JSON, a list of Karpathy's (its training
    captions only), or a JSON list of strings; any of them gzipped (.gz). ``validation``: share of the pictures (of the
    captions, where pictures are unknown) held out. ``exclude_from``: lists of Karpathy's whose val and test captions
    are kept out of the text, punctuation and case aside. Raises UserError when a file is missing or not understood.
    """

    name = "captions_text"
    has_images = False
    interleaved = False

    def __init__(self, files: Sequence[str], validation: float = 0.02, exclude_from: Sequence[str] = ()):
        if not 0 < validation < 1:
            raise UserError(f"data.source.validation is a share between 0 and 1; got {validation}.")
        kept_out = {_words(text) for path in exclude_from for text in _evaluation_captions(Path(path))}
        self._groups: dict[str, list[Example]] = {"train": [], "val": []}
        left_out, numbers = 0, itertools.count()  # one count for all files, which may have the same name
        for file in files:
            stem = Path(file).name.split(".")[0]
            for picture, text in _read(file):
                if not isinstance(text, str):
                    raise UserError(f"{file} holds a caption that is no text: {text!r}.")
                if not normalise_caption(text) or (kept_out and _words(text) in kept_out):
                    left_out += 1
                    continue
                split = "val" if stable_share("captions_text", picture or _words(text)) < validation else "train"
                self._groups[split].append(Example(f"{stem}-{next(numbers)}", (text,)))
        if not all(self._groups.values()):
            raise UserError(f"The text files {', '.join(files)} hold too few captions for a train and a val split.")
        if left_out:
            logging.getLogger(__name__).info("captions_text: %d captions, empty or kept out, are left out.", left_out)

    def splits(self) -> tuple[str, ...]:
        return tuple(self._groups)

    def examples(self, split: str) -> Sequence[Example]:
        return self._groups[split]

    def pixels(self, example: Example, size: int) -> Tensor:
        raise UserError("data=captions_text has no pictures.")


def _words(text: str) -> str:
    """Its words only: the same caption with other punctuation still gives a test caption away."""
    return " ".join(re.findall(r"\w+", normalise_caption(text)))


def _read(file: str) -> Iterator[Caption]:
    if file == SPICE_JAR:
        return _coco(_from_jar(), file)
    path = Path(file)
    if path.name.endswith((".txt", ".txt.gz")):
        return _lines(path)
    content = read_json(path)
    if isinstance(content, list):
        return ((None, text) for text in content)
    if "annotations" in content:
        return _coco(content, file)
    if "images" in content:
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


def _coco(content: dict, file: str) -> Iterator[Caption]:
    try:
        for annotation in content["annotations"]:
            yield str(annotation["image_id"]), annotation["caption"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{file} is no list of COCO captions: {error} is missing or misplaced.") from error


def _karpathy(content: dict, file: str, splits: Sequence[str]) -> Iterator[Caption]:
    try:
        for entry in content["images"]:
            if entry["split"] in splits:
                yield from ((entry["filename"], sentence["raw"]) for sentence in entry["sentences"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{file} is not in Karpathy's layout: {error} is missing or misplaced.") from error


def _lines(path: Path) -> Iterator[Caption]:
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
            yield from ((None, line.strip()) for line in file)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as UTF-8 text ({error}).") from error


def _evaluation_captions(path: Path) -> Iterator[str]:
    return (text for _, text in _karpathy(read_json(path), str(path), ("val", "test")))
