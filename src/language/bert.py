"""BERT: an encoder that reads both ways, with learnt positions and norms behind the sums (Devlin et al. 2019, arXiv
1810.04805); modules of transformers' BertForMaskedLM.

    x = LN(W_e w + p + s)        a = LN(h + W_o SDPA(q h, k h, v h))        y = LN(a + MLP(a))

Every real token sees every other one, whatever a text says of who may see whom, so it cannot write word after word;
``unembed`` tells what a hidden word was. All tokens are of the first kind of segment.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor
from transformers import BertForMaskedLM
from transformers.models.bert.modeling_bert import BertLayer

from src.contracts import Text, Tokenizer, UserError
from src.language.base import LanguageModel, attention_dtype, positions
from src.layers.attention import key_bias, self_attention
from src.layers.cache import Cache
from src.layers.walk import Walk


class Bert(LanguageModel):
    """Seams over ``BertForMaskedLM``."""

    model: BertForMaskedLM
    causal = False
    attention = (
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
    )
    mlp = ("intermediate.dense",)  # its other half is called what attention's own ends in

    def __init__(self, model: BertForMaskedLM, tokenizer: Tokenizer):
        super().__init__(model, tokenizer, context=model.config.max_position_embeddings)

    def embed(self, ids_BT: Tensor) -> Tensor:
        """Token embeddings (B, T, D), without positions."""
        return self.model.bert.embeddings.word_embeddings(ids_BT)

    def place(self, inputs_BTD: Tensor, walk: Walk) -> Tensor:
        """Positions and the vector of the first segment are added, then norm and dropout."""
        own = self.model.bert.embeddings
        placed = inputs_BTD + own.token_type_embeddings.weight[0] + own.position_embeddings(walk.positions_RT)
        return own.dropout(own.LayerNorm(placed))

    def walk(self, text: Text, dtype: torch.dtype, cache: Cache | None = None) -> Walk:
        """A mask of what is real, and positions. Raises UserError beyond ``spec.context``, ValueError for a cache."""
        if cache is not None:
            raise ValueError("What reads both ways has to read everything again for each new word.")
        T = text.valid_BT.shape[1]
        if T > self.spec.context:
            raise UserError(
                f"The text has {T} positions, but the language model reads at most {self.spec.context}; use shorter "
                "texts or another language model."
            )
        bias = key_bias(text.valid_BT, attention_dtype(dtype, text.valid_BT.device.type))
        return Walk(positions(text.valid_BT, T, text.ragged, None), bias, causal=False, cache=None)

    def opened(self) -> list[BertBlock]:
        """Views of the library's layers."""
        layers = cast(Iterable[BertLayer], self.model.bert.encoder.layer)  # torch's ModuleList does not say of what
        return [BertBlock(layer) for layer in layers]

    def final_norm(self, h_BTD: Tensor) -> Tensor:
        """Nothing: the last block ends in a norm."""
        return h_BTD

    def unembed(self, h_XD: Tensor) -> Tensor:
        """Logits (..., V)."""
        return self.model.cls.predictions(h_XD)

    def unembedding(self) -> Tensor:
        """The matrix behind the transformation of ``unembed``, (V, D)."""
        return self.model.cls.predictions.decoder.weight


class BertBlock:
    """One layer of the library's BERT, opened between attention and MLP."""

    def __init__(self, layer: BertLayer):
        self.layer = layer

    def norm(self, h_BTD: Tensor) -> Tensor:
        """Nothing: attention reads the states as they are."""
        return h_BTD

    def attend(self, h_BTD: Tensor, walk: Walk) -> Tensor:
        """LN(h + W_o SDPA(q h, k h, v h))."""
        own, output = self.layer.attention.self, self.layer.attention.output
        q_BHTd, k_BHTd, v_BHTd = (
            project(h_BTD).unflatten(-1, (own.num_attention_heads, -1)).transpose(1, 2)
            for project in (own.query, own.key, own.value)
        )
        dropout = own.dropout.p if own.training else 0.0
        read_BTD = self_attention(q_BHTd, k_BHTd, v_BHTd, walk, f"self.{own.layer_idx}", own.scaling, dropout)
        return output(read_BTD, h_BTD)  # dense, dropout, the sum's norm

    def feed(self, h_BTD: Tensor) -> Tensor:
        """LN(a + MLP(a))."""
        return self.layer.feed_forward_chunk(h_BTD)
