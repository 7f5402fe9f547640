"""Folders that take long to build: one process of a machine builds, the others wait, and none is ever half there."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock

ABANDONED = 24 * 3600  # seconds without a write, after which an unfinished build is taken for dead


def alone(place: Path) -> FileLock:
    """Among the processes of this machine that would build the same folder."""
    return FileLock(Path(tempfile.gettempdir()) / f"fusion-{place.name}.lock")


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """An empty folder in ``folder`` (a rename must not cross disks), deleted afterwards with all that is in it."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob(".building-*"):  # what killed builds have left: each is as large as what they built
        with suppress(OSError):  # its builder has just deleted it
            if time.time() - max(one.stat().st_mtime for one in (path, *path.rglob("*"))) > ABANDONED:
                shutil.rmtree(path)
    with tempfile.TemporaryDirectory(prefix=".building-", dir=folder, ignore_cleanup_errors=True) as made:
        yield Path(made)


def install(new: Path, place: Path) -> None:
    """Rename the folder ``new`` to ``place``; a damaged one that is there moves to where ``new`` came from."""
    try:
        if place.exists():
            os.replace(place, new.with_name("damaged"))
        os.replace(new, place)
    except OSError:
        if not place.exists():  # else another process was faster by a moment, and its folder is as good
            raise
