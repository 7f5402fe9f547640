"""data.on_error: entries and pictures that cannot be used end the run, or are left out, counted and listed.

Leaving out happens in the source, before anybody draws from it, and depends on the files alone: tokenizer, all arms of
a comparison, cached features and live loading see the same examples.

What no check can save is raised in either case: a list that is missing, or no JSON or table at all.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import PIL
from tqdm import tqdm

from src.data.images import FORMATS, MAX_BYTES, MAX_PIXELS, read_picture
from src.errors import UserError
from src.records.files import write_jsonl, write_text

LONGEST_CAPTION = 10_000  # characters; a longer one is a file in the wrong place, and each epoch would tokenise it
CHECKED = Path("data/checked")  # which pictures were found readable, and lists of what was left out
CHECK_SIZE = 64  # pixels a picture is decoded for when it is checked: large JPEGs at an eighth, which reads all of them
CHECKERS = 8  # threads at most; decoders run side by side


class Faults:
    """What is wrong with a data set named ``name``.

    ``on_error``: "raise" makes the first fault a UserError; "skip" leaves out what is faulty, up to ``max_skipped`` of
    the entries of a list, and of its pictures or documents. ``skipped``: what was left out, as {"where", "reason"}.
    """

    def __init__(self, name: str, on_error: str = "raise", max_skipped: float = 0.01):
        self.name, self.on_error, self.max_skipped = name, on_error, max_skipped
        self.entries = 0
        self.skipped: list[dict[str, str]] = []

    @contextmanager
    def entry(self, where: str, layout: str) -> Iterator[None]:
        """Around the reading of one entry: a ValueError says how it differs from ``layout``, a UserError the rest."""
        self.entries += 1
        try:
            yield
        except UserError as error:
            self.add(where, str(error), error)
        except ValueError as error:
            self.add(where, f"{layout} is expected ({error}).", error)

    def add(self, where: str, reason: str, error: Exception | None = None) -> None:
        """Leave out what stands at ``where``; raises UserError under "raise"."""
        if self.on_error == "raise":
            raise UserError(f"{where}: {reason}") from error
        self.skipped.append({"where": where, "reason": reason})

    def refuse_many(self, count: int, total: int, what: str) -> None:
        """Raises UserError when ``count`` left out of ``total`` are more than ``max_skipped``."""
        if count > self.max_skipped * total:
            last = self.skipped[-1]
            raise UserError(
                f"{count} of the {total} {what} cannot be used, more than data.max_skipped={self.max_skipped:g} "
                f"allows; the last: {last['where']}: {last['reason']}"
            )

    def report(self, root: Path) -> None:
        """Write the list of what was left out, and say how much it is and where the list lies."""
        if not self.skipped:
            return
        path = _place(self.name, root, ".skipped.jsonl")
        try:
            write_jsonl(path, self.skipped)
            listed = f"listed in {path}"
        except (OSError, UserError) as error:
            listed = f"the first: {self.skipped[0]['where']} (no list: {error})"
        logging.getLogger(__name__).warning(
            "%s: %d entries or pictures are left out (data.on_error=skip), %s.", self.name, len(self.skipped), listed
        )


# --------------------------------------------------------------------------------------------------------------------
# what entries are made of; each raises ValueError saying what is wrong
# --------------------------------------------------------------------------------------------------------------------
def parsed(line: bytes):
    """A line of JSON."""
    try:
        return json.loads(line)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def text(record, key: str, default: str | None = None, longest: int | None = None) -> str:
    """``record[key]``: a string that UTF-8 can hold."""
    value = _value(record, key, default)
    if not isinstance(value, str):
        raise ValueError(f"{key} is no string")
    if longest is not None and len(value) > longest:
        raise ValueError(f"{key} has {len(value):,} characters; at most {longest:,} are read")
    try:
        value.encode()
    except UnicodeEncodeError:  # bytes of another encoding, or half of a UTF-16 pair, which JSON can spell
        raise ValueError(f"{key} is no UTF-8 text") from None
    return value


def identity(record, key: str) -> str:
    """``record[key]``: a string, or a whole number as one."""
    value = _value(record, key)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else text(record, key)


def items(record, key: str) -> list:
    value = _value(record, key)
    if not isinstance(value, list):
        raise ValueError(f"{key} is no list")
    return value


def _value(record, key: str, default=None):
    if not isinstance(record, dict):
        raise ValueError(f"it is {type(record).__name__}, no object")
    value = record.get(key, default)
    if value is None:
        raise ValueError(f"{key} is missing")
    return value


# --------------------------------------------------------------------------------------------------------------------
# pictures
# --------------------------------------------------------------------------------------------------------------------
def unreadable(paths: Sequence[str], name: str, root: Path) -> dict[str, str]:
    """The reason of each picture that cannot be decoded, by path, in the order of ``paths``.

    Pictures found readable are noted with size and time of change, so that the next start only looks at new ones, and
    again at the few that were not.
    """
    record = _place(name, root, ".json")
    known, states = _read_record(record), {path: _state(path) for path in paths}
    new = [path for path, state in states.items() if state is None or known.get(path) != state]
    reasons: dict[str, str] = {}
    pool = ThreadPoolExecutor(min(CHECKERS, os.cpu_count() or 1))
    bar = tqdm(total=len(new), desc=f"checking pictures of {name}", unit="picture", delay=2, leave=False)
    try:
        for path, reason in zip(new, pool.map(_reason, new), strict=True):
            if reason is None:
                known[path] = states[path]
            else:
                reasons[path] = reason
            bar.update()
    finally:  # what was done counts, also after Ctrl-C
        pool.shutdown(cancel_futures=True)
        bar.close()
        if len(reasons) < len(new):
            _write_record(record, known)
    return reasons


def _reason(path: str) -> str | None:
    try:
        read_picture(path, CHECK_SIZE)
    except UserError as error:
        return str(error)
    return None


def _state(path: str) -> list[int] | None:
    """What changes when a file does; None where it cannot be asked."""
    try:
        state = os.stat(path)
    except (OSError, ValueError):
        return None
    return [state.st_size, state.st_mtime_ns]


def _place(name: str, root: Path, ending: str) -> Path:
    """A file of its own for every folder of data."""
    return CHECKED / f"{name}-{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:12]}{ending}"


# Another decoder may read other files.
READER = [PIL.__version__, *FORMATS, MAX_PIXELS, MAX_BYTES]


def _read_record(path: Path) -> dict[str, list[int]]:
    """State by path; empty where there is no record, or none that can be used."""
    try:
        record = json.loads(path.read_bytes())
        return record["readable"] if record["reader"] == READER else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _write_record(path: Path, readable: dict[str, list[int]]) -> None:
    try:
        write_text(path, json.dumps({"reader": READER, "readable": readable}))
    except (OSError, UserError) as error:
        logging.getLogger(__name__).warning("The next start checks the pictures again: %s", error)
