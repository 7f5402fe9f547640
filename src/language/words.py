"""Word vectors alone: an input and an output matrix and nothing between, for mechanisms that bring what remembers.

    x = W_e w        logits = W_o h

No blocks (``LanguageSpec.layers`` is 0), no positions, no norm: read by itself it sees one word at a time.
The matrices are not tied, as in the recurrent captioners before transformers (E and L_o of arXiv 1502.03044).
"""

from __future__ import annotations

import sys

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from src.contracts import Block, Tokenizer
from src.language.base import LanguageModel
from src.layers.walk import Walk

SPREAD = 0.1  # of all weights at the start, uniform on both sides of 0


class WordVectors(PreTrainedModel):
    """The matrices W_e and W_o, (V, D) each; in the library's form, which all seams here look for."""

    config_class = PretrainedConfig

    def __init__(self, config: PretrainedConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        for matrix in self.parameters():
            nn.init.uniform_(matrix, -SPREAD, SPREAD)


class Words(LanguageModel):
    """Seams over ``WordVectors``; reads texts of any length."""

    model: WordVectors
    attention, mlp = (), ()

    def __init__(self, model: WordVectors, tokenizer: Tokenizer):
        super().__init__(model, tokenizer, context=sys.maxsize)

    def embed(self, ids_BT: Tensor) -> Tensor:
        """Token embeddings (B, T, D)."""
        return self.model.embed_tokens(ids_BT)

    def place(self, inputs_BTD: Tensor, walk: Walk) -> Tensor:
        """The inputs as they are: there are no positions."""
        return inputs_BTD

    def opened(self) -> list[Block]:
        """None."""
        return []

    def final_norm(self, h_BTD: Tensor) -> Tensor:
        """Nothing."""
        return h_BTD
