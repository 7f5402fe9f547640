"""What the file-based sources share: reading lists, finding pictures, and numbers that depend on content alone."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import zlib
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from torch import Tensor
from torch.utils.data import Sampler

from src.contracts import Document, Example
from src.data.faults import LONGEST_CAPTION, Faults, text, unreadable
from src.data.images import load_picture, shown
from src.data.names import looked_up
from src.errors import UserError
from src.kinds import Checked
from src.text.normalise import normalise_caption

SPLITS = ("train", "val", "test")
MAX_LIST = 2**31  # bytes of a list, unpacked: fifteen times Karpathy's list of COCO

Item = TypeVar("Item", Example, Document)


class PictureFiles(Checked, group="data.source"):
    """The picture half of a Source whose examples name files. Pictures are squashed, bicubic, unless prepared."""

    has_images = True
    interleaved = False
    task = "caption"
    resize = "squash"
    interpolation = "bicubic"

    def prepare(self, preprocessing: Mapping) -> None:
        """Take over how the vision encoder wants pictures resized ("resize", "interpolation")."""
        self.resize, self.interpolation = preprocessing["resize"], preprocessing["interpolation"]

    def pixels(self, example: Example, size: int) -> Tensor:
        """uint8 RGB tensor (3, size, size). Raises UserError naming a file that cannot be decoded."""
        return self.picture(example, {"size": size, "resize": self.resize, "interpolation": self.interpolation})

    def picture(self, example: Example, preprocessing: Mapping) -> Tensor:
        """The same as another encoder wants it; see ``data.images.load_picture``."""
        return load_picture(example.image, preprocessing)


class Streamed(Sequence[Example]):
    """Examples that are too many for memory: made when asked for, and trained on in an order of their own."""

    @abstractmethod
    def share(self, fraction: float, seed: int) -> Streamed:
        """About ``fraction`` of the examples; smaller shares lie inside larger ones of the same ``seed``."""

    @abstractmethod
    def order(self, batch_size: int, seed: int, rank: int, world: int) -> Sampler:
        """What ``data.batches.EpochBatchSampler`` is for other examples."""


class ListedPictures(PictureFiles):
    """A Source whose examples or documents stand in a list; ``faults`` decides about those that cannot be used."""

    faults: Faults
    _groups: dict[str, list]
    _unchecked = False

    def _take(self, listed: Sequence[tuple[str, Item]], where: Path) -> None:
        """Sort what the file ``where`` lists by split, without what has missing pictures."""
        self.faults.refuse_many(len(self.faults.skipped), self.faults.entries, f"entries of {where}")
        self._where, self._before = where, len(listed)
        paths = dict.fromkeys(path for _, item in listed for path in _paths(item))
        absent, spelt = looked_up(paths)
        if absent and self.faults.on_error == "raise":
            raise UserError(
                f"{len(absent)} of the {len(paths)} pictures that {where} names are missing, e.g. {shown(absent[0])}."
            )
        self._groups = group_by_split(
            [(split, _with_paths(item, spelt)) for split, item in listed] if spelt else listed
        )
        self._leave_out(dict.fromkeys(absent, "The picture is missing."))
        self._unchecked = self.faults.on_error == "skip"

    def splits(self) -> tuple[str, ...]:
        return tuple(self._groups)

    def examples(self, split: str) -> Sequence[Item]:
        """Raises UserError when pictures are to be left out that cannot be decoded, and they are too many."""
        if self._unchecked:
            paths = [path for group in self._groups.values() for item in group for path in _paths(item)]
            self._leave_out(unreadable(list(dict.fromkeys(paths)), self.name, self._where.parent))
            self._unchecked = False
            self.faults.report(self._where.parent)
        return self._groups[split]

    def _leave_out(self, reasons: Mapping[str, str]) -> None:
        """Remove what has a picture in ``reasons``. Raises UserError when too many are gone."""
        for split, group in self._groups.items():
            self._groups[split] = []
            for item in group:
                path = next((path for path in _paths(item) if path in reasons), None)
                if path is None:
                    self._groups[split].append(item)
                else:
                    self.faults.add(shown(path), reasons[path])
        left = sum(map(len, self._groups.values()))
        self.faults.refuse_many(self._before - left, self._before, f"examples of {self._where}")


def _paths(item: Example | Document) -> Iterator[str]:
    """Its picture files."""
    return (picture.image for picture in item.pictures)


def _with_paths(item: Item, paths: Mapping[str, str]) -> Item:
    """The same with other paths in place of those that are keys of ``paths``."""
    if isinstance(item, Example):
        return replace(item, image=paths.get(item.image, item.image))
    chunks = (replace(chunk, picture=chunk.picture and _with_paths(chunk.picture, paths)) for chunk in item.chunks)
    return replace(item, chunks=tuple(chunks))


def stable_number(*parts) -> int:
    """A 56-bit number that depends on ``parts`` only: the same in every process, version and machine."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:7], "big")


