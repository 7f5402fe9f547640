"""A batch's pictures as a fusion reads them, whether they come as pixels or as cached features."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from src.contracts import Batch, UserError, Visual
from src.vision.base import Vision


def encoded(batch: Batch, vision: Vision | None, levels: int) -> Visual:
    """The pictures of ``batch``, with the last ``levels`` levels. Raises UserError where there are none."""
    if batch.visual is not None:
        return _float(batch.visual)
    if vision is None or batch.pixels_IM3hw is None:
        raise UserError("This fusion reads pictures and the data has none; use fusion=blind or data with pictures.")
    if batch.image_valid_IM is None:
        return vision(batch.pixels_IM3hw, levels=levels)
    return _encode_valid(vision, batch.pixels_IM3hw, batch.image_valid_IM, levels)


def _float(visual: Visual) -> Visual:
    """Cached features are stored in half precision; the model computes in its own."""
    dtype = torch.get_default_dtype()
    levels = visual.levels_IMKNC
    return replace(
        visual,
        tokens_IMNC=visual.tokens_IMNC.to(dtype),
        pooled_IMC=visual.pooled_IMC.to(dtype),
        levels_IMKNC=None if levels is None else levels.to(dtype),
    )


def _encode_valid(vision: Vision, pixels_IM3hw: Tensor, valid_IM: Tensor, levels: int) -> Visual:
    """Only real pictures are encoded: blank ones would cost time and move the statistics of batch norms."""
    kept_IM = valid_IM.clone()
    kept_IM[0, 0] |= ~valid_IM.any()  # a batch without pictures still has to say how wide they would be
    found: Visual = vision(pixels_IM3hw[kept_IM][:, None], levels=levels)  # (X, 1, ...)
    spread = partial(_spread, kept_IM=kept_IM)
    return Visual(
        spread(found.tokens_IMNC),
        spread(found.pooled_IMC),
        None if found.levels_IMKNC is None else spread(found.levels_IMKNC),
        image_valid_IM=valid_IM,
    )


def _spread(found: Tensor, kept_IM: Tensor) -> Tensor:
    """Rows of the pictures that were encoded, (X, 1, ...), at their places among all, (I, M, ...); zeros elsewhere."""
    spread = found.new_zeros(*kept_IM.shape, *found.shape[2:])
    spread[kept_IM] = found[:, 0]
    return spread
