"""GPT-NeoX (Pythia): attention and MLP side by side, each with its own LayerNorm, and heads of which a part is turned.

    y = h + W_o SDPA(R q, R k, v) + MLP(LN2(h))        q, k, v from LN1(h)        use_parallel_residual, else serial

R turns the first ``rotary_pct`` of a head's numbers. The rows of the fused projection are head by head: q, k, v of the
first, then of the second. Black et al. 2022, arXiv 2204.06745; Biderman et al. 2023, arXiv 2304.01373.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from torch import Tensor, nn
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PretrainedConfig
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXLayer, GPTNeoXRotaryEmbedding, apply_rotary_pos_emb

from src.contracts import Block, present
from src.language.blocks import Branches, Parallel, Serial
from src.language.rotary import Rotary
from src.layers.attention import self_attention
from src.layers.walk import Walk


class GPTNeoX(Rotary):
    """Seams over ``GPTNeoXForCausalLM``."""

    model: GPTNeoXForCausalLM
    attention = ("attention.query_key_value", "attention.dense")
    mlp = ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
    partly = True

    @staticmethod
    def rotation(config: PretrainedConfig) -> nn.Module:
        """Of a part of each head."""
        return GPTNeoXRotaryEmbedding(cast(GPTNeoXConfig, config))

    def embed(self, ids_BT: Tensor) -> Tensor:
        """Token embeddings (B, T, D)."""
        return self.model.gpt_neox.embed_in(ids_BT)

    def place(self, inputs_BTD: Tensor, walk: Walk) -> Tensor:
        """Dropout; positions enter as rotations of queries and keys."""
        return self.model.gpt_neox.emb_dropout(inputs_BTD)

    def opened(self) -> list[Block]:
        """Views of the library's layers."""
        layers = cast(Iterable[GPTNeoXLayer], self.model.gpt_neox.layers)  # torch's ModuleList does not say of what
        join = Parallel if self.model.config.use_parallel_residual else Serial
        return [join(GPTNeoXBranches(layer)) for layer in layers]

    def final_norm(self, h_BTD: Tensor) -> Tensor:
        """The norm after the last block."""
        return self.model.gpt_neox.final_layer_norm(h_BTD)


class GPTNeoXBranches(Branches):
    """Those of one layer of the library's GPT-NeoX."""

    def __init__(self, layer: GPTNeoXLayer):
        self.layer = layer

    def norm(self, h_BTD: Tensor) -> Tensor:
        """LN1."""
        return self.layer.input_layernorm(h_BTD)

    def attention(self, x_BTD: Tensor, walk: Walk) -> Tensor:
        """W_o SDPA(R q, R k, v), causal, and dropout; appends rotated keys and the values to the walk's cache."""
        attn = self.layer.attention
        qkv_BHTe = attn.query_key_value(x_BTD).unflatten(-1, (-1, 3 * attn.head_size)).transpose(1, 2)  # e = 3*d
        q_BHTd, k_BHTd, v_BHTd = qkv_BHTe.chunk(3, -1)
        q_BHTd, k_BHTd = apply_rotary_pos_emb(q_BHTd, k_BHTd, *present(walk.rotary, "rotation in the walk"))
        dropout = attn.attention_dropout if attn.training else 0.0
        read_BTD = self_attention(q_BHTd, k_BHTd, v_BHTd, walk, f"self.{attn.layer_idx}", attn.scaling, dropout)
        return self.layer.post_attention_dropout(attn.dense(read_BTD))

    def mlp(self, h_BTD: Tensor) -> Tensor:
        """MLP(LN2(h)), and dropout."""
        return self.layer.post_mlp_dropout(self.layer.mlp(self.layer.post_attention_layernorm(h_BTD)))
