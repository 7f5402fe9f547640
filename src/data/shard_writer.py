"""Shards made from any source with captioned pictures, such as a folder of one's own.

write_shards(Folder("photos"), "shards"), and then: python -m src.train data=shards data.root=shards ...
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from PIL import Image

from src.contracts import Example, Source
from src.data.shards import Shards
from src.errors import UserError
from src.records.files import explaining_full_disk


def write_shards(source: Source, folder: str | Path, per_shard: int = 10_000, size: int = 224) -> None:
    """Every split of ``source`` as shards <folder>/<split>/00000.tar ..., which data.root=<folder> reads.

    Picture files go in as they are; drawn pictures as PNG of ``size`` x ``size`` pixels. A shard gets its name when it
    is complete. Raises UserError for sources without captioned pictures, and where there are shards already.
    """
    if source.interleaved or not source.has_images or isinstance(source, Shards):
        raise UserError(f"data={source.name} has no pictures with captions that could be written as shards.")
    for split in source.splits():
        place = Path(folder) / split
        if next(place.glob("*.tar"), None):
            raise UserError(f"{place} holds shards already; give another folder, or delete them.")
        place.mkdir(parents=True, exist_ok=True)
        examples = iter(source.examples(split))
        number = 0
        while some := list(islice(examples, per_shard)):
            with explaining_full_disk(place):
                _write_shard(place / f"{number:05d}.tar", number * per_shard, some, source, size)
            number += 1


def _write_shard(path: Path, first: int, examples: Iterable[Example], source: Source, size: int) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with tarfile.open(beside, "w") as tar:
            for number, example in enumerate(examples, first):
                ending, content = _picture_file(source, example, size)
                captions = json.dumps({"id": example.id, "captions": example.captions}).encode()
                for name, data in ((f"{number:09d}{ending}", content), (f"{number:09d}.json", captions)):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _picture_file(source: Source, example: Example, size: int) -> tuple[str, bytes]:
    """Ending and content."""
    if example.image is not None:
        return Path(example.image).suffix.lower(), Path(example.image).read_bytes()
    buffer = io.BytesIO()
    Image.fromarray(source.pixels(example, size).permute(1, 2, 0).numpy()).save(buffer, "PNG")
    return ".png", buffer.getvalue()
