"""Visual tokens in front of the text, as if they were words (slot E).

    x = [H_1 ... H_N ; W_e bos, W_e w_1, ...]            H: visual tokens of width D (LLaVA, arXiv 2304.08485, 3.1-3.2)
    y = LM(x)                                            the words' columns of it

In documents of several pictures, and with examples in front of a question, the vectors of each picture stand where the
picture does (Tsimpoukelli et al. 2021, section 3.2; VILA, arXiv 2312.07533):

    x = [W_e bos, W_e w_1 ..., H^1_1 ... H^1_N, W_e w_k ..., H^2_1 ... H^2_N, ...]

``open``: the visual tokens see each other whatever their order (SimVLM, arXiv 2108.10904; PaliGemma, arXiv 2407.07726);
otherwise each sees those before it, as in LLaVA. What makes word vectors of the encoder's tokens is the projector:
``projector=mlp`` is LLaVA's; ``projector=pooled``, two vectors of the pooled feature and no tokens, is Frozen's
(Tsimpoukelli et al. 2021, arXiv 2106.13884), whose encoder learns through a language model that does not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from src.contracts import Language, LanguageSpec, Memory, Text, VisionSpec, Visual, present
from src.fusion.base import Writer
from src.layers.cache import Cache
from src.layers.notes import Aux


class Prefix(Writer):
    """No parameters of its own."""

    where = "E"
    multi_image = True
    among_words = True

    def __init__(self, vision: VisionSpec, language: LanguageSpec, open: bool):
        super().__init__(vision, language)
        self.open = open
        self.extra_positions = vision.tokens

    @staticmethod
    def refusals(vision, language, data, fusion):
        if vision.width != language.width:
            yield (
                f"fusion=prefix puts visual tokens of width {vision.width} among word vectors of {language.width}; "
                "use projector=mlp."
            )
        if data.interleaved and fusion.open:
            yield (
                "fusion.open=true would show the words of a document the pictures behind them; use fusion.open=false."
            )
        if data.p_next > 0:
            yield (
                f"data.p_next={data.p_next} lets words look at the next picture, which among words has no meaning; use "
                "data.p_next=0."
            )
        if data.interleaved and vision.tokens + 3 > data.max_tokens:
            yield (
                f"{vision.tokens} visual tokens a picture leave no room for words within data.max_tokens="
                f"{data.max_tokens}; raise it, or use a projector that makes fewer (projector=perceiver)."
            )
        if not data.interleaved and vision.tokens + data.max_tokens > language.context:
            yield (
                f"{vision.tokens} visual tokens in front of data.max_tokens={data.max_tokens} do not fit: the language "
                f"model reads {language.context} positions; use a projector that makes fewer (projector=perceiver), "
                "lower data.max_tokens, or raise language.model.context of a model made here."
            )

    def encode(self, lm: Language, visual: Visual, aux: Aux | None = None) -> Memory:
        return Memory.of(prefix=visual.tokens_INC, valid=visual.valid_IN)

    def decode(
        self, lm: Language, memory: Memory, text: Text, cache: Cache | None = None, aux: Aux | None = None
    ) -> Tensor:
        x_BSD, N = lm.embed(text.ids_BT), 0
        if text.visual_BT is not None:
            x_BSD = self._in_place(x_BSD, memory["prefix"], text)
        elif cache is None or cache.length == 0:
            N, G = memory["prefix"].shape[1], len(x_BSD) // len(memory["prefix"])
            prefix_BND = memory["prefix"].repeat_interleave(G, dim=0).to(x_BSD.dtype)
            valid_BN = memory["valid"].repeat_interleave(G, dim=0) if "valid" in memory else None
            x_BSD = torch.cat([prefix_BND, x_BSD], dim=1)  # S = N + T
            text = text.behind(N, valid_BN, self.open)
        h_BSD, walk = lm.begin(x_BSD, text, cache)
        for block in lm.blocks():
            h_BSD = block.feed(block.attend(h_BSD, walk))
        return lm.final_norm(h_BSD)[:, N:]  # (B, T, D)

    def _in_place(self, x_BTD: Tensor, prefix_IND: Tensor, text: Text) -> Tensor:
        """Inputs with the visual tokens where pictures stand; N of ``prefix`` counts those of all M pictures."""
        (I, _, D), (B, T) = prefix_IND.shape, text.ids_BT.shape
        visual_BT = present(text.visual_BT, "place of the pictures")
        at_BT = ((text.phi_BT - 1) * self.extra_positions + visual_BT - 1).clamp_min(0)
        at_IX = at_BT.view(I, B // I * T)
        tokens_IXD = prefix_IND.gather(1, at_IX[:, :, None].expand(-1, -1, D))
        return torch.where(visual_BT[:, :, None] > 0, tokens_IXD.view(B, T, D).to(x_BTD.dtype), x_BTD)
