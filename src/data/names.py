"""Names of pictures in lists against the files on the disk."""

from __future__ import annotations

import os
from collections.abc import Iterable
from unicodedata import normalize

from src.data.images import shown
from src.errors import UserError


def looked_up(paths: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """Those of ``paths`` that are no files, in the order of folders and names; and of others the disk's own spelling.

    Unicode has two spellings of "é", as one character (NFC) and as two (NFD). Lists and disks may have different ones,
    after a copy from a Mac for instance. Only paths that the disk spells otherwise are keys of the second.
    """
    wanted: dict[str, set[str]] = {}
    for path in paths:
        folder, file = os.path.split(path)
        wanted.setdefault(folder, set()).add(file)
    absent, spelt = [], {}
    for folder, files in wanted.items():
        place = _spelt(folder)
        here = _files(place)
        same = {normalize("NFC", name): name for name in here} if files - here else {}
        for file in sorted(files) if files - here or place != folder else ():
            found = file if file in here else same.get(normalize("NFC", file))
            if found is None:
                absent.append(os.path.join(folder, file))
            elif (place, found) != (folder, file):
                spelt[os.path.join(folder, file)] = os.path.join(place, found)
    return absent, spelt


def _spelt(folder: str) -> str:
    """The folder as the disk spells it; as it is where there is none."""
    if folder.isascii() or os.path.isdir(folder):
        return folder
    place = os.sep if folder.startswith(os.sep) else ""
    for part in filter(None, folder.split(os.sep)):
        if not os.path.isdir(os.path.join(place, part)):
            try:
                inside = sorted(os.listdir(place or os.curdir))
            except OSError:
                return folder
            part = next((name for name in inside if normalize("NFC", name) == normalize("NFC", part)), part)
        place = os.path.join(place, part)
    return place if os.path.isdir(place) else folder


def _files(folder: str) -> set[str]:
    """Names of the files in ``folder``, of which one listing is made instead of a question per file."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if _is_file(entry)}
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except OSError as error:
        raise UserError(f"The folder {shown(folder)} cannot be listed ({error.strerror}).") from error


def _is_file(entry: os.DirEntry) -> bool:
    try:
        return entry.is_file()
    except OSError:  # links in a circle
        return False
