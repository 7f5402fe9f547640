"""ClipCap: the picture becomes a few word-like vectors in front of the text (slot E).

Mokady, Hertz, Bermano 2021, "ClipCap: CLIP Prefix for Image Captioning", arXiv 2111.09734, section 3.

    e                                           pooled picture vector (I, C), not normalised
    mlp:          P = W2 tanh(W1 e + b1) + b2   W1: C -> kD/2, W2: kD/2 -> kD, read as k vectors of width D
    transformer:  S = [W e + b as c vectors ; const]   const: k learnt vectors ~ N(0, 1)
                  P = Enc(S)[c:]                Enc: 8 pre-norm layers, 8 heads, ReLU MLP of ratio 2, no final norm
    input         [P ; embeddings of the caption]

The paper feeds no start token: the last prefix vector predicts the first word. Here the start token's column carries
that last vector (P_k), the other k - 1 stand before it, so every mechanism sees the same token rows.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.contracts import Language, LanguageSpec, Memory, Text, VisionSpec, Visual
from src.fusion.base import Writer
from src.kinds import BelowOne, Size
from src.layers.attention import attention
from src.layers.cache import Cache
from src.layers.dropout import Dropout
from src.layers.lists import ModuleList
from src.layers.notes import Aux, note


class ClipCap(Writer):
    """``mapper``: mlp (the paper pairs it with a tuned LM) or transformer (with a frozen one).

    ``prefix_length`` k; ``clip_length`` c, ``layers`` and ``heads`` belong to the transformer mapper.
    """

    where = "E"
    needs_tokens = False

    def __init__(
        self,
        vision: VisionSpec,
        language: LanguageSpec,
        mapper: Literal["mlp", "transformer"],
        prefix_length: Size,
        clip_length: Size,
        layers: Size,
        heads: Size,
        dropout: BelowOne,
    ):
        super().__init__(vision, language)
        self.drop = Dropout(dropout)
        if mapper == "mlp":
            self.mapper = MLPMapper(vision.pooled_width, language.width, prefix_length)
        else:
            self.mapper = TransformerMapper(
                vision.pooled_width, language.width, prefix_length, clip_length, layers, heads, dropout
            )
            self.undecayed = ("mapper.const_kD",)
        self.extra_positions = prefix_length - 1

    @staticmethod
    def refusals(fusion, language, data):
        if fusion.mapper == "transformer" and language.width % fusion.heads:
            yield f"fusion.heads={fusion.heads} must divide the language model's width {language.width}."
        if data.interleaved:
            yield "fusion=clipcap reads one picture per text, and these data have several; use fusion=flamingo."

    def encode(self, lm: Language, visual: Visual, aux: Aux | None = None) -> Memory:
        if visual.pooled_IMC.shape[1] == 0:  # no picture, no prefix
            return Memory(prefix=visual.pooled_IMC.new_empty(len(visual.pooled_IMC), 0, lm.spec.width))
        return Memory(prefix=self.drop(self.mapper(visual.pooled_IC)))  # (I, P, D)

    def decode(
        self, lm: Language, memory: Memory, text: Text, cache: Cache | None = None, aux: Aux | None = None
    ) -> Tensor:
        x_BTD, ahead = lm.embed(text.ids_BT), 0
        x_BSD = x_BTD
        prefix_IPD = memory["prefix"]
        if (cache is None or cache.length == 0) and prefix_IPD.shape[1]:
            note(aux, "prefix", prefix_IPD)
            prefix_BPD = prefix_IPD.repeat_interleave(len(x_BTD) // len(prefix_IPD), dim=0).to(x_BTD.dtype)
            x_BTD = torch.where(text.starts()[:, :, None], prefix_BPD[:, -1:], x_BTD)
            ahead = self.extra_positions
            x_BSD = torch.cat([prefix_BPD[:, :-1], x_BTD], dim=1)  # S = P-1+T
            text = text.behind(ahead)
        h_BSD, walk = lm.begin(x_BSD, text, cache)
        for block in lm.blocks():
            h_BSD = block.feed(block.attend(h_BSD, walk))
        return lm.final_norm(h_BSD)[:, ahead:]  # (B, T, D)


class MLPMapper(nn.Module):
    """P = W2 tanh(W1 e + b1) + b2; (I, C) -> (I, k, D)."""

    def __init__(self, source_width: int, width: int, prefix_length: int):
        super().__init__()
        self.prefix_length = prefix_length
        self.fc1 = nn.Linear(source_width, width * prefix_length // 2)
        self.fc2 = nn.Linear(width * prefix_length // 2, width * prefix_length)

    def forward(self, e_IC: Tensor) -> Tensor:
        return self.fc2(torch.tanh(self.fc1(e_IC))).unflatten(-1, (self.prefix_length, -1))


class TransformerMapper(nn.Module):
    """P = Enc([W e as c vectors ; const])[c:]; (I, C) -> (I, k, D)."""

    def __init__(
        self,
        source_width: int,
        width: int,
        prefix_length: int,
        clip_length: int,
        layers: int,
        heads: int,
        dropout: float,
    ):
        super().__init__()
        self.clip_length = clip_length
        self.linear = nn.Linear(source_width, clip_length * width)
        self.const_kD = nn.Parameter(torch.randn(prefix_length, width))
        self.layers = ModuleList(MapperLayer(width, heads, dropout) for _ in range(layers))

    def forward(self, e_IC: Tensor) -> Tensor:
        image_IcD = self.linear(e_IC).unflatten(-1, (self.clip_length, -1))
        s_ISD = torch.cat([image_IcD, self.const_kD.expand(len(e_IC), -1, -1).to(image_IcD.dtype)], dim=1)  # S = c + k
        for layer in self.layers:
            s_ISD = layer(s_ISD)
        return s_ISD[:, self.clip_length :]


class MapperLayer(nn.Module):
    """Pre-norm encoder layer; queries, keys and values without bias, MLP ratio 2 with ReLU."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout, self.drop = heads, dropout, Dropout(dropout)
        self.norm1 = nn.LayerNorm(width)
        self.to_queries = nn.Linear(width, width, bias=False)
        self.to_keys_values = nn.Linear(width, 2 * width, bias=False)
        self.project = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 2 * width)
        self.fc2 = nn.Linear(2 * width, width)

    def forward(self, s_ISD: Tensor) -> Tensor:
        n_ISD = self.norm1(s_ISD)
        k_ISD, v_ISD = self.to_keys_values(n_ISD).chunk(2, dim=-1)
        q_IHSd, k_IHSd, v_IHSd = (
            x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (self.to_queries(n_ISD), k_ISD, v_ISD)
        )
        dropout = self.dropout if self.training else 0.0
        read_ISD = attention(q_IHSd, k_IHSd, v_IHSd, dropout=dropout).transpose(1, 2).flatten(2)
        s_ISD = s_ISD + self.drop(self.project(read_ISD))
        return s_ISD + self.drop(self.fc2(F.relu(self.fc1(self.norm2(s_ISD)))))
