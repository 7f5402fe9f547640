"""The run folder: what a run leaves behind, written so that a half-written file never takes a good one's place.

config.yaml         the resolved configuration            environment.json   commit, versions, machine, command
tokenizer/          the tokenizer                         checkpoints/       best.ckpt, last.ckpt
metrics.json        {"split", "scores", "cost", ...}      predictions.jsonl  id, caption, references, per-image scores
samples.png         pictures with captions                log/metrics.csv    losses over the steps
skipped.jsonl       entries and pictures that data.on_error=skip left out, if there are any
SHA256SUMS          of the files above, which are compared with it when they are read (``sha256sum -c SHA256SUMS`` does
                    it too); not of pictures, which nobody reads back, and of checkpoints, which have sums of their own
result.json         {"score", "value"}: written last, so its presence says that the run is complete

An exported folder (src.export) has manifest.json instead of checkpoints/, and captioner.yaml instead of config.yaml.
Nothing here may hold a secret: commands are written with secrets masked, and src.config refuses them as values.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from src.errors import UserError
from src.records.files import _write_sums, listed, seal, verify, write_jsonl, write_text

if TYPE_CHECKING:
    from omegaconf import DictConfig

MANIFEST = "manifest.json"  # of an exported folder: sha256 of its files, and where frozen parts come from
EXPORTED_CONFIG, EXPORTED_WEIGHTS = "captioner.yaml", "model.safetensors"
HERE = "<folder>"  # in captioner.yaml: the exported folder itself, wherever it lies


def complete(run: Path, score: str, value: float) -> None:
    """The last act of a run: sums of everything, then result.json."""
    seal(run, "skipped.jsonl", "log")
    content = json.dumps({"score": score, "value": value}, indent=2) + "\n"
    _write_sums(run, listed(run, strict=False) | {"result.json": hashlib.sha256(content.encode()).hexdigest()})
    write_text(run / "result.json", content)


def result(run: Path) -> dict | None:
    """{"score", "value"} of a complete run; None where there is none or a damaged one: scoring can be repeated."""
    try:
        verify(run, "result.json")
        found = json.loads((run / "result.json").read_text(encoding="utf-8"))
        return {"score": found["score"], "value": found["value"]}
    except (UserError, OSError, ValueError, TypeError, KeyError):
        return None


# --------------------------------------------------------------------------------------------------------------------
# reading a run
# --------------------------------------------------------------------------------------------------------------------
def is_export(folder: Path | str) -> bool:
    """Whether ``folder`` was written by src.export, though its manifest may have been lost since."""
    return any((Path(folder) / name).is_file() for name in (MANIFEST, EXPORTED_CONFIG))


def write_skipped(run: Path, sources: Iterable) -> None:
    """skipped.jsonl with what data.on_error=skip left out; no file where that is nothing."""
    left_out = [fault for source in sources if hasattr(source, "faults") for fault in source.faults.skipped]
    if left_out:
        write_jsonl(run / "skipped.jsonl", left_out)


def run_config(folder: Path | str) -> DictConfig:
    """The configuration of a finished or running run, or of an exported one.

    Raises UserError when ``folder`` is neither, or when the file cannot be read.
    """
    from omegaconf import OmegaConf
    from yaml import YAMLError

    path = Path(folder) / (EXPORTED_CONFIG if is_export(folder) else "config.yaml")
    verify(folder, path.name)
    if not path.is_file():
        raise UserError(f"{folder} is not a run folder: it has no {path.name}; give the folder that src.train printed.")
    try:
        cfg = OmegaConf.load(path)
    except (YAMLError, ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read ({' '.join(str(error).split())}).") from None
    return OmegaConf.create(_placed(OmegaConf.to_container(cfg), str(folder))) if is_export(folder) else cfg


def _placed(node, folder: str):
    """The same values with the folder's place filled in."""
    if isinstance(node, dict):
        return {name: _placed(value, folder) for name, value in node.items()}
    if isinstance(node, list):
        return [_placed(value, folder) for value in node]
    return node.replace(HERE, folder) if isinstance(node, str) else node


def weights_path(folder: Path | str) -> Path:
    """The file with the trained tensors of a run or of an exported folder. Raises UserError when it is missing."""
    return Path(folder) / EXPORTED_WEIGHTS if is_export(folder) else checkpoint_path(folder)


def checkpoint_path(folder: Path | str, which: str = "best") -> Path:
    """``checkpoints/<which>.ckpt`` of a run. Raises UserError when it is missing."""
    path = Path(folder) / "checkpoints" / f"{which}.ckpt"
    if is_export(folder):
        raise UserError(f"{folder} is an export, which src.caption reads; give the run folder that it was made from.")
    if not path.is_file():
        raise UserError(
            f"{path} is missing: training did not get that far, or the file was lost; give another run, or train this "
            "one again."
        )
    return path


def resumable(folder: Path) -> bool:
    """Whether a run has got far enough to be gone on with."""
    return any((folder / "checkpoints" / f"{name}.ckpt").is_file() for name in ("last", "previous"))
