"""Phi-3 (and Phi-3.5, Phi-4): a Llama with one matrix for queries, keys and values and one for gate and up, dropout on
both branches, and heads of which a part may be turned (``partial_rotary_factor``, Phi-4-mini).

Texts are bound by the sliding window and, in models with LongRoPE, by the length before it. Abdin et al. 2024, arXiv
2404.14219.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from transformers import Phi3Config, PretrainedConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.phi3.modeling_phi3 import (
    Phi3Attention,
    Phi3DecoderLayer,
    Phi3RotaryEmbedding,
    apply_rotary_pos_emb,
)

from src.language.blocks import Branches
from src.language.llama import Llama, LlamaBranches
from src.layers.walk import Walk


class Phi3(Llama):
    """Seams over ``Phi3ForCausalLM``."""

    attention, mlp = ("self_attn.qkv_proj", "self_attn.o_proj"), ("mlp.gate_up_proj", "mlp.down_proj")
    partly = True

    @staticmethod
    def rotation(config: PretrainedConfig) -> nn.Module:
        """Of heads or a part of each."""
        return Phi3RotaryEmbedding(cast(Phi3Config, config))

    def branches(self, layer: LlamaDecoderLayer) -> Branches:
        """Those of a Phi-3."""
        return Phi3Branches(layer)


class Phi3Branches(LlamaBranches):
    """Those of one layer of the library's Phi-3."""

    rotate = staticmethod(apply_rotary_pos_emb)  # knows heads of which a part is turned

    def attention(self, x_BTD: Tensor, walk: Walk) -> Tensor:
        """As Llama's, and dropout."""
        return cast(Phi3DecoderLayer, self.layer).resid_attn_dropout(super().attention(x_BTD, walk))

    def project(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All queries come first, then all keys, then all values."""
        attn = cast(Phi3Attention, self.layer.self_attn)
        H, K = attn.config.num_attention_heads, attn.num_key_value_heads
        q_BTHd, k_BTKd, v_BTKd = attn.qkv_proj(x_BTD).unflatten(-1, (-1, attn.head_dim)).split((H, K, K), 2)
        return q_BTHd, k_BTKd, v_BTKd

    def mlp(self, h_BTD: Tensor) -> Tensor:
        """As Llama's, and dropout."""
        return cast(Phi3DecoderLayer, self.layer).resid_mlp_dropout(super().mlp(h_BTD))
