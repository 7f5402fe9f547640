"""Score a file of predictions against a file of references, whoever made them.

python -m src.score predictions=captions.json references=dataset_flickr8k.json split=test metrics=[meteor]
python -m src.score predictions=results.json references=captions_val2014.json missing=score_predicted
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from src.config.command_line import verb
from src.errors import UserError
from src.metrics.captions import CaptionScorer
from src.metrics.extra import ExtraScores, check_names, extra_scores
from src.metrics.files import read_predictions, read_references
from src.metrics.ids import Matched, match
from src.metrics.tokens import note_on_tokens
from src.records.files import verify, write_json

FEW = 50  # below this many pictures an n-gram's document frequency, and with it CIDEr-D, says little
MISSING = {"empty": "scored as empty captions", "score_predicted": "left out, of the document frequencies too"}


@hydra.main(version_base="1.3", config_path=str(Path(__file__).resolve().parents[1] / "conf"), config_name="score")
@verb
def main(cfg: DictConfig) -> None:
    """Print the scores and write them as metrics.json."""
    if OmegaConf.is_missing(cfg, "predictions"):
        raise UserError("predictions=<file> is missing; see the first line of conf/score.yaml.")
    names = check_names(cfg.metrics, cfg.tokens)
    path = Path(str(cfg.predictions))
    output = output_path(cfg.output, path)
    verify(path.parent, path.name)  # where they are a run's
    pairs = _read(path, cfg)
    pairs, unpredicted = _settled(pairs, cfg.missing)
    predictions, references = pairs.predictions, pairs.references
    files = find_images(Path(str(cfg.images)), references) if cfg.images is not None else None
    scores = CaptionScorer(references, cfg.tokens).score(predictions).corpus
    clip = OmegaConf.to_container(cfg.clip)
    extra = extra_scores(names, predictions, references, files and (lambda id, how: _pixels(files[id], how)), clip)
    scores = {**scores, **extra.corpus}
    notes = note_on_tokens(cfg.tokens, predictions.values(), itertools.chain.from_iterable(references.values()))
    remarks = {key: value for key, value in (("missing", extra.reasons), ("notes", {**notes, **extra.notes})) if value}
    content = {"split": cfg.split and str(cfg.split), "pictures": len(references), "ids": pairs.kind, **unpredicted}
    content["tokens"] = cfg.tokens
    write_json(output, {**content, "scores": scores, "cost": {}, **remarks})
    print(table(scores, extra))
    print(f"ids: {pairs.kind or 'as they are, since the predictions bring their references'}")
    if cfg.tokens != "words":
        print(f"tokens: {cfg.tokens}, so that these scores compare with others by {cfg.tokens} only")
    for note in notes.values():
        print(f"note: {note}.")
    for count in unpredicted.values():
        print(f"note: {count['count']} of {count['of']} pictures have no prediction ({MISSING[cfg.missing]}).")
    if len(references) < FEW:
        print(f"note: CIDEr-D of only {len(references)} pictures cannot be compared with that of a whole test split.")
    print(f"written: {output}")


def _read(path: Path, cfg: DictConfig) -> Matched:
    """Predictions and their references, by the same ids."""
    said = read_predictions(path)
    if cfg.references is not None:
        references = Path(str(cfg.references))
        pictures = read_references(references, cfg.split and str(cfg.split), _split_by_name)
        return match(said.captions, pictures, references, cfg.ids, said.of_run)
    if said.references is None:
        raise UserError("references=<file> is missing, and the predictions bring none; see conf/score.yaml.")
    for option in ("split", "ids"):
        if cfg[option] is not None:
            raise UserError(f"{option}={cfg[option]} is about references=<file>, and there is none.")
    return Matched(None, said.captions, said.references)


def _settled(pairs: Matched, missing: str) -> tuple[Matched, dict[str, dict]]:
    """The same with a prediction for each picture, and how many had none, for metrics.json: {} where all had one."""
    without = [id for id in pairs.references if id not in pairs.predictions]
    if not without:
        return pairs, {}
    count = {"count": len(without), "of": len(pairs.references), "missing": missing}
    if missing == "refuse":
        raise UserError(
            f"{count['count']} of {count['of']} pictures have no prediction, for example {without[0]}; "
            "missing=score_predicted leaves them out and missing=empty scores an empty caption, and says so."
        )
    if missing == "empty":
        pairs = replace(pairs, predictions=pairs.predictions | dict.fromkeys(without, ""))
    else:
        left = {id: captions for id, captions in pairs.references.items() if id in pairs.predictions}
        pairs = replace(pairs, references=left)
    return pairs, {"unpredicted": count}


def _split_by_name(name: str) -> str:
    from src.data.base import split_by_name

    return split_by_name(name)


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
