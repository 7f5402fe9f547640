"""Control: the language model alone. A mechanism that does not beat it has not been shown to see.

    logits = LM(text)

On captions without pictures this is language pre-training.
"""

from __future__ import annotations

from torch import Tensor

from src.contracts import Language, Memory, Text, Visual
from src.fusion.base import Writer
from src.layers.cache import Cache
from src.layers.notes import Aux


class Blind(Writer):
    """The plain walk; has no parameters."""

    where = "-"
    sees = False
    needs_blocks = False
    preserves_lm_at_init = True

    def encode(self, lm: Language, visual: Visual, aux: Aux | None = None) -> Memory:
        return Memory()

    def decode(
        self, lm: Language, memory: Memory, text: Text, cache: Cache | None = None, aux: Aux | None = None
    ) -> Tensor:
        return lm.read(text, cache)[0]