def stable_share(*parts) -> float:
    """A number in [0, 1) that depends on ``parts`` only."""
    return stable_number(*parts) / 2**56


def read_json(path: Path):
    """Content of a .json or .json.gz file. Raises UserError when it is missing, no JSON or too large."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            content = file.read(MAX_LIST + 1)
        if len(content) <= MAX_LIST:
            return json.loads(content)
    except FileNotFoundError as error:
        raise UserError(f"The file {path} does not exist.") from error
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"The file {path} cannot be read as JSON ({error}).") from error
    except RecursionError:
        raise UserError(f"The file {path} cannot be read as JSON (it is nested too deeply).") from None
    raise UserError(f"The file {path} has more than {MAX_LIST:,} bytes of JSON; give a smaller list.")


def lines_of(path: Path) -> Iterator[tuple[str, bytes]]:
    """Where it stands, and the line, of all lines that are not blank. Raises UserError for an unreadable file."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"The file {path} cannot be read ({error.strerror}).") from error
    refuse_utf16(path, b"".join(lines[:1]))
    return ((f"{path}, line {number}", line) for number, line in enumerate(lines, 1) if line.strip())


def refuse_utf16(path: Path, head: bytes) -> None:
    """Raises UserError when a file that begins with ``head`` is UTF-16: marked as such, or every other byte is 0."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or (len(head) > 3 and 0 in (sum(head[:40:2]), sum(head[1:40:2]))):
        raise UserError(f"{path} is UTF-16 text; save it as UTF-8 with the same header (in Excel: CSV UTF-8).")


def captions_of(records: Iterable, key: str) -> tuple[str, ...]:
    """``record[key]`` of all records. Raises ValueError unless they are captions that say something, one at least."""
    captions = tuple(text(record, key, longest=LONGEST_CAPTION) for record in records)
    if not any(map(normalise_caption, captions)):
        raise ValueError("there is no caption, or only empty ones")
    return captions


def picture_path(folder: Path, name: str) -> str:
    """Path of the picture ``name`` inside ``folder``. Raises UserError for names that lead out of it.

    Links are followed wherever they lead: lists come from elsewhere, but who makes links here knows this disk.
    """
    inside = os.path.normpath(name)
    if os.path.isabs(inside) or inside.split(os.sep)[0] in ("..", ".") or "\0" in name:
        raise UserError(f"The picture name '{shown(name)}' leads out of the folder {folder}.")
    return os.path.join(folder, inside)


def group_by_split(examples: Sequence[tuple[str, Item]]) -> dict[str, list[Item]]:
    """Examples by split, in order, in the order train, val, test; splits without examples are left out."""
    groups: dict[str, list[Item]] = {split: [] for split in SPLITS}
    for split, example in examples:
        groups[split].append(example)
    return {split: group for split, group in groups.items() if group}


def split_by_name(name: str) -> str:
    """The split of what has none of its own: 80 : 10 : 10, by the name alone."""
    share = stable_share("split", name)
    return "train" if share < 0.8 else "val" if share < 0.9 else "test"


def split_of(record: Mapping, name: str) -> str:
    """``record["split"]``, or one by ``name`` where there is none. Raises UserError for other splits."""
    split = record.get("split")
    if split is None:
        return split_by_name(name)
    if split not in SPLITS:
        raise UserError(f"the split {shown(repr(split))} is none of {', '.join(SPLITS)}.")
    return split
