"""Whether a checkpoint belongs to the model that is to take it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from torch import Tensor

from src.contracts import Tokenizer, UserError


def check_tensors(saved: Mapping[str, Tensor], here: Mapping[str, Tensor]) -> None:
    """Raises UserError unless names and shapes are the same."""
    missing, extra = sorted(set(here) - set(saved)), sorted(set(saved) - set(here))
    if missing or extra:
        raise UserError(
            f"The checkpoint does not fit this model: {len(missing)} tensors missing, {len(extra)} unknown "
            f"(for example {(missing + extra)[0]}); use the config that it was trained with."
        )
    for name, tensor in saved.items():
        if tensor.shape != here[name].shape:
            raise UserError(
                f"The checkpoint does not fit this model: {name} has the shape {tuple(tensor.shape)} there and "
                f"{tuple(here[name].shape)} here; use the config and the tokenizer that it was trained with."
            )


def check_frozen(saved: Mapping[str, str], here: Mapping[str, str]) -> None:
    """Raises UserError when a frozen part, known by its hash, is not the one that the checkpoint was trained with."""
    for part in sorted(set(saved) | set(here)):
        if saved.get(part) != here.get(part):
            raise UserError(
                f"The frozen {part} differs from the one that this checkpoint was trained with; "
                f"give the same {part} weights as in the run's config.yaml."
            )


def meaning_hash(tokenizer: Tokenizer) -> str:
    """sha256 of what every id means."""
    words = [tokenizer.decode([id]) for id in range(len(tokenizer))]
    specials = [tokenizer.bos, tokenizer.eos, tokenizer.pad]
    return hashlib.sha256(json.dumps([specials, words]).encode()).hexdigest()


def check_tokenizer(saved: str, here: str) -> None:
    """Raises UserError when the tokenizer, known by its hash, is another."""
    if saved != here:
        raise UserError(
            "The tokenizer differs from the one that this checkpoint was trained with, so its words would mean other "
            "ones; use the tokenizer/ of its run folder, and to go on with a run the same training captions."
        )
