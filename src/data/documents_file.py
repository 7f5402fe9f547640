"""data=documents: your own pages of text and pictures, one JSON object per line.

{"id": "soup", "segments": [{"type": "text", "text": "# Soup"}, {"type": "image", "image": "soup.jpg"}, ...]}
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from src.contracts import Chunk, Document, Example
from src.data.base import ListedPictures, lines_of, picture_path, split_of
from src.data.faults import Faults, identity, items, parsed, text
from src.data.images import shown
from src.errors import UserError
from src.kinds import Share

LAYOUT = (
    '{"id": ..., "segments": [{"type": "text", "text": ...} or {"type": "image", "image": ...}, ...]}, all strings,'
)
LONGEST_TEXT = 1_000_000  # characters of a segment; a novel has half as many


class Documents(ListedPictures):
    """``root``: the folder; ``documents``: the .jsonl file in it; ``images``: the folder of the pictures in it.

    A picture begins a chunk, to which all text up to the next picture belongs; white space is made single. An optional
    "split" (train, val, test) puts documents into splits; without it a hash of the id does, 80 : 10 : 10. Raises
    UserError with the line when a document is malformed or empty or an id repeated, and when pictures are missing.
    ``on_error``, ``max_skipped``: see ``data.faults``; a document with a bad picture is left out whole.
    """

    name = "documents"
    interleaved = True
    task = "stories"

    def __init__(
        self,
        root: str,
        documents: str = "documents.jsonl",
        images: str = "images",
        on_error: Literal["raise", "skip"] = "raise",
        max_skipped: Share = 0.01,
    ):
        self.faults = Faults(self.name, on_error, max_skipped)
        self.file, self.pictures = Path(root) / documents, Path(root) / images
        if not self.file.is_file():
            raise UserError(
                f"{self.file} does not exist; put your documents there, a JSON object per line with id and segments, "
                "or say where the folder is with data.root=<folder>."
            )
        self._take(self._read(), self.file)
        if not self._groups:
            raise UserError(f"{self.file} holds no documents.")

    def _read(self) -> list[tuple[str, Document]]:
        listed, seen = [], set()
        for where, line in lines_of(self.file):
            with self.faults.entry(where, LAYOUT):
                record = parsed(line)
                id, segments = identity(record, "id"), [_segment(one) for one in items(record, "segments")]
                if id in seen:
                    raise UserError(f"the id {shown(id)} has been used before.")
                chunks = self._chunks(id, segments)
                if not chunks:
                    raise ValueError("there is neither text nor a picture")
                listed.append((split_of(record, id), Document(id, chunks)))
                seen.add(id)
        return listed

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


def _segment(segment) -> tuple[str, str]:
    kind = text(segment, "type")
    if kind not in ("text", "image"):
        raise ValueError(f"a segment of type {shown(repr(kind))}")
    value = text(segment, kind, longest=LONGEST_TEXT)
    return kind, " ".join(value.split()) if kind == "text" else value
