"""data=package_prose: plain English prose out of packages that are installed here, for language models to read.

What a language model forgets while it learns captions is held against one that is tuned on other words for as long:
training alone changes it, and may mend what quantisation took. Of Python files the docstrings are read, of others all;
of either the paragraphs that are plain prose (src/probes/prose.py). What src.preserve asks about is in other packages.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from torch import Tensor

from src.contracts import Example, UserError
from src.data.base import stable_share
from src.kinds import Checked, Share
from src.probes.files import read_probe
from src.probes.prose import prose

SUFFIXES = frozenset((".py", ".txt", ".rst", ".md"))


class PackageProse(Checked, group="data.source"):
    """Each paragraph of ``packages`` is one text, once, in the splits train and val (a share ``validation``).

    Raises UserError for a package that is not installed, and for one whose texts src.preserve asks about.
    """

    name = "package_prose"
    has_images = False
    interleaved = False
    task = "caption"

    def __init__(self, packages: Sequence[str], validation: Share = 0.05):
        asked = {entry["package"] for entries in read_probe("prose").values() for entry in entries}
        if known := sorted(set(packages) & asked):
            raise UserError(f"data.source.packages has {known[0]}, which src.preserve asks about; leave it out.")
        self._groups: dict[str, list[Example]] = {"train": [], "val": []}
        seen: set[str] = set()
        for package in packages:
            for file, paragraph in _paragraphs(package):
                if paragraph in seen:
                    continue
                seen.add(paragraph)
                split = "val" if stable_share("package_prose", paragraph) < validation else "train"
                self._groups[split].append(Example(f"{file}#{len(seen)}", (paragraph,)))
        if not all(self._groups.values()):
            raise UserError(f"The packages {', '.join(packages)} hold too little prose for a train and a val split.")
        words = sum(len(paragraph.split()) for paragraph in seen)
        logging.getLogger(__name__).info("package_prose: %d paragraphs, %d words.", len(seen), words)

    def splits(self) -> tuple[str, ...]:
        return tuple(self._groups)

    def examples(self, split: str) -> Sequence[Example]:
        return self._groups[split]

    def pixels(self, example: Example, size: int) -> Tensor:
        raise UserError("data=package_prose has no pictures; use fusion=blind.")


def _paragraphs(package: str) -> Iterator[tuple[str, str]]:
    """(file, paragraph) in the order of the file names. What is no UTF-8, and no Python of this version, is passed."""
    try:
        files = distribution(package).files or []
    except PackageNotFoundError:
        raise UserError(f"data.source.packages: {package} is not installed; pip install it, or leave it out.") from None
    for file in sorted(files, key=str):
        if file.suffix not in SUFFIXES:
            continue
        try:
            text = prose(Path(str(file.locate())).read_text(encoding="utf-8"), file.suffix)
        except (OSError, ValueError, SyntaxError):
            continue
        for paragraph in filter(None, text.split("\n\n")):
            yield str(file), paragraph
