"""How long a comparison at the size of COCO's test split takes, and how much memory; one thread.

python -m src.benchmarking.comparing
"""

from __future__ import annotations

import os
import time
from itertools import product
from pathlib import Path
from random import Random
from resource import RUSAGE_SELF, getrusage

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy is loaded

from src.comparison.arms import compare
from src.comparison.runs import Arm, Run

IMAGES, ARMS, SEEDS, RESAMPLES, REFERENCES = 5_000, 7, 3, 10_000, 5
SCORES = ("SPICE", "ROUGE-L", "CIDEr-D")
WORDS = ["".join(letters) for letters in product("bdgklmnprstv", "aeiou", "bdgklmnprstv", ("", "a", "er"))]


def main() -> None:
    chance = Random(0)
    references = [[_caption(chance) for _ in range(REFERENCES)] for _ in range(IMAGES)]
    arms = [
        Arm(f"arm{arm}", tuple(_run(chance, f"arm{arm}", seed, references) for seed in range(SEEDS)))
        for arm in range(ARMS)
    ]
    started = time.perf_counter()
    comparison = compare(arms, resamples=RESAMPLES)
    seconds = time.perf_counter() - started
    print(f"{IMAGES} images x {ARMS} arms x {SEEDS} seeds, {', '.join(comparison.scores)}, {RESAMPLES} resamples:")
    print(f"{seconds:.1f} s, peak memory {getrusage(RUSAGE_SELF).ru_maxrss / 1024:.0f} MB, predictions included")


def _caption(chance: Random) -> str:
    return " ".join(chance.choices(WORDS, k=10))


def _run(chance: Random, fusion: str, seed: int, references: list[list[str]]) -> Run:
    """A run whose captions are partly a reference's words."""
    rows = [
        {
            "id": f"{number}.jpg",
            "caption": " ".join([*chance.choice(own).split()[:6], *chance.choices(WORDS, k=4)]),
            "references": own,
            **{name: chance.expovariate(1.0) for name in SCORES},
            "BLEU-4": 0.0,
        }
        for number, own in enumerate(references)
    ]
    config = {"seed": seed, "fusion._target_": f"src.fusion.{fusion}.Mechanism"}
    return Run(Path(fusion), config, {"split": "test", "scores": {}, "cost": {}}, {}, rows)


if __name__ == "__main__":
    main()
