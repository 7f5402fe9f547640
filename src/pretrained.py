"""Captioners out of a folder, of src.train or src.export: for other people's code in one call, and for the commands.

captioner = load("exported/srau")
caption_pictures(captioner, ["a.jpg", "b.jpg"])  # {"a.jpg": "a dog runs over the grass", ...}
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig

from src.build import Parts, build_captioner, build_data, build_language, build_vision, place
from src.captioner import Captioner
from src.config.added_keys import run_config
from src.config.make import check_saved, make
from src.contracts import Batch
from src.data.images import load_picture
from src.errors import UserError
from src.language.base import LanguageModel
from src.objectives.answer import known_answers
from src.records.folder import Saved
from src.text.tokenizers import load_tokenizer


def load(folder: str | Path) -> Captioner:
    """The captioner in a folder of src.train or src.export, ready to caption; nothing in it is executed.

    Raises UserError when a file differs from the manifest, a frozen part cannot be had, or ``folder`` is neither.
    """
    return restore_captioner(Path(folder)).eval()


def restore_captioner(folder: Path, decode: DictConfig | None = None) -> Captioner:
    """The captioner of a run with its best weights, or of an export, without its data (which need not be here).

    ``decode`` replaces its own way of decoding. Raises UserError as ``load`` does.
    """
    saved = Saved.at(folder)
    checkpoint = saved.checkpoint  # first: every file of an export is compared with its manifest
    cfg = run_config(folder)
    check_saved(cfg, folder)
    if decode is not None:
        cfg.decode = decode
    tokenizer = load_tokenizer(saved.tokenizer())
    saw = "vision" in saved.frozen or bool(saved.part("vision"))
    parts = {"vision": build_vision(cfg) if saw else None, "language": build_language(cfg, tokenizer)}
    for part, tensors in saved.included.items():
        _fill(parts[part], tensors, f"{folder}: the frozen {part}")  # before the fusion looks at it
    known = known_answers(saved.part("heads"))
    task = "vqa" if known else "caption"
    captioner = build_captioner(cfg, **parts, tokenizer=tokenizer, task=task, answers=lambda most: known[:most])
    take_over(captioner, checkpoint)
    place(captioner, cfg)
    return captioner


def restore_on(folder: Path, options: DictConfig, split: str, decode: DictConfig | None = None) -> Parts:
    """The same, with one data set of which ``split`` is to be read; no features yet.

    ``options``: as in conf/data, of its own data or of others. Raises UserError where they do not go together.
    """
    source = make(options.source)
    if split not in source.splits():
        raise UserError(f"split={split} does not exist; this data has {', '.join(source.splits())}.")
    captioner = restore_captioner(folder, decode)
    if captioner.fusion.sees and not source.has_images:
        raise UserError(f"{folder} reads pictures, and data={source.name} has none.")
    return Parts(captioner, build_data(options, run_config(folder).seed, source, captioner))


def first_language(folder: Path, captioner: Captioner) -> tuple[LanguageModel | None, str]:
    """The language model that the training of ``captioner``, restored from ``folder``, began from, and what it was.

    None where it began with random weights; a frozen one is the captioner's own. Raises UserError where the run that it
    was taken from is gone.
    """
    cfg = run_config(folder)
    changed = captioner.trains("language") or any(name.startswith("language.") for name in captioner.adapters)
    first = build_language(cfg, captioner.tokenizer) if changed else captioner.language
    if cfg.language.weights:
        return first, f"the language model of {cfg.language.weights}"
    if first.pretrained:
        return first, f"the checkpoint {cfg.language.model.name}"
    return None, "a random start"


def take_over(captioner: Captioner, checkpoint: Mapping) -> None:
    """Trained tensors into ``captioner``, after checking that its frozen parts are those that they grew up with."""
    captioner.check_origin(checkpoint)
    captioner.load_state_dict(checkpoint["state_dict"])


def _fill(module: torch.nn.Module, tensors: Mapping[str, torch.Tensor], what: str) -> None:
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"{what} does not fit its configuration ({str(error).splitlines()[-1].strip()}).") from error


def caption_pictures(captioner: Captioner, files: Sequence[str | Path], batch_size: int = 32) -> dict[str, str]:
    """Captions by path. Raises UserError naming the first picture that can't be read."""
    return captioner.caption(picture_batches(captioner, files, batch_size))


def picture_batches(
    captioner: Captioner,
    files: Sequence[str | Path],
    batch_size: int,
    unreadable: Callable[[UserError], None] | None = None,
) -> Iterator[Batch]:
    """Batches of one picture per context, named by path. ``unreadable`` is told of skipped files; None: they raise."""
    if captioner.vision is None:
        raise UserError("This captioner was trained without pictures (fusion=blind); it cannot caption any.")
    for first in range(0, len(files), batch_size):
        pixels = {}
        for file in files[first : first + batch_size]:
            try:
                pixels[str(file)] = load_picture(file, captioner.vision.preprocessing)
            except UserError as error:
                if unreadable is None:
                    raise
                unreadable(error)
        if pixels:
            yield Batch(list(pixels), captioner.start(len(pixels), "cpu"), torch.stack(list(pixels.values()))[:, None])
