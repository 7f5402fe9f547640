"""Compare vision-language fusion mechanisms under one captioner."""

import os
import sys
from pathlib import Path

# OpenMP threads that wait by spinning take the core that a data worker or a second run needs: on two shared cores a
# training step became forty times slower. Threads that sleep at once wake up late: a step of 0.21 s instead of 0.15 s.
# So: spin shortly (GNU's runtime), or sleep (others). Must be set before torch loads OpenMP; your own setting wins.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

# Hydra takes plugins only from packages below the name hydra_plugins; ours are in src/launch/hydra_plugins.
sys.path.append(str(Path(__file__).parent / "launch"))

# The floors, from the ground up: a file imports from lower floors and from its own room only, and no two files import
# each other, not even by way of others (tests/test_floors.py). README.md shows them.
FLOORS = (
    ("errors", "layers", "scenes"),
    ("contracts", "hub", "kinds", "records"),
    ("decoding", "fusion", "language", "probes", "projectors", "text", "vision"),
    ("config", "data", "metrics"),
    ("objectives",),
    ("comparison", "launch", "loading"),
    ("pipelines", "reporting", "training"),
    ("captioner",),
    ("build", "diagnostics"),
    ("pretrained",),
    ("benchmarking", "tasks"),
    ("studies", "tracking"),
    # the commands, python -m src.<name>
    (
        "benchmark",
        "caption",
        "compare",
        "dashboard",
        "doctor",
        "evaluate",
        "explain",
        "export",
        "pipeline",
        "preserve",
        "report",
        "score",
        "seeing",
        "study",
        "sync",
        "train",
    ),
)
