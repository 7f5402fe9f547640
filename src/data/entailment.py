"""data=snli_ve: does a sentence follow from a photograph? (Xie et al. 2019, SNLI-VE, arXiv 1901.06706)

A premise that is a picture of Flickr30k, a hypothesis in words, one of three answers: entailment, neutral,
contradiction. The hypothesis is the question, so that whoever answers questions can be asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from src.contracts import Example
from src.data.base import ListedPictures, lines_of, picture_path
from src.data.faults import Faults, identity, parsed, text
from src.data.images import shown
from src.errors import UserError
from src.kinds import Share

FILES = {"train": "snli_ve_train.jsonl", "val": "snli_ve_dev.jsonl", "test": "snli_ve_test.jsonl"}
LINE = '{"pairID": ..., "Flickr30K_ID": ..., "sentence2": ..., "gold_label": ...}'
LABELS = ("entailment", "neutral", "contradiction")
LONGEST = 1_000  # characters of a hypothesis


class Entailment(ListedPictures):
    """``root``: the folder with the three lists; ``images``: the folder inside it with Flickr30k's pictures.

    An example is a pair: its id, its picture, its hypothesis as the question, its label as the answer. Raises UserError
    when a list is missing, and for an empty hypothesis, another label, a pair that is listed twice, and a picture that
    is missing; ``on_error``, ``max_skipped``: see ``data.faults``.
    """

    task = "vqa"

    def __init__(
        self,
        name: str,
        root: str,
        images: str,
        on_error: Literal["raise", "skip"] = "raise",
        max_skipped: Share = 0.01,
    ):
        self.name, self.faults = name, Faults(name, on_error, max_skipped)
        self.root, self.pictures = Path(root), Path(root) / images
        if absent := [file for file in FILES.values() if not (self.root / file).is_file()]:
            raise UserError(
                f"{self.root} holds no {absent[0]}; download the three lists (https://github.com/necla-ml/SNLI-VE) and "
                "Flickr30k's pictures, or say where they are with data.root=<folder>."
            )
        listed: dict[str, tuple[str, Example]] = {}
        for split, file in FILES.items():
            for where, example in self._read(self.root / file):
                if example.id in listed:
                    self.faults.add(where, f"The pair {shown(example.id)} is listed twice.")
                listed.setdefault(example.id, (split, example))
        self._take(list(listed.values()), self.root / FILES["train"])
        if "train" not in self._groups:
            raise UserError(f"{self.root / FILES['train']} lists no pair.")

    def _read(self, path: Path) -> Iterator[tuple[str, Example]]:
        for where, line in lines_of(path):
            example = None
            with self.faults.entry(where, LINE):
                pair = parsed(line)
                said, label = text(pair, "sentence2", longest=LONGEST), text(pair, "gold_label")
                if not said.strip():
                    raise ValueError("sentence2 is empty")
                if label not in LABELS:
                    raise ValueError(f"gold_label is none of {', '.join(LABELS)}")
                picture = identity(pair, "Flickr30K_ID").removesuffix(".jpg")
                about = {"picture": picture, "kind": label}
                file = picture_path(self.pictures, f"{picture}.jpg")
                example = Example(identity(pair, "pairID"), (label,), file, about, said)
            if example is not None:
                yield where, example
