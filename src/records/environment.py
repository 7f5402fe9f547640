"""Where and with what a run was made: commit, versions, machine and command."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from src.records.secrets import masked

PACKAGES = ("torch", "lightning", "transformers", "open_clip_torch", "hydra-core", "torchmetrics", "numpy")

UNITS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")  # of processors, the fastest first


def environment() -> dict:
    """Commit, versions, machine and command of this process."""
    return {
        "command": _command(),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "machine": {"platform": platform.platform(), "cores": os.cpu_count(), "kind": machine_kind()},
    }


def machine_kind() -> str:
    """What computes: the GPU, else the processor with the widest of its units that matter here, and how many cores."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    told = Path("/proc/cpuinfo")
    lines = told.read_text(encoding="utf-8").splitlines() if told.is_file() else []
    known = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    units = [unit for unit in UNITS if unit in known.get("flags", "").split()]
    name = known.get("model name") or platform.processor() or platform.machine()
    return ", ".join([name, *units[:1], f"{os.cpu_count()} cores"])


def _command() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    arguments = [masked(argument) for argument in sys.argv[1:]]
    return " ".join(["python", *(["-m", spec.name] if spec else sys.argv[:1]), *arguments])


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    home = Path(__file__).resolve().parents[2]
    try:
        answer = subprocess.run(["git", *arguments], cwd=home, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
