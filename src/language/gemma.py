"""Gemma 2 and Gemma 3 (text): Llamas with a norm on both sides of each branch, and words scaled up.

    a = h + RMS2(W_o SDPA(R q, R k, v))        y = a + RMS4(MLP(RMS3(a)))        q, k, v from RMS1(h)
    x = sqrt(D) W_e w, the factor in the weights' type                           RMS(h) = (1 + w) h / rms(h)

Scores are divided by sqrt(query_pre_attn_scalar). Gemma 2 bounds them, and the logits: cap * tanh(score / cap). Gemma 3
norms queries and keys, head by head, and turns them by one base in layers with a sliding window and by another in the
others. The window bounds the context in both. Gemma team 2024, arXiv 2408.00118; 2025, arXiv 2503.19786.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from transformers import Gemma3TextConfig, PretrainedConfig
from transformers.models.gemma2.modeling_gemma2 import Gemma2Attention, Gemma2DecoderLayer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from src.contracts import present
from src.language.blocks import Branches
from src.language.llama import Llama, LlamaBranches, NormedHeads
from src.layers.walk import Walk


class Gemma2(Llama):
    """Seams over ``Gemma2ForCausalLM``, whose embedding scales words itself."""

    unsupported = ("use_bidirectional_attention",)

    def branches(self, layer: LlamaDecoderLayer) -> Branches:
        """Those of a Gemma 2."""
        return Gemma2Branches(layer)

    def bounded(self, products_XV: Tensor) -> Tensor:
        """cap * tanh(x / cap), where there is one."""
        cap = self.model.config.final_logit_softcapping
        return products_XV if cap is None else cap * torch.tanh(products_XV / cap)


class Gemma3(Gemma2):
    """Seams over ``Gemma3ForCausalLM``."""

    unsupported = ("use_bidirectional_attention", "attn_logit_softcapping")  # the latter is left out by the library

    @staticmethod
    def rotation(config: PretrainedConfig) -> nn.Module:
        """Of each kind of layer."""
        from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding  # and its pictures: a third second

        return Gemma3RotaryEmbedding(cast(Gemma3TextConfig, config))

    @staticmethod
    def angles(
        config: PretrainedConfig, rotation: nn.Module, like: Tensor, positions_RT: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Cosines and sines (R, T, X, d) of all X kinds of layers."""
        cosines, sines = zip(*(rotation(like, positions_RT, kind) for kind in _kinds(config)), strict=True)
        return torch.stack(cosines, 2), torch.stack(sines, 2)

    def branches(self, layer: LlamaDecoderLayer) -> Branches:
        """Those of a Gemma 3, with the angles of their kind."""
        config = self.model.config
        return Gemma3Branches(layer, _kinds(config).index(config.layer_types[layer.self_attn.layer_idx]))


class Gemma2Branches(LlamaBranches):
    """Those of one layer of the library's Gemma 2."""

    def __init__(self, layer: LlamaDecoderLayer):
        super().__init__(layer)
        self.softcap = cast(Gemma2Attention, layer.self_attn).attn_logit_softcapping

    def attention(self, x_BTD: Tensor, walk: Walk) -> Tensor:
        """RMS2 of what Llama's would add."""
        return self.layer.post_attention_layernorm(super().attention(x_BTD, walk))

    def mlp(self, h_BTD: Tensor) -> Tensor:
        """RMS4(MLP(RMS3(h)))."""
        layer = cast(Gemma2DecoderLayer, self.layer)
        return layer.post_feedforward_layernorm(layer.mlp(layer.pre_feedforward_layernorm(h_BTD)))


class Gemma3Branches(Gemma2Branches, NormedHeads):
    """Those of one layer of the library's Gemma 3; ``kind``: which of the angles are its own."""

    def __init__(self, layer: LlamaDecoderLayer, kind: int):
        super().__init__(layer)
        self.kind = kind

    def turn(self, q_BHTd: Tensor, k_BKTd: Tensor, walk: Walk) -> tuple[Tensor, Tensor]:
        """By the angles of its kind."""
        cosine_RTXd, sine_RTXd = present(walk.rotary, "rotation in the walk")
        return self.rotate(q_BHTd, k_BKTd, cosine_RTXd[:, :, self.kind], sine_RTXd[:, :, self.kind])


def _kinds(config: PretrainedConfig) -> list[str]:
    """Of layers, in order."""
    return sorted(set(config.layer_types))
