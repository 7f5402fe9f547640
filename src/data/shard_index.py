"""What a shard of data=shards holds and where: found by reading it once, and kept on the disk.

Tar files have no table of contents. An index is made anew for a shard whose size or time of change is another.
"""

from __future__ import annotations

import io
import json
import os
import posixpath
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import BinaryIO

import numpy as np

from src.data.base import captions_of, picture_path
from src.data.faults import CHECK_SIZE, READER, items, parsed
from src.data.images import MAX_BYTES, SUFFIXES, read_picture, shown
from src.errors import UserError
from src.records.files import write_bytes
from src.text.normalise import normalise_caption

FORMAT = 2  # of the index files
MAX_TEXT = 2**20  # bytes of an entry with captions; img2dataset's hold metadata too, some kilobytes of it
CAPTIONS = (".txt", ".json")
LAYOUT = 'a caption in .txt, or {"caption": ...} or {"captions": [...]} in .json'
# Of each example: first byte and length of the picture and of the captions, and whether these are JSON. Then the key.
FIELDS = [("picture", "<i8"), ("bytes", "<i8"), ("text", "<i8"), ("length", "<i4"), ("json", "?")]
# numpy reads headers with Python's parser, which in 3.11 fails with a SystemError when a second thread parses while a
# finaliser has interrupted the first (https://github.com/python/cpython/issues/106905).
PARSING = Lock()
PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"(\xb5/\xfd": "zstd", b"PK\3\4": "zip"}

# Of one example: first byte and length by kind, which is "picture", "twice" (a second one) or the ending of the name.
Parts = dict[str, tuple[int, int]]


class ShardFile:
    """A shard that is read at places, also by several processes that have inherited it. Raises OSError."""

    def __init__(self, path: Path):
        self.path, self.fd = path, os.open(path, os.O_RDONLY)
        state = os.fstat(self.fd)
        self.state = [state.st_size, state.st_mtime_ns]

    def read(self, start: int, length: int) -> bytes:
        """Raises UserError when there is less."""
        try:
            content = os.pread(self.fd, length, start)
        except OSError as error:
            raise UserError(f"The shard {self.path} cannot be read ({error.strerror}).") from error
        if len(content) < length:
            raise UserError(f"The shard {self.path} has become shorter while it was in use; start again.")
        return content

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)


@dataclass(frozen=True)
class Index:
    """``rows``: FIELDS and key of each example that can be used; ``faults``: of the others, where and why."""

    rows: np.ndarray
    faults: list[tuple[str, str]]


def index_of(path: Path, cache_dir: Path, check: bool) -> Index:
    """The index in ``cache_dir``, made if there is none, or none of this shard as it is now.

    ``check``: every picture is decoded. Raises UserError when the shard cannot be opened or the index not be written.
    """
    try:
        file = ShardFile(path)
        index = load_index(path, cache_dir, check, file.state)
        if index is None:
            index = scan(path, check)
            if ShardFile(path).state == file.state:
                _save(index, path, cache_dir, check, file.state)
    except OSError as error:
        raise UserError(f"The shard {path} cannot be read ({error.strerror}).") from error
    return index


def load_index(path: Path, cache_dir: Path, check: bool, state: list[int]) -> Index | None:
    """The saved index of the shard in this state; None where there is none, or a damaged one."""
    try:
        with PARSING, np.load(_place(path, cache_dir, check), allow_pickle=False) as saved:
            if str(saved["head"]) != _head(check, state):
                return None
            return Index(saved["rows"], [tuple(fault) for fault in json.loads(str(saved["faults"]))])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _save(index: Index, path: Path, cache_dir: Path, check: bool, state: list[int]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, head=np.array(_head(check, state)), rows=index.rows, faults=np.array(json.dumps(index.faults)))
    write_bytes(_place(path, cache_dir, check), buffer.getvalue())


def _head(check: bool, state: list[int]) -> str:
    """What must be equal for a saved index to be used; another decoder may read other pictures."""
    return json.dumps([FORMAT, state, READER if check else None])


def _place(path: Path, cache_dir: Path, check: bool) -> Path:
    whole = sha256(os.fsencode(path.resolve())).hexdigest()[:16]
    return cache_dir / f"{path.stem[:40]}-{whole}{'-checked' if check else ''}.npz"


def scan(path: Path, check: bool) -> Index:
    """Read a shard from its first entry to its last. Raises OSError when it cannot be opened."""
    found: dict[str, Parts] = {}
    rows, faults = [], []
    with open(path, "rb") as file:
        try:
            for member in _members(file):
                _sort_in(member, found)
        except ValueError as error:
            if found and not _is_whole(found[last := next(reversed(found))]):
                del found[last]  # the rest of it is behind the damage
            whole = sum(map(_is_whole, found.values()))
            faults.append((str(path), f"The shard is damaged or cut off ({error}) behind {whole} whole examples."))
        except UserError as error:
            faults.append((str(path), str(error)))
        reader, examples = ShardFile(path), _examples(found)
        for key, parts in examples:
            try:
                rows.append(_row(reader, key, parts, check))
            except UserError as error:
                faults.append((f"{path}, entry {shown(key)}", str(error)))
            except ValueError as error:
                faults.append((f"{path}, entry {shown(key)}", f"{LAYOUT} is expected ({error})."))
    if found and not examples and not faults:
        endings = ", ".join(sorted({kind for parts in found.values() for kind in parts}))
        faults.append((str(path), f"The shard holds neither pictures nor captions: its entries end in {endings}."))
    width = max((len(row[-1]) for row in rows), default=1)
    return Index(np.array(rows, np.dtype([*FIELDS, ("key", f"S{width}")])), faults)


