"""The Llama family: rotary positions, RMSNorm, gated MLP, key-value heads shared by groups of query heads.

    a = h + W_o SDPA(R q, R k, v)        y = a + MLP(RMS2(a))        q, k, v from RMS1(h), R = rotation by position

Llama (SmolLM and SmolLM2 are Llamas), Mistral (its window bounds the context), Qwen2 (biases on q, k, v) and Qwen3
(norms on q and k) share module names in transformers, so one adapter shows them all. Touvron et al. 2023, arXiv
2302.13971; grouped heads: Ainslie et al. 2023, arXiv 2305.13245; rotation: Su et al. 2021, arXiv 2104.09864.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PretrainedConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, apply_rotary_pos_emb
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, Qwen3DecoderLayer

from src.contracts import Tokenizer, present
from src.language.base import LanguageModel
from src.layers.attention import self_attention
from src.layers.walk import Walk

Layer = LlamaDecoderLayer | Qwen3DecoderLayer  # or their like


class Llama(LanguageModel):
    """Seams over ``LlamaForCausalLM`` and its relatives, whose modules have the same names."""

    model: LlamaForCausalLM
    attention = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
    mlp = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")

    def __init__(self, model: LlamaForCausalLM, tokenizer: Tokenizer):
        super().__init__(model, tokenizer, context=_context(model.config))

    def embed(self, ids_BT: Tensor) -> Tensor:
        """Token embeddings (B, T, D)."""
        return self.model.model.embed_tokens(ids_BT)

    def place(self, inputs_BTD: Tensor, walk: Walk) -> Tensor:
        """Positions enter as rotations of queries and keys, not here."""
        return inputs_BTD

    def rotary(self, positions_RT: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines (R, T, d) of the library, which looks at its first argument's type and device only."""
        return self.model.model.rotary_emb(positions_RT.new_empty(0, dtype=dtype), positions_RT)

    def opened(self) -> list[LlamaBlock]:
        """Views of the library's layers."""
        layers = cast(Iterable[Layer], self.model.model.layers)  # torch's ModuleList does not say of what
        return [LlamaBlock(layer) for layer in layers]

    def final_norm(self, h_BTD: Tensor) -> Tensor:
        """The norm after the last block."""
        return self.model.model.norm(h_BTD)


class LlamaBlock:
    """One layer of the library's Llama, Mistral, Qwen2 or Qwen3, opened between attention and MLP."""

    def __init__(self, layer: Layer):
        self.layer = layer

    def norm(self, h_BTD: Tensor) -> Tensor:
        """RMS1."""
        return self.layer.input_layernorm(h_BTD)

    def attend(self, h_BTD: Tensor, walk: Walk) -> Tensor:
        """h + W_o SDPA(R q, R k, v), causal; appends rotated keys and the values to the walk's cache."""
        attn = self.layer.self_attn
        x_BTD = self.norm(h_BTD)
        q_BTHd, k_BTKd, v_BTKd = (
            project(x_BTD).unflatten(-1, (-1, attn.head_dim)) for project in (attn.q_proj, attn.k_proj, attn.v_proj)
        )
        if isinstance(attn, Qwen3Attention):
            q_BTHd, k_BTKd = attn.q_norm(q_BTHd), attn.k_norm(k_BTKd)
        cosine_RTd, sine_RTd = present(walk.rotary, "rotation in the walk")
        q_BHTd, k_BKTd = apply_rotary_pos_emb(q_BTHd.transpose(1, 2), k_BTKd.transpose(1, 2), cosine_RTd, sine_RTd)
        read_BTE = self_attention(  # E = H*d, which Qwen3 does not keep equal to D
            q_BHTd,
            k_BKTd,
            v_BTKd.transpose(1, 2),
            walk,
            slot=f"self.{attn.layer_idx}",
            scale=attn.scaling,
            dropout=attn.attention_dropout or 0.0 if attn.training else 0.0,
        )
        return h_BTD + attn.o_proj(read_BTE)

    def feed(self, h_BTD: Tensor) -> Tensor:
        """h + MLP(RMS2(h))."""
        return h_BTD + self.layer.mlp(self.layer.post_attention_layernorm(h_BTD))


def _context(config: PretrainedConfig) -> int:
    """Positions that plain causal attention and a cache compute exactly.

    Up to the sliding window, where there is one. LongRoPE (Ding et al. 2024, arXiv 2402.13753) turns all positions by
    other angles once a text is longer than those of pretraining, where keys in the cache have been turned already.
    """
    window = getattr(config, "sliding_window", None)  # None as well where Qwen switches its window off
    rope = config.rope_parameters
    original = rope["original_max_position_embeddings"] if rope["rope_type"] == "longrope" else None
    return min(filter(None, (config.max_position_embeddings, window, original)))
