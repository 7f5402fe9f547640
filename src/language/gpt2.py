"""GPT-2: learnt positions, LayerNorm before attention and MLP, one fused q/k/v projection, output tied to the input.

    a = h + W_o SDPA(W_qkv LN1(h))        y = a + MLP(LN2(a))

Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"; modules of transformers' GPT2LMHeadModel.
``reorder_and_upcast_attn`` of its configuration changes rounding only, and is ignored here as in the library's own
SDPA path.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from torch import Tensor
from transformers import GPT2LMHeadModel
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

from src.contracts import Block, Tokenizer
from src.language.base import LanguageModel
from src.language.blocks import Branches, Serial
from src.layers.attention import self_attention, split_heads
from src.layers.walk import Walk


class GPT2(LanguageModel):
    """Seams over ``GPT2LMHeadModel``."""

    model: GPT2LMHeadModel
    attention, mlp = ("attn.c_attn", "attn.c_proj"), ("mlp.c_fc", "mlp.c_proj")

    def __init__(self, model: GPT2LMHeadModel, tokenizer: Tokenizer):
        super().__init__(model, tokenizer, context=model.config.n_positions)

    def embed(self, ids_BT: Tensor) -> Tensor:
        """Token embeddings (B, T, D), without positions."""
        return self.model.transformer.wte(ids_BT)

    def place(self, inputs_BTD: Tensor, walk: Walk) -> Tensor:
        """Learnt positions are added, then dropout."""
        return self.model.transformer.drop(inputs_BTD + self.model.transformer.wpe(walk.positions_RT))

    def opened(self) -> list[Block]:
        """Views of the library's layers."""
        layers = cast(Iterable[GPT2Block], self.model.transformer.h)  # torch's ModuleList does not say of what
        return [Serial(GPT2Branches(layer)) for layer in layers]

    def final_norm(self, h_BTD: Tensor) -> Tensor:
        """The norm after the last block."""
        return self.model.transformer.ln_f(h_BTD)


class GPT2Branches(Branches):
    """Those of one layer of the library's GPT-2."""

    def __init__(self, layer: GPT2Block):
        self.layer = layer

    def norm(self, h_BTD: Tensor) -> Tensor:
        """LN1."""
        return self.layer.ln_1(h_BTD)

    def attention(self, x_BTD: Tensor, walk: Walk) -> Tensor:
        """W_o SDPA(W_qkv LN1(h)), causal, and dropout; appends to the walk's cache."""
        attn = self.layer.attn
        qkv_BTE = attn.c_attn(x_BTD)  # E = 3*H*d
        read_BTD = self_attention(
            *split_heads(qkv_BTE, attn.num_heads),
            walk,
            slot=f"self.{attn.layer_idx}",
            scale=attn.scaling,
            dropout=attn.attn_dropout.p if attn.training else 0.0,
        )
        return attn.resid_dropout(attn.c_proj(read_BTD))

    def mlp(self, h_BTD: Tensor) -> Tensor:
        """MLP(LN2(h)); the library's MLP ends in its own dropout."""
        return self.layer.mlp(self.layer.ln_2(h_BTD))
