"""Compare finished runs: scores with intervals, differences with tests over seeds and images, as tables.

python -m src.compare runs=runs/sweep
python -m src.compare 'runs=[runs/a,runs/b]' baseline=clipcap evaluation=compositional
python -m src.compare runs=runs/sweep 'contrasts=[[srau,cross_attention],[clipcap,cross_attention]]' margin=0.01
python -m src.compare runs=runs/data_efficiency along=data.train_fraction
"""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig

from src.config.classes import texts
from src.config.command_line import verb
from src.records.files import write_bytes, write_json, write_text


@hydra.main(version_base="1.3", config_path=str(Path(__file__).resolve().parents[1] / "conf"), config_name="compare")
@verb
def main(cfg: DictConfig) -> None:
    """Print the comparison and write comparison.json, table.md, table.tex, table.csv and scores.png."""
    from src.comparison.arms import compare
    from src.comparison.figure import draw
    from src.comparison.runs import find_runs, group
    from src.comparison.tables import csv_text, latex, markdown, plain, text

    arms = group(find_runs(texts(cfg.runs), None if cfg.evaluation is None else str(cfg.evaluation)))
    comparison = compare(
        arms,
        scores=None if cfg.scores is None else texts(cfg.scores),
        baseline=None if cfg.baseline is None else str(cfg.baseline),
        resamples=cfg.resamples,
        allow=texts(cfg.allow),
        contrasts=[texts(pair) for pair in cfg.contrasts],
        primary=None if cfg.primary is None else str(cfg.primary),
        margin=cfg.margin,
    )
    picture = draw(comparison, None if cfg.along is None else str(cfg.along))
    print(text(comparison))
    folder = Path(str(cfg.output))
    write_json(folder / "comparison.json", plain(comparison))
    for name, content in {"table.md": markdown, "table.tex": latex, "table.csv": csv_text}.items():
        write_text(folder / name, content(comparison))
    write_bytes(folder / "scores.png", picture)
    print(f"written: {folder}/comparison.json, table.md, table.tex, table.csv, scores.png")


if __name__ == "__main__":
    main()
