"""OPT: learnt positions counted from 2, LayerNorm, ReLU; biases everywhere.

    a = h + W_o SDPA(q, k, v)          y = a + W_2 relu(W_1 LN2(a))          q, k, v from LN1(h)

OPT-350m is another model: its norms stand on the sums (``do_layer_norm_before: false``), none at the end, and words are
narrower than its states (``word_embed_proj_dim``), with a matrix on either side. Zhang et al. 2022, arXiv 2205.01068.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from torch import Tensor, nn
from transformers import OPTForCausalLM
from transformers.models.opt.modeling_opt import OPTDecoderLayer

from src.contracts import Block, Tokenizer
from src.language.base import LanguageModel
from src.language.blocks import Branches, NormedSums, Serial
from src.layers.attention import self_attention
from src.layers.dropout import dropout
from src.layers.walk import Walk


class OPT(LanguageModel):
    """Seams over ``OPTForCausalLM``."""

    model: OPTForCausalLM
    attention = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj")
    mlp = ("fc1", "fc2")
    unsupported = ("layerdrop",)

    def __init__(self, model: OPTForCausalLM, tokenizer: Tokenizer):
        super().__init__(model, tokenizer, context=model.config.max_position_embeddings)

    def embed(self, ids_BT: Tensor) -> Tensor:
        """Token embeddings (B, T, D), brought to the states' width, without positions."""
        decoder = self.model.model.decoder
        return _by(decoder.project_in, decoder.embed_tokens(ids_BT))

    def place(self, inputs_BTD: Tensor, walk: Walk) -> Tensor:
        """Learnt positions are added; the library's module knows that they begin at 2."""
        learnt = self.model.model.decoder.embed_positions
        return inputs_BTD + learnt(walk.positions_RT, position_ids=walk.positions_RT)

    def opened(self) -> list[Block]:
        """Views of the library's layers."""
        layers = cast(Iterable[OPTDecoderLayer], self.model.model.decoder.layers)  # ModuleList does not say of what
        norms = [(layer, layer.self_attn_layer_norm, layer.final_layer_norm) for layer in layers]
        if self.model.config.do_layer_norm_before:
            return [Serial(OPTBranches(layer, first, second)) for layer, first, second in norms]
        none = nn.Identity()
        return [NormedSums(OPTBranches(layer, none, none), first, second) for layer, first, second in norms]

    def final_norm(self, h_BTD: Tensor) -> Tensor:
        """The norm after the last block, unless that ends in one."""
        return _by(self.model.model.decoder.final_layer_norm, h_BTD)

    def unembed(self, h_XD: Tensor) -> Tensor:
        """Logits (..., V), by way of the words' width."""
        return self.bounded(self.model.lm_head(_by(self.model.model.decoder.project_out, h_XD)))

    def unembedding(self) -> Tensor:
        """The matrix of ``unembed``, (V, D): a product where words are narrower than states."""
        narrow = self.model.model.decoder.project_out
        return self.model.lm_head.weight if narrow is None else self.model.lm_head.weight @ narrow.weight


class OPTBranches(Branches):
    """Those of one layer of the library's OPT, and the norms in front of them."""

    def __init__(self, layer: OPTDecoderLayer, first: nn.Module, second: nn.Module):
        self.layer, self.first, self.second = layer, first, second

    def norm(self, h_BTD: Tensor) -> Tensor:
        """LN1, or nothing."""
        return self.first(h_BTD)

    def attention(self, x_BTD: Tensor, walk: Walk) -> Tensor:
        """W_o SDPA(q, k, v), causal, and dropout; appends to the walk's cache."""
        attn = self.layer.self_attn
        projected = (project(x_BTD) for project in (attn.q_proj, attn.k_proj, attn.v_proj))
        q_BHTd, k_BHTd, v_BHTd = (x.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for x in projected)
        on_weights = attn.dropout if attn.training else 0.0
        read_BTD = self_attention(q_BHTd, k_BHTd, v_BHTd, walk, f"self.{attn.layer_idx}", attn.scaling, on_weights)
        return self._dropped(attn.out_proj(read_BTD))

    def mlp(self, h_BTD: Tensor) -> Tensor:
        """W_2 relu(W_1 LN2(h)), and dropout."""
        inner_BTE = self.layer.activation_fn(self.layer.fc1(self.second(h_BTD)))
        return self._dropped(self.layer.fc2(inner_BTE))

    def _dropped(self, x_BTD: Tensor) -> Tensor:
        return dropout(x_BTD, self.layer.dropout, self.layer.training)


def _by(module: nn.Module | None, x: Tensor) -> Tensor:
    """``module`` of x, where there is one."""
    return x if module is None else module(x)
