"""Score a file of predictions against a file of references, whoever made them.

python -m src.score predictions=captions.json references=dataset_flickr8k.json split=test metrics=[meteor]
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from src.config.command_line import verb
from src.errors import UserError
from src.metrics.captions import CaptionScorer
from src.metrics.extra import ExtraScores, check_names, extra_scores
from src.metrics.files import read_predictions, read_references
from src.records.files import verify, write_json

FEW = 50  # below this many pictures an n-gram's document frequency, and with it CIDEr-D, says little


@hydra.main(version_base="1.3", config_path=str(Path(__file__).resolve().parents[1] / "conf"), config_name="score")
@verb
def main(cfg: DictConfig) -> None:
    """Print the scores and write them as metrics.json."""
    for key in ("predictions", "references"):
        if OmegaConf.is_missing(cfg, key):
            raise UserError(f"{key}=<file> is missing; see the first line of conf/score.yaml.")
    names = check_names(cfg.metrics)
    split = None if cfg.split is None else str(cfg.split)
    output = output_path(cfg.output, Path(str(cfg.predictions)))
    verify(Path(str(cfg.predictions)).parent, Path(str(cfg.predictions)).name)  # where they are a run's
    predictions = read_predictions(str(cfg.predictions))
    references = read_references(str(cfg.references), predictions, split)
    files = find_images(Path(str(cfg.images)), references) if cfg.images is not None else None
    scores = CaptionScorer(references).score(predictions).corpus
    clip = OmegaConf.to_container(cfg.clip)
    extra = extra_scores(names, predictions, references, files and (lambda id, how: _pixels(files[id], how)), clip)
    scores = {**scores, **extra.corpus}
    remarks = {key: value for key, value in (("missing", extra.reasons), ("notes", extra.notes)) if value}
    write_json(output, {"split": split, "pictures": len(references), "scores": scores, "cost": {}, **remarks})
    print(table(scores, extra))
    if len(references) < FEW:
        print(f"note: CIDEr-D of only {len(references)} pictures cannot be compared with that of a whole test split.")
    print(f"written: {output}")


def table(scores: dict[str, float | None], extra: ExtraScores) -> str:
    """A line per score; behind a number what one has to know of it, and below why one is missing."""
    lines = []
    for name, value in scores.items():
        note = f"  ({extra.notes[name]})" if name in extra.notes else ""
        lines.append(f"{name:<12}{'-' if value is None else format(value, '.4f'):>10}{note}")
    lines += [f"note: {reason}" for reason in dict.fromkeys(extra.reasons.values())]
    return "\n".join(lines)


def find_images(folder: Path, ids: Collection[str]) -> dict[str, Path]:
    """The picture file of each id, anywhere in the folder: its name, with or without suffix, or its number in COCO.

    COCO_val2014_000000000042.jpg and 000000000042.jpg are the picture 42. Raises UserError where there is none or two.
    """
    from src.data.images import SUFFIXES

    if not folder.is_dir():
        raise UserError(f"images={folder} is no folder.")
    names: dict[str, set[Path]] = defaultdict(set)
    numbers: dict[str, set[Path]] = defaultdict(set)
    for path in folder.rglob("*"):
        if path.suffix.lower() in SUFFIXES:
            for name in (path.name, path.stem, path.relative_to(folder).as_posix()):
                names[name].add(path)
            if number := re.fullmatch(r"(?:COCO_\w+_)?0*(\d+)", path.stem):
                numbers[number[1]].add(path)
    found = {id: names.get(id) or numbers.get(id, set()) for id in ids}
    for wrong in (id for id, paths in found.items() if len(paths) != 1):
        raise UserError(f"images={folder} holds {len(found[wrong]) or 'no'} pictures for the id {wrong}; it needs one.")
    return {id: path for id, (path,) in found.items()}


def _pixels(path: Path, preprocessing):
    from src.data.images import load_picture

    return load_picture(path, preprocessing)


def output_path(output: str | None, predictions: Path) -> Path:
    """Where the scores go: a .json path as it is, a folder's metrics.json, or beside the predictions by default."""
    if output is None:
        return predictions.with_name(f"{predictions.stem}.metrics.json")
    path = Path(str(output))
    return path if path.suffix == ".json" else path / "metrics.json"


if __name__ == "__main__":
    main()
