"""What an evaluation leaves in a folder, and on the screen."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from src.contracts import Example
from src.loading.module import CaptionData
from src.records.files import seal, write_json, write_jsonl
from src.records.sheet import write_sheet
from src.tasks.base import Evaluation

# What is to be read before all else
FIRST = ("accuracy", "gap/accuracy", "ranked/accuracy", "loss", "gap/loss", "CIDEr-D", "truth", "truth_f1", "coverage")
LAST = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4")  # people describing a photograph hardly do better than models by it
SIDE = 224  # pixels of a picture that no encoder reads


def report(
    data: CaptionData, result: Evaluation, folder: Path, cost: dict, samples: int, about: dict | None = None
) -> None:
    """Write metrics.json, predictions.jsonl and samples.png into ``folder``; print the table and some captions.

    ``about``: "name" and options of the "source" that was scored; None where the run's configuration has them.
    """
    scores = in_order(result.scores)
    metrics = {
        **({"data": about} if about else {}),
        "split": result.split,
        "pictures": len(result.rows),
        "references_sha256": data.fingerprint(result.split),
        "decoding": result.decoding,
        "tokens": result.tokens,
        "scores": scores,
        "cost": {**cost, "captions_per_second": result.captions_per_second},
        **{kind: remarks for kind, remarks in result.remarks.items() if remarks},
    }
    write_json(folder / "metrics.json", metrics)
    if result.rows:
        write_jsonl(folder / "predictions.jsonl", result.rows)
    seal(folder, "metrics.json", "predictions.jsonl")
    where = f"{about['name']}/{result.split}" if about else result.split
    print(table(f"{where}, {len(result.rows)} pictures", scores))
    for remarks in result.remarks.values():
        for score, remark in remarks.items():
            print(f"  {score}: {remark}")
    if not result.rows:
        print(f"written: {folder}/metrics.json", flush=True)
        return
    chosen = result.rows[:samples]
    shown = pictures(data, result.split, samples)
    write_sheet(folder / "samples.png", [shown[row["id"]] for row in chosen], [row["caption"] for row in chosen])
    for row in chosen[:8]:
        print(f"  {row['id']}: {row['caption']}")
    print(f"written: {folder}/metrics.json, predictions.jsonl, samples.png", flush=True)


def pictures(data: CaptionData, split: str, count: int) -> dict[str, Image.Image]:
    """Pictures of the first ``count`` examples of a split, by id, as the encoder gets them."""
    first = itertools.islice(data.examples(split), count)
    return {one.id: _picture(data, one) for example in first for one in example.pictures}


def _picture(data: CaptionData, example: Example) -> Image.Image:
    return Image.fromarray(data.source.pixels(example, data.image_size or SIDE).permute(1, 2, 0).numpy())


def in_order(scores: Mapping[str, float | None]) -> dict[str, float | None]:
    """The same with those of ``FIRST`` in front and those of ``LAST`` at the end."""
    front, end = ([name for name in names if name in scores] for names in (FIRST, LAST))
    between = [name for name in scores if name not in (*FIRST, *LAST)]
    return {name: scores[name] for name in (*front, *between, *end)}


def table(title: str, scores: dict[str, float | None]) -> str:
    """Scores as an aligned text table."""
    width = max(map(len, scores))
    lines = [f"  {name:<{width}}  {'-' if value is None else format(value, '.4f')}" for name, value in scores.items()]
    return "\n".join([title, *lines])
