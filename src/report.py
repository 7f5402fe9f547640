"""Show finished runs side by side: one HTML file that works offline, and the tables of it for papers and notes.

python -m src.report runs=runs/sweep
python -m src.report 'runs=[runs/a,runs/b]' gallery=200 output=talk
"""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig

from src.config.classes import texts
from src.config.command_line import verb
from src.records.files import write_text

LARGE = 20  # MB; a phone then takes seconds to open the file


@hydra.main(version_base="1.3", config_path=str(Path(__file__).resolve().parents[1] / "conf"), config_name="report")
@verb
def main(cfg: DictConfig) -> None:
    """Write index.html, table.md, table.tex and table.csv."""
    from src.comparison.arms import compare
    from src.comparison.runs import find_runs, group
    from src.comparison.tables import csv_text, latex, markdown

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
    from src.reporting.gallery import gallery
    from src.reporting.page import page

    shown, notes = gallery(arms, cfg.pictures, cfg.gallery)
    content = page(comparison, shown, notes)
    folder = Path(str(cfg.output))
    if (folder / "index.html").exists():
        print(f"replaced: the earlier report in {folder}")
    write_text(folder / "index.html", content)
    for name, table in {"table.md": markdown, "table.tex": latex, "table.csv": csv_text}.items():
        write_text(folder / name, table(comparison))
    for note in notes:
        print(f"note: {note}")
    size = len(content.encode()) / 1e6
    print(f"written: {folder}/index.html ({size:.1f} MB, {len(shown['ids'])} pictures), table.md, table.tex, table.csv")
    if size > LARGE:
        print(f"note: {size:.0f} MB are much for a phone; gallery=<number> shows fewer pictures.")


if __name__ == "__main__":
    main()
