"""What a logger mirrors of a finished run: scores and cost, captions with their pictures, figures of diagnostics."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from src.config.classes import flatten

if TYPE_CHECKING:
    from PIL import Image

    from src.build import Parts

LOOKED_AT = 4  # pictures whose captions are read again for the diagnostics; each costs 65 forward passes of one caption


def results(parts: Parts, run: Path) -> dict[str, float | str]:
    """test/<score>, test/<data set>/<score> of further data sets, and cost/<...>, of the metrics.json in ``run``.

    Always "test/", whatever ``test_split`` says: "val/loss" is the name of a curve.
    """
    found: dict[str, float | str] = {}
    for name, _, folder in folders_of_results(parts, run):
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        prefix = f"test/{name}/" if name else "test/"
        found |= {f"{prefix}{score}": value for score, value in metrics["scores"].items() if value is not None}
        if not name:
            cost = flatten(metrics["cost"])
            found |= {f"cost/{key.replace('.', '/')}": value for key, value in cost if value is not None}
    return found


def folders_of_results(parts: Parts, run: Path) -> list[tuple[str, Parts, Path]]:
    """Each data set's name, parts and folder of results. The first one is the run's own and goes by no name."""
    (_, main), *more = parts.data_sets().items()
    return [("", main, run), *((name, own, run / name) for name, own in more)]


def sample_rows(folder: Path) -> list[dict]:
    path = folder / "predictions.jsonl"
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def config_choices(run: Path) -> dict[str, str]:
    """Config group -> the word chosen for it."""
    return json.loads((run / "environment.json").read_text(encoding="utf-8"))["choices"]


def sample_table(rows: Sequence[dict], images: dict[str, Image.Image]):
    """A wandb.Table: picture, id, caption, references, and every score that the pictures have."""
    import wandb

    names = list(dict.fromkeys(name for row in rows for name in row if name not in ("id", "caption")))
    table = wandb.Table(columns=["picture", "id", "caption", *names])
    for row in rows:
        cells = [_cell(row.get(name)) for name in names]
        table.add_data(wandb.Image(images[row["id"]]), row["id"], row["caption"], *cells)
    return table


def _cell(value):
    """A column of a table holds one simple type."""
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return "\n".join(value)
    return value if value is None or isinstance(value, str | bool | int | float) else json.dumps(value)


def diagnostics(parts: Parts, cfg: DictConfig, run: Path) -> dict[str, list[Path]]:
    """Figures by kind, in <run>/explain: where words come from, gates, prefixes; none for whoever sees no pictures."""
    own = next((p for p in parts.data_sets().values() if p.source.has_images and p.source.task == "caption"), None)
    captioner = parts.captioner
    if own is None or captioner.vision is None or not cfg.test_split:
        return {}
    from src.diagnostics.drawing import draw
    from src.diagnostics.reading import read

    shown, size = list(islice(own.data.examples(cfg.test_split), LOOKED_AT)), captioner.vision.spec.image_size
    named = {e.id: own.source.pixels(e, size) for e in shown}
    readings = {e.id: read(captioner, named[e.id], e.captions[0]) for e in shown}
    kinds: dict[str, list[Path]] = {}
    for file in draw(captioner, run, named, readings, run / "explain"):
        kinds.setdefault(file.stem.partition("-")[0], []).append(file)
    return kinds
