"""data=documents: your own pages of text and pictures, one JSON object per line.

{"id": "soup", "segments": [{"type": "text", "text": "# Soup"}, {"type": "image", "image": "soup.jpg"}, ...]}
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from src.contracts import Chunk, Document, Example
from src.data.base import PictureFiles, picture_path, require_pictures, stable_share
from src.errors import UserError

SPLITS = ("train", "val", "test")


class Documents(PictureFiles):
    """``root``: the folder; ``documents``: the .jsonl file in it; ``images``: the folder of the pictures in it.

    A picture begins a chunk, to which all text up to the next picture belongs; white space is made single. An optional
    "split" (train, val, test) puts documents into splits; without it a hash of the id does, 80 : 10 : 10. Raises
    UserError with the line when a document is malformed or an id repeated, and when pictures are missing.
    """

    name = "documents"
    interleaved = True

    def __init__(self, root: str, documents: str = "documents.jsonl", images: str = "images"):
        self.file, self.pictures = Path(root) / documents, Path(root) / images
        if not self.file.is_file():
            raise UserError(
                f"{self.file} does not exist; put your documents there, a JSON object per line with id and segments, "
                "or say where the folder is with data.root=<folder>."
            )
        self._groups: dict[str, list[Document]] = {}
        for split, document in self._read():
            self._groups.setdefault(split, []).append(document)
        if not self._groups:
            raise UserError(f"{self.file} holds no documents.")
        chunks = (c for group in self._groups.values() for document in group for c in document.chunks)
        require_pictures((c.picture.image for c in chunks if c.picture), str(self.file))

    def splits(self) -> tuple[str, ...]:
        return tuple(split for split in SPLITS if split in self._groups)

    def examples(self, split: str) -> Sequence[Document]:
        return self._groups[split]

    def _read(self) -> Iterator[tuple[str, Document]]:
        seen = set()
        for number, line in enumerate(self.file.read_bytes().splitlines(), 1):
            if not line.strip():
                continue
            where = f"{self.file}, line {number}"
            try:
                record = json.loads(line)
                id, segments = str(record["id"]), [_segment(segment) for segment in record["segments"]]
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(
                    f'{where}: {{"id": ..., "segments": [{{"type": "text", "text": ...}} or {{"type": "image", '
                    f'"image": ...}}]}} is expected ({type(error).__name__}: {error}).'
                ) from error
            if id in seen:
                raise UserError(f"{where}: the id {id} has been used before.")
            seen.add(id)
            split = record.get("split") or _split_of(id)
            if split not in SPLITS:
                raise UserError(f"{where}: the split {split!r} is none of {', '.join(SPLITS)}.")
            chunks = self._chunks(id, segments)
            if chunks:
                yield split, Document(id, chunks)

    def _chunks(self, id: str, segments: list[tuple[str, str]]) -> tuple[Chunk, ...]:
        chunks: list[Chunk] = []
        for kind, value in segments:
            if kind == "image":
                name = f"{id}/{sum(c.picture is not None for c in chunks)}"
                chunks.append(Chunk("", Example(name, (), picture_path(self.pictures, value))))
            elif value and chunks:
                last = chunks[-1]
                chunks[-1] = Chunk(f"{last.text} {value}".strip(), last.picture)
            elif value:
                chunks.append(Chunk(value))
        return tuple(chunks)


def _segment(segment: dict) -> tuple[str, str]:
    kind = segment["type"]
    if kind not in ("text", "image"):
        raise ValueError(f"a segment of type {kind!r}")
    value = segment[kind]
    if not isinstance(value, str):
        raise TypeError(f"{kind} is no string")
    return kind, " ".join(value.split()) if kind == "text" else value


def _split_of(id: str) -> str:
    share = stable_share("split", id)
    return "train" if share < 0.8 else "val" if share < 0.9 else "test"
