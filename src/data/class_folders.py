"""data=class_folders: a folder of pictures for every name, to ask what is on them (task=zero_shot).

<root>/golden_retriever/a.jpg        the name is "golden retriever"
<root>/n01440764/ILSVRC_1.JPEG       ImageNet's layout: all of its thousand folders have open_clip's names for them
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from src.contracts import Example, UserError
from src.data.base import ListedPictures
from src.data.faults import Faults
from src.kinds import Share

SUFFIXES = frozenset(".jpg .jpeg .png .webp .bmp .gif .tif .tiff".split())
WORDNET = re.compile(r"n\d{8}")


class ClassFolders(ListedPictures):
    """All pictures are the split "test"; the caption of each is its name.

    Two folders of one name are one class, as two of ImageNet's are. Raises UserError where root has no folders with
    pictures. ``on_error``, ``max_skipped``: see ``data.faults``.
    """

    name = "class_folders"

    def __init__(self, root: str, on_error: Literal["raise", "skip"] = "raise", max_skipped: Share = 0.01):
        self.faults = Faults(self.name, on_error, max_skipped)
        folder = Path(root)
        if not folder.is_dir():
            raise UserError(
                f"{folder} does not exist; put a folder of pictures for every name there, or say data.root=."
            )
        found = {one.name: _pictures(one) for one in sorted(folder.iterdir()) if one.is_dir()}
        found = {one: pictures for one, pictures in found.items() if pictures}
        if not found:
            raise UserError(f"{folder} holds no folders with pictures; each folder's name is what is on its pictures.")
        self._names = _names(list(found))
        listed = [
            ("test", Example(f"{one}/{path.name}", (self._names[one],), str(path), extra={"class": self._names[one]}))
            for one, pictures in found.items()
            for path in pictures
        ]
        self._take(listed, folder)

    def classes(self) -> Mapping[str, Sequence[str]]:
        return {"class": list(dict.fromkeys(self._names.values()))}

    def labels(self, example: Example) -> Mapping[str, frozenset[str]]:
        return {"class": frozenset([example.extra["class"]])}


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)


def _names(folders: Sequence[str]) -> dict[str, str]:
    """What is on the pictures of each folder. Sorted, ImageNet's numbers are in the order of its classes."""
    if len(folders) == 1000 and all(WORDNET.fullmatch(one) for one in folders):
        from open_clip import IMAGENET_CLASSNAMES

        return dict(zip(sorted(folders), IMAGENET_CLASSNAMES, strict=True))
    return {one: " ".join(one.replace("_", " ").split()) for one in folders}
