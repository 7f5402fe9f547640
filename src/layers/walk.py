"""What the blocks of one pass through a language model share: where the tokens stand and what they may look at."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from src.layers.cache import Cache
from src.layers.notes import Aux


@dataclass(frozen=True)
class Walk:
    """``causal``: a plain causal mask is exact, and there is no ``bias``; only with S = T."""

    positions_RT: Tensor  # (1, T) where all rows agree
    bias: Tensor | None  # additive float mask (B, 1, T, S)
    causal: bool
    cache: Cache | None
    rotary: tuple[Tensor, Tensor] | None = None  # cosines and sines (R, T, d)
    notes: Aux | None = None  # where self-attention notes its weights (B, H, T, S), under "attention"
