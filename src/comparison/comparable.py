"""Which runs may be held against one another: those that were asked the same questions."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from src.comparison.measures import tokens_of
from src.comparison.runs import Run
from src.errors import UserError

ALLOWED = ("split", "references", "tokens", "decoding", "data")


def check_comparable(runs: Sequence[Run], allow: Collection[str]) -> dict[str, str]:
    """What differs between runs although it should not, and is allowed: aspect -> how. Raises UserError otherwise."""
    unknown = [aspect for aspect in allow if aspect not in ALLOWED]
    if unknown:
        raise UserError(f"allow={unknown[0]} is unknown; choose from {', '.join(ALLOWED)}.")
    differing: dict[str, str] = {}
    for aspect in ALLOWED:
        for run in runs:
            other, how = _mismatch(aspect, run, runs)
            if not how:
                continue
            if aspect not in allow:
                raise UserError(
                    f"{other.folder} and {run.folder} differ in their {aspect} ({how}), so their scores cannot be "
                    f"compared; allow=[{aspect}] compares them all the same."
                )
            differing.setdefault(aspect, how)
    return differing


def _mismatch(aspect: str, run: Run, runs: Sequence[Run]) -> tuple[Run, str]:
    """The run that ``run`` is held against, and in which way they differ; "" where they do not."""
    other = runs[0]
    if aspect == "split":
        ours, theirs = (str(r.metrics.get("split")) for r in (run, other))
        return other, f"{theirs} against {ours}" if ours != theirs else ""
    if aspect == "references":
        ours, theirs = (str(r.metrics.get("references_sha256")) for r in (run, other))
        return other, f"sha256 {theirs[:12]} against {ours[:12]}" if ours != theirs else ""
    if aspect == "tokens":
        ours, theirs = tokens_of(run), tokens_of(other)
        return other, f"{theirs} against {ours}" if ours != theirs else ""
    if aspect == "decoding":
        # null says that nothing was decoded; a run without the key is older than that word.
        other = next((r for r in runs if r.metrics.get("decoding", {}) is not None), run)
        if run.metrics.get("decoding", {}) is None:
            return other, ""
        ours, theirs = (r.metrics.get("decoding") for r in (run, other))
        if ours is None or theirs is None:
            return other, "" if ours == theirs else f"{(run if ours is None else other).folder} does not name its own"
        keys = [key for key in {**theirs, **ours} if ours.get(key) != theirs.get(key)]
        return other, ", ".join(f"{key} {theirs.get(key)} against {ours.get(key)}" for key in keys)
    # Runs of one seed should have met the same batches; one that did not record them, or trained nothing, says nothing.
    other = next((r for r in runs if r.seed == run.seed and r.batches_sha256), run)
    same = not run.batches_sha256 or run.batches_sha256 == other.batches_sha256
    return other, "" if same else f"other training batches with seed {run.seed}"
