"""The Llama family: rotary positions, RMSNorm, gated MLP, key-value heads shared by groups of query heads.

    a = h + W_o SDPA(R q, R k, v)        y = a + MLP(RMS2(a))        q, k, v from RMS1(h), R = rotation by position

Llama (SmolLM and SmolLM2 are Llamas), Mistral (its window bounds the context), Qwen2 (biases on q, k, v) and Qwen3
(norms on q and k) share module names in transformers, so one adapter shows them all; relatives that differ in more have
files of their own. Touvron et al. 2023, arXiv 2302.13971; grouped heads: Ainslie et al. 2023, arXiv 2305.13245.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from torch import Tensor
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, apply_rotary_pos_emb
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention

from src.contracts import Block, present
from src.language.blocks import Branches, Serial
from src.language.rotary import Rotary
from src.layers.attention import self_attention
from src.layers.walk import Walk


class Llama(Rotary):
    """Seams over ``LlamaForCausalLM`` and its relatives, whose modules have the same names."""

    model: LlamaForCausalLM
    attention = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
    mlp = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")

    def embed(self, ids_BT: Tensor) -> Tensor:
        """Token embeddings (B, T, D)."""
        return self.model.model.embed_tokens(ids_BT)

    def opened(self) -> list[Block]:
        """Views of the library's layers."""
        layers = cast(Iterable[LlamaDecoderLayer], self.model.model.layers)  # torch's ModuleList does not say of what
        return [Serial(self.branches(layer)) for layer in layers]

    def branches(self, layer: LlamaDecoderLayer) -> Branches:
        """Those of a layer, or of a relative's."""
        return LlamaBranches(layer)

    def final_norm(self, h_BTD: Tensor) -> Tensor:
        """The norm after the last block."""
        return self.model.model.norm(h_BTD)


class Qwen3(Llama):
    """Seams over ``Qwen3ForCausalLM``."""

    def branches(self, layer: LlamaDecoderLayer) -> Branches:
        """With norms on queries and keys."""
        return NormedHeads(layer)


class LlamaBranches(Branches):
    """Those of the library's Llama, Mistral or Qwen2."""

    rotate = staticmethod(apply_rotary_pos_emb)
    softcap: float | None = None  # of attention's scores

    def __init__(self, layer: LlamaDecoderLayer):
        self.layer = layer

    def norm(self, h_BTD: Tensor) -> Tensor:
        """RMS1."""
        return self.layer.input_layernorm(h_BTD)

    def attention(self, x_BTD: Tensor, walk: Walk) -> Tensor:
        """W_o SDPA(R q, R k, v), causal; appends rotated keys and the values to the walk's cache."""
        attn = self.layer.self_attn
        q_BTHd, k_BTKd, v_BTKd = self.project(x_BTD)
        q_BHTd, k_BKTd = self.turn(q_BTHd.transpose(1, 2), k_BTKd.transpose(1, 2), walk)
        dropout = attn.attention_dropout or 0.0 if attn.training else 0.0
        slot, scale, v_BKTd = f"self.{attn.layer_idx}", attn.scaling, v_BTKd.transpose(1, 2)
        read_BTE = self_attention(q_BHTd, k_BKTd, v_BKTd, walk, slot, scale, dropout, self.softcap)
        return attn.o_proj(read_BTE)  # E = H*d, which Qwen3 does not keep equal to D

    def project(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, T, H, d), and keys and values (B, T, K, d) of K heads."""
        attn = self.layer.self_attn
        projections = (attn.q_proj, attn.k_proj, attn.v_proj)
        q_BTHd, k_BTKd, v_BTKd = (project(x_BTD).unflatten(-1, (-1, attn.head_dim)) for project in projections)
        return q_BTHd, k_BTKd, v_BTKd

    def turn(self, q_BHTd: Tensor, k_BKTd: Tensor, walk: Walk) -> tuple[Tensor, Tensor]:
        """R q and R k."""
        return self.rotate(q_BHTd, k_BKTd, *present(walk.rotary, "rotation in the walk"))

    def mlp(self, h_BTD: Tensor) -> Tensor:
        """MLP(RMS2(h))."""
        return self.layer.mlp(self.layer.post_attention_layernorm(h_BTD))


class NormedHeads(LlamaBranches):
    """Queries and keys normed head by head."""

    def project(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """RMS(q), RMS(k) and v."""
        attn = cast(Qwen3Attention, self.layer.self_attn)
        q_BTHd, k_BTKd, v_BTKd = super().project(x_BTD)
        return attn.q_norm(q_BTHd), attn.k_norm(k_BTKd), v_BTKd
