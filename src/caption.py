"""Caption your own pictures with a trained run, or with an exported one.

python -m src.caption run=runs/... images=photos/
"""

from __future__ import annotations

import math
import time
from pathlib import Path

import hydra
from omegaconf import DictConfig

from src.config.command_line import verb
from src.errors import UserError
from src.records.files import seal, write_jsonl
from src.records.folder import Saved

SHEET_LIMIT = 100  # pictures on the sheet; captions.jsonl has all


@hydra.main(version_base="1.3", config_path=str(Path(__file__).resolve().parents[1] / "conf"), config_name="caption")
@verb
def main(cfg: DictConfig) -> None:
    """Pictures -> captions.jsonl and a sheet. A picture that can't be read is named and skipped."""
    Saved.at(cfg.run).weights()
    from src.data.images import as_image, find_pictures, load_picture

    files = find_pictures(cfg.images)
    folder = Path(cfg.output or f"captions-{time.strftime('%Y-%m-%d_%H-%M-%S')}")

    from tqdm import tqdm

    from src.pretrained import picture_batches, restore_captioner
    from src.records.sheet import write_sheet

    captioner = restore_captioner(Path(cfg.run), cfg.get("decode"))
    batches = picture_batches(captioner, files, cfg.batch_size, lambda error: print(f"skipped: {error}"))
    total = math.ceil(len(files) / cfg.batch_size)
    captions = captioner.caption(tqdm(batches, desc="captions", unit="batch", total=total))
    rows = [{"image": str(file), "caption": captions[str(file)]} for file in files if str(file) in captions]
    if not rows:
        raise UserError(f"None of the {len(files)} pictures could be read.")
    write_jsonl(folder / "captions.jsonl", rows)
    seal(folder, "captions.jsonl")
    shown = rows[:SHEET_LIMIT]
    seen = [as_image(load_picture(row["image"], captioner.vision.preprocessing)) for row in shown]  # by the captioner
    write_sheet(folder / "captions.png", seen, [row["caption"] for row in shown])
    for row in rows[:20]:
        print(f"{row['image']}: {row['caption']}")
    print(f"written: {folder}/captions.jsonl, captions.png")


if __name__ == "__main__":
    main()