def _members(file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """The regular files of an uncompressed tar. Raises ValueError where it is damaged or cut off.

    Raises UserError for a file that is packed: nothing in it could be read without all that comes before.
    """
    size, head = os.fstat(file.fileno()).st_size, os.pread(file.fileno(), 8, 0)
    for magic, program in PACKED.items():
        if head.startswith(magic):
            raise UserError(f"The shard is packed with {program}, whatever it is called; unpack it to a plain .tar.")
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # it would remember every entry
                if not 0 <= member.size <= size - member.offset_data:
                    raise ValueError(f"an entry of {member.size:,} bytes does not fit in")
                if member.isreg() and not member.issparse():
                    yield member
            # tarfile takes anything that is no header for the end, which by rights is marked by zeros.
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise ValueError(f"no entry and no end at byte {tar.offset:,}")
            if size - tar.offset > 2 * tarfile.RECORDSIZE:  # zeros where a download should go on, or another tar
                raise ValueError(f"{size - tar.offset:,} bytes from its end on")
    except ValueError:
        raise
    except Exception as error:  # tarfile raises anything for damaged headers
        raise ValueError(str(error) or type(error).__name__) from error


def _sort_in(member: tarfile.TarInfo, found: dict[str, Parts]) -> None:
    """Note an entry under its name without ending; files whose names begin with a dot are some system's own."""
    folder, name = posixpath.split(member.name)
    stem, dot, ending = name.rpartition(".")
    if name.startswith("."):
        return
    kind = "picture" if (ending := f"{dot}{ending.lower()}") in SUFFIXES else ending
    _put(found.setdefault(posixpath.join(folder, stem or name), {}), kind, (member.offset_data, member.size))


def _put(parts: Parts, kind: str, place: tuple[int, int]) -> None:
    parts["twice" if kind in parts and kind in ("picture", *CAPTIONS) else kind] = place


def _examples(found: Mapping[str, Parts]) -> list[tuple[str, Parts]]:
    """Key and parts of all examples, whole or not, from the parts of each name.

    Picture and captions whose names differ in nothing but the ending are an example: IMG_1.v2.jpg and IMG_1.v2.txt.
    Others come together by their names up to the first dot, as in webdataset: 7.input.jpg and 7.caption.txt. What is
    neither picture nor captions is no example where it is a column of one (7.cls) or stands alone (README.md).
    """
    whole = {name: parts for name, parts in found.items() if _is_whole(parts)}
    loose: dict[str, Parts] = {}
    for name, parts in found.items():
        folder, file = posixpath.split(name)
        key = posixpath.join(folder, file.partition(".")[0])
        if name in whole or (key in whole and not _is_read(parts)):
            continue
        together = loose.setdefault(name if key in whole else key, {})
        for kind, place in parts.items():
            _put(together, kind, place)
    return [*whole.items(), *((key, parts) for key, parts in loose.items() if _is_read(parts) or len(parts) > 1)]


def _is_read(parts: Parts) -> bool:
    return any(kind in parts for kind in ("picture", *CAPTIONS))


def _is_whole(parts: Parts) -> bool:
    return "picture" in parts and any(kind in parts for kind in CAPTIONS)


def _row(file: ShardFile, key: str, parts: Parts, check: bool) -> tuple:
    """FIELDS and key of an example. Raises UserError or ValueError when it cannot be used."""
    name = posixpath.normpath(key)
    picture_path(file.path, name)  # ids are names of files elsewhere
    if "twice" in parts:
        raise UserError("Two pictures or captions have this key.")
    if not _is_whole(parts):
        wanted = "no .txt or .json" if "picture" in parts else "no picture"
        there = ", ".join("a picture" if kind == "picture" else kind for kind in sorted(parts))
        raise UserError(f"There is {wanted} of this name, only {shown(there)}.")
    text, is_json = _captions(file, parts)
    picture = parts["picture"]
    if picture[1] > MAX_BYTES:
        raise UserError(f"The picture has {picture[1]:,} bytes; at most {MAX_BYTES:,} are read.")
    if check:
        read_picture(name, CHECK_SIZE, file.read(*picture))
    return (*picture, *text, is_json, name.encode())


def _captions(file: ShardFile, parts: Parts) -> tuple[tuple[int, int], bool]:
    """Where the captions stand, and whether as JSON: that counts where .txt is missing or empty. Raises ValueError."""
    for kind in (kind for kind in CAPTIONS if kind in parts):
        place, is_json = parts[kind], kind == ".json"
        if place[1] > MAX_TEXT:
            raise ValueError(f"the captions have {place[1]:,} bytes; at most {MAX_TEXT:,} are read")
        content = file.read(*place)
        if is_json or ".json" not in parts or normalise_caption(_plain(content)):
            break
    read_captions(content, is_json)
    return place, is_json


def _plain(content: bytes) -> str:
    """Text; bytes that are no UTF-8 become surrogates, which ``captions_of`` refuses."""
    return content.decode("utf-8-sig", "surrogateescape")


def read_captions(content: bytes, is_json: bool) -> tuple[str, ...]:
    """The captions that say something. Raises ValueError when there are none."""
    if is_json:
        record = parsed(content)
        several = isinstance(record, dict) and record.get("captions") is not None
        records = [{"caption": caption} for caption in items(record, "captions")] if several else [record]
    else:
        records = [{"caption": _plain(content)}]
    return tuple(caption for caption in captions_of(records, "caption") if normalise_caption(caption))
