"""Look inside a trained run: where each word comes from, and what the mechanism's gates, prefixes and queries do.

python -m src.explain run=runs/...                 some test pictures of its data
python -m src.explain run=runs/... images=photos/
"""

from __future__ import annotations

import itertools
from pathlib import Path

import hydra
from omegaconf import DictConfig

from src.config.added_keys import run_config
from src.config.command_line import verb
from src.errors import UserError
from src.records.folder import Saved


@hydra.main(version_base="1.3", config_path=str(Path(__file__).resolve().parents[1] / "conf"), config_name="explain")
@verb
def main(cfg: DictConfig) -> None:
    """Pictures -> PNG files in the run folder; which ones there are depends on what the mechanism notes."""
    run = Path(cfg.run)
    Saved.at(run).weights()
    from src.pretrained import restore_captioner

    captioner = restore_captioner(run)
    if captioner.vision is None:
        raise UserError(f"{run} was trained without pictures (fusion=blind); there is nothing to look at.")
    named, said = pictures(cfg, captioner)

    from tqdm import tqdm

    from src.diagnostics.drawing import draw
    from src.diagnostics.reading import read

    bar = tqdm(named.items(), desc="reading", unit="picture")
    readings = {name: read(captioner, pixels, said.get(name)) for name, pixels in bar}
    folder = Path(cfg.output) if cfg.output else run / "explain"
    written = draw(captioner, run, named, readings, folder)
    print("\n".join(f"written: {path}" for path in written))


def pictures(cfg: DictConfig, captioner) -> tuple[dict, dict[str, str]]:
    """Pixels (3, size, size) by name: of ``images``, or of the first test pictures of the run's data.

    Of these also what is asked or said of them.
    """
    from src.data.images import find_pictures, load_picture

    if cfg.images is not None:
        files = find_pictures(cfg.images)[: cfg.samples]
        return {file.stem: load_picture(file, captioner.vision.preprocessing) for file in files}, {}
    from src.config.make import data_sets, make

    source = make(next(iter(data_sets(run_config(Path(cfg.run))).values())).source)
    if hasattr(source, "prepare"):
        source.prepare(captioner.vision.preprocessing)
    every = (picture for example in source.examples("test") for picture in example.pictures)
    shown, size = list(itertools.islice(every, cfg.samples)), captioner.vision.spec.image_size
    said = {picture.id: picture.question or next(iter(picture.captions), None) for picture in shown}
    return {picture.id: source.pixels(picture, size) for picture in shown}, said


if __name__ == "__main__":
    main()
