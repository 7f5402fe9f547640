"""What the file-based sources share: reading lists, finding pictures, and numbers that depend on content alone."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from src.contracts import Example
from src.data.images import load_picture
from src.errors import UserError


class PictureFiles:
    """The picture half of a Source whose examples name files. Pictures are squashed, bicubic, unless prepared."""

    has_images = True
    interleaved = False
    resize = "squash"
    interpolation = "bicubic"

    def prepare(self, preprocessing: Mapping) -> None:
        """Take over how the vision encoder wants pictures resized ("resize", "interpolation")."""
        self.resize, self.interpolation = preprocessing["resize"], preprocessing["interpolation"]

    def pixels(self, example: Example, size: int) -> Tensor:
        """uint8 RGB tensor (3, size, size). Raises UserError naming a file that cannot be decoded."""
        how = {"size": size, "resize": self.resize, "interpolation": self.interpolation}
        return load_picture(example.image, how)


def stable_number(*parts) -> int:
    """A 56-bit number that depends on ``parts`` only: the same in every process, version and machine."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:7], "big")


def stable_share(*parts) -> float:
    """A number in [0, 1) that depends on ``parts`` only."""
    return stable_number(*parts) / 2**56


def read_json(path: Path):
    """Content of a .json or .json.gz file. Raises UserError when it is missing or no JSON."""
    try:
        content = path.read_bytes()
        return json.loads(gzip.decompress(content) if path.suffix == ".gz" else content)
    except FileNotFoundError as error:
        raise UserError(f"The file {path} does not exist.") from error
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"The file {path} cannot be read as JSON ({error}).") from error


def picture_path(folder: Path, name: str) -> str:
    """Path of the picture ``name`` inside ``folder``. Raises UserError for names that lead out of it."""
    inside = os.path.normpath(name)
    if os.path.isabs(inside) or inside.split(os.sep)[0] in ("..", ".") or "\0" in name:
        raise UserError(f"The picture name {name!r} leads out of the folder {folder}.")
    return os.path.join(folder, inside)


def require_pictures(paths: Iterable[str], where: str) -> None:
    """Raises UserError when files are missing, so that training cannot fail on one hours later."""
    wanted = defaultdict(set)
    for path in paths:
        folder, name = os.path.split(path)
        wanted[folder].add(name)
    missing = []
    for folder, names in wanted.items():
        found = set(os.listdir(folder)) if os.path.isdir(folder) else set()  # one listing, not a question per file
        missing += [os.path.join(folder, name) for name in sorted(names - found)]
    if missing:
        total = sum(map(len, wanted.values()))
        raise UserError(f"{len(missing)} of the {total} pictures that {where} names are missing, e.g. {missing[0]}.")


def group_by_split(examples: Sequence[tuple[str, Example]]) -> dict[str, list[Example]]:
    """Examples by split, in order, in the order train, val, test; splits without examples are left out."""
    groups: dict[str, list[Example]] = {split: [] for split in ("train", "val", "test")}
    for split, example in examples:
        groups[split].append(example)
    return {split: group for split, group in groups.items() if group}
