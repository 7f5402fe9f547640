"""OLMo 2: a Llama whose norms stand behind its branches, not in front of them, and on queries and keys.

    a = h + RMS1(W_o SDPA(R RMS(q), R RMS(k), v))        y = a + RMS2(MLP(a))        q, k, v from h as it is

The norms of queries and keys are over all heads together. Angles stay in single precision until queries and keys are
turned. OLMo team 2025, arXiv 2501.00656.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.olmo2.modeling_olmo2 import Olmo2Attention, Olmo2DecoderLayer, apply_rotary_pos_emb

from src.language.blocks import Branches
from src.language.llama import Llama, LlamaBranches
from src.layers.walk import Walk


class Olmo2(Llama):
    """Seams over ``Olmo2ForCausalLM``."""

    def branches(self, layer: LlamaDecoderLayer) -> Branches:
        """Those of an OLMo 2."""
        return Olmo2Branches(layer)


class Olmo2Branches(LlamaBranches):
    """Those of one layer of the library's OLMo 2."""

    rotate = staticmethod(apply_rotary_pos_emb)

    def norm(self, h_BTD: Tensor) -> Tensor:
        """Nothing: attention reads the states as they are."""
        return h_BTD

    def attention(self, x_BTD: Tensor, walk: Walk) -> Tensor:
        """RMS1 of what Llama's would add."""
        return self.layer.post_attention_layernorm(super().attention(x_BTD, walk))

    def project(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """RMS(q), RMS(k) and v."""
        attn = cast(Olmo2Attention, self.layer.self_attn)
        projected = attn.q_norm(attn.q_proj(x_BTD)), attn.k_norm(attn.k_proj(x_BTD)), attn.v_proj(x_BTD)
        q_BTHd, k_BTKd, v_BTKd = (x.unflatten(-1, (-1, attn.head_dim)) for x in projected)
        return q_BTHd, k_BTKd, v_BTKd

    def mlp(self, h_BTD: Tensor) -> Tensor:
        """RMS2(MLP(h))."""
        return cast(Olmo2DecoderLayer, self.layer).post_feedforward_layernorm(self.layer.mlp(h_BTD))
