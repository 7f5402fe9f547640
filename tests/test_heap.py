"""Memory that a training gives back and takes again costs no fresh pages."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from src.train import fit
from src.training import freed_memory as heap

# Page faults of ten rounds over blocks of changing sizes, after ten that are not counted.
SCRIPT = """
import resource, sys
from src.training.freed_memory import keep_freed_memory

print(keep_freed_memory() if sys.argv[1] == "keep" else "untouched")
for turn in range(20):
    if turn == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [b"x" * ((40 + turn % 3) << 20) for _ in range(3)]
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep: str, **environment: str) -> tuple[str, int]:
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", SCRIPT, keep]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**own, **environment})
    said, count = done.stdout.split()
    return said, int(count)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library is left alone")
def test_freed_memory_is_kept():
    pages = 10 * 3 * (40 << 20) // os.sysconf("SC_PAGESIZE")
    assert faults("keep")[0] == "True" and faults("keep")[1] < pages / 20
    assert faults("leave") == ("untouched", pytest.approx(pages, rel=0.2))


def test_what_the_user_chose_wins():
    assert faults("keep", MALLOC_TRIM_THRESHOLD_="1000000")[0] == "False"
    assert faults("keep", GLIBC_TUNABLES="glibc.malloc.trim_threshold=1000000")[0] == "False"


@pytest.mark.parametrize("kind, kept", [("cpu", 1), ("cuda", 0)])
def test_training_keeps_its_memory_on_a_cpu(monkeypatch, tmp_path, kind, kept):
    calls = []
    monkeypatch.setattr(heap, "keep_freed_memory", lambda: calls.append("kept"))
    parts = SimpleNamespace(captioner=SimpleNamespace(parameter_groups=lambda: [{}]), data=None)
    trainer = SimpleNamespace(
        strategy=SimpleNamespace(root_device=SimpleNamespace(type=kind)),
        default_root_dir=tmp_path,
        fit=lambda *given, **options: calls.append("fit"),
    )
    fit(trainer, parts, OmegaConf.create({"resume": None}))
    assert calls == ["kept"] * kept + ["fit"]
