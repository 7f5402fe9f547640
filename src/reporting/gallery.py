"""The gallery's data: pictures, references, and what every arm said about them, ready for JSON.

Keys are short and lists run parallel, because a thousand pictures times seven arms travel inside the page:

    arms      labels, in the order of the comparison; each arm speaks through its first seed
    metrics   names of the per-image scores; of all arms
    ids       of the I pictures             refs      I lists of references
    captions  per arm I captions, null where the arm has none
    scores    per metric and arm I numbers, null where there is none
    marks     per arm I lists of runs (``marks.marks``); null unless the truth is known
    pictures  I data URLs; null without pictures
    figures   per arm {number of the picture: data URL} of what ``src.explain`` drew
    more      how many pictures the split has beyond these
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from src.comparison.runs import Arm, Run
from src.comparison.scores import FIELDS, is_number
from src.config.added_keys import run_config
from src.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from src.contracts import Example

SIDE = 256  # pixels of a picture's longer side, which is shown at 160 and, at a click, at 640
QUALITY = 60  # of WebP; a photograph then takes 8 to 12 kB, a drawn scene 1 to 3
FIGURE_WIDTH = 900  # pixels; as wide as the page shows them
FIGURES = ("attention", "occlusion")  # by src.explain; the first that a run has
DIGITS = 4  # of a per-image score


def gallery(arms: Sequence[Arm], pictures: bool = True, limit: int | None = None) -> tuple[dict, list[str]]:
    """The data above, and notes for the reader on what is missing. Pictures come in the order of the first arm's.

    ``pictures=False`` leaves out the pictures and all that shows them; ``limit``: how many, None for all.
    """
    from tqdm import tqdm

    runs = [arm.runs[0] for arm in arms]
    rows = [{row["id"]: row for row in run.rows} for run in runs]
    every = list(dict.fromkeys(id for of_arm in rows for id in of_arm))
    ids = every[:limit]
    known, notes = _examples(runs[0], set(ids))
    if not pictures:
        notes = ["The pictures were left out on purpose (pictures=false)."]
    metrics = list(dict.fromkeys(name for of_arm in rows for id in ids for name in _numbers(of_arm.get(id, {}))))
    urls = []
    if pictures and known:
        examples, source = known
        progress = tqdm(ids, desc="pictures", unit="picture", leave=False, delay=2)
        urls = [_thumbnail(source, examples.get(id), notes) for id in progress]
    data = {
        "arms": [arm.label for arm in arms],
        "metrics": metrics,
        "ids": ids,
        "refs": [_references(rows, id) for id in ids],
        "captions": [[of_arm.get(id, {}).get("caption") for id in ids] for of_arm in rows],
        "scores": [[[_rounded(of_arm.get(id, {}).get(name)) for id in ids] for of_arm in rows] for name in metrics],
        "marks": _marks(rows, ids, known[0] if known else {}),
        "pictures": urls if any(urls) else None,
        "figures": [dict(_figures(run, ids)) for run in runs] if pictures else [{} for _ in runs],
        "more": len(every) - len(ids),
    }
    return data, notes


def _numbers(row: dict) -> list[str]:
    return [name for name, value in row.items() if is_number(value) and name not in FIELDS]


def _rounded(value) -> float | None:
    return round(value, DIGITS) if isinstance(value, (int, float)) and value == value else None


def _references(rows: list[dict], id: str) -> list[str]:
    """Of the first arm that has the picture; of a question about a picture, its answer."""
    row = next(of_arm[id] for of_arm in rows if id in of_arm)
    return row.get("references") or [row[key] for key in ("answer",) if key in row]


def _examples(run: Run, ids: set[str]) -> tuple[tuple[dict, object] | None, list[str]]:
    """Examples by id and the source that has them; None, with the reason, where the data are not here."""
    from omegaconf import OmegaConf

    from src.config.make import check_saved, data_sets, make

    reason, split = "the data of the run do not know them.", str(run.metrics.get("split"))
    sources = {name: options.source for name, options in data_sets(run_config(run.folder)).items()}
    if scored := run.metrics.get("data"):  # by src.evaluate: other data, or the same in another place
        sources = {"": OmegaConf.create(scored["source"])}
        check_saved(sources[""], run.folder)
    for name, node in sources.items():
        try:
            source = make(node)
            pictures = (picture for example in source.examples(split) for picture in example.pictures)
            examples = {one.id: one for one in pictures if one.id in ids}
        except UserError as error:
            reason = f"{name}: {error}".removeprefix(": ")
            continue
        if examples:
            return (examples, source), []
    return None, [f"Without pictures, and without verdicts on them: {reason}"]


def _marks(rows: list[dict], ids: list[str], examples: dict[str, Example]) -> list | None:
    from src.reporting.marks import marks
    from src.scenes.world import Scene

    scenes = {id: Scene.from_dict(one.extra["scene"]) for id, one in examples.items() if "scene" in one.extra}
    if not scenes:
        return None
    return [
        [marks(of_arm[id]["caption"], scenes[id]) if id in of_arm and id in scenes else None for id in ids]
        for of_arm in rows
    ]


# --------------------------------------------------------------------------------------------------------------------
# pictures
# --------------------------------------------------------------------------------------------------------------------
def _thumbnail(source, example: Example | None, notes: list[str]) -> str | None:
    """The picture, small, in its own proportions; None, with a note for the first one, where it cannot be read."""
    if example is None or not source.has_images:
        return None
    try:
        return _url(_photograph(example.image) if example.image else _drawn(source, example))
    except UserError as error:
        if not any(note.startswith("Some pictures") for note in notes):
            notes.append(f"Some pictures cannot be shown: {error}")
        return None


def _photograph(path: str) -> Image.Image:
    from PIL import Image

    from src.data.images import load_picture

    pixels = load_picture(path, {"size": SIDE, "resize": "squash", "interpolation": "bicubic"})
    with Image.open(path) as image:
        turned = image.getexif().get(0x0112, 1) > 4  # EXIF orientations 5 to 8 swap the sides
        width, height = image.size[::-1] if turned else image.size
    scale = SIDE / max(width, height)
    shape = max(1, round(width * scale)), max(1, round(height * scale))
    return Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize(shape, Image.Resampling.BICUBIC)


def _drawn(source, example: Example) -> Image.Image:
    from PIL import Image

    return Image.fromarray(source.pixels(example, SIDE).permute(1, 2, 0).numpy())


def _figures(run: Run, ids: list[str]) -> Iterator[tuple[int, str]]:
    from PIL import Image

    folder = run.folder / "explain"
    if not folder.is_dir():
        return
    for number, id in enumerate(ids):
        paths = [folder / f"{kind}-{id}.png" for kind in FIGURES]
        path: Path | None = next((path for path in paths if path.is_file()), None)
        if path is not None:
            with Image.open(path) as figure:
                figure.thumbnail((FIGURE_WIDTH, 4 * FIGURE_WIDTH))
                yield number, _url(figure.convert("RGB"))


def _url(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
