"""Files that are never half written, and sums that tell whether one still holds what was written."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from src.errors import UserError

SUMS = "SHA256SUMS"


def write_bytes(path: Path | str, content: bytes) -> None:
    """``written`` of what is in memory already."""
    with written(path) as file:
        file.write(content)


@contextmanager
def written(path: Path | str) -> Iterator[BinaryIO]:
    """A file beside that takes its place in the end, so that ``path`` holds either the old content or all of the new.

    Raises UserError when it cannot be written; the old content is then still there.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(beside, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
            _sync_folder(path.parent)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(path, error) from error


def _sync_folder(folder: Path) -> None:
    """That a file got its name must reach the disk too, or a machine that goes down takes it back."""
    with suppress(OSError):  # some file systems cannot; the file itself is written
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def unwritable(path: Path | str, error: OSError) -> UserError:
    return UserError(f"{path} cannot be written ({error.strerror or error}); make room, or write to another place.")


@contextmanager
def explaining_full_disk(folder: Path) -> Iterator[None]:
    """Around work of libraries that write into ``folder`` themselves: a full disk becomes a UserError."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise unwritable(error.filename or folder, error) from error


def write_text(path: Path | str, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path | str, content) -> None:
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: Path | str, rows: Iterable[dict]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


# --------------------------------------------------------------------------------------------------------------------
# what was written is what is read
# --------------------------------------------------------------------------------------------------------------------
def read_jsonl(path: Path | str) -> list[dict]:
    """The rows; none where there is no file. Raises UserError for one that is damaged."""
    path = Path(path)
    if not path.is_file():
        return []
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}).") from None


def seal(folder: Path | str, *names: str) -> None:
    """Note the sha256 of these files of ``folder`` in its SHA256SUMS. Of a folder among ``names``: of all in it."""
    folder = Path(folder)
    files = [path for name in names for path in (folder / name, *(folder / name).rglob("*")) if path.is_file()]
    sums = listed(folder, strict=False) | {path.relative_to(folder).as_posix(): sha256(path) for path in files}
    _write_sums(folder, sums)


def verify(folder: Path | str, *names: str) -> None:
    """Raises UserError for a file that SHA256SUMS lists and that is missing or differs. Others are not known here.

    ``names``: files, or folders of files, in ``folder``.
    """
    folder = Path(folder)
    for name, wanted in listed(folder).items():
        if not any(name == one or name.startswith(f"{one}/") for one in names):
            continue
        there = (folder / name).is_file()
        if not there or sha256(folder / name) != wanted:
            wrong = "is not what was written (its sha256 differs)" if there else "is missing"
            raise UserError(
                f"{folder / name} {wrong}; restore it, or make the run or evaluation again. (You changed it yourself? "
                f"Then delete its line in {folder / SUMS}.)"
            )


def sha256(path: Path) -> str:
    """Of the content of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _write_sums(folder: Path, sums: dict[str, str]) -> None:
    write_text(folder / SUMS, "".join(f"{sums[name]}  {name}\n" for name in sorted(sums)))


def listed(folder: Path, strict: bool = True) -> dict[str, str]:
    """What SHA256SUMS lists: sha256 by name. Empty without one; ``strict``: raises UserError when it is damaged."""
    path = folder / SUMS
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    found = [re.fullmatch("([0-9a-f]{64})  (.+)", line) for line in lines]
    if strict and None in found:
        raise UserError(f"{path} is damaged; delete it to go on without it, or make the run or evaluation again.")
    return {match[2]: match[1] for match in found if match}
