"""The file of an offline run of Weights & Biases: it names staged files by the whole paths that they had when written.

So an upload misses the tables and their pictures once the run folder has moved; ``settle`` names them where they are.
After a header of 7 bytes the file holds protobuf messages in the log format of LevelDB
(https://github.com/google/leveldb/blob/main/doc/log_format.md), with CRC-32 (IEEE) as checksums.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from src.errors import UserError
from src.records.files import write_bytes

START, BLOCK, HEAD = 7, 32768, struct.Struct("<IHB")  # of a piece: checksum, length, kind
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4
STAGED = "/wandb/data/"  # below a run folder; src.tracking sees to it


def settle(file: Path, run: Path) -> int:
    """Name the staged files of ``file`` where they are below ``run``; how many lay elsewhere before.

    Raises UserError when the file is damaged or a staged file is missing.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    content, count, messages = file.read_bytes(), 0, []
    for message in _messages(content, file):
        record = Record.FromString(message)
        entries = record.artifact.manifest.contents if record.HasField("artifact") else ()
        moved = [entry for entry in entries if _place(entry.local_path, run) != entry.local_path]
        for entry in moved:
            entry.local_path = _place(entry.local_path, run)
            if not Path(entry.local_path).is_file():
                raise UserError(f"{entry.local_path} is missing; move the run folder with all that is in its wandb/.")
        messages.append(record.SerializeToString() if moved else message)
        count += len(moved)
    if count:
        write_bytes(file, content[:START] + _framed(messages))
    return count


def gather(run: Path, to: Path) -> None:
    """Move what a run folder logged offline below ``to``, another such folder: src.sync uploads it from there."""
    for own in sorted(run.glob("wandb/offline-run-*")):
        (to / "wandb").mkdir(parents=True, exist_ok=True)
        own.rename(to / "wandb" / own.name)
    for staged in sorted(path for path in run.glob("wandb/data/**/*") if path.is_file()):
        target = to / staged.relative_to(run)
        target.parent.mkdir(parents=True, exist_ok=True)
        staged.rename(target)


def _place(path: str, run: Path) -> str:
    _, found, tail = path.rpartition(STAGED)
    return f"{run.absolute()}{STAGED}{tail}" if found else path


def _messages(content: bytes, file: Path) -> Iterator[bytes]:
    """The messages, put together from their pieces. What a kill left unfinished at the end is left out."""
    at, message = START, b""
    while at + HEAD.size <= len(content):
        room = BLOCK - at % BLOCK
        if room < HEAD.size:
            at += room
            continue
        checksum, length, kind = HEAD.unpack_from(content, at)
        piece = content[at + HEAD.size : at + HEAD.size + length]
        if len(piece) < length:
            return
        if zlib.crc32(bytes([kind]) + piece) != checksum:
            raise UserError(f"{file} is damaged at byte {at}; what it holds up to there `wandb sync` can upload.")
        message, at = message + piece, at + HEAD.size + length
        if kind in (WHOLE, LAST):
            yield message
            message = b""


def _framed(messages: Iterable[bytes]) -> bytes:
    """The messages in pieces that end where blocks of the file end."""
    out = bytearray()
    for message in messages:
        begun = False
        while True:
            room = BLOCK - (START + len(out)) % BLOCK
            if room < HEAD.size:
                out += bytes(room)
                continue
            piece, message = message[: room - HEAD.size], message[room - HEAD.size :]
            kind = (MIDDLE if message else LAST) if begun else (FIRST if message else WHOLE)
            out += HEAD.pack(zlib.crc32(bytes([kind]) + piece), len(piece), kind) + piece
            begun = True
            if not message:
                break
    return bytes(out)
