"""run=latest and run=<folder above>: the newest run that has got weights, so that nobody has to type a date."""

from __future__ import annotations

from pathlib import Path

from src.errors import UserError
from src.records.folder import Saved

LATEST = "latest"
PLACE = Path("runs")  # where src.train puts runs


def newest_run(word: str, place: Path = PLACE) -> str:
    """``word`` itself where it is a run or an export, or nothing at all: whoever reads it says so.

    Raises UserError for "latest" where there is no run.
    """
    folder = Path(word).expanduser()
    if folder.is_dir() and Saved.at(folder).is_there:
        return word
    if not folder.is_dir():
        if word != LATEST:
            return word
        folder = place
    found = [
        one.parent.parent for one in folder.rglob("checkpoints/best.ckpt") if (one.parents[1] / "config.yaml").is_file()
    ]
    if not found:
        if word == LATEST:
            raise UserError(f"run=latest: {place} holds no run with weights yet; give run=<folder>.")
        return word
    return str(max(found, key=lambda run: (run / "checkpoints" / "best.ckpt").stat().st_mtime_ns))
