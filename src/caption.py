"""Caption your own pictures with a trained run.

python -m src.caption run=runs/... images=photos/
"""

from __future__ import annotations

import time
from pathlib import Path

import hydra
from omegaconf import DictConfig

from src import records
from src.cli import verb
from src.errors import UserError

SHEET_LIMIT = 100  # pictures on the sheet; captions.jsonl has all


@hydra.main(version_base="1.3", config_path=str(Path(__file__).resolve().parents[1] / "conf"), config_name="caption")
@verb
def main(cfg: DictConfig) -> None:
    """Pictures -> captions.jsonl and a sheet. A picture that can't be read is named and skipped."""
    records.checkpoint_path(cfg.run)
    from src.data.images import find_pictures, load_picture

    files = find_pictures(cfg.images)
    folder = Path(cfg.output or f"captions-{time.strftime('%Y-%m-%d_%H-%M-%S')}")

    from PIL import Image
    from tqdm import tqdm

    from src.build import restore_captioner
    from src.contracts import Batch
    from src.sheet import write_sheet

    captioner = restore_captioner(Path(cfg.run), cfg.get("decode"))
    if captioner.vision is None:
        raise UserError(f"{cfg.run} was trained without pictures (fusion=blind); it cannot caption any.")

    import torch

    rows = []
    for first in tqdm(range(0, len(files), cfg.batch_size), desc="captions", unit="batch"):
        readable = []
        for file in files[first : first + cfg.batch_size]:
            try:
                readable.append((file, load_picture(file, captioner.vision.preprocessing)))
            except UserError as error:
                print(f"skipped: {error}")
        if not readable:
            continue
        pixels_IM3hw = torch.stack([pixels for _, pixels in readable])[:, None]
        batch = Batch([str(file) for file, _ in readable], captioner.start(len(readable), "cpu"), pixels_IM3hw)
        captions = captioner.caption([batch])
        rows += [{"image": str(file), "caption": captions[str(file)]} for file, _ in readable]
    if not rows:
        raise UserError(f"None of the {len(files)} pictures could be read.")
    records.write_jsonl(folder / "captions.jsonl", rows)
    shown = rows[:SHEET_LIMIT]
    write_sheet(folder / "captions.png", [Image.open(row["image"]) for row in shown], [row["caption"] for row in shown])
    for row in rows[:20]:
        print(f"{row['image']}: {row['caption']}")
    print(f"written: {folder}/captions.jsonl, captions.png")


if __name__ == "__main__":
    main()
