"""A stream of words and a stream of regions that read each other (slot P of the language model's last blocks).

The notation of the study notes, corrected: queries come from the stream that is updated, values from the other one.

    V = r own blocks over regions                T = the first L - x blocks of the language model over words
    x times, both from the same T and V:
        T_f = LN(T + W_o softmax(T W_q (V W_k)^T / sqrt(d)) V W_v)          f_{v->t}: each word reads the regions
        V_f = LN(V + W_o softmax(V W_q (T W_k)^T / sqrt(d)) T W_v)          f_{t->v}: each region reads the words
        T_f, V_f = LN(T_f + MLP T_f), LN(V_f + MLP V_f)                     only with ``cross_feed``
        T, V = the language model's next block over T_f, an own block over V_f
    pooled = tanh(W t_1)                         or, ``pool: product``, relu(W t_1) * relu(W' v_1)

                  ViLBERT (Lu et al. 2019, arXiv 1908.02265)      LXMERT (Tan & Bansal 2019, arXiv 1908.07490)
    share_cross   own weights for either direction                one set for both
    cross_feed    yes                                             no
    pool          product, v_1 the region of the whole            tanh of the first word's column

``directions: to_text`` leaves out f_{t->v}. With both, two of these layers carry a later word through the regions to an
earlier one: no language model may be trained so, and a Reader is none.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.contracts import Language, LanguageSpec, Memory, Text, VisionSpec, Visual
from src.fusion.base import Read, Reader, first_columns, gpt2_init
from src.kinds import BelowOne, Count, Size
from src.layers.attention import key_bias
from src.layers.dropout import Dropout
from src.layers.lists import ModuleList
from src.layers.notes import Aux, note
from src.layers.post_norm import PostNormAttention, PostNormFeed, PostNormLayer
from src.layers.regions import RegionEmbedding


class TwoStream(Reader):
    """``vision_layers`` is r, ``cross_layers`` x, ``vision_width`` that of the regions; None: the language model's."""

    where = "P"

    def __init__(
        self,
        vision: VisionSpec,
        language: LanguageSpec,
        regions: Literal["vilbert", "lxmert"],
        vision_layers: Count,
        cross_layers: Size,
        vision_width: Size | None,
        share_cross: bool,
        cross_feed: bool,
        directions: Literal["both", "to_text"],
        pool: Literal["product", "first"],
        dropout: BelowOne,
    ):
        super().__init__(vision, language)
        width, heads, D = vision_width or language.width, language.heads, language.width
        self.regions = RegionEmbedding(vision.width, width, vision.tokens, regions, Dropout(dropout))
        self.alone = ModuleList(PostNormLayer(width, heads, dropout) for _ in range(vision_layers))
        self.cross = ModuleList(
            CoAttention(D, width, heads, share_cross, cross_feed, directions == "both", dropout)
            for _ in range(cross_layers)
        )
        self.behind = ModuleList(PostNormLayer(width, heads, dropout) for _ in range(cross_layers))
        self.pool_t = nn.Linear(D, D)
        self.pool_v = nn.Linear(width, D) if pool == "product" else None
        gpt2_init(self)

    @staticmethod
    def refusals(fusion, language):
        if fusion.share_cross and fusion.vision_width is not None:
            yield "fusion.share_cross=true reads both streams with one set of weights; leave fusion.vision_width=null."
        if fusion.share_cross and fusion.directions == "to_text":
            yield "fusion.share_cross=true shares the weights of two directions, and fusion.directions=to_text has one."
        if fusion.cross_layers > language.layers:
            yield f"fusion.cross_layers={fusion.cross_layers} is more than the language model's {language.layers}."

    def encode(self, lm: Language, visual: Visual, aux: Aux | None = None) -> Memory:
        """The regions' own way, (I, N, E), and what they were made of."""
        return self._encoded(visual.tokens_INC, visual.valid_IN)

    def hide(self, memory: Memory, hidden_IN: Tensor) -> Memory:
        return self._encoded(memory["features"], memory.get("seen"), hidden_IN)

    def _encoded(self, f_INC: Tensor, seen_IN: Tensor | None, hidden_IN: Tensor | None = None) -> Memory:
        v_INE, valid_IN = self.regions(f_INC, hidden_IN), seen_IN
        if seen_IN is not None and v_INE.shape[1] > f_INC.shape[1]:  # with the region of the whole
            valid_IN = F.pad(seen_IN, (1, 0), value=True)
        for layer in self.alone:
            v_INE = layer(v_INE, key_bias(valid_IN, v_INE.dtype))
        return Memory.of(regions=v_INE, features=f_INC, seen=seen_IN, valid=valid_IN)

    def read(self, lm: Language, memory: Memory, text: Text, aux: Aux | None = None) -> Read:
        G = len(text.ids_BT) // len(memory["regions"])
        v_BNE = memory["regions"].repeat_interleave(G, 0)
        valid_BN = memory["valid"].repeat_interleave(G, 0) if "valid" in memory else None
        h_BTD, walk = lm.begin(lm.embed(text.ids_BT), text)
        on_words, on_regions = key_bias(text.valid_BT, h_BTD.dtype), key_bias(valid_BN, h_BTD.dtype)
        blocks = lm.blocks()
        alone = len(blocks) - len(self.cross)
        for block in blocks[:alone]:
            h_BTD = block.feed(block.attend(h_BTD, walk))
        for block, cross, behind in zip(blocks[alone:], self.cross, self.behind, strict=True):
            h_BTD, v_BNE = cross(h_BTD, v_BNE, on_words, on_regions, aux)
            h_BTD, v_BNE = block.feed(block.attend(h_BTD, walk)), behind(v_BNE, on_regions)
        h_BTD = lm.final_norm(h_BTD)
        first_BD = self.pool_t(first_columns(h_BTD, text))
        whole_BNE = v_BNE
        if self.pool_v is None:
            return Read(h_BTD, torch.tanh(first_BD), whole_BNE)
        extra = v_BNE.shape[1] - memory["features"].shape[1]
        return Read(h_BTD, F.relu(first_BD) * F.relu(self.pool_v(v_BNE[:, 0])), whole_BNE[:, extra:])


class CoAttention(nn.Module):
    """Both streams read each other, from the same inputs: f_{v->t} and, unless left out, f_{t->v}."""

    def __init__(
        self, width: int, regions_width: int, heads: int, shared: bool, feed: bool, both: bool, dropout: float
    ):
        super().__init__()
        self.both, own = both, both and not shared
        self.to_text = PostNormAttention(width, regions_width, heads, dropout)
        self.to_regions = PostNormAttention(regions_width, width, heads, dropout) if own else None
        self.feed_text = PostNormFeed(width, dropout) if feed else nn.Identity()
        self.feed_regions = PostNormFeed(regions_width, dropout) if feed and both else nn.Identity()

    def forward(
        self, t_BTD: Tensor, v_BNE: Tensor, on_words: Tensor | None, on_regions: Tensor | None, aux: Aux | None = None
    ) -> tuple[Tensor, Tensor]:
        """``on_words``, ``on_regions``: additive masks of what is padding, as keys."""
        t_f_BTD = self.to_text(t_BTD, v_BNE, on_regions, aux)
        if not self.both:
            return self.feed_text(t_f_BTD), v_BNE
        back: Aux | None = None if aux is None else {}
        v_f_BNE = (self.to_regions or self.to_text)(v_BNE, t_BTD, on_words, back)
        if back is not None:
            note(aux, "attention_back", back["attention"][-1])  # (B, H, N, T)
        return self.feed_text(t_f_BTD), self.feed_regions(v_f_BNE)
