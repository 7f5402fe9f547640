"""One sequence of words and regions, read both ways by the language model's own blocks (slot E).

    X = [v_1 ... v_N ; x_1 ... x_T]       x: words as the language model places them; v: regions (src/layers/regions.py)
    H = BLOCKS(X)                         every column sees every column
    pooled = tanh(W h_1)                  of the first word's column, the start token

``regions: visualbert``   VisualBERT, Li et al. 2019, arXiv 1908.03557
``regions: uniter``       UNITER, Chen et al. 2020, arXiv 1909.11740: where a region is, and one norm more
``fuse_at: late``         VisualBERT's ablation "no early fusion": the blocks read the words alone, then one block both

Departures from the papers
    regions          cells of a grid instead of a detector's boxes; no word is aligned with one
    norm             of the regions is their own, and starts as the language model's would (VisualBERT: one for both)
    order            regions stand first; their place in the sequence means nothing, as they have no word positions
    late             the block over both is drawn at random; norms behind the sums
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from src.contracts import Language, LanguageSpec, Memory, Text, VisionSpec, Visual
from src.fusion.base import Read, Reader, first_columns, gpt2_init
from src.kinds import BelowOne
from src.layers.attention import key_bias
from src.layers.dropout import Dropout
from src.layers.notes import Aux, note
from src.layers.post_norm import PostNormLayer
from src.layers.regions import RegionEmbedding


class SingleStream(Reader):
    """See the formulas above."""

    where = "E"

    def __init__(
        self,
        vision: VisionSpec,
        language: LanguageSpec,
        regions: Literal["visualbert", "uniter"],
        fuse_at: Literal["early", "late"],
        dropout: BelowOne,
    ):
        super().__init__(vision, language)
        self.extra_positions = vision.tokens
        self.regions = RegionEmbedding(vision.width, language.width, vision.tokens, regions, Dropout(dropout))
        self.late = PostNormLayer(language.width, language.heads, dropout) if fuse_at == "late" else None
        self.pool = nn.Linear(language.width, language.width)
        gpt2_init(self)

    def encode(self, lm: Language, visual: Visual, aux: Aux | None = None) -> Memory:
        """Regions as blocks read them, (I, N, D), and what they were made of."""
        f_INC = visual.tokens_INC
        return Memory.of(regions=self.regions(f_INC), features=f_INC, valid=visual.valid_IN)

    def hide(self, memory: Memory, hidden_IN: Tensor) -> Memory:
        return Memory({**memory, "regions": self.regions(memory["features"], hidden_IN)})

    def read(self, lm: Language, memory: Memory, text: Text, aux: Aux | None = None) -> Read:
        v_IND = memory["regions"]
        N, G = v_IND.shape[1], len(text.ids_BT) // len(v_IND)
        v_BND = v_IND.repeat_interleave(G, 0)
        valid_BN = memory["valid"].repeat_interleave(G, 0) if "valid" in memory else None
        both = replace(text, open_BT=torch.ones_like(text.valid_BT)).behind(N, valid_BN, open=True)
        h_BTD, walk = lm.begin(lm.embed(text.ids_BT), text)
        own: Aux | None = None if aux is None else {}  # weights of both ways, (B, H, S, S)
        if self.late is not None:
            for block in lm.blocks():
                h_BTD = block.feed(block.attend(h_BTD, walk))
            h_BSD = torch.cat([v_BND, lm.final_norm(h_BTD)], 1)  # S = N + T
            h_BSD = self.late(h_BSD, key_bias(both.valid_BT, h_BSD.dtype), own)
        else:
            h_BSD = torch.cat([v_BND.to(h_BTD.dtype), h_BTD], 1)
            walk = replace(lm.walk(both, h_BTD.dtype), notes=own)
            for block in lm.blocks():
                h_BSD = block.feed(block.attend(h_BSD, walk))
            h_BSD = lm.final_norm(h_BSD)
        for weights_BHSS in own["attention"] if own else ():
            note(aux, "attention", weights_BHSS[:, :, N:, :N])
            note(aux, "attention_back", weights_BHSS[:, :, :N, N:])
        v_BND, h_BTD = h_BSD[:, :N], h_BSD[:, N:]
        return Read(h_BTD, torch.tanh(self.pool(first_columns(h_BTD, text))), v_BND)
