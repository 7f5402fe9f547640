"""Score a file of predictions against a file of references, whoever made them.

python -m src.score predictions=captions.json references=dataset_flickr8k.json split=test
"""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from src.cli import verb
from src.errors import UserError
from src.metrics.captions import CaptionScorer
from src.metrics.files import read_predictions, read_references
from src.records import write_json

FEW = 50  # below this many pictures an n-gram's document frequency, and with it CIDEr-D, says little


@hydra.main(version_base="1.3", config_path=str(Path(__file__).resolve().parents[1] / "conf"), config_name="score")
@verb
def main(cfg: DictConfig) -> None:
    """Print the scores and write them as metrics.json."""
    for key in ("predictions", "references"):
        if OmegaConf.is_missing(cfg, key):
            raise UserError(f"{key}=<file> is missing; see the first line of conf/score.yaml.")
    split = None if cfg.split is None else str(cfg.split)
    output = output_path(cfg.output, Path(str(cfg.predictions)))
    predictions = read_predictions(str(cfg.predictions))
    references = read_references(str(cfg.references), predictions, split)
    scores = CaptionScorer(references).score(predictions).corpus
    if cfg.meteor:
        scores = {**scores, "METEOR": corpus_meteor(predictions, references)}
    write_json(output, {"split": split, "pictures": len(references), "scores": scores, "cost": {}})
    for name, value in scores.items():
        print(f"{name:<12}{'-' if value is None else format(value, '.4f'):>10}")
    if len(references) < FEW:
        print(f"note: CIDEr-D of only {len(references)} pictures cannot be compared with that of a whole test split.")
    print(f"written: {output}")


def corpus_meteor(predictions: dict[str, str], references: dict[str, list[str]]) -> float | None:
    """METEOR of the corpus; None, with the reason printed, where it cannot be had."""
    from src.metrics.meteor import Unavailable, meteor

    try:
        return meteor([predictions[id] for id in references], list(references.values()))[-1]
    except Unavailable as error:
        print(f"note: {error}")
        return None


def output_path(output: str | None, predictions: Path) -> Path:
    """Where the scores go: a .json path as it is, a folder's metrics.json, or beside the predictions by default."""
    if output is None:
        return predictions.with_name(f"{predictions.stem}.metrics.json")
    path = Path(str(output))
    return path if path.suffix == ".json" else path / "metrics.json"


if __name__ == "__main__":
    main()
