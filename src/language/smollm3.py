"""SmolLM3: a Llama some of whose layers (``no_rope_layers``, every fourth) do not know where a word stands.

Bakouch et al. 2025; layers without positions: Yang et al. 2025, arXiv 2501.18795.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.smollm3.modeling_smollm3 import SmolLM3Attention

from src.language.blocks import Branches
from src.language.llama import Llama, LlamaBranches
from src.layers.walk import Walk


class SmolLM3(Llama):
    """Seams over ``SmolLM3ForCausalLM``."""

    def branches(self, layer: LlamaDecoderLayer) -> Branches:
        """Those of a SmolLM3, with positions or without."""
        turns = cast(SmolLM3Attention, layer.self_attn).use_rope
        return LlamaBranches(layer) if turns else Unturned(layer)


class Unturned(LlamaBranches):
    """Queries and keys as they are."""

    def turn(self, q_BHTd: Tensor, k_BKTd: Tensor, walk: Walk) -> tuple[Tensor, Tensor]:
        """q and k."""
        return q_BHTd, k_BKTd
