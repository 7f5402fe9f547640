"""The run folder: what a run leaves behind, written so that a half-written file never takes a good one's place.

config.yaml         the resolved configuration            environment.json   commit, versions, machine, command
tokenizer/          the tokenizer                         checkpoints/       best.ckpt, last.ckpt
metrics.json        {"split", "scores", "cost", ...}      predictions.jsonl  id, caption, references, per-image scores
samples.png         pictures with captions                log/metrics.csv    losses over the steps
result.json         {"score", "value"}: written last, so its presence says that the run is complete
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from src.errors import UserError

PACKAGES = ("torch", "lightning", "transformers", "open_clip_torch", "hydra-core", "torchmetrics", "numpy")


def write_bytes(path: Path | str, content: bytes) -> None:
    """Write beside and rename, so that ``path`` holds either the old content or all of the new."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: Path | str, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path | str, content) -> None:
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: Path | str, rows: Iterable[dict]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def run_config(folder: Path | str):
    """The configuration of a finished or running run. Raises UserError when ``folder`` is not a run folder."""
    from omegaconf import OmegaConf

    path = Path(folder) / "config.yaml"
    if not path.is_file():
        raise UserError(f"{folder} is not a run folder: it has no config.yaml; give the folder that src.train printed.")
    return OmegaConf.load(path)


def checkpoint_path(folder: Path | str, which: str = "best") -> Path:
    """``checkpoints/<which>.ckpt`` of a run. Raises UserError when it is missing."""
    path = Path(folder) / "checkpoints" / f"{which}.ckpt"
    if not path.is_file():
        raise UserError(f"{folder} holds no {path.name} in checkpoints/; its training did not get that far.")
    return path


def resumable(folder: Path) -> bool:
    """Whether a run has got far enough to be gone on with."""
    return any((folder / "checkpoints" / f"{name}.ckpt").is_file() for name in ("last", "previous"))


def environment() -> dict:
    """Commit, versions, machine and command of this process."""
    return {
        "command": _command(),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "machine": {"platform": platform.platform(), "cores": os.cpu_count()},
    }


def _command() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return " ".join(["python", *(["-m", spec.name] if spec else sys.argv[:1]), *sys.argv[1:]])


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    home = Path(__file__).resolve().parents[1]
    try:
        answer = subprocess.run(["git", *arguments], cwd=home, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
