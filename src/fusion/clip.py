"""CLIP: a picture and a text are a vector each, and meet in nothing but the product of these.

Radford et al. 2021, arXiv 2103.00020, section 2.3 and figure 3:

    x = W_v g / |W_v g|        g: the picture, pooled by the vision encoder
    y = W_t h / |W_t h|        h: the language model's last hidden state at the text's end token
    s = e^t x y^T              e^t: learnt, 1 / 0.07 at first and at most 100

Both maps are linear, and each leads from its own modality into the space where vectors are compared. It learns by
objective=contrastive; a finished run of it judges what others write (decode=magic decode.judge=<run>).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from src.contracts import Language, LanguageSpec, Memory, Text, VisionSpec, Visual
from src.fusion.base import Retriever, last_columns
from src.kinds import Size
from src.layers.contrast import unit
from src.layers.notes import Aux

START, MOST = math.log(1 / 0.07), math.log(100)  # of t


class CLIP(Retriever):
    """``embed_width``: E of x and y; None: the language model's width."""

    needs_tokens = False
    undecayed = ("t",)

    def __init__(self, vision: VisionSpec, language: LanguageSpec, embed_width: Size | None):
        super().__init__(vision, language)
        E = language.width if embed_width is None else embed_width
        self.W_v = nn.Linear(vision.pooled_width, E, bias=False)
        self.W_t = nn.Linear(language.width, E, bias=False)
        for W in (self.W_v, self.W_t):
            nn.init.normal_(W.weight, std=W.in_features**-0.5)
        self.t = nn.Parameter(torch.tensor(START))

    def encode(self, lm: Language, visual: Visual, aux: Aux | None = None) -> Memory:
        return Memory(x=unit(self.W_v(visual.pooled_IC)))

    def embed_pictures(self, memory: Memory) -> Tensor:
        return memory["x"]

    def embed_texts(self, lm: Language, text: Text) -> Tensor:
        h_BTD, _ = lm.read(text)
        return unit(self.W_t(last_columns(h_BTD, text)))

    def scale(self) -> Tensor:
        """e^t, brought back to its bound where a step has left it."""
        with torch.no_grad():
            self.t.clamp_(max=MOST)
        return self.t.exp()

    def scalars(self) -> dict[str, float]:
        return {"temperature": (-self.t).exp().item()}
