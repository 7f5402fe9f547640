"""Measurements of several rounds -> medians with quartiles, and ratios within each round."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from src.benchmarking.jobs import FLOOR, Failure, Job

Results = Mapping[Job, Sequence[dict]]  # what every job found, round by round
MEASURED = (
    "samples_per_second",
    "tokens_per_second",
    "matrix_flops_per_second",
    "peak_memory_mb",
    "own_memory_mb",
)
SHARED = ("flops_per_step", "parameters", "trainable", "tokens_per_step", "tokens_sha256", "note")  # of all rounds


def spread(values: Sequence[float | None]) -> dict | None:
    """Median, quartiles and the values themselves; None where there are none."""
    values = [value for value in values if value is not None]
    if not values:
        return None
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": statistics.median(values), "low": low, "high": high, "values": values}


def summarise(jobs: Sequence[Job], results: Results, failures: Mapping[Job, Failure]) -> dict:
    """Everything that was measured, as plain data."""
    matrix, pictures = results[Job("matrix")], results[Job("pictures")]
    return {
        "machine": {
            "matrix_flops_per_second": spread([turn["flops_per_second"] for turn in matrix]),
            **_spreads(pictures),
        },
        "features": [
            {"size": job.size, **_spreads(results[job])} for job in jobs if job.kind == "features" and results[job]
        ],
        "training": [_training(job, results) for job in jobs if job.kind == "train" and results[job]],
        "decoding": [_decoding(job, results[job]) for job in jobs if job.kind == "decode" and results[job]],
        "failures": {str(job): failure.reason for job, failure in failures.items() if not failure.unsupported},
        "unsupported": {str(job): failure.reason for job, failure in failures.items() if failure.unsupported},
    }


def _spreads(turns: Sequence[dict]) -> dict:
    return {name: spread([turn[name] for turn in turns]) for name in (turns[0] if turns else ())}


def _names(job: Job) -> dict:
    kind = "peer" if job.peer else "floor" if job.model == FLOOR else "fusion"
    return {"size": job.size, "model": job.model, "kind": kind}


def _training(job: Job, results: Results) -> dict:
    """One line. Ratios are those of one round each, in which all was measured shortly after each other, and stand on
    the floor with the same kind of rows, if that was measured."""
    turns, first = results[job], results[job][0]
    floor = results.get(Job("train", job.size, FLOOR, job.regime, pack=job.pack), ())

    def ratio(of: Callable[[dict, dict], float], others: Sequence[dict]) -> dict | None:
        return spread([of(turn, other) for turn, other in zip(turns, others, strict=False)])

    return {
        **_names(job),
        "regime": job.regime,
        "pack": job.pack,
        **{name: spread([turn[name] for turn in turns]) for name in MEASURED},
        "seconds": {part: spread([turn["seconds"][part] for turn in turns]) for part in first["seconds"]},
        **{name: first[name] for name in SHARED},
        "utilisation": spread(
            [first["flops_per_step"] / turn["seconds"]["step"] / turn["matrix_flops_per_second"] for turn in turns]
        ),
        "time_over_floor": ratio(lambda turn, other: turn["seconds"]["step"] / other["seconds"]["step"], floor),
        "flops_over_floor": first["flops_per_step"] / floor[0]["flops_per_step"] if floor else None,
    }


def _decoding(job: Job, turns: Sequence[dict]) -> dict:
    def rates(number: int, name: str) -> list[float]:
        return [turn["rates"][number][name] for turn in turns]

    return {
        **_names(job),
        "first_token_ms": spread([turn["first_token_ms"] for turn in turns]),
        "rates": [
            {
                "method": rate["method"],
                "batch": rate["batch"],
                "tokens": rate["tokens"],
                "equal": min(rates(number, "equal")),
                "cached": spread(rates(number, "cached")),
                "uncached": spread(rates(number, "uncached")),
            }
            for number, rate in enumerate(turns[0]["rates"])
        ],
        "note": turns[0]["note"],
    }
