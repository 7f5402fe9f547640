"""A folder, the local cache or the Hugging Face hub: where checkpoints are found, and what is wrong in one sentence."""

from __future__ import annotations

import json
import textwrap
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import huggingface_hub
from huggingface_hub.errors import EntryNotFoundError, HFValidationError
from safetensors import SafetensorError, safe_open

from src.errors import UserError

T = TypeVar("T")

QUICK = 5  # seconds that one question to the hub may take


def fetch(load: Callable[[bool], T], name: str, what: str, advice: str, file: str = "config.json") -> T:
    """``load(local_files_only)``: from a folder or the local cache if possible, else from the hub.

    ``file``: one that such repositories have. A single request for it tells whether the hub can be reached; the
    library's own would be retried for half a minute. Raises UserError, which ends in ``advice`` where ``name`` is not
    found anywhere.
    """
    try:
        return load(True)
    except Exception as error:  # libraries raise bare Exception too, and ten kinds beside it
        if Path(name).is_dir():
            raise UserError(f"The folder {name} holds no readable {what}: {reason(error, Path(name))}") from error
        kept = find(name, file)
        here = f"readable in the local cache ({reason(error, kept.parent)})" if kept else "in the local cache"
    try:
        on_hub(name, file)
    except Exception as error:  # bad names, missing or gated repositories and network errors share no base class
        raise UserError(
            f"The {what} {name!r} is neither a folder here nor {here}, and cannot be downloaded from the Hugging "
            f"Face hub ({reason(error)}); {advice}."
        ) from error
    try:
        return load(False)
    except Exception as error:
        raise UserError(f"The {what} {name} of the Hugging Face hub cannot be loaded: {reason(error)}") from error


def find(name: str, file: str) -> Path | None:
    """Where ``file`` of a folder, or of a repository in the local cache, lies; asks no network."""
    if Path(name).is_dir():
        return path if (path := Path(name, file)).is_file() else None
    try:
        cached = huggingface_hub.try_to_load_from_cache(name, file)
    except HFValidationError:  # no repository has such a name
        return None
    return Path(cached) if isinstance(cached, str) else None


def obtain(name: str, file: str, local: bool) -> Path | None:
    """``find``, or with ``local=False`` downloaded; None where the repository has no such file."""
    if local or Path(name).is_dir():
        return find(name, file)
    try:
        return Path(huggingface_hub.hf_hub_download(name, file))
    except EntryNotFoundError:
        return None


def on_hub(name: str, file: str) -> bool:
    """Whether the hub's repository has ``file``, by one request; raises what the library does without an answer."""
    try:
        huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(name, file), timeout=QUICK)
    except EntryNotFoundError:
        return False
    return True


def expanded(name: str) -> str:
    """``name`` with a leading ~ as the home folder: shells leave it as it is behind an equals sign."""
    return str(Path(name).expanduser()) if name.startswith("~") else name


def reason(error: Exception, folder: Path | None = None) -> str:
    """What ``error`` says, as one line; of unreadable content in ``folder`` with the name of the file."""
    text = " ".join(str(error).split())
    if "trust_remote_code" in text:
        return "it needs program code of its own, which is never run here"
    if isinstance(error, LookupError):
        text = f"{type(error).__name__} {text}"
    if not text:  # a bare assertion: the line says what was expected
        lines = traceback.extract_tb(error.__traceback__)
        text = f"{type(error).__name__}{f' at: {lines[-1].line}' if lines else ''}"
    if folder and isinstance(error, (json.JSONDecodeError, UnicodeDecodeError, SafetensorError)):
        text = f"{_unreadable(folder)}: {text}"
    return textwrap.shorten(text, 400, placeholder=" ...")


def _unreadable(folder: Path) -> str:
    """The file in ``folder`` that is at fault: the first that cannot be opened as what its name says."""
    for path in sorted(folder.iterdir()):
        try:
            if path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
            elif path.suffix == ".safetensors":
                safe_open(path, "pt")
        except (ValueError, SafetensorError):
            return path.name
    return "one of its files"
