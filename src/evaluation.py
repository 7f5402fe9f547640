"""Score a captioner on a split: captions, their scores, and how long they took."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from src.build import Parts
from src.contracts import Example
from src.metrics.captions import CaptionScorer
from src.metrics.truth import truth_scores
from src.records import write_json, write_jsonl
from src.sheet import write_sheet
from src.text.scene_language import Scene


@dataclass
class Evaluation:
    """``predictions``: caption by picture id; ``rows``: one dict per picture, for predictions.jsonl."""

    split: str
    scores: dict[str, float | None]
    rows: list[dict]
    captions_per_second: float


def evaluate(parts: Parts, split: str) -> Evaluation:
    """Caption every picture of ``split`` once and score the captions; on scenes also whether they are true."""
    data, captioner = parts.data, parts.captioner
    loader = data.pictures(split)
    started = time.perf_counter()
    predictions = captioner.caption(tqdm(loader, desc=f"captions of {split}", unit="batch", leave=False))
    seconds = time.perf_counter() - started
    references = data.references(split)
    scores = CaptionScorer(references).score(predictions)
    corpus = {"loss": split_loss(parts, split), **scores.corpus}
    per_image = scores.per_image
    scenes = {e.id: Scene.from_dict(e.extra["scene"]) for e in data.examples(split) if "scene" in e.extra}
    if scenes:
        truth = truth_scores(predictions, scenes)
        corpus = {**truth.corpus, **corpus}
        per_image = {id: {**truth.per_image[id], **scores} for id, scores in per_image.items()}
    rows = [
        {"id": id, "caption": caption, "references": list(references[id]), **per_image[id]}
        for id, caption in predictions.items()
    ]
    return Evaluation(split, corpus, rows, len(predictions) / seconds)


@torch.no_grad()
def split_loss(parts: Parts, split: str) -> float:
    """Nats per token of the split's first references, one per picture."""
    captioner = parts.captioner
    captioner.eval()
    total, count = 0.0, 0
    for batch in parts.data.pictures(split):
        batch = captioner.transfer_batch_to_device(batch, captioner.device, 0)
        with captioner.autocast():
            loss, targets = captioner.loss(batch)
        total, count = total + loss.item() * int(targets), count + int(targets)
    return total / count


def report(parts: Parts, result: Evaluation, folder: Path, cost: dict, samples: int) -> None:
    """Write metrics.json, predictions.jsonl and samples.png into ``folder``; print the table and some captions."""
    metrics = {
        "split": result.split,
        "pictures": len(result.rows),
        "references_sha256": parts.data.fingerprint(result.split),
        "scores": result.scores,
        "cost": {**cost, "captions_per_second": result.captions_per_second},
    }
    write_json(folder / "metrics.json", metrics)
    write_jsonl(folder / "predictions.jsonl", result.rows)
    chosen = result.rows[:samples]
    by_id = {example.id: example for example in itertools.islice(parts.data.examples(result.split), samples)}
    pictures = [picture(parts, by_id[row["id"]]) for row in chosen]
    write_sheet(folder / "samples.png", pictures, [row["caption"] for row in chosen])
    print(table(f"{result.split}, {len(result.rows)} pictures", result.scores))
    for row in chosen[:8]:
        print(f"  {row['id']}: {row['caption']}")
    print(f"written: {folder}/metrics.json, predictions.jsonl, samples.png", flush=True)


def picture(parts: Parts, example: Example) -> Image.Image:
    """The picture of one example, as the encoder gets it."""
    size = parts.captioner.vision.spec.image_size if parts.captioner.vision else 224
    return Image.fromarray(parts.source.pixels(example, size).permute(1, 2, 0).numpy())


def table(title: str, scores: dict[str, float | None]) -> str:
    """Scores as an aligned text table."""
    width = max(map(len, scores))
    lines = [f"  {name:<{width}}  {'-' if value is None else format(value, '.4f')}" for name, value in scores.items()]
    return "\n".join([title, *lines])
